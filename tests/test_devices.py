import pytest
import torch

from geodistill.config import SamplingSettings, load_config
from geodistill.devices import accelerator, mixed, working_type
from geodistill.errors import ConfigError
from geodistill.prior.base import load_prior
from geodistill.prior.sample import Requests, sample_batch


def test_accelerator_is_what_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert accelerator().type == device


@pytest.mark.parametrize(
    ("device", "units", "found"),
    [("cpu", False, torch.bfloat16), ("cuda", True, torch.bfloat16), ("cuda", False, torch.float32)],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, device: str, units: bool, found: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: units)
    assert working_type("auto", torch.device(device)) == found
    assert working_type("f16", torch.device(device)) == torch.float16


def test_bf16_without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(ConfigError) as caught:
        working_type("bf16", torch.device("cuda"))
    assert str(caught.value) == ("this GPU has no units for bf16: use --set precision=f16 or f32, or leave it at auto")


@pytest.mark.parametrize("working", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_of_the_working_type(working: torch.dtype) -> None:
    with mixed(torch.device("cpu"), working):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == working


def test_precision_is_chosen_in_one_place(sd_folder: object) -> None:
    drawn = {}
    for name in ("f32", "bf16", "f16"):
        prior = load_prior(str(sd_folder), load_config(sets=[f"precision={name}"]).precision)
        generator = torch.Generator().manual_seed(0)
        requests = Requests(
            torch.tensor([1]),
            prior.embed(["", "a beach"]),
            torch.randn(1, 4, 8, 8, generator=generator),
            torch.tensor([0]),
            torch.tensor([0]),
        )
        drawn[name] = sample_batch(prior, requests, SamplingSettings(steps=4), seed=0)
    gaps = {name: float((one - drawn["f32"]).abs().max()) for name, one in drawn.items()}
    assert 0 == gaps["f32"] < gaps["f16"] < 0.5 * gaps["bf16"]
