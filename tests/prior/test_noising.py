import doctest

import pytest
import torch
from diffusers import DDPMScheduler

from geodistill.prior import noising
from geodistill.prior.noising import Epsilon, Velocity, noise_process


def test_doctests() -> None:
    assert doctest.testmod(noising).failed == 0


@pytest.mark.parametrize(("prediction", "kind"), [("epsilon", Epsilon), ("v_prediction", Velocity)])
def test_process_of_a_base_against_its_scheduler(prediction: str, kind: type) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction)
    process = noise_process(scheduler)
    assert isinstance(process, kind)
    g = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 2, 4, 4, generator=g) for _ in range(2))
    times = torch.tensor([0, 400, 999])
    level = process.levels[times]
    noisy = process.add(clean, noise, level)
    assert torch.allclose(noisy, scheduler.add_noise(clean, noise, times), atol=1e-6)
    if prediction == "v_prediction":
        assert torch.allclose(
            process.target(clean, noise, level), scheduler.get_velocity(clean, noise, times), atol=1e-6
        )
    else:
        assert torch.equal(process.target(clean, noise, level), noise)
    assert torch.equal(process.signal(level), level)
