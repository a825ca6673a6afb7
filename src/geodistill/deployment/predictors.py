"""Classifiers that predict, whatever format they have: a folder of ours, ONNX, TorchScript or LiteRT."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from geodistill.deployment.formats import needed
from geodistill.deployment.graph import ABOUT, EXTRA_FILE, IMAGES, INPUT, Input, as_input
from geodistill.errors import ConfigError
from geodistill.evaluation.classifier import WEIGHTS, About, Classifier, check_images

_BATCH = 64


class Predictor(Protocol):
    """Whatever predicts classes, and says which."""

    @property
    def about(self) -> About:
        """Return what the classifier was made for."""

    def logits(self, images: Tensor) -> Tensor:
        """Return logits float32 [n, classes] of uint8 images [n, channels, size, size].

        Raises:
            ConfigError: the images have another size.
        """


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file, run by ONNX Runtime on the CPU."""

    session: Any
    about: About
    takes: Input

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, as `Predictor` describes them."""
        check_images(images, self.about)
        parts = [as_input(part, self.takes).numpy() for part in images.split(_BATCH)]
        return torch.cat([torch.from_numpy(self.session.run(None, {IMAGES: part})[0]) for part in parts])

    @classmethod
    def load(cls, path: Path) -> "OnnxModel":
        """Return the model in the ONNX file at `path`.

        Raises:
            ConfigError: the file is missing, damaged, or was not exported by geodistill.
            ExportError: ONNX Runtime is missing.
        """
        runtime = needed("onnxruntime", f"{path}", "export")
        try:
            session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own kinds
            raise _not_ours(path, error) from error
        about, takes = _told(path, session.get_modelmeta().custom_metadata_map)
        return cls(session, about, takes)


@dataclass(frozen=True)
class TorchScriptModel:
    """A TorchScript file, run by torch on the CPU."""

    module: Any
    about: About
    takes: Input

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, as `Predictor` describes them."""
        check_images(images, self.about)
        return torch.cat([self.module(as_input(part, self.takes)) for part in images.split(_BATCH)])

    @classmethod
    def load(cls, path: Path) -> "TorchScriptModel":
        """Return the model in the TorchScript file at `path`; raise ConfigError as `OnnxModel.load` does."""
        extra = {EXTRA_FILE: ""}
        try:
            module = torch.jit.load(path, "cpu", extra)
        except (RuntimeError, ValueError, OSError) as error:
            raise _not_ours(path, error) from error
        return cls(module, *_told(path, json.loads(extra[EXTRA_FILE] or "{}")))


@dataclass(frozen=True)
class LiteRtModel:
    """A LiteRT file, run by its interpreter on the CPU, one image at a time."""

    interpreter: Any
    about: About
    takes: Input

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, as `Predictor` describes them."""
        check_images(images, self.about)
        return torch.cat([self._one(part) for part in images.split(1)])

    def _one(self, image: Tensor) -> Tensor:
        (entry,), (end,) = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.interpreter.set_tensor(entry["index"], as_input(image, self.takes).numpy())
        self.interpreter.invoke()
        return torch.from_numpy(self.interpreter.get_tensor(end["index"]))

    @classmethod
    def load(cls, path: Path) -> "LiteRtModel":
        """Return the model in the LiteRT file at `path`, which lies in the folder of its classifier.

        A LiteRT file holds no metadata of ours: the folder says what the model is for. Raises ConfigError as
        `OnnxModel.load` does, and ExportError if the interpreter is missing.
        """
        runtime = needed("ai_edge_litert.interpreter", f"{path}", "litert")
        if not (path.parent / WEIGHTS).is_file():
            raise ConfigError(f"{path} lies outside the folder of its model, which has its classes: leave it there")
        try:
            interpreter = runtime.Interpreter(model_path=str(path))
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise _not_ours(path, error) from error
        takes: Input = "uint8" if interpreter.get_input_details()[0]["dtype"].__name__ == "uint8" else "float"
        return cls(interpreter, Classifier.load(path.parent).about, takes)


_MODELS: dict[str, type[OnnxModel] | type[TorchScriptModel] | type[LiteRtModel]] = {
    ".onnx": OnnxModel,
    ".torchscript": TorchScriptModel,
    ".tflite": LiteRtModel,
}


def load_predictor(path: Path | str) -> Predictor:
    """Return the classifier in the folder at `path`, or in the exported file at `path`.

    Raises:
        ConfigError: it is neither, or it is damaged.
        ExportError: a package that runs the format is missing.
    """
    path = Path(path)
    if path.is_dir():
        return Classifier.load(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such model: give the folder that `geodistill train` wrote, or an exported file")
    if path.suffix not in _MODELS:
        raise ConfigError(f"{path}: no model file: known are {', '.join(_MODELS)}, or the folder of a model")
    return _MODELS[path.suffix].load(path)


def _told(path: Path, found: dict[str, str]) -> tuple[About, Input]:
    try:
        takes: Input = "uint8" if found[INPUT] == "uint8" else "float"
        return About.from_dict(json.loads(found[ABOUT])), takes
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} does not say which classes it predicts: give a file that `geodistill export` wrote"
        ) from error


def _not_ours(path: Path, error: Exception) -> ConfigError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ConfigError(f"{path} cannot be loaded ({reason}): export the model again")
