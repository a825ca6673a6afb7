"""Discriminative prototype-guided diffusion (Xu, Ghamisi, Weng, arXiv 2601.15829), from scenes to distilled set.

    scenes -> base -> latents -> teacher, prototypes -> descriptions -> adapter -> following -> candidates
    -> chosen, refined -> distilled set

`make` runs these stages. Each stage is a folder of the run that holds everything the next ones need.

Under differential privacy the sequence is similar, but everything learned from the scenes is a noisy sum:

    scenes -> latents -> profiles -> descriptions -> centres, teacher, adapter, moments -> candidates -> distilled set

A candidate starts from the noisy mean of a cluster's latents, never from a member. It starts at a level of diffusion
noise that hides the noise of the mean, so the prior removes the noise that protects the scenes together with its own.
Refinement needs no scene: its error is computed from noisy second moments of the backbone's features. Starts and
adapter can be left out (`sampling.follow=none`, `finetune.steps=0`). Candidates are then drawn from text alone, which
comes from noisy measurements of each class, and the whole budget goes to profiles and moments.
"""

import torch

from geodistill.config import Config
from geodistill.descriptions import make_describer
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.networks import check_side
from geodistill.provenance import Made, derived
from geodistill.run import Stored
from geodistill.scenes.scenes import Scenes
from geodistill.stages.adapter import finetune
from geodistill.stages.base import load_base
from geodistill.stages.candidates import MOST_CANDIDATES, draw, slots_of
from geodistill.stages.checks import check_base, check_counts
from geodistill.stages.chosen import choose
from geodistill.stages.context import Context
from geodistill.stages.descriptions import describe, texts_of_each
from geodistill.stages.distilled import write_chosen
from geodistill.stages.following import followed
from geodistill.stages.latents import encode
from geodistill.stages.noise import in_secret
from geodistill.stages.private import PrivateContext, budget_of, check_private, encodes, follows
from geodistill.stages.private_drawing import (
    choose_privately,
    draw_privately,
    noisy_slots,
    refine_privately,
    write_privately,
)
from geodistill.stages.private_means import make_profiles, make_starts, noisy_descriptions
from geodistill.stages.private_training import finetune_privately, teach_privately
from geodistill.stages.prototypes import cluster
from geodistill.stages.refinement import refined
from geodistill.stages.screen import screened
from geodistill.stages.teacher import teach


def make(context: Context) -> Made[DistilledSet]:
    """Return the distilled set of the context's scenes, made in its run."""
    check(context.scenes, context.config)
    if context.config.privacy == "dp":
        return _make_private(context)
    prior = load_base(context)
    latents = encode(context, prior)
    teacher = teach(context, latents)
    prototypes = cluster(context, latents)
    texts = describe(context, prior, prototypes)
    each = derived(lambda: texts_of_each(prototypes.value, texts.value, context.scenes), texts)
    consistency = teacher if context.config.finetune.consistency else None
    prior = finetune(context, prior, latents, each, consistency)
    context = followed(in_secret(context), prior, latents, texts, prototypes)
    slots = slots_of(context, latents, texts, prototypes)
    candidates = draw(context, prior, slots)
    if context.config.privacy == "screen":
        candidates = screened(context, prior, candidates, slots)
    chosen = choose(context, prior, candidates, latents, teacher)
    chosen = refined(context, prior, chosen, teacher)
    return write_chosen(context, prior, chosen, texts)


def _make_private(whole: Context) -> Made[DistilledSet]:
    """Return the set of a differentially private run; `stages.private.guarantee` states what is guaranteed."""
    scenes, config = whole.scenes, whole.config
    context = PrivateContext(scenes, config, whole.run, whole.method, budget=budget_of(len(scenes), config))
    prior = load_base(context)
    none: Made[Stored] = Made.source(torch.empty(0), "no latents")
    latents = encode(context, prior) if encodes(config) else none
    profiles = make_profiles(context)
    texts = noisy_descriptions(scenes, profiles, prior)
    starts = make_starts(context, latents, profiles) if follows(config) else None
    teacher = teach_privately(context, latents)
    prior = finetune_privately(context, prior, latents, texts, teacher)
    context = in_secret(context)
    slots = noisy_slots(context, prior, texts, starts)
    candidates = draw_privately(context, prior, slots)
    chosen = choose_privately(context, prior, candidates, profiles, teacher)
    chosen = refine_privately(context, prior, chosen)
    return write_privately(context, prior, chosen, texts)


def check(scenes: Scenes, config: Config) -> None:
    """Raise, before the first stage, a GeodistillError that says what to do if a later stage is known to fail."""
    make_describer(config.descriptions.describer, config.precision)
    check_settings(scenes, config)


def check_settings(scenes: Scenes, config: Config) -> None:
    """Do what `check` does, but load no model."""
    if config.sampling.candidates > MOST_CANDIDATES:
        raise ConfigError(f"sampling.candidates is {config.sampling.candidates}: at most {MOST_CANDIDATES}")
    if config.soft_labels or _uses_networks(config):
        check_side(config.size)
    check_base(config)
    check_counts(scenes, config.ipc, config.privacy)
    if config.privacy == "dp":
        check_private(scenes, config)


def _uses_networks(config: Config) -> bool:
    """Return whether a stage needs a classifier of images: prototypes, following, selection or refinement."""
    clusters = config.prototypes.features != "latent"
    follows = config.sampling.strength is None
    herds = config.selection.by == "herding"
    return clusters or follows or herds or config.refinement.steps > 0
