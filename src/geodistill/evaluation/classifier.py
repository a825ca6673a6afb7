"""A trained classifier as a file: its weights, and all that is needed to use it on new images."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from geodistill.devices import accelerator
from geodistill.errors import ConfigError
from geodistill.evaluation.protocols import predict
from geodistill.networks import build_network
from geodistill.run import save_tensors

SUFFIX = ".safetensors"
_ABOUT = "geodistill.classifier"


@dataclass(frozen=True)
class About:
    """What a classifier was made for.

    network: a name that `networks.check_network` knows. protocol: how it was trained. classes: their names; logit k
    belongs to class k. size: side of its images in pixels. seed: of its training. channels: of its images, 3 for RGB.
    """

    network: str
    protocol: str
    classes: tuple[str, ...]
    size: int
    seed: int = 0
    channels: int = 3


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
        channels, side = self.about.channels, self.about.size
        if tuple(images.shape[1:]) != (channels, side, side):
            wanted = f"[n, {channels}, {side}, {side}]"
            raise ConfigError(f"the classifier takes images {wanted}, these are {list(images.shape)}")
        return predict(self.model, images)

    def save(self, path: Path) -> None:
        """Write the classifier to `path`, one safetensors file; its metadata hold `about` as JSON."""
        save_tensors(dict(self.model.state_dict()), path, {_ABOUT: json.dumps(asdict(self.about))})

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        """Return the classifier that `save` wrote to `path`.

        Raises:
            ConfigError: the file is missing, damaged, or no classifier of geodistill.
        """
        try:
            with safe_open(path, "pt") as file:
                found = json.loads((file.metadata() or {})[_ABOUT])
            about = About(**found | {"classes": tuple(found["classes"])})
            model = build_network(about.network, len(about.classes), 0, about.channels)
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"{path} is not a classifier that geodistill saved ({why})") from error
        return cls(model.to(accelerator()).eval(), about)
