"""Distribution matching (Zhao and Bilen, WACV 2023): pixels optimised until their mean features match the class's.

Each step draws a new random ConvNet-3 f (128 channels, instance norm). It moves the images S of a class, which are
initialised with real images, down the gradient of

    ‖ mean_{x ∈ T} f(A(x)) - mean_{s ∈ S} f(A(s)) ‖²

T is a random batch of the class's real images. A is one augmentation for all images of both (differentiable siamese
augmentation): a random symmetry of the square and a random crop. The optimiser is SGD with learning rate 1 and momentum
0.5, as in the paper.

Deviations: 100 steps on 32 real images each, instead of 20,000 on 256, which would take weeks on two cores; these take
about ten minutes for 30 classes at 64 px, IPC 10. The class terms of the paper's loss are independent of each other, so
one class is optimised after the other, and each is saved once it is done. Features are pooled to at most 4x4, as in
this project's ConvNet-3. The images are saved as files, so pixels stay within 0 to 255.
"""

from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from geodistill.distilled import DistilledSet
from geodistill.evaluation.protocols import augment
from geodistill.networks import build_network, compiled, imagenet_statistics, normalise
from geodistill.prior.training import batches
from geodistill.provenance import Made
from geodistill.run import kept_parts
from geodistill.scenes.pixels import Images, Pixels
from geodistill.scenes.views import dihedral
from geodistill.seeding import derive_seed, generator
from geodistill.stages.context import Context
from geodistill.stages.distilled import write_set

STEPS, LEARNING_RATE, MOMENTUM, REAL_BATCH = 100, 1.0, 0.5, 32
# Total number of steps, over all classes, from which the network is compiled. Compiling takes about as long as it saves
# in half of them.
_WORTH_COMPILING = 500


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` optimised images of each class."""
    scenes, config = context.scenes, context.config

    def of_class(which: slice) -> Tensor:
        real = Pixels(scenes, config.size, (scenes.labels == which.start).nonzero()[:, 0])
        fast = STEPS * len(scenes.classes) >= _WORTH_COMPILING
        return condense(real, config.ipc, seed=derive_seed(config.seed, "dm", which.start), steps=STEPS, fast=fast)

    def images(folder: Path) -> Tensor:
        return kept_parts("classes", batches(len(scenes.classes), 1), of_class, folder)

    constants = [STEPS, LEARNING_RATE, MOMENTUM, REAL_BATCH]
    given = [scenes.fingerprint(), config.ipc, config.size, config.seed, *constants]
    return write_set(context, images, given=given)


def condense(real: Images, count: int, *, seed: int, steps: int, fast: bool = False) -> Tensor:
    """Return uint8 [count, C, s, s]: images optimised to represent `real`, uint8 [n, C, s, s], of one class.

    `real` may be in files. `fast` compiles the network, once for all sets of this size.
    """
    first = torch.randperm(len(real), generator=generator(seed, "first images"))[:count]
    # A class may be large, but the steps use few of its images: these are read once.
    drawn = [torch.randperm(len(real), generator=generator(seed, "step", step))[:REAL_BATCH] for step in range(steps)]
    rows = torch.cat([first, *drawn]).unique()
    used = real[rows]

    def images(which: Tensor) -> Tensor:
        return normalise(used[torch.searchsorted(rows, which)])

    made = images(first).requires_grad_()
    optimiser = torch.optim.SGD([made], lr=LEARNING_RATE, momentum=MOMENTUM)
    for step in range(steps):
        random = generator(seed, "step", step)
        batch = images(torch.randperm(len(real), generator=random)[:REAL_BATCH])
        together = siamese(torch.cat([batch, made]), random)
        embed = random_embedding(derive_seed(seed, "network", step), real.shape[1])
        if fast:
            embed = _compiled_embedding(count, *real.shape[1:3]).of(embed)
        loss = mismatch(embed, together, len(batch))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        _keep_in_range(made)
    return _to_pixels(made.detach())


def random_embedding(seed: int, channels: int = 3) -> nn.Module:
    """Return a ConvNet-3 with random weights, without its last layer: images [n, channels, s, s] to features [n, D]."""
    network = cast(nn.Sequential, build_network("convnet3", 2, seed, channels))
    return network[:-1].requires_grad_(False)


class _CompiledEmbedding:
    """One compiled network that takes the weights of others in turn."""

    def __init__(self, count: int, channels: int, side: int) -> None:
        self._network = random_embedding(0, channels)
        like = torch.zeros(count, channels, side, side, requires_grad=True).contiguous(
            memory_format=torch.channels_last
        )
        self._fast = compiled("convnet3", self._network, like, torch.autocast("cpu", enabled=False))

    def of(self, other: nn.Module) -> nn.Module:
        """Return the compiled network with the weights of `other`."""
        self._network.load_state_dict(other.state_dict())
        return self._fast


_compiled_embedding = cache(_CompiledEmbedding)


def mismatch(embed: nn.Module, images: Tensor, real: int) -> Tensor:
    """Return the squared distance between the mean features of the first `real` images and those of the others."""
    with torch.no_grad():
        wanted = embed(images[:real]).mean(dim=0)
    distance: Tensor = (wanted - embed(images[real:]).mean(dim=0)).square().sum()
    return distance


def siamese(images: Tensor, random: torch.Generator) -> Tensor:
    """Return `images` [n, 3, s, s] under one random symmetry and one random crop, the same for all of them."""
    view = int(torch.randint(0, 8, (), generator=random))
    # Passed as channels of one image, so that all get the same crop.
    cropped = augment(images.reshape(1, -1, *images.shape[2:]), random)
    return dihedral(cropped.reshape(images.shape), view).contiguous(memory_format=torch.channels_last)


def _range(channels: int) -> tuple[Tensor, Tensor]:
    """Return the values that `normalise` gives to pixels 0 and 255, [channels, 1, 1] each."""
    mean, std = imagenet_statistics(torch.device("cpu"), channels)
    return -mean / std, (1 - mean) / std


@torch.no_grad()
def _keep_in_range(images: Tensor) -> None:
    low, high = _range(images.shape[1])
    images.copy_(torch.minimum(torch.maximum(images, low), high))


def _to_pixels(images: Tensor) -> Tensor:
    low, high = _range(images.shape[1])
    return ((images - low) / (high - low) * 255).round().to(torch.uint8).contiguous()
