"""Stage `adapter`: fine-tuning of the U-Net on the archive, either of all its weights or of added LoRA matrices."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geodistill.config import FinetuneSettings
from geodistill.devices import compiled_in_place
from geodistill.latent_teacher import LatentTeacher
from geodistill.pipeline import ADAPTER
from geodistill.prior.base import Prior
from geodistill.prior.finetune import add_adapter, free_all, merge_adapter, save_adapter, save_whole, trains_all
from geodistill.prior.training import TrainingData, TrainingPlan, forget_checkpoint, prompt_table, train_denoiser
from geodistill.processes import processes
from geodistill.provenance import Made
from geodistill.run import Stored, subset
from geodistill.seeding import derive_seed
from geodistill.stages.context import Context, unless_default
from geodistill.stages.learned import learned, unless_all

# Number of latent positions per thread above which an adaptation on a CPU is compiled. Compiling takes three minutes. A
# step of the compact U-Net then takes 0.46 s instead of 0.95 s on one thread, but 0.40 s instead of 0.58 s on two.
_WORTH_COMPILING = 4_000_000


def finetune(
    context: Context,
    prior: Made[Prior],
    latents: Made[Stored],
    texts: Made[list[list[str]]],
    further: Made[LatentTeacher] | nn.Module | None = None,
) -> Made[Prior]:
    """Train the adapter in stage `adapter`, merge it into the prior and return the prior; with 0 steps, unchanged.

    `texts` holds the prompts of each scene, the same number for each; a step draws one of them. `further` supplies a
    loss in addition to the diffusion loss: a teacher for the consistency loss, or a module that computes a loss and
    keeps state (see TrainingPlan). The module's repr must state everything that its values depend on.
    """
    config, settings = context.config, context.config.finetune
    if not settings.steps:
        return prior
    own = further if isinstance(further, Made) else None
    auxiliary = further if isinstance(further, nn.Module) else None

    def build(folder: Path) -> dict[str, Any]:
        base = prior.value
        adapted = replace(base, unet=deepcopy(base.unet))
        whole = trains_all(base.unet, settings)
        if whole:
            free_all(adapted)
        else:
            add_adapter(adapted, rank=settings.rank, seed=config.seed)
        part, prompts = learned(context.scenes, config.seed), texts.value
        table, rows = prompt_table([prompts[scene] for scene in part.tolist()])
        data = TrainingData(subset(latents.value, part), context.scenes.labels[part], rows, adapted.embed(table))
        options = settings.model_dump(exclude={"rank", "weights"})
        plan = TrainingPlan(
            seed=derive_seed(config.seed, ADAPTER.name),
            teacher=own.value if own else None,
            auxiliary=auxiliary,
            dtype=base.dtype,
            shared=True,
            **options,
        )
        compiling = whole and base.device.type == "cpu" and _is_long(latents.value, settings)
        with compiled_in_place(*[adapted.unet] if compiling else []):
            facts = train_denoiser(adapted.unet, adapted.scheduler, data, plan, folder, ADAPTER.name)
        if processes().main:
            (save_whole if whole else save_adapter)(adapted, folder)
            forget_checkpoint(folder)
        return facts | {"weights": "all" if whole else "lora"}

    def load(folder: Path) -> Prior:
        merge_adapter(prior.value, folder)
        return prior.value

    given = [latents, texts, *([own] if own else []), settings.model_dump(), config.seed]
    given += [repr(auxiliary)] if auxiliary is not None else []
    given += [*unless_default(config.precision), *unless_all(context.scenes)]
    return context.run.make(ADAPTER, build, load, given=given)


def _is_long(latents: Stored, settings: FinetuneSettings) -> bool:
    """Return whether an adaptation on latents [N, V, C, h, w] is so long that compiling pays."""
    positions = settings.steps * settings.batch * latents[0, 0, 0].numel()
    return positions >= _WORTH_COMPILING * torch.get_num_threads()
