"""Discriminative prototype-guided diffusion (Xu, Ghamisi, Weng, arXiv 2601.15829), from scenes to distilled set.

    scenes -> base -> latents -> teacher, prototypes -> descriptions -> adapter -> candidates -> distilled set

`distill` is that line. Each stage is a folder of the run that holds all that the next ones need.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.config import Config, to_toml
from geodistill.descriptions import make_describer
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, SceneError
from geodistill.evaluation.networks import backbone_features
from geodistill.prior.base import Prior, check_size, fingerprint_of_base, load_prior
from geodistill.prior.compact import build_compact, check_compact_size
from geodistill.prior.finetune import add_adapter, merge_adapter, save_adapter
from geodistill.prior.sample import Requests, sample
from geodistill.prior.training import (
    TrainingData,
    TrainingPlan,
    batches,
    forget_checkpoint,
    prompt_table,
    train_denoiser,
)
from geodistill.progress import progress
from geodistill.prototypes import Prototypes, find_prototypes, latent_features
from geodistill.run import Run, save_tensors, versions, write_atomic
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.splits import hold_out
from geodistill.scenes.views import dihedral
from geodistill.seeding import derive_seed
from geodistill.selection import by_coverage, by_margin
from geodistill.teacher import Teacher, judge, load_teacher, train_teacher

# Noise of a candidate depends on its prototype and its rank alone, so that drawing more changes none drawn before.
_MOST_CANDIDATES = 10_000


def distill(
    scenes: Scenes, config: Config | None = None, *, out: Path | str | None = None, command: str = ""
) -> DistilledSet:
    """Condense `scenes` into `config.ipc` synthetic images per class.

    Args:
        scenes: the training scenes; nothing else is looked at.
        config: settings; the defaults when None.
        out: the run folder, kept; a run there that stopped goes on. A temporary folder when None.
        command: the command line, for the record.

    Raises:
        GeodistillError: one of its kinds, before hours are spent where that can be known before.
    """
    config = config or Config()
    if out is None:
        with tempfile.TemporaryDirectory(prefix="geodistill-") as folder:
            return distill(scenes, config, out=folder, command=command)
    _check(scenes, config)
    settings = {"method": "dpd", "config": config.model_dump(mode="json"), "scenes": scenes.fingerprint()}
    with Run(Path(out), settings, command) as run:
        write_atomic(run.folder / "config.toml", to_toml(config))
        return _distill(scenes, config, run)


def _distill(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    prior = make_base(scenes, config, run)
    latents = encode(scenes, prior, config, run)
    teacher = teach(latents, scenes, config, run)
    prototypes = cluster(latents, scenes, config, run)
    texts = describe(prototypes, scenes, config, run)
    finetune(prior, latents, scenes, prototypes, texts, teacher, config, run)
    candidates = draw(prior, latents, prototypes, texts, config, run)
    return choose(candidates, latents, prior, teacher, scenes, prototypes, texts, config, run)


def _check(scenes: Scenes, config: Config) -> None:
    """Find before the first stage what would stop a later one."""
    make_describer(config.descriptions.describer)
    if config.sampling.candidates > _MOST_CANDIDATES:
        raise ConfigError(f"sampling.candidates is {config.sampling.candidates}: at most {_MOST_CANDIDATES}")
    if config.base == "compact":
        check_compact_size(config.size)
    counts = torch.bincount(scenes.labels, minlength=len(scenes.classes))
    for name, count in zip(scenes.classes, counts.tolist(), strict=True):
        if count < config.ipc:
            raise SceneError(
                f"class '{name}' has {count} images, IPC {config.ipc} needs at least {config.ipc}: "
                "lower --ipc or add images"
            )


def make_base(scenes: Scenes, config: Config, run: Run) -> Prior:
    """Return the prior: the base named in the config, or the compact one, built from the scenes in stage `base`."""
    source = config.base
    if source == "compact":
        # Every scene is known to the compact base by its class alone and by what can be measured in it.
        def build(folder: Path) -> dict[str, Any]:
            pixels = scenes.pixels(size=config.size)
            names = [scenes.classes[label] for label in scenes.labels]
            texts = zip(*(make_describer(kind).each(pixels, names) for kind in ("template", "measured")), strict=True)
            return build_compact(
                pixels, scenes.labels, [list(row) for row in texts], config.compact, seed=config.seed, folder=folder
            )

        inputs = [scenes.fingerprint(), config.compact.model_dump(), config.size, config.seed]
        source = str(run.stage("base", build, version=2, inputs=inputs))
    prior = load_prior(source)
    check_size(prior, config.size)
    return prior


def encode(scenes: Scenes, prior: Prior, config: Config, run: Run) -> Tensor:
    """Return the scenes' latents, float16 [N, V, C, h, w] with V views of each scene, from stage `latents`."""

    def build(folder: Path) -> None:
        parts = []
        with progress("latents", len(scenes)) as advance:
            for index, which in enumerate(batches(len(scenes), 100)):
                part = folder / f".part-{index:05d}.safetensors"
                if not part.exists():
                    pixels = scenes.pixels(range(which.start, which.stop), size=config.size)
                    views = [prior.encode(dihedral(pixels, view)).half() for view in range(config.latents.views)]
                    save_tensors({"latents": torch.stack(views, dim=1)}, part)
                parts.append(load_file(part)["latents"])
                advance(which.stop)
        save_tensors({"latents": torch.cat(parts)}, folder / "latents.safetensors")
        _forget_parts(folder)

    inputs = [scenes.fingerprint(), fingerprint_of_base(prior.source), config.size, config.latents.views]
    stage = run.stage("latents", build, version=1, inputs=inputs)
    latents: Tensor = load_file(stage / "latents.safetensors")["latents"]
    return latents


