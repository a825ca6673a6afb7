from pathlib import Path

import torch
from safetensors.torch import load_file

from geodistill.commands.distill import distill
from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.methods import METHODS, template
from geodistill.run import Run
from geodistill.scenes import Scenes
from geodistill.stages.context import Context


def _made(scenes: Scenes, config: Config, out: Path) -> tuple[DistilledSet, torch.Tensor]:
    with Run(out, {}) as run:
        made = template.make(Context(scenes, config, run, METHODS["template"])).value
    return made, load_file(out / "candidates" / "candidates.safetensors")["latents"]


def test_it_is_dpd_with_everything_taken_away(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    bare = {
        "sampling": {**on_pipeline.sampling.model_dump(), "follow": "none", "candidates": 1},
        "descriptions": {"describer": "template"},
        "finetune": {**on_pipeline.finetune.model_dump(), "consistency": 0},
        "selection": {"by": "first"},
        "refinement": {"steps": 0},
    }
    ablated = distill(pair, Config.model_validate({**on_pipeline.model_dump(), **bare}), out=tmp_path / "dpd")
    made, candidates = _made(pair, on_pipeline, tmp_path / "template")
    assert torch.equal(made.images, ablated.images)
    assert torch.equal(candidates, load_file(tmp_path / "dpd" / "candidates" / "candidates.safetensors")["latents"])
    stages = {path.name for path in (tmp_path / "template").iterdir()}
    assert not stages & {"teacher", "prototypes", "descriptions"}


def test_records_tell_the_class_prompt_and_the_seed(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    made, _ = _made(pair, on_pipeline, tmp_path)
    assert [record["description"] for record in made.records] == ["A satellite image of beach"] * 2 + [
        "A satellite image of forest"
    ] * 2
    assert [record["seed"] for record in made.records] == [0, 10_000, 20_000, 30_000]


def test_without_fine_tuning_the_base_is_sampled_as_it_is(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    untrained = on_pipeline.finetune.model_copy(update={"steps": 0})
    _, as_it_is = _made(pair, on_pipeline.model_copy(update={"finetune": untrained}), tmp_path / "base")
    assert not (tmp_path / "base" / "adapter").exists()
    _, tuned = _made(pair, on_pipeline, tmp_path / "tuned")
    assert 0 < (tuned - as_it_is).abs().max() < 1
