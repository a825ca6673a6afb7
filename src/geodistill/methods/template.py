"""Template: the diffusion model under class prompts, fine-tuned with the diffusion loss alone (METHOD §3).

It is the ablation baseline of DPD: no prototypes, no descriptions, no consistency loss, no choice among candidates, no
refinement. Fine-tuning and sampling otherwise follow the settings.
"""

from collections.abc import Callable

import torch
from torch import nn

from geodistill.config import Config, DescriptionsSettings, SelectionSettings
from geodistill.distilled import DistilledSet
from geodistill.provenance import Made, derived
from geodistill.run import Stored
from geodistill.stages.adapter import finetune
from geodistill.stages.base import load_base
from geodistill.stages.candidates import Slots, draw, slot_labels
from geodistill.stages.context import Context
from geodistill.stages.descriptions import class_prompts
from geodistill.stages.distilled import keep_candidates
from geodistill.stages.latents import encode
from geodistill.stages.noise import in_secret


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` images of each class, drawn under its class prompt."""
    return under_class_prompts(context.having(plain(context.config)))


def under_class_prompts(context: Context, loss: Callable[[Stored], nn.Module] | None = None) -> Made[DistilledSet]:
    """Return the set that the adapted prior draws under class prompts.

    `loss` takes the latents and returns an additional loss for the adaptation.
    """
    scenes = context.scenes
    prior = load_base(context)
    latents = encode(context, prior)
    prompts = derived(lambda: [[text] for text in class_prompts(scenes, scenes.labels)], latents)
    prior = finetune(context, prior, latents, prompts, loss(latents.value) if loss else None)
    texts = class_prompts(scenes, slot_labels(scenes, context.config))
    # Placeholders: nothing is followed.
    slots = derived(lambda: Slots(texts, torch.zeros(len(texts), *latents.value.shape[2:])), latents)
    return keep_candidates(context, prior, draw(in_secret(context), prior, slots), texts)


def plain(config: Config) -> Config:
    """Return `config` without the components that DPD adds."""
    return config.model_copy(
        update={
            "descriptions": DescriptionsSettings(describer="template"),
            "finetune": config.finetune.model_copy(update={"consistency": 0.0}),
            "sampling": config.sampling.model_copy(update={"follow": "none", "candidates": 1}),
            "selection": SelectionSettings(by="first"),
            "refinement": config.refinement.model_copy(update={"steps": 0}),
        }
    )
