import platform
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from geodistill.config import SamplingSettings, load_config
from geodistill.devices import accelerator, dtype_for, free_memory, keep_freed_memory, mixed
from geodistill.errors import ConfigError
from geodistill.prior.base import load_prior
from geodistill.prior.sample import Requests, sample_batch


def test_accelerator_is_what_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert accelerator().type == device


@pytest.mark.parametrize(
    ("device", "units", "found"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float32),
    ],
)
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
def test_auto(monkeypatch: pytest.MonkeyPatch, machine: str, device: str, units: bool, found: torch.dtype) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: units)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: units)
    assert dtype_for("auto", torch.device(device)) == found
    assert dtype_for("f16", torch.device(device)) == torch.float16


def test_bf16_that_is_asked_for_is_had_on_any_cpu() -> None:
    assert dtype_for("bf16", torch.device("cpu")) == torch.bfloat16


def test_bf16_without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(ConfigError) as caught:
        dtype_for("bf16", torch.device("cuda"))
    assert str(caught.value) == ("this GPU has no units for bf16: use --set precision=f16 or f32, or leave it at auto")


_FAULTS = """
import resource, sys
import torch
from geodistill.devices import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
for round in range(50):
    layers = [torch.ones(2**20) for _ in range(20)]
    del layers
    if round == 0:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def test_kept_memory_is_not_zeroed_anew() -> None:
    faults = {}
    for way in ("keep", "plain"):
        done = subprocess.run([sys.executable, "-c", _FAULTS, way], capture_output=True, text=True)
        if "not glibc" in done.stderr:
            pytest.skip("this C library cannot be told to keep memory")
        faults[way] = int(done.stdout)
    assert faults["keep"] < 0.5 * faults["plain"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


def test_free_memory_of_the_cpu_is_what_the_system_can_still_give(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < free_memory(torch.device("cpu")) < psutil.virtual_memory().total
    # Cached files, which `free` leaves out, can be given.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=700, free=100, total=1000))
    assert free_memory(torch.device("cpu")) == 700


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_of_the_working_type(dtype: torch.dtype) -> None:
    with mixed(torch.device("cpu"), dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


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
