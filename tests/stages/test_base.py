from pathlib import Path

import pytest
import torch

from geodistill.config import Config
from geodistill.run import Run, records
from geodistill.scenes import Scenes
from geodistill.stages.base import Source, train_base


def test_a_base_from_scratch_is_trained_in_the_precision_that_was_asked_for(
    pair: Scenes, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(
        "geodistill.prior.compact.train_denoiser",
        lambda unet, scheduler, data, plan, folder, name: seen.append(plan.dtype) or {"steps": 0},
    )
    marks = set()
    for rank, precision in enumerate(("auto", "f32", "bf16")):
        config = tiny.model_copy(update={"precision": precision})
        with Run(tmp_path / str(rank), {}) as run:
            train_base([Source(pair)], config, run)
        marks.add(records(tmp_path / str(rank))[0]["fingerprint"])
    assert seen[1:] == [torch.float32, torch.bfloat16]
    assert len(marks) == 3
