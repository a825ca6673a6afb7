"""Stages `candidates`, `chosen`, `refined` and `distilled` under differential privacy: they use no scene images."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.latent_teacher import LatentTeacher, predict
from geodistill.networks import backbone_features, fold_norms, pretrained
from geodistill.pipeline import CANDIDATES, CHOSEN, DISTILLED, PRIVATE_CANDIDATES, PRIVATE_REFINED
from geodistill.prior.base import Prior, source_of
from geodistill.prior.sample import covering_strengths, sample
from geodistill.privacy.overlap import fewest_noticed
from geodistill.provenance import Made, derived
from geodistill.refinement import MomentsLoss, refine
from geodistill.run import forget_part_folders, save_tensors
from geodistill.seeding import derive_seed
from geodistill.selection import herd
from geodistill.stages.candidates import Candidates, Slots, decode, load_candidates, requests_for, slot_labels
from geodistill.stages.chosen import Chosen
from geodistill.stages.distilled import about, describe_images
from geodistill.stages.noise import seed_of_noise
from geodistill.stages.private import PrivateContext, guarantee
from geodistill.stages.private_means import Profiles, Starts, make_moments


def noisy_slots(
    context: PrivateContext, prior: Made[Prior], texts: Made[list[str]], starts: Made[Starts] | None
) -> Made[Slots]:
    """Return the slots: each has the text of its class, and one of its noisy means for its candidates to start from.

    The slots of a class take its means in turn. If `starts` is None, candidates are drawn from text alone.
    """
    ipc, classes = context.config.ipc, len(context.scenes.classes)

    def compute() -> Slots:
        own = [text for text in texts.value for _ in range(ipc)]
        if starts is None:
            return Slots(own, prior.value.blank(len(own), context.config.size), noisy=torch.zeros(len(own)))
        rows = torch.arange(len(starts.value.latents)).view(classes, -1)  # [classes, K / classes]
        followed = rows[:, torch.arange(ipc) % rows.shape[1]].flatten()  # [classes * IPC]
        repeated = followed.repeat_interleave(context.config.sampling.candidates)
        return Slots(own, starts.value.latents, repeated, starts.value.noisy)

    return derived(compute, *([starts] if starts else []), texts)


def draw_privately(context: PrivateContext, prior: Made[Prior], slots: Made[Slots]) -> Made[Candidates]:
    """Return the candidates; each starts at a level of diffusion noise that hides the noise of its noisy mean."""
    config = context.config

    def build(folder: Path) -> dict[str, Any]:
        own = slots.value
        requests = requests_for(prior.value, own, config.sampling.candidates)
        # The deviation of the noise in each start; slots that do not state it start from something without noise.
        deviations = [0.0] * len(own.latents) if own.noisy is None else own.noisy.tolist()
        of_starts = covering_strengths(prior.value, config.sampling, deviations)
        strengths = torch.tensor(of_starts, dtype=torch.float64)[requests.slots]  # of each candidate
        drawn = torch.empty(len(requests.slots), *own.latents.shape[1:])
        for strength in strengths.unique().tolist():
            which = (strengths == strength).nonzero()[:, 0]
            parts = folder / f"strength-{strength:.3f}"
            parts.mkdir(exist_ok=True)
            settings = config.sampling.model_copy(update={"strength": strength})
            seed = seed_of_noise(context, CANDIDATES)
            drawn[which] = sample(prior.value, requests.part(which), settings, seed=seed, folder=parts)
        save_tensors({"latents": drawn}, folder / "candidates.safetensors")
        forget_part_folders(folder, "strength-*")
        of_images = strengths[:: config.sampling.candidates].tolist()
        return {"images": len(drawn), "strengths": {f"{k:.3f}": of_images.count(k) for k in sorted(set(of_images))}}

    given = ["private", slots, prior, config.sampling.model_dump(), config.seed, config.precision]
    return context.run.make(PRIVATE_CANDIDATES, build, load_candidates, given=given)


def choose_privately(
    context: PrivateContext,
    prior: Made[Prior],
    candidates: Made[Candidates],
    profiles: Made[Profiles],
    teacher: Made[LatentTeacher] | None,
) -> Made[Chosen]:
    """Return the candidates that herding selects towards the noisy mean of their class, from stage `chosen`."""
    config = context.config

    def build(folder: Path) -> None:
        drawn, means = candidates.value.latents, profiles.value.features
        features = backbone_features(decode(prior.value, drawn, config, draft=True))
        each = config.ipc * config.sampling.candidates
        own = features.view(len(means), each, -1)
        rows = torch.cat([label * each + herd(own[label], config.ipc, mean) for label, mean in enumerate(means)])
        logits = predict(teacher.value, drawn[rows])[0] if teacher else torch.zeros(len(rows), 0)
        Chosen(rows, drawn[rows], logits).save(folder)

    given = ["private", candidates, *([teacher] if teacher else [])]
    return context.run.make(CHOSEN, build, Chosen.load, given=given)


def refine_privately(context: PrivateContext, prior: Made[Prior], chosen: Made[Chosen]) -> Made[Chosen]:
    """Return `chosen` with its latents optimised in stage `refined`, using noisy sums only."""
    config = context.config
    if not config.refinement.steps:
        return chosen
    moments = make_moments(context)

    def build(folder: Path) -> dict[str, Any]:
        loss = MomentsLoss(fold_norms(pretrained()), slot_labels(context.scenes, config), moments.value)
        seed, latents = derive_seed(config.seed, "refinement"), chosen.value.latents
        moved, facts = refine(prior.value, latents, lambda _: loss, config.refinement, seed=seed, folder=folder)
        replace(chosen.value, latents=moved).save(folder)
        return facts

    given = ["private", chosen, moments, config.refinement.model_dump(), config.seed]
    return context.run.make(PRIVATE_REFINED, build, Chosen.load, given=given)


def write_privately(
    context: PrivateContext, prior: Made[Prior], chosen: Made[Chosen], texts: Made[list[str]]
) -> Made[DistilledSet]:
    """Return the set from stage `distilled`; `texts` holds one text per class."""
    scenes, config, budget = context.scenes, context.config, context.budget
    fewest = fewest_noticed(len(scenes), Path(source_of(config.base, config.size)))

    def build(folder: Path) -> None:
        labels = slot_labels(scenes, config)
        described = [texts.value[label] for label in labels.tolist()]
        records = describe_images(context, chosen.value, labels, described)
        facts = about(context) | {"guarantee": guarantee(budget, len(scenes), fewest)}
        images: Tensor = decode(prior.value, chosen.value.latents, config)
        DistilledSet(images, labels, scenes.classes, records, facts).write(folder)

    return context.run.make(DISTILLED, build, DistilledSet.load, given=["private", chosen, asdict(budget)])
