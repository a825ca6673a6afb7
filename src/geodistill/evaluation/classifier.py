"""A trained classifier as a folder: its weights, and all that is needed to use it on new images.

MODEL/model.safetensors    the weights; the file's metadata hold `About` as JSON
MODEL/class_map.txt        a class a line; logit k belongs to line k, counted from 0
MODEL/preprocessing.json   what becomes of an image before the network sees it
MODEL/README.md            the model card
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from geodistill.devices import accelerator
from geodistill.distilled import CLASS_MAP
from geodistill.errors import ConfigError
from geodistill.evaluation.protocols import predict
from geodistill.networks import IMAGENET_MEAN, IMAGENET_STD, build_network, has_imagenet_weights
from geodistill.run import save_tensors, write_atomic
from geodistill.scenes.reading import PLAIN, Reading

WEIGHTS, PREPROCESSING, CARD = "model.safetensors", "preprocessing.json", "README.md"
_ABOUT = "geodistill.classifier"
_UNKNOWN_LICENCE = "as the training data"


@dataclass(frozen=True)
class About:
    """What a classifier was made for.

    network: a name that `networks.check_network` knows. protocol: how it was trained. classes: their names; logit k
    belongs to class k. size: side of its images in pixels. seed: of its training. reading: how files become its images.
    channels: of its images, 3 for RGB. trained_on: its training images in words. licence: of the training data, which
    may bind the model.
    """

    network: str
    protocol: str
    classes: tuple[str, ...]
    size: int
    seed: int = 0
    reading: Reading = PLAIN
    trained_on: str = ""
    licence: str = ""
    channels: int = 3

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types; `from_dict` reads it."""
        return asdict(self) | {"classes": list(self.classes), "reading": self.reading.as_dict()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "About":
        """Return what `as_dict` wrote; raise KeyError, TypeError or ValueError if it is something else."""
        own = {**found, "classes": tuple(found["classes"])}
        if "reading" in found:
            own["reading"] = Reading.from_dict(found["reading"])
        return cls(**own)

    def preprocessing(self) -> dict[str, Any]:
        """Return in JSON types what becomes of an image before the network sees it, for programs that are not ours.

        bands and scale are empty for plain 8-bit images; else `bands` of files with `of_bands` (0 if it is not known)
        are taken, and the values `scale` become 0 and 255. Then the central square is resized to `size`, divided by
        255, and normalised channel by channel, with a mean and a deviation for each. Networks for other bands than RGB
        repeat those of ImageNet.
        """
        count = self.reading.channels
        return {
            "size": self.size,
            "crop": "central square",
            "resize": "bicubic",
            "channels": list(self.reading.names) if self.reading.dtype else "RGB",
            "mean": [IMAGENET_MEAN[band % 3] for band in range(count)],
            "std": [IMAGENET_STD[band % 3] for band in range(count)],
            "bands": list(self.reading.bands),
            "of_bands": self.reading.of_bands,
            "scale": [list(ends) for ends in self.reading.scale],
        }


@dataclass(frozen=True)
class Classifier:
    """A trained network on the accelerator, in evaluation mode, with what it was made for."""

    model: nn.Module
    about: About

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float32 [n, classes] of uint8 images [n, channels, size, size].

        Raises:
            ConfigError: the images have another size.
        """
        check_images(images, self.about)
        return predict(self.model, images)

    def save(self, folder: Path | str) -> None:
        """Write the classifier to `folder`, which is created; the weights, without which it cannot be read, come last.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / CLASS_MAP, "".join(f"{name}\n" for name in self.about.classes))
        write_atomic(folder / PREPROCESSING, json.dumps(self.about.preprocessing(), indent=2) + "\n")
        parameters = sum(one.numel() for one in self.model.parameters())
        write_atomic(folder / CARD, _model_card(self.about, parameters))
        about = {_ABOUT: json.dumps(self.about.as_dict())}
        save_tensors(dict(self.model.state_dict()), folder / WEIGHTS, about)

    @classmethod
    def load(cls, folder: Path | str) -> "Classifier":
        """Return the classifier that `save` wrote to `folder`.

        Raises:
            ConfigError: the folder is missing, damaged, no classifier of geodistill, or has no or another class map.
        """
        folder = Path(folder)
        path = folder / WEIGHTS
        try:
            with safe_open(path, "pt") as file:
                about = About.from_dict(json.loads((file.metadata() or {})[_ABOUT]))
            model = build_network(about.network, len(about.classes), 0, about.channels)
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"{folder} is not a classifier that geodistill saved ({why})") from error
        _check_class_map(folder, about.classes)
        return cls(model.to(accelerator()).eval(), about)


