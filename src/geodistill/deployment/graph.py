"""A classifier as ONNX, TorchScript or LiteRT: one file, with what is needed to use it in its metadata.

The graph takes normalised float32 images [n, C, s, s] ("float"), or, with its preprocessing inside, uint8 images
[n, s, s, C] ("uint8"), as image decoders give them. Its output is logits float32 [n, classes]. n is free, except for
LiteRT, where it is 1.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor, nn

from geodistill.deployment.formats import needed
from geodistill.errors import ExportError
from geodistill.evaluation.classifier import About, Classifier
from geodistill.networks import imagenet_statistics, normalise
from geodistill.run import written_whole

Input = Literal["float", "uint8"]
# Key of the metadata with which a file is read again; the other keys are for programs that are not ours.
ABOUT, INPUT = "geodistill.classifier", "input"
IMAGES, LOGITS = "images", "logits"
# Name of the metadata within a TorchScript file.
EXTRA_FILE = "geodistill.json"
# Of ONNX: the first version with all that torch's exporter writes.
_OPSET = 18
# A name of torch's operators in a message of an exporter.
_OPERATOR = re.compile(r"\b(?:aten|prims)[.:]+[a-z_0-9]+")


class Deployed(nn.Module):
    """A network on the CPU, in evaluation mode, with its preprocessing in front if `takes` is "uint8"."""

    def __init__(self, network: nn.Module, takes: Input, channels: int = 3) -> None:
        super().__init__()
        self.network = deepcopy(network).cpu().eval()
        self.takes = takes
        self.factor: Tensor
        self.offset: Tensor
        mean, std = imagenet_statistics(torch.device("cpu"), channels)
        self.register_buffer("factor", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [n, classes] of images as `takes` says."""
        if self.takes == "uint8":
            images = images.permute(0, 3, 1, 2).float() * self.factor + self.offset  # [n, s, s, C] -> [n, C, s, s]
        logits: Tensor = self.network(images)
        return logits


def as_input(images: Tensor, takes: Input) -> Tensor:
    """Return uint8 images [n, C, s, s] as the graph takes them."""
    return images.permute(0, 2, 3, 1).contiguous() if takes == "uint8" else normalise(images).contiguous()


def metadata(about: About, takes: Input) -> dict[str, str]:
    """Return what a file says about its model, as text."""
    own = {"classes": list(about.classes), "license": about.licence or "as the training data"}
    own |= about.preprocessing()
    if takes == "uint8":
        # The graph does this part itself.
        own = {name: value for name, value in own.items() if name not in ("mean", "std")}
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in own.items()}
    kind, count = "RGB " if about.channels == 3 else "", about.channels
    whole = f"uint8 {kind}[n, size, size, {count}]"
    layout = whole if takes == "uint8" else f"float32 [n, {count}, size, size], normalised"
    return told | {ABOUT: json.dumps(about.as_dict()), INPUT: takes, "layout": layout}


def write_onnx(classifier: Classifier, path: Path, takes: Input) -> None:
    """Write the classifier to the ONNX file `path`.

    Raises:
        ExportError: ONNX lacks an operator of the network, or a package is missing.
    """
    onnx = needed("onnx", "format onnx", "export")
    example = as_input(_example(classifier, 2), takes)
    with quiet(), _explained("ONNX", classifier.about.network):
        program: Any = torch.onnx.export(
            _deployed(classifier, takes),
            (example,),
            dynamo=True,
            input_names=[IMAGES],
            output_names=[LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=_OPSET,
            verbose=False,
        )
    save_onnx(onnx, program.model_proto, path, metadata(classifier.about, takes))


def save_onnx(onnx: Any, model: Any, path: Path, told: dict[str, str]) -> None:
    """Write an ONNX `model` with the metadata `told` to `path`, which appears only when it is complete."""
    _forget_sources(model)
    onnx.helper.set_model_props(model, told)
    with written_whole(path) as aside:
        onnx.save(model, aside)


def _forget_sources(model: Any) -> None:
    """Remove what torch's exporter notes about each node: lines of source code, and their paths on this machine."""
    for part in (model.graph, *model.functions):
        for field in ("node", "value_info", "input", "output", "initializer"):
            for one in getattr(part, field, ()):
                if isinstance(one, str):  # inputs and outputs of functions are names
                    continue
                one.ClearField("doc_string")
                one.ClearField("metadata_props")
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def write_torchscript(classifier: Classifier, path: Path, takes: Input) -> None:
    """Write the classifier to the TorchScript file `path`, traced and frozen; `torch.jit.load` reads it.

    Raises:
        ExportError: the network cannot be traced.
    """
    example = as_input(_example(classifier, 2), takes)
    with quiet(), _explained("TorchScript", classifier.about.network), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(_deployed(classifier, takes), example))
    whole = io.BytesIO()
    torch.jit.save(traced, whole, {EXTRA_FILE: json.dumps(metadata(classifier.about, takes))})
    with written_whole(path) as aside, ZipFile(whole) as made, ZipFile(aside, "w") as file:
        for one in made.infolist():
            # Debug records hold lines of source code, and their paths on this machine.
            if not one.filename.endswith(".debug_pkl"):
                file.writestr(ZipInfo(one.filename), made.read(one))


def write_litert(classifier: Classifier, path: Path, takes: Input) -> None:
    """Write the classifier to the LiteRT file `path`, for one image at a time.

    Raises:
        ExportError: LiteRT lacks an operator of the network, or a package is missing.
    """
    litert = needed("litert_torch", "format litert", "litert")
    example = as_input(_example(classifier, 1), takes)
    deployed = _deployed(classifier, takes).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with quiet(), _explained("LiteRT", classifier.about.network):
        converted = litert.convert(deployed, (example,))
    with written_whole(path) as aside:
        converted.export(str(aside))


def _deployed(classifier: Classifier, takes: Input) -> nn.Module:
    return Deployed(classifier.model, takes, classifier.about.channels).eval()


def _example(classifier: Classifier, count: int) -> Tensor:
    about = classifier.about
    return torch.zeros(count, about.channels, about.size, about.size, dtype=torch.uint8)


@contextmanager
def _explained(target: str, network: str) -> Iterator[None]:
    """Turn the errors of an exporter into an ExportError that names the network and, if it is one, the operator."""
    try:
        yield
    except Exception as error:  # each exporter raises its own kinds, and many others
        causes = list(_chain(error))
        named = next((found[0] for one in causes if (found := _OPERATOR.search(str(one)))), None)
        # The first of them: torch's exporter wraps it in a page of advice to developers.
        reason = next(iter(str(causes[-1]).strip().splitlines()), type(causes[-1]).__name__)
        why = f"it has no operator {named}" if named else reason
        raise ExportError(
            f"{network} cannot be written as {target}: {why}: choose another format, or train another network"
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what exporters tell their own developers."""
    before = logging.root.manager.disable
    # Of many loggers, and of the root.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
