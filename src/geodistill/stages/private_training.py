"""Stages `teacher` and `adapter` under differential privacy: trained by DP-SGD."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geodistill.latent_teacher import LatentTeacher, load_latent_teacher, save_latent_teacher
from geodistill.pipeline import PRIVATE_ADAPTER, TEACHER
from geodistill.prior.base import Prior
from geodistill.prior.finetune import add_adapter, merge_adapter, save_adapter
from geodistill.prior.noising import noise_process
from geodistill.prior.training import Drawn, TrainingData, TrainingPlan, denoising_loss, draw_batch, prompt_table
from geodistill.privacy.dpsgd import train_privately
from geodistill.privacy.noisy import SecretNoise
from geodistill.provenance import Made
from geodistill.run import Stored
from geodistill.seeding import derive_seed, secret_generator
from geodistill.stages.private import PrivateContext, adapter_training, has_teacher, teacher_training

# Channels of the teacher: few, as the total noise grows with the number of weights.
_WIDTH = 32


def teach_privately(context: PrivateContext, latents: Made[Stored]) -> Made[LatentTeacher] | None:
    """Return the frozen teacher, or None if the settings need none. Measuring its accuracy would cost budget."""
    scenes, config = context.scenes, context.config
    if not has_teacher(config):
        return None
    training, noise = teacher_training(len(scenes), config), context.noise("teacher")

    def build(folder: Path) -> dict[str, Any]:
        by, views = secret_generator(), latents.value
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(config.seed, "teacher"))
            teacher = LatentTeacher(views.shape[2], len(scenes.classes), _WIDTH)
        teacher.train().dropout.p = 0.0

        def loss_of(images: Tensor) -> Tensor:
            view = torch.randint(0, views.shape[1], (len(images),), generator=by)
            return F.cross_entropy(teacher(views[images, view].float()), scenes.labels[images])

        train_privately(teacher, loss_of, training, noise=noise, by=SecretNoise(), title="teacher")
        save_latent_teacher(teacher, folder)
        return {"steps": training.steps, "batch": training.batch, "noise": noise}

    given = ["private", latents, config.teacher.model_dump(), config.seed, noise]
    return context.run.make(TEACHER, build, load_latent_teacher, given=given)


def finetune_privately(
    context: PrivateContext,
    prior: Made[Prior],
    latents: Made[Stored],
    texts: Made[list[str]],
    teacher: Made[LatentTeacher] | None,
) -> Made[Prior]:
    """Train the adapter by DP-SGD, merge it into the prior and return the prior; `texts` holds one prompt per class."""
    scenes, config, settings = context.scenes, context.config, context.config.finetune
    if not settings.steps:
        return prior
    training, noise = adapter_training(len(scenes), config), context.noise("adapter")

    def build(folder: Path) -> dict[str, Any]:
        by, base = secret_generator(), prior.value
        adapted = replace(base, unet=deepcopy(base.unet))
        add_adapter(adapted, rank=settings.rank, seed=config.seed)
        table, rows = prompt_table([[texts.value[label]] for label in scenes.labels.tolist()])
        data = TrainingData(latents.value, scenes.labels, rows, adapted.embed(table))
        options = settings.model_dump(exclude={"rank", "weights"})
        own = teacher.value if teacher else None
        plan = TrainingPlan(seed=config.seed, teacher=own, dtype=torch.float32, **options)
        process = noise_process(adapted.scheduler, base.device)

        def loss_of(images: Tensor) -> Tensor:
            drawn = draw_batch(data, images, settings.drop_prompt, len(process.levels), by)
            return denoising_loss(adapted.unet, process, plan, Drawn(*(tensor.to(base.device) for tensor in drawn)))

        adapted.unet.train()
        train_privately(adapted.unet, loss_of, training, noise=noise, by=SecretNoise(), title="adapter")
        save_adapter(adapted, folder)
        return {"steps": training.steps, "batch": training.batch, "noise": noise}

    def load(folder: Path) -> Prior:
        merge_adapter(prior.value, folder)
        return prior.value

    given = ["private", latents, texts, *([teacher] if teacher else [])]
    given += [settings.model_dump(), config.seed, config.precision, noise]
    return context.run.make(PRIVATE_ADAPTER, build, load, given=given)
