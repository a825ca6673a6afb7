"""Stage `distilled`: the set on disk, made by DPD or by another method."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.evaluation.soft_label_teacher import soft_labels
from geodistill.pipeline import DISTILLED, KEPT
from geodistill.prior.base import Prior, source_of
from geodistill.prior.catalogue import SCRATCH, read_facts
from geodistill.provenance import Made
from geodistill.run import forget_parts, versions
from geodistill.scenes.reading import PLAIN
from geodistill.scenes.scenes import Scenes
from geodistill.stages.candidates import MOST_CANDIDATES, Candidates, decode, slot_labels
from geodistill.stages.chosen import Chosen
from geodistill.stages.context import Context
from geodistill.stages.descriptions import describe_each
from geodistill.stages.teacher import soft_label_teacher

Records = tuple[dict[str, Any], ...]


def write_chosen(
    context: Context, prior: Made[Prior], chosen: Made[Chosen], texts: Made[list[str]]
) -> Made[DistilledSet]:
    """Return the distilled set of DPD; `texts` are the descriptions of the slots, which only a reproducible set has."""
    scenes, config = context.scenes, context.config
    teacher = soft_label_teacher(context)

    def build(folder: Path) -> None:
        images, labels = decode(prior.value, chosen.value.latents, config), slot_labels(scenes, config)
        slots = (chosen.value.rows // config.sampling.candidates).tolist()
        # A slot's description was measured in a cluster of scenes, which may be a single one: it must not be shared.
        told = [texts.value[slot] for slot in slots] if config.reproducible else describe_each(context, images, labels)
        records = describe_images(context, chosen.value, labels, told)
        if teacher is not None:
            soft = soft_labels(teacher.value, images).double().round(decimals=4).tolist()
            records = tuple({**record, "soft_label": own} for record, own in zip(records, soft, strict=True))
        facts = about(context) | ({"screened": True} if config.privacy == "screen" else {})
        DistilledSet(images, labels, scenes.classes, records, facts).write(folder)

    given: list[Any] = [chosen] if teacher is None else [chosen, teacher]
    if not config.reproducible:
        # Runs that were finished before images had descriptions of their own are written again.
        given.append("own descriptions")
    return context.run.make(DISTILLED, build, DistilledSet.load, given=given)


def describe_images(context: Context, chosen: Chosen, labels: Tensor, texts: list[str]) -> Records:
    """Return the manifest's records of the chosen images of classes `labels` int64 [n]; none identifies a source scene.

    The origin of each image is recorded only in a reproducible set. `texts` are the descriptions of the images. Without
    a teacher its logits have no columns, and no probability is recorded.
    """
    config = context.config
    sure: Sequence[float | None] = [None] * len(labels)
    if chosen.logits.shape[1]:
        sure = chosen.logits.softmax(dim=1).gather(1, labels[:, None])[:, 0].tolist()

    def origin(index: int) -> dict[str, int]:
        slot, candidate = divmod(index, config.sampling.candidates)
        seed = slot * MOST_CANDIDATES + candidate
        return {"prototype": slot % config.ipc, "candidate": candidate, "seed": seed} if config.reproducible else {}

    return tuple(
        {
            **origin(index),
            "description": text,
            "scores": {} if probability is None else {"teacher_probability": round(probability, 4)},
        }
        for index, text, probability in zip(chosen.rows.tolist(), texts, sure, strict=True)
    )


def write_set(
    context: Context, make_images: Callable[[Path], Tensor], *, given: Sequence[Any], records: Records = ()
) -> Made[DistilledSet]:
    """Return the distilled set of a method other than DPD.

    `make_images` gets the stage's folder, where it may keep parts, and returns uint8 images [classes * IPC, 3, s, s],
    those of a class adjacent. `given` is what they depend on besides the method.
    """
    scenes = context.scenes

    def build(folder: Path) -> None:
        images = make_images(folder)
        forget_parts(folder)
        labels = slot_labels(scenes, context.config)
        DistilledSet(images, labels, scenes.classes, records, about(context)).write(folder)

    return context.run.make(KEPT, build, DistilledSet.load, given=[context.maker.name, *given])


def keep_scenes(context: Context, select: Callable[[], Tensor]) -> Made[DistilledSet]:
    """Return the set of the real scenes whose indices, int64 [classes * IPC], `select` returns."""
    scenes, config = context.scenes, context.config

    def images(_: Path) -> Tensor:
        return scenes.pixels(select(), size=config.size)

    return write_set(context, images, given=[scenes.fingerprint(), config.ipc, config.size, config.seed])


def each_class(scenes: Scenes, select: Callable[[Tensor], Tensor]) -> Tensor:
    """Return int64 indices into `scenes`, class by class: the result of `select` for the indices of each class."""
    own = [(scenes.labels == label).nonzero()[:, 0] for label in range(len(scenes.classes))]
    return torch.cat([select(indices) for indices in own])


def keep_candidates(
    context: Context, prior: Made[Prior], candidates: Made[Candidates], texts: list[str]
) -> Made[DistilledSet]:
    """Return the set of all `candidates`, one for each of `texts`, the prompts under which they were drawn."""
    seeds = [{"seed": slot * MOST_CANDIDATES} if context.config.reproducible else {} for slot in range(len(texts))]
    records = tuple({**seed, "description": text} for seed, text in zip(seeds, texts, strict=True))

    def images(_: Path) -> Tensor:
        return decode(prior.value, candidates.value.latents, context.config)

    return write_set(context, images, given=[candidates], records=records)


def about(context: Context) -> dict[str, Any]:
    """Return what the manifest states about the whole set: its method, settings, versions and base."""
    config, method = context.config, context.maker
    settings = config.model_dump(mode="json", exclude=None if config.reproducible else {"seed", "reproducible"})
    # The set is shared, so it must not reveal the paths of folders and the addresses of servers.
    if Path(config.base).is_dir():
        settings["base"] = Path(config.base).name
    describer = config.descriptions.describer
    if describer.startswith("openai:") or Path(describer).is_dir():
        settings["descriptions"]["describer"] = Path(describer).name if Path(describer).is_dir() else "openai"
    real = method.kind == "real"
    facts = None if real or config.base == SCRATCH else read_facts(source_of(config.base, config.size))
    base = {"base": {"name": facts.name, "archives": facts.archives, "terms": facts.terms}} if facts else {}
    derived = {"derived": True} if method.kind == "derived" else {}
    made = {"method": method.name, "real_pixels": real, **derived, "config": settings, "versions": versions(), **base}
    reading = context.scenes.reading
    return made if reading == PLAIN else made | {"reading": reading.as_dict()}
