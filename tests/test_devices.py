import ctypes
import os
import platform
import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from geodistill import devices
from geodistill.config import SamplingSettings, load_config
from geodistill.devices import (
    DEVICE,
    accelerator,
    compiled_in_place,
    dtype_for,
    free_memory,
    kept_memory,
    mixed,
    on_device,
)
from geodistill.errors import ConfigError
from geodistill.prior.base import load_prior
from geodistill.prior.sample import Requests, sample_batch


@pytest.mark.parametrize(("cuda", "mps", "device"), [(1, 0, "cuda"), (1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_accelerator_is_what_torch_sees(cuda: int, mps: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert accelerator() == torch.device(device)
    with on_device("cpu"):
        assert accelerator() == torch.device("cpu")
    assert accelerator() == torch.device(device)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu': use cpu, cuda, cuda:N or mps"),
        ("meta", "unknown device 'meta': use cpu, cuda, cuda:N or mps"),
        ("cuda:2", "there is no device 'cuda:2': torch sees 2 of type 'cuda' on this machine"),
        ("mps", "there is no device 'mps': torch sees 0 of type 'mps' on this machine"),
    ],
)
def test_devices_that_are_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught, on_device(name):
        pass
    assert str(caught.value) == message


def test_several_processes_do_not_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with on_device("cuda"):
        pass
    with pytest.raises(ConfigError) as caught, on_device("cuda:1"):
        pass
    assert str(caught.value) == "device 'cuda:1' is one for all processes, and each needs its own: use cuda"


def test_the_choice_of_a_device_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with on_device("cuda:1"):
        with pytest.raises(RuntimeError), on_device("cpu"):
            raise RuntimeError
        assert accelerator() == torch.device("cuda:1")
        with on_device(None):
            assert accelerator() == torch.device("cuda:1")
    assert DEVICE not in os.environ


@pytest.mark.parametrize(
    ("shares", "threads", "told"),
    [
        ([3.0, 98.0], 2, "1 of 2 cores busy: set OMP_NUM_THREADS=1 before"),
        ([100.0, 97.0], 2, "2 of 2 cores busy: set OMP_NUM_THREADS=1 before"),
        ([3.0, 98.0], 1, ""),
        ([3.0, 9.0], 2, ""),
        ([100.0, 100.0, 90.0, 5.0, 0.0, 0.0, 0.0, 0.0], 8, "3 of 8 cores busy: set OMP_NUM_THREADS=5 before"),
    ],
)
def test_busy_cores(shares: list[float], threads: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: shares)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with on_device("cpu"):
        found = devices.told_of_busy_cores()
    assert told in found
    assert bool(told) == bool(found)


def test_compiling_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo

    layer = torch.nn.Linear(1, 1)
    with compiled_in_place(layer):
        assert layer._compiled_call_impl is not None
        assert torch._dynamo.config.suppress_errors
    assert layer._compiled_call_impl is None
    assert not torch._dynamo.config.suppress_errors


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_used_again() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 * 2**20)  # 64 MiB, 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with kept_memory():
        found = [faults() for _ in range(20)]  # the heap grows a few times, where small arrays lie in between
        assert found[-1] < 1000
        before = resident()
    assert resident() < before - 50 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_kept_until_the_outermost_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *what: told.append(what), malloc_trim=lambda pad: told.append((0, pad)))
    monkeypatch.setattr(devices, "_glibc", lambda: library)
    with kept_memory():
        with kept_memory():
            pass
        assert told == 2 * [(-4, 0), (-1, 2**31 - 1)]
        told.clear()
    assert told == [(-4, 65536), (-1, 131072), (0, 0)]  # glibc's own defaults


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("a library was loaded"))
    with kept_memory():
        pass


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