def teach(latents: Tensor, scenes: Scenes, config: Config, run: Run) -> Teacher:
    """Return the frozen teacher from stage `teacher`."""

    def build(folder: Path) -> dict[str, Any]:
        _, held = hold_out(scenes, config.teacher.held_out, "teacher")
        return train_teacher(latents, scenes.labels, held, config.teacher, seed=config.seed, folder=folder)

    inputs = [run.fingerprint_of("latents"), config.teacher.model_dump(), config.seed]
    return load_teacher(run.stage("teacher", build, version=1, inputs=inputs))


def cluster(latents: Tensor, scenes: Scenes, config: Config, run: Run) -> Prototypes:
    """Return the prototypes from stage `prototypes`."""

    def build(folder: Path) -> None:
        if config.prototypes.features == "latent":
            features = latent_features(latents[:, 0].float())
        else:
            features = backbone_features(scenes.pixels(size=config.size))
        find_prototypes(features, scenes.labels, per_class=config.ipc, seed=config.seed, classes=scenes.classes).save(
            folder
        )

    inputs = [run.fingerprint_of("latents"), config.prototypes.model_dump(), config.ipc, config.seed]
    return Prototypes.load(run.stage("prototypes", build, version=1, inputs=inputs))


def describe(prototypes: Prototypes, scenes: Scenes, config: Config, run: Run) -> list[str]:
    """Return one description for each prototype from stage `descriptions`."""

    def build(folder: Path) -> None:
        describer = make_describer(config.descriptions.describer)
        texts = []
        with progress("descriptions", len(prototypes.labels)) as advance:
            for rank, (label, members) in enumerate(zip(prototypes.labels, prototypes.members, strict=True)):
                images = scenes.pixels(members[:_DESCRIBED], size=config.size)
                texts.append(describer(images, scenes.classes[label]))
                advance(rank + 1)
        write_atomic(folder / "descriptions.json", json.dumps(texts, indent=1, ensure_ascii=False))

    inputs = [run.fingerprint_of("prototypes"), config.descriptions.model_dump(), config.size]
    stage = run.stage("descriptions", build, version=1, inputs=inputs)
    texts: list[str] = json.loads((stage / "descriptions.json").read_text(encoding="utf-8"))
    return texts


# Members nearest the prototype that a description is made from.
_DESCRIBED = 16


def finetune(
    prior: Prior,
    latents: Tensor,
    scenes: Scenes,
    prototypes: Prototypes,
    texts: list[str],
    teacher: Teacher,
    config: Config,
    run: Run,
) -> None:
    """Train the adapter in stage `adapter` and merge it into `prior`; with 0 steps the base stays as it is."""
    settings = config.finetune
    if not settings.steps:
        return

    def build(folder: Path) -> dict[str, Any]:
        adapted = load_prior(prior.source)
        add_adapter(adapted, rank=settings.rank, seed=config.seed)
        table, rows = prompt_table([[text] for text in _text_of_each(prototypes, texts, len(scenes))])
        data = TrainingData(latents, scenes.labels, rows, adapted.embed(table))
        shared = settings.model_dump(exclude={"rank"})
        plan = TrainingPlan(seed=derive_seed(config.seed, "adapter"), teacher=teacher, **shared)
        facts = train_denoiser(adapted.unet, adapted.scheduler, data, plan, folder, "adapter")
        save_adapter(adapted, folder)
        forget_checkpoint(folder)
        return facts

    inputs = [
        *(run.fingerprint_of(stage) for stage in ("latents", "descriptions")),
        run.fingerprint_of("teacher") if settings.consistency else None,
        settings.model_dump(),
        config.seed,
    ]
    merge_adapter(prior, run.stage("adapter", build, version=1, inputs=inputs))


