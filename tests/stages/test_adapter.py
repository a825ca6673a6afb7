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


@pytest.mark.parametrize(("steps", "threads", "compiled"), [(976, 1, 0), (977, 1, 1), (977, 2, 0), (1954, 2, 1)])
def test_a_long_adaptation_on_a_cpu_is_compiled(
    steps: int, threads: int, compiled: int, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(adapter, "compile_in_place", seen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(adapter, "train_denoiser", lambda *_: {})
    scenes, prior = builtin_scenes(train_per_class=1, test_per_class=1, size=32).train, load_prior(str(sd_folder))
    # 64 latents of 8x8 positions a step: four million in 977 steps.
    base = Made.source(prior, "base")
    latents = Made(lambda: torch.zeros(len(scenes), 1, 4, 8, 8), ["latents"], [base])
    texts = Made.source([["a beach"] for _ in scenes.keys], "texts")
    config = Config(finetune=FinetuneSettings(steps=steps))
    with Run(tmp_path / "run", {}, "") as run:
        adapter.finetune(Context(scenes, config, run), base, latents, texts)
    assert len(seen) == compiled
