"""Stage `initial`: images that the base generates before its adaptation, for candidates to start from.

With `sampling.follow = "base"` no candidate starts from a training image. The base generates images of the classes that
it was trained on. For each class of the archive, those that a classifier of the archive takes for it most surely are
noised and generated again by the adapted base (SDEdit: Meng et al., ICLR 2022). They bring layouts that an adaptation
on few scenes does not learn to generate from text (docs/experiments.md). The other half of the candidates comes from
text alone. Of the training images only the order enters that a classifier of all of them gives.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.config import Config
from geodistill.descriptions import class_prompt
from geodistill.evaluation.protocols import predict_from_features
from geodistill.networks import backbone_features
from geodistill.pipeline import INITIAL
from geodistill.prior.base import Prior
from geodistill.prior.catalogue import read_facts
from geodistill.prior.sample import Requests, sample
from geodistill.prior.training import prompt_table
from geodistill.processes import processes
from geodistill.provenance import Made, derived
from geodistill.run import forget_parts, save_tensors
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.splits import fair_share
from geodistill.seeding import derive_seed
from geodistill.stages.candidates import Slots, decode, from_noise
from geodistill.stages.context import Context, unless_default
from geodistill.stages.latents import scene_features

# Largest number of images that are generated, and of those that the candidates of a class start from.
_IMAGES, _BEST = 2000, 100
# Number of scenes that the classifier learns from, 40 MB of features.
_LEARNED = 2**13
_FILE = "initial.safetensors"


@dataclass(frozen=True)
class Initial:
    """Latents float32 [M, C, h, w] of generated images, and int64 [classes, K], the K best of each class in order."""

    latents: Tensor
    best: Tensor


def initial_images(context: Context, prior: Made[Prior]) -> Made[Initial]:
    """Return what `prior`, not yet adapted, generates of its own classes, from stage `initial`."""
    scenes, config = context.scenes, context.config
    known = scene_features(context)
    count = initial_count(scenes, config)

    def build(folder: Path) -> dict[str, int]:
        base = prior.value
        requests = _of_own_classes(base, count, scenes.classes, config.size)
        drawn = sample(
            base, requests, from_noise(config.sampling), seed=derive_seed(config.seed, INITIAL.name), folder=folder
        )
        if processes().main:
            features = backbone_features(decode(base, drawn, config, draft=True))
            part = fair_share(scenes.labels, _LEARNED, config.seed)
            learned, labels = known.value[part], scenes.labels[part]
            logits = predict_from_features(learned, labels, features, len(scenes.classes))
            best = logits.softmax(dim=1).argsort(dim=0, descending=True, stable=True)[:_BEST].T.contiguous()
            save_tensors({"latents": drawn, "best": best}, folder / _FILE)
            forget_parts(folder)
        return {"images": len(drawn)}

    given = [scenes.fingerprint(), known, prior, count, config.size, config.sampling.model_dump(), config.seed]
    given += unless_default(config.precision)
    return context.run.make(INITIAL, build, lambda folder: Initial(**load_file(folder / _FILE)), given=given)


def initial_count(scenes: Scenes, config: Config) -> int:
    """Return the number of images that the stage generates."""
    return min(_IMAGES, len(scenes.classes) * config.ipc * config.sampling.candidates)


def slots_from(context: Context, initial: Made[Initial], texts: Made[list[str]]) -> Made[Slots]:
    """Return the slots whose candidates start, class by class, from the best of the `initial` images in turn.

    Every other candidate starts from none of them, so each serves two.
    """
    config, classes = context.config, len(context.scenes.classes)

    def compute() -> Slots:
        best = initial.value.best
        ranks = torch.arange(config.ipc * config.sampling.candidates) // 2 % best.shape[1]
        return Slots(texts.value, initial.value.latents, best[:, ranks].reshape(classes * len(ranks)))

    return derived(compute, initial, texts)


def _of_own_classes(base: Prior, count: int, classes: tuple[str, ...], size: int) -> Requests:
    """Return requests for `count` images of the classes that `base` lists, or of `classes` if it lists none."""
    facts = read_facts(base.source)
    names = (facts.classes if facts else ()) or classes
    table, rows = prompt_table([[class_prompt(names[k % len(names)])] for k in range(count)])
    which = torch.arange(count)
    return Requests(rows[:, 0], base.embed(table), base.blank(count, size), which, which)
