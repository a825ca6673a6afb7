"""A trained classifier in another format, checked against the original."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from geodistill.commands.train import labelled_images
from geodistill.deployment.formats import FORMATS, check_format
from geodistill.deployment.graph import Input, write_litert, write_onnx, write_torchscript
from geodistill.deployment.predictors import load_predictor
from geodistill.deployment.quantised import check_calibration, write_int8
from geodistill.errors import ConfigError, ExportError
from geodistill.evaluation.classifier import Classifier

log = logging.getLogger("geodistill")

# Largest difference of a logit from that of the original, in a format of floating-point numbers.
TOLERANCE = 1e-3
_WRITERS: dict[str, Callable[[Classifier, Path, Input], None]] = {
    "onnx": write_onnx,
    "torchscript": write_torchscript,
    "litert": write_litert,
}


@dataclass(frozen=True)
class Exported:
    """An exported file and how it agrees with the original.

    size: bytes. largest: the largest difference of a logit. same: the share of images that get the same class. images:
    their number: calibration images, or random ones.
    """

    path: Path
    size: int
    largest: float
    same: float
    images: int


def export(
    model: Path | str,
    to: str = "onnx",
    *,
    out: Path | str | None = None,
    takes: Input = "float",
    calibrate: Path | str | None = None,
) -> Exported:
    """Write the classifier in the folder `model` in the format `to`, and compare its logits with the original's.

    Args:
        model: a folder that `train` or `evaluate(save=…)` wrote.
        to: onnx, onnx-int8, torchscript or litert.
        out: the file; by default one in `model`, named after the format.
        takes: "float" for an input of normalised float32 images [n, 3, size, size]; "uint8" for RGB images
            [n, size, size, 3] whose preprocessing is part of the graph.
        calibrate: for onnx-int8: the run, set or labelled images whose activations set the ranges of the integers. The
            set that the model was trained on is meant.

    Raises:
        ConfigError: an unknown format, no usable model, no `calibrate` where it is needed, or an `out` where the file
            could not be read.
        ExportError: a package is missing, the format lacks an operator, there are too few images to calibrate on, or
            logits differ by more than 0.001 (not for onnx-int8).
        RunError: the file cannot be written.
    """
    check_format(to)
    classifier = Classifier.load(model)
    if calibrate is not None and to != "onnx-int8":
        log.warning("format %s is not calibrated: --calibrate %s is not used", to, calibrate)
    path = Path(out) if out is not None else Path(model) / FORMATS[to].file
    _check_place(path, Path(model), to)
    images = _calibration(classifier, calibrate) if to == "onnx-int8" else _random_images(classifier)
    if to == "onnx-int8":
        write_int8(classifier, path, takes, images)
    else:
        _WRITERS[to](classifier, path, takes)
    return _checked(classifier, path, images, exact=to != "onnx-int8")


def _check_place(path: Path, model: Path, to: str) -> None:
    """Raise ConfigError if the exported file could not be read at `path`."""
    suffix = Path(FORMATS[to].file).suffix
    if path.suffix != suffix:
        raise ConfigError(f"--out {path}: the name of a file in format {to} ends in {suffix}")
    if to == "litert" and path.resolve().parent != model.resolve():
        raise ConfigError(f"--out {path}: a LiteRT file holds no class names, so it lies in the folder of its model")


def _calibration(classifier: Classifier, subject: Path | str | None) -> Tensor:
    about = classifier.about
    if subject is None:
        raise ConfigError("onnx-int8 needs images to calibrate on: give --calibrate SET, such as the set trained on")
    found = labelled_images(Path(subject), size=about.size, reading=about.reading)
    if found.classes != about.classes:
        missing = sorted(set(about.classes) - set(found.classes)) or sorted(set(found.classes) - set(about.classes))
        raise ConfigError(
            f"{subject} and the model have different classes, {missing[0]!r} first: calibrate on images of its classes"
        )
    check_calibration(len(found.images))
    return found.images


def _random_images(classifier: Classifier) -> Tensor:
    """Return uint8 [5, channels, size, size]: a batch of another size than the one that was traced."""
    shape = (5, classifier.about.channels, classifier.about.size, classifier.about.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _checked(classifier: Classifier, path: Path, images: Tensor, *, exact: bool) -> Exported:
    """Return how the file at `path` agrees with the original; remove it if it has to and does not."""
    before, after = classifier.logits(images), load_predictor(path).logits(images)
    largest = float((before - after).abs().max())
    if exact and not largest <= TOLERANCE:
        path.unlink()
        raise ExportError(
            f"the exported logits differ from the model's by {largest:.2g}, more than {TOLERANCE:g}: the file was "
            "removed; choose another format"
        )
    same = float((before.argmax(1) == after.argmax(1)).double().mean())
    return Exported(path, path.stat().st_size, largest, same, len(images))
