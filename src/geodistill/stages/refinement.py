"""Stage `refined`: the chosen latents are optimised so that classifiers trained on the images generalise better."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.config import Config
from geodistill.latent_teacher import LatentTeacher, predict
from geodistill.networks import fold_norms, pretrained
from geodistill.pipeline import REFINED
from geodistill.prior.base import Prior
from geodistill.prior.training import read_losses, told_losses, write_losses
from geodistill.processes import processes
from geodistill.provenance import Made
from geodistill.refinement import RefinementLoss, random_loss, refine
from geodistill.run import save_tensors
from geodistill.seeding import derive_seed
from geodistill.stages.candidates import decode, slot_labels
from geodistill.stages.chosen import Chosen
from geodistill.stages.context import Context
from geodistill.stages.latents import scene_features
from geodistill.stages.learned import unless_all
from geodistill.stages.screen import keeps_away
from geodistill.stages.students import Shown, show_scenes, students

# Every `_RANDOM_EVERY`th step uses a random network: chosen on a quarter of AID's training scenes
# (docs/experiments.md).
_RANDOM_EVERY = 4


def refined(context: Context, prior: Made[Prior], chosen: Made[Chosen], teacher: Made[LatentTeacher]) -> Made[Chosen]:
    """Return `chosen` with its latents optimised by `refinement.refine`, from stage `refined`.

    The steps are divided into rounds. Each round first fine-tunes a classifier on the current set, as the set's users
    will train theirs. Its states after certain numbers of steps are the students. Refinement minimises the error of the
    students and of the pretrained backbone on the real scenes. None of them has been trained on the real scenes, so a
    small archive cannot be overfitted. Under `privacy = "screen"`, an image that came too near to a training image is
    put back as it was chosen.
    """
    scenes, config, settings = context.scenes, context.config, context.config.refinement
    if not settings.steps:
        return chosen
    known = scene_features(context)

    def build(folder: Path) -> dict[str, Any]:
        before = chosen.value
        latents, facts = _Rounds(prior.value, show_scenes(context, known.value, folder), config).move(before.latents)
        if config.privacy == "screen":
            labels = slot_labels(scenes, config)
            away = keeps_away(decode(prior.value, latents, config), labels, scenes, config)
            latents = torch.where(away[:, None, None, None], latents, before.latents)
            facts["put_back"] = int((~away).sum())
        if processes().main:
            replace(before, latents=latents, logits=predict(teacher.value, latents)[0]).save(folder)
            for part_file in (*folder.glob("round-*.safetensors"), *folder.glob("student-*.safetensors")):
                part_file.unlink()
        return facts

    given = [chosen, scenes.fingerprint(), config.size, settings.model_dump(), config.seed, *unless_all(scenes)]
    return context.run.make(REFINED, build, Chosen.load, given=given)


@dataclass(frozen=True)
class _Rounds:
    """Refinement in rounds; each continues from the latents that the previous one left."""

    prior: Prior
    shown: Shown
    config: Config

    def move(self, latents: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return `latents` [m, C, h, w] after all rounds, and facts about the optimisation."""
        start_of_all, losses, spent, group = latents, list[float](), 0.0, processes()
        for rank, steps in enumerate(steps_of_rounds(self.config.refinement.steps, self.config.refinement.rounds)):
            done = self.shown.folder / f"round-{rank}.safetensors"
            # Every process must have looked before one saves the result.
            made = done.exists()
            group.wait()
            if not made:
                start = time.perf_counter()
                judges = self._losses(latents, rank)
                spent += time.perf_counter() - start
                part = self.config.refinement.model_copy(update={"steps": steps})
                seed, in_turn = self._seed("refinement", rank), self._in_turn(judges, rank)
                latents, _ = refine(self.prior, latents, in_turn, part, seed=seed, folder=self.shown.folder)
                if group.main:
                    curve = torch.tensor(read_losses(self.shown.folder), dtype=torch.float64)
                    save_tensors({"latents": latents, "losses": curve}, done)
                group.wait()
            kept = load_file(done)
            latents = kept["latents"]
            losses += kept["losses"].tolist() if "losses" in kept else []
        # Rounds that were saved before losses were kept have none.
        told: dict[str, Any] = {"steps": self.config.refinement.steps}
        if len(losses) == self.config.refinement.steps:
            told = told_losses(losses)
            if group.main:
                write_losses(self.shown.folder, losses)
        moved = float((latents - start_of_all).square().mean()) ** 0.5
        return latents, told | {"moved": round(moved, 4), "students_seconds": round(spent, 1)}

    def _losses(self, latents: Tensor, rank: int) -> list[RefinementLoss]:
        """Return the losses of round `rank`: that of the pretrained backbone and those of the round's students."""
        images = decode(self.prior, latents, self.config, draft=True)
        taught = students(self.shown, images, rank, self.config)
        labels, real = self.shown.labels, self.shown.real_labels
        own = pretrained(channels=self.prior.channels)
        judges = [(own, self.shown.seen), *taught]
        return [RefinementLoss(fold_norms(network), labels, seen, real) for network, seen in judges]

    def _in_turn(self, losses: Sequence[RefinementLoss], rank: int) -> Callable[[int], RefinementLoss]:
        """Return the function that gives each step its loss: one of `losses`, or at times that of a random network."""
        if not self.config.refinement.random:
            return lambda step: losses[step % len(losses)]
        seed, shown = self._seed("random network", rank), self.shown

        def loss_at(step: int) -> RefinementLoss:
            if step % _RANDOM_EVERY == _RANDOM_EVERY - 1:
                own = derive_seed(seed, "step", step)
                return random_loss(shown.pixels, shown.real_labels, shown.labels, seed=own)
            return losses[(step - step // _RANDOM_EVERY) % len(losses)]

        return loss_at

    def _seed(self, what: str, rank: int) -> int:
        return derive_seed(self.config.seed, what, rank)


def steps_of_rounds(steps: int, rounds: int) -> list[int]:
    """Return the number of steps of each round, `steps` in total; none is 0.

    >>> steps_of_rounds(7, 3)
    [3, 2, 2]
    """
    rounds = min(steps, rounds)
    return [steps // rounds + (rank < steps % rounds) for rank in range(rounds)]
