"""Template: the diffusion model under class prompts, fine-tuned with the diffusion loss alone (METHOD §3).

The ablation that DPD is measured against: no prototypes, no descriptions, no consistency loss, no choice among
candidates, no refinement. Fine-tuning and sampling are otherwise as the settings say.
"""

import torch

from geodistill.config import Config, DescriptionsSettings, SelectionSettings
from geodistill.distilled import DistilledSet
from geodistill.methods.stages import class_prompts, draw, encode, finetune, keep_candidates, make_base, slot_labels
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return `config.ipc` images of each class, drawn under its class prompt."""
    config = plain(config)
    prior = make_base(scenes, config, run)
    latents = encode(scenes, prior, config, run)
    prompts = [[text] for text in class_prompts(scenes, scenes.labels)]
    finetune(prior, latents, scenes, prompts, config, run, after=["latents"])
    texts = class_prompts(scenes, slot_labels(scenes, config))
    nowhere = torch.zeros(len(texts), *latents.shape[2:])  # nothing is followed
    after = ["latents", "adapter" if config.finetune.steps else None]
    candidates = draw(prior, nowhere, texts, config, run, after=after)
    return keep_candidates("template", candidates, texts, prior, scenes, config, run)


def plain(config: Config) -> Config:
    """Return `config` without what DPD adds."""
    return config.model_copy(
        update={
            "descriptions": DescriptionsSettings(describer="template"),
            "finetune": config.finetune.model_copy(update={"consistency": 0.0}),
            "sampling": config.sampling.model_copy(update={"follow": "none", "candidates": 1}),
            "selection": SelectionSettings(by="first"),
            "refinement": config.refinement.model_copy(update={"steps": 0}),
        }
    )