def check_images(images: torch.Tensor, about: About) -> None:
    """Raise ConfigError unless `images` are as the classifier that `about` describes takes them."""
    channels, side = about.channels, about.size
    if tuple(images.shape[1:]) != (channels, side, side):
        raise ConfigError(
            f"the classifier takes images [n, {channels}, {side}, {side}], these are {list(images.shape)}"
        )


def _check_class_map(folder: Path, classes: tuple[str, ...]) -> None:
    path = folder / CLASS_MAP
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no {CLASS_MAP}, which says which logit is which class: copy the file from where the model "
            "was made, or train the model again"
        )
    found = tuple(path.read_text(encoding="utf-8").splitlines())
    if found != classes:
        differs = next((k for k, pair in enumerate(zip(found, classes, strict=False)) if pair[0] != pair[1]), None)
        what = f"{len(found)} classes" if differs is None else f"{found[differs]!r} in line {differs + 1}"
        told = f"{len(classes)}" if differs is None else f"{classes[differs]!r}"
        raise ConfigError(
            f"{path} is the class map of another model: it has {what}, the weights were trained for {told}: copy the "
            "file from where the model was made"
        )


def _model_card(about: About, parameters: int) -> str:
    start = "ImageNet weights" if has_imagenet_weights(about.network) else "random weights"
    reading = about.reading
    scale = ", ".join(dict.fromkeys(f"{low:g} to {high:g}" for low, high in reading.scale))
    return _CARD.format(
        network=about.network,
        parameters=f"{parameters:,}",
        classes=len(about.classes),
        size=about.size,
        start=start,
        protocol=about.protocol,
        seed=about.seed,
        trained_on=about.trained_on or "images that the file does not name",
        licence=json.dumps(about.licence or _UNKNOWN_LICENCE, ensure_ascii=False),
        licence_text=about.licence or "not stated",
        kind=f"An image of {reading.channels} bands" if reading.dtype else "An RGB image",
        bands=reading.told if reading.bands else "the files' own colours",
        scale=f"values from {scale} become 0 to 255" if scale else "8-bit values as they are",
        listing="\n".join(f"{number}. {name}" for number, name in enumerate(about.classes)),
    )


_CARD = """\
---
license: other
license_name: {licence}
library_name: geodistill
pipeline_tag: image-classification
tags:
- remote-sensing
- scene-classification
---

# {network}, {classes} classes, {size} px

A classifier of overhead scenes: {network} ({parameters} parameters) from {start}, trained under protocol `{protocol}`
with seed {seed} on {trained_on}.

## Input and output

{kind}: {bands}, {scale}.
Its central square is resized to {size} x {size} px (bicubic), divided by 255 and normalised by ImageNet's mean and
deviation (`preprocessing.json`). The output is a logit for each class of `class_map.txt`.

## Use

- `geodistill predict MODEL FOLDER` or `RASTER` classifies images or maps a raster.
- `geodistill export MODEL --to onnx` writes it for other runtimes.
- `geodistill bench MODEL --data DATA` measures size, latency and accuracy. The card states no accuracy: none was
  measured when the model was trained.

## Classes

{listing}

## Limits

The model gives every image one of these classes, also an image of something else. Images of another ground resolution,
sensor or season than the training data may get wrong classes. A classifier can reveal which images it was trained on:
what holds for sharing its training images holds for the model.

## Licence

That of the training data: {licence_text}. It may bind the model too.
"""
