from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from geodistill.config import Config, FinetuneSettings
from geodistill.prior.base import load_prior
from geodistill.provenance import Made
from geodistill.run import Run
from geodistill.scenes import builtin_scenes
from geodistill.stages import adapter
from geodistill.stages.context import Context


@pytest.mark.parametrize(
    ("steps", "threads", "long"), [(976, 1, False), (977, 1, True), (977, 2, False), (1954, 2, True)]
)
def test_more_threads_ask_for_a_longer_adaptation(
    steps: int, threads: int, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    # 64 latents of 8x8 positions a step: four million in 977 steps.
    assert adapter._is_long(torch.zeros(3, 1, 4, 8, 8), FinetuneSettings(steps=steps)) is long


@pytest.mark.parametrize("long", [False, True])
def test_a_long_adaptation_on_a_cpu_is_compiled(
    long: bool, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(adapter, "compiled_in_place", lambda *modules: nullcontext(seen.extend(modules)))
    monkeypatch.setattr(adapter, "_is_long", lambda *_: long)
    monkeypatch.setattr(adapter, "train_denoiser", lambda *_: {})
    monkeypatch.setattr(adapter, "save_whole", lambda *_: None)
    monkeypatch.setattr(adapter, "merge_adapter", lambda *_: None)
    scenes, prior = builtin_scenes(train_per_class=1, test_per_class=1, size=32).train, load_prior(str(sd_folder))
    base = Made.source(prior, "base")
    latents = Made(lambda: torch.zeros(len(scenes), 1, 4, 8, 8), ["latents"], [base])
    texts = Made.source([["a beach"] for _ in scenes.keys], "texts")
    with Run(tmp_path / "run", {}, "") as run:
        adapter.finetune(Context(scenes, Config(), run), base, latents, texts)
    assert len(seen) == long