def _text_of_each(prototypes: Prototypes, texts: list[str], count: int) -> list[str]:
    """Return for each training scene the description of the cluster it belongs to."""
    own = [""] * count
    for text, members in zip(texts, prototypes.members, strict=True):
        for member in members.tolist():
            own[member] = text
    return own


def draw(prior: Prior, latents: Tensor, prototypes: Prototypes, texts: list[str], config: Config, run: Run) -> Tensor:
    """Return candidates, float32 [P * R, C, h, w] with the R of a prototype side by side, from stage `candidates`."""

    def build(folder: Path) -> dict[str, Any]:
        table, rows = prompt_table([[text] for text in texts])
        slots = torch.arange(len(texts)).repeat_interleave(config.sampling.candidates)
        ranks = torch.arange(config.sampling.candidates).repeat(len(texts))
        requests = Requests(
            prompts=rows[slots, 0],
            embeddings=prior.embed(table),
            prototypes=latents[prototypes.indices, 0].float(),
            slots=slots,
            seeds=slots * _MOST_CANDIDATES + ranks,
        )
        drawn = sample(prior, requests, config.sampling, seed=derive_seed(config.seed, "candidates"), folder=folder)
        save_tensors({"latents": drawn}, folder / "candidates.safetensors")
        _forget_parts(folder)
        return {"images": len(drawn)}

    inputs = [
        *(run.fingerprint_of(stage) for stage in ("latents", "prototypes", "descriptions")),
        run.fingerprint_of("adapter") if config.finetune.steps else None,
        config.sampling.model_dump(),
        config.seed,
    ]
    stage = run.stage("candidates", build, version=1, inputs=inputs)
    candidates: Tensor = load_file(stage / "candidates.safetensors")["latents"]
    return candidates


def choose(
    candidates: Tensor,
    latents: Tensor,
    prior: Prior,
    teacher: Teacher,
    scenes: Scenes,
    prototypes: Prototypes,
    texts: list[str],
    config: Config,
    run: Run,
) -> DistilledSet:
    """Return the distilled set, one candidate for each prototype, from stage `distilled`."""

    def build(folder: Path) -> None:
        slots = torch.arange(len(texts)).repeat_interleave(config.sampling.candidates)
        logits, features = judge(teacher, candidates)
        real = judge(teacher, latents[:, 0])[1] if config.selection.by == "coverage" else None
        chosen = torch.cat(
            [
                _choose_of_class(label, logits, features, real, slots, scenes, prototypes, config)
                for label in range(len(scenes.classes))
            ]
        )
        labels = prototypes.labels[slots[chosen]]
        DistilledSet(
            images=prior.decode(candidates[chosen]),
            labels=labels,
            classes=scenes.classes,
            records=_records(chosen, slots, labels, logits, texts, config),
            about={"method": "dpd", "config": config.model_dump(mode="json"), "versions": versions()},
        ).write(folder)

    inputs = [run.fingerprint_of("candidates"), run.fingerprint_of("teacher"), config.selection.model_dump()]
    return DistilledSet.load(run.stage("distilled", build, version=1, inputs=inputs))


def _choose_of_class(
    label: int,
    logits: Tensor,
    features: Tensor,
    real: Tensor | None,
    slots: Tensor,
    scenes: Scenes,
    prototypes: Prototypes,
    config: Config,
) -> Tensor:
    """Return which candidates stand for class `label`, as rows of all candidates."""
    own = (prototypes.labels[slots] == label).nonzero()[:, 0]
    if config.selection.by == "margin":
        return own[by_margin(logits[own], label, slots[own])]
    if real is not None:
        return own[by_coverage(features[own], real[scenes.labels == label], slots[own])]
    return own[:: config.sampling.candidates]


def _records(
    chosen: Tensor, slots: Tensor, labels: Tensor, logits: Tensor, texts: list[str], config: Config
) -> tuple[dict[str, Any], ...]:
    """Return what is told of each image; nothing that names a source scene."""
    probability = logits.softmax(dim=1)
    return tuple(
        {
            "prototype": int(slots[index]) % config.ipc,
            "candidate": int(index) % config.sampling.candidates,
            "seed": int(slots[index]) * _MOST_CANDIDATES + int(index) % config.sampling.candidates,
            "description": texts[slots[index]],
            "scores": {"teacher_probability": round(float(probability[index, label]), 4)},
        }
        for index, label in zip(chosen.tolist(), labels.tolist(), strict=True)
    )


def _forget_parts(folder: Path) -> None:
    for part in folder.glob(".part-*"):
        part.unlink()
