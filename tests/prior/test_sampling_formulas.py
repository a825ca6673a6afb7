"""Every way to sample against a reference written from the formulas alone, in float64, with a denoiser in closed form.

DDIM: Song et al., ICLR 2021, η = 0. PNDM: Liu et al., ICLR 2022, without its Runge-Kutta warm-up, as Stable Diffusion
has it; of a v-predicting model the multistep formula takes v, as in diffusers. DPM-Solver++(2M): Lu et al. 2022,
algorithm 2, with a first and a last step of first order. What a model says of latents is read after these are pulled.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDIMScheduler

from geodistill.config import SamplingSettings
from geodistill.prior.base import Prior, load_prior
from geodistill.prior.sample import Requests, _noise, sample_batch

Array = npt.NDArray[np.float64]

ALPHAS: Array = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2)
SPREAD = 0.6  # deviation of the latents that the denoiser knows
GUIDANCE, SCALE, UNTIL = 3.0, 0.7, 0.5


def _epsilon(noisy: Any, alpha: Any, mean: Any) -> Any:
    """The best estimate of the noise in latents of deviation SPREAD around `mean`."""
    return (1 - alpha) ** 0.5 * (noisy - alpha**0.5 * mean) / (alpha * SPREAD**2 + 1 - alpha)


class _ClosedForm:
    """A U-Net for latents around a mean that the text embedding gives."""

    def __init__(self, alphas: torch.Tensor, prediction: str) -> None:
        self.alphas, self.prediction = alphas, prediction
        self.config = SimpleNamespace(num_class_embeds=None)

    def __call__(self, noisy: torch.Tensor, time: torch.Tensor, text: torch.Tensor, **_: Any) -> SimpleNamespace:
        alpha, mean = self.alphas[time], text[:, :1, :1, None]
        epsilon = _epsilon(noisy, alpha, mean)
        if self.prediction == "epsilon":
            return SimpleNamespace(sample=epsilon)
        clean = (noisy - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
        return SimpleNamespace(sample=alpha.sqrt() * epsilon - (1 - alpha).sqrt() * clean)


@dataclass(frozen=True)
class _Model:
    """What the solvers are given: a denoiser, how its output reads, and where its latents are pulled."""

    denoise: Callable[[Array, int], Array]
    prediction: str
    pull: Callable[[float, Array, Array, int], Array]

    def read(self, noisy: Array, output: Array, alpha: float) -> tuple[Array, Array]:
        """Return the clean latents and the noise that `output` stands for."""
        sigma, root = (1 - alpha) ** 0.5, alpha**0.5
        if self.prediction == "epsilon":
            return np.asarray((noisy - sigma * output) / root), output
        return np.asarray(root * noisy - sigma * output), np.asarray(root * output + sigma * noisy)


def _ddim(noisy: Array, times: list[int], model: _Model) -> Array:
    for rank, time in enumerate(times):
        output = model.denoise(noisy, time)
        clean, epsilon = model.read(model.pull(rank / len(times), noisy, output, time), output, ALPHAS[time])
        following = ALPHAS[times[rank + 1]] if rank + 1 < len(times) else ALPHAS[0]
        noisy = np.asarray(following**0.5 * clean + (1 - following) ** 0.5 * epsilon)
    return noisy


def _pndm(noisy: Array, times: list[int], model: _Model) -> Array:
    def moved(latents: Array, output: Array, time: int, following: int) -> Array:
        now, then = ALPHAS[time], ALPHAS[following]
        epsilon = model.read(latents, output, now)[1]
        down = now**0.5 * (((1 - then) * now) ** 0.5 + ((1 - now) * then) ** 0.5)
        return np.asarray((then / now) ** 0.5 * latents - (then - now) / down * epsilon)

    past: list[Array] = []
    for rank, (time, following) in enumerate(zip(times, [*times[1:], 0], strict=True)):
        past = [model.denoise(noisy, time), *past]
        # Its list of steps has one more, because the first is done twice; the guess it leads to is pulled in vain.
        noisy = model.pull((rank + (rank > 0)) / (len(times) + 1), noisy, past[0], time)
        if rank == 0:
            # Done twice: the output there and where it leads, averaged.
            used = (past[0] + model.denoise(moved(noisy, past[0], time, following), following)) / 2
        elif rank == 1:
            used = (3 * past[0] - past[1]) / 2
        elif rank == 2:
            used = (23 * past[0] - 16 * past[1] + 5 * past[2]) / 12
        else:
            used = (55 * past[0] - 59 * past[1] + 37 * past[2] - 9 * past[3]) / 24
        noisy = moved(noisy, used, time, following)
    return noisy


def _dpm(noisy: Array, times: list[int], model: _Model) -> Array:
    def half_log_snr(time: int) -> float:
        return float(np.log(ALPHAS[time] / (1 - ALPHAS[time])) / 2)

    before = clean = noisy
    for rank, time in enumerate(times):
        output = model.denoise(noisy, time)
        noisy = model.pull(rank / len(times), noisy, output, time)
        before, clean = clean, model.read(noisy, output, ALPHAS[time])[0]
        if rank + 1 == len(times):
            break
        following = times[rank + 1]
        step = half_log_snr(following) - half_log_snr(time)
        direction = clean
        if rank:
            ratio = (half_log_snr(time) - half_log_snr(times[rank - 1])) / step
            direction = (1 + 1 / (2 * ratio)) * clean - 1 / (2 * ratio) * before
        sigma, then = (1 - ALPHAS[time]) ** 0.5, (1 - ALPHAS[following]) ** 0.5
        noisy = np.asarray(then / sigma * noisy - ALPHAS[following] ** 0.5 * np.expm1(-step) * direction)
    return clean


SOLVERS = {"ddim": _ddim, "pndm": _pndm, "dpmsolver++": _dpm}


def _times(solver: str, steps: int) -> list[int]:
    """Time steps as diffusers' schedulers space them under Stable Diffusion's own settings ("leading", offset 1)."""
    if solver == "dpmsolver++":
        gap = 1000 // (steps + 1)
        return [rank * gap + 1 for rank in range(steps, 0, -1)]
    gap = 1000 // steps
    return [rank * gap + 1 for rank in range(steps - 1, -1, -1)]


@pytest.fixture(scope="module")
def prior(sd_folder: Path) -> Prior:
    return load_prior(str(sd_folder))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("follow", ["none", "start", "guide"])
@pytest.mark.parametrize("solver", ["ddim", "pndm", "dpmsolver++"])
def test_as_the_formulas_say(prior: Prior, solver: str, follow: str, prediction: str) -> None:
    generator = torch.Generator().manual_seed(1)
    prototypes = torch.randn(2, 4, 8, 8, generator=generator)
    means = torch.tensor([0.2, -0.5, 0.8])  # empty prompt, two others
    requests = Requests(
        torch.tensor([1, 2, 1]),
        means[:, None, None].expand(3, 5, 6),
        prototypes,
        torch.tensor([0, 1, 1]),
        torch.arange(3),
    )
    scheduler = DDIMScheduler.from_config(prior.scheduler.config, prediction_type=prediction)
    settings = SamplingSettings(
        solver=solver, follow=follow, steps=12, strength=0.5, guidance=GUIDANCE, scale=SCALE, until=UNTIL
    )
    unet = _ClosedForm(scheduler.alphas_cumprod, prediction)
    fake = dataclasses.replace(prior, unet=unet, scheduler=scheduler)
    drawn = sample_batch(fake, requests, settings, seed=5).double().numpy()

    followed = prototypes[requests.slots].double().numpy()
    own = means[requests.prompts].double().numpy()[:, None, None, None]
    times = _times(solver, 12)[6 if follow == "start" else 0 :]
    noisy = _noise(torch.Size((4, 8, 8)), requests.seeds, 5).double().numpy()
    if follow == "start":
        noisy = ALPHAS[times[0]] ** 0.5 * followed + (1 - ALPHAS[times[0]]) ** 0.5 * noisy

    def denoise(latents: Array, time: int) -> Array:
        alpha = ALPHAS[time]
        without, with_text = (_epsilon(latents, alpha, mean) for mean in (0.2, own))
        epsilon = np.asarray(without + GUIDANCE * (with_text - without))
        if prediction == "epsilon":
            return epsilon
        return np.asarray(
            alpha**0.5 * epsilon - (1 - alpha) ** 0.5 * (latents - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5
        )

    def pull(done: float, latents: Array, output: Array, time: int) -> Array:
        if follow != "guide" or done > UNTIL:
            return latents
        gap = followed - model.read(latents, output, ALPHAS[time])[0]
        length = np.sqrt((gap**2).sum(axis=(1, 2, 3), keepdims=True))
        return np.asarray(latents + SCALE * (1 - ALPHAS[time]) ** 0.5 * gap / length)

    model = _Model(denoise, prediction, pull)
    expected = SOLVERS[solver](noisy, times, model)
    assert np.abs(drawn - expected).max() < 1e-5 * np.abs(expected).max()
