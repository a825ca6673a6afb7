"""Refining what was chosen: stages of DPD between the choice and the set that is handed out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geodistill.config import Config
from geodistill.devices import accelerator
from geodistill.evaluation.networks import PRETRAINED, backbone_features, build_network, fold_norms, pretrained
from geodistill.evaluation.protocols import train_classifier
from geodistill.evaluation.workers import kept_memory
from geodistill.methods.screening import keeps_away
from geodistill.methods.stages import Chosen, decode, scene_features, slot_labels
from geodistill.prior.base import Prior
from geodistill.progress import Advance, progress
from geodistill.refinement import Lesson, random_lesson, refine
from geodistill.run import Run, save_tensors
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import derive_seed
from geodistill.teacher import Teacher, judge

# A random network takes one turn in so many: chosen on a quarter of AID's training scenes (docs/experiments.md).
_RANDOM_EVERY = 4


def refined(chosen: Chosen, prior: Prior, teacher: Teacher, scenes: Scenes, config: Config, run: Run) -> Chosen:
    """Return `chosen` with its latents moved as `refinement.refine` moves them, from stage `refined`.

    Under `privacy = "screen"` an image that came too near to a training image stays as it was chosen.
    """
    labels, known = slot_labels(scenes, config), scene_features(scenes, config, run)
    experts = _train_experts(scenes, config, run)

    def build(folder: Path) -> dict[str, Any]:
        judges = [(pretrained(), known), *_load_experts(experts, scenes, config)]
        lessons = [Lesson(fold_norms(network), labels, seen, scenes.labels) for network, seen in judges]
        lesson_at = _in_turn(lessons, labels, scenes, config)
        seed = derive_seed(config.seed, "refinement")
        latents, facts = refine(prior, chosen.latents, lesson_at, config.refinement, seed=seed, folder=folder)
        if config.privacy == "screen":
            away = keeps_away(decode(prior, latents, config), labels, scenes, config)
            latents = torch.where(away[:, None, None, None], latents, chosen.latents)
            facts["put_back"] = int((~away).sum())
        replace(chosen, latents=latents, logits=judge(teacher, latents)[0]).save(folder)
        return facts

    inputs = [run.fingerprint_of("chosen"), run.fingerprint_of("experts"), config.refinement.model_dump(), config.seed]
    return Chosen.load(run.stage("refined", build, version=3, inputs=inputs))


def _in_turn(lessons: Sequence[Lesson], labels: Tensor, scenes: Scenes, config: Config) -> Callable[[int], Lesson]:
    """Return which lesson is taken at a step: one of `lessons`, and from time to time that of a random network."""
    if not config.refinement.random:
        return lambda step: lessons[step % len(lessons)]
    pixels, seed = scenes.pixels(size=config.size), derive_seed(config.seed, "random network")

    def lesson_at(step: int) -> Lesson:
        if step % _RANDOM_EVERY == _RANDOM_EVERY - 1:
            return random_lesson(pixels, scenes.labels, labels, seed=derive_seed(seed, "step", step))
        return lessons[(step - step // _RANDOM_EVERY) % len(lessons)]

    return lesson_at


def _train_experts(scenes: Scenes, config: Config, run: Run) -> Path:
    """Return the folder of stage `experts`: each expert, and its features [N, 1280] of all scenes.

    An expert is the pretrained network finetuned on all scenes under the protocol finetune, each under its own seed.
    """
    counts = config.refinement.experts

    def build(folder: Path) -> None:
        pixels = scenes.pixels(size=config.size)
        with progress("experts", sum(counts)) as advance, kept_memory():
            for rank, steps in enumerate(counts):
                if not _file(folder, rank).exists():
                    network = train_classifier(
                        "finetune",
                        PRETRAINED,
                        pixels,
                        scenes.labels,
                        classes=len(scenes.classes),
                        seed=derive_seed(config.seed, "expert", rank),
                        steps=steps,
                        progress=_after(sum(counts[:rank]), advance),
                    ).eval()
                    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
                    save_tensors(
                        {**weights, "features": backbone_features(pixels, network=network)}, _file(folder, rank)
                    )

    inputs = [scenes.fingerprint(), config.size, config.seed, counts]
    return run.stage("experts", build, version=1, inputs=inputs)


def _load_experts(stage: Path, scenes: Scenes, config: Config) -> Iterator[tuple[nn.Module, Tensor]]:
    for rank in range(len(config.refinement.experts)):
        tensors = load_file(_file(stage, rank))
        known = tensors.pop("features")
        network = build_network(PRETRAINED, len(scenes.classes), 0)
        network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
        yield network.to(accelerator()).eval().requires_grad_(False), known


def _after(before: int, advance: Advance) -> Callable[[int, int], None]:
    return lambda done, of: advance(before + done)


def _file(folder: Path, rank: int) -> Path:
    return folder / f"expert-{rank}.safetensors"
