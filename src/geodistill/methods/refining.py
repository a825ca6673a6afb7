"""Refining what was chosen: a stage of DPD between the choice and the set that is handed out."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geodistill.config import Config
from geodistill.devices import accelerator
from geodistill.evaluation.networks import PRETRAINED, backbone_features, build_network, fold_norms, pretrained
from geodistill.evaluation.protocols import augment, train_classifier
from geodistill.evaluation.workers import kept_memory
from geodistill.methods.screening import keeps_away
from geodistill.methods.stages import Chosen, decode, scene_features, slot_labels
from geodistill.prior.base import Prior
from geodistill.progress import progress
from geodistill.refinement import Lesson, random_lesson, refine
from geodistill.run import Run, save_tensors
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.views import dihedral
from geodistill.seeding import derive_seed, generator
from geodistill.teacher import Teacher, judge

# Refinement overfits 945 scenes and does not overfit 6,000 (docs/experiments.md). An archive of fewer than `_ENOUGH`
# scenes is therefore shown in several views, at most one for each of the eight symmetries of the square.
_ENOUGH, _MOST_VIEWS = 8000, 8
# How many scenes are turned together.
_TOGETHER = 500
# A random network takes one turn in so many: chosen on a quarter of AID's training scenes (docs/experiments.md).
_RANDOM_EVERY = 4


@dataclass(frozen=True)
class _Task:
    """What every round needs.

    pixels: uint8 [N, 3, s, s], the scenes in one view after the other, the first as they are. real_labels: int64 [N],
    their classes, below `classes`. labels: int64 [m], those of the set.
    """

    pixels: Tensor
    real_labels: Tensor
    classes: int
    labels: Tensor
    config: Config
    folder: Path


def views_of_scenes(count: int) -> int:
    """Return in how many views each of `count` scenes is shown.

    >>> views_of_scenes(1260)
    6
    """
    return max(1, min(_MOST_VIEWS, _ENOUGH // count))


def _real_views(pixels: Tensor, seed: int) -> list[Tensor]:
    """Return the views of scenes `pixels`, uint8 [N, 3, s, s]: as they are, then under a symmetry and a random crop."""
    return [pixels, *(_real_view(pixels, view, seed) for view in range(1, views_of_scenes(len(pixels))))]


def _real_view(pixels: Tensor, view: int, seed: int) -> Tensor:
    random = generator(seed, "real view", view)
    parts = [augment(part.float(), random) for part in dihedral(pixels, view).split(_TOGETHER)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8).contiguous() for part in parts])


def refined(chosen: Chosen, prior: Prior, teacher: Teacher, scenes: Scenes, config: Config, run: Run) -> Chosen:
    """Return `chosen` with its latents moved as `refinement.refine` moves them, from stage `refined`.

    The steps are done in rounds. Each round begins with the training of a classifier: it is finetuned on the set as it
    is then, as the set's users will train theirs. The classifier as it is after some numbers of steps are the students.
    What they still get wrong on the real scenes is what is lowered. They have seen no real scene, so that a small
    archive cannot be overfitted to.
    Under `privacy = "screen"` an image that came too near to a training image stays as it was chosen.
    """
    settings, labels, known = config.refinement, slot_labels(scenes, config), scene_features(scenes, config, run)

    def build(folder: Path) -> dict[str, Any]:
        views = _real_views(scenes.pixels(size=config.size), config.seed)
        real_labels = scenes.labels.repeat(len(views))
        seen_by_backbone = torch.cat([known, *map(backbone_features, views[1:])])
        task = _Task(torch.cat(views), real_labels, len(scenes.classes), labels, config, folder)
        latents, facts, spent = chosen.latents, dict[str, Any](), 0.0
        for rank, steps in enumerate(steps_of_rounds(settings.steps, settings.rounds)):
            done = folder / f"round-{rank}.safetensors"
            if not done.exists():
                start = time.perf_counter()
                students = _students(task, decode(prior, latents, config, draft=True), rank)
                judges = [(pretrained(), seen_by_backbone), *students]
                spent += time.perf_counter() - start
                lessons = [Lesson(fold_norms(network), labels, seen, real_labels) for network, seen in judges]
                part = settings.model_copy(update={"steps": steps})
                seed = _seed(config.seed, "refinement", rank)
                latents, facts = refine(prior, latents, _in_turn(task, lessons, rank), part, seed=seed, folder=folder)
                save_tensors({"latents": latents}, done)
            latents = load_file(done)["latents"]
        if config.privacy == "screen":
            away = keeps_away(decode(prior, latents, config), labels, scenes, config)
            latents = torch.where(away[:, None, None, None], latents, chosen.latents)
            facts["put_back"] = int((~away).sum())
        replace(chosen, latents=latents, logits=judge(teacher, latents)[0]).save(folder)
        for part_file in (*folder.glob("round-*.safetensors"), *folder.glob("student-*.safetensors")):
            part_file.unlink()
        return facts | {"students_seconds": round(spent, 1)}

    inputs = [run.fingerprint_of("chosen"), scenes.fingerprint(), config.size, settings.model_dump(), config.seed]
    return Chosen.load(run.stage("refined", build, version=5, inputs=inputs))


def _seed(seed: int, what: str, rank: int) -> int:
    return derive_seed(seed, what, rank) if rank else derive_seed(seed, what)


def steps_of_rounds(steps: int, rounds: int) -> list[int]:
    """Return how many of `steps` each round does, none of them 0.

    >>> steps_of_rounds(7, 3)
    [3, 2, 2]
    """
    rounds = min(steps, rounds)
    return [steps // rounds + (rank < steps % rounds) for rank in range(rounds)]


def _in_turn(task: _Task, lessons: Sequence[Lesson], rank: int) -> Callable[[int], Lesson]:
    """Return which lesson is taken at a step: one of `lessons`, and from time to time that of a random network."""
    if not task.config.refinement.random:
        return lambda step: lessons[step % len(lessons)]
    seed = _seed(task.config.seed, "random network", rank)

    def lesson_at(step: int) -> Lesson:
        if step % _RANDOM_EVERY == _RANDOM_EVERY - 1:
            own = derive_seed(seed, "step", step)
            return random_lesson(task.pixels, task.real_labels, task.labels, seed=own)
        return lessons[(step - step // _RANDOM_EVERY) % len(lessons)]

    return lesson_at


def _students(task: _Task, images: Tensor, rank: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield each student of round `rank`, and its features [N, 1280] of all scenes; kept in the folder until the end.

    The pretrained network is finetuned on `images`, uint8 [m, 3, s, s], under the protocol finetune. The students are
    what it is after each of `refinement.students` steps.
    """
    counts = sorted(set(task.config.refinement.students))
    files = {steps: task.folder / f"student-{rank}-{steps}.safetensors" for steps in counts}

    def keep(done: int, network: nn.Module) -> None:
        if done in files:
            student = deepcopy(network).eval()
            weights = {f"network.{name}": value for name, value in student.state_dict().items()}
            save_tensors({**weights, "features": backbone_features(task.pixels, network=student)}, files[done])

    if not all(file.exists() for file in files.values()):
        with progress(f"students {rank + 1}", counts[-1]) as advance, kept_memory():
            train_classifier(
                "finetune",
                PRETRAINED,
                images,
                task.labels,
                classes=task.classes,
                seed=derive_seed(task.config.seed, "student of round", rank),
                steps=counts[-1],
                progress=lambda done, _: advance(done),
                visit=keep,
            )
    for file in files.values():
        yield _load_student(file, task.classes)


def _load_student(file: Path, classes: int) -> tuple[nn.Module, Tensor]:
    tensors = load_file(file)
    known = tensors.pop("features")
    network = build_network(PRETRAINED, classes, 0)
    network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
    return network.to(accelerator()).eval().requires_grad_(False), known
