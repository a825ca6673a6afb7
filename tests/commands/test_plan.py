import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from geodistill.cli.output import print_plan
from geodistill.commands import plan as planning
from geodistill.commands.plan import plan as make_plan
from geodistill.config import Config, make_config
from geodistill.errors import PriorError, SceneError
from geodistill.prior.base import load_prior
from geodistill.prior.catalogue import BaseFacts, facts_text
from geodistill.prior.finetune import trains_all
from geodistill.privacy.overlap import footprint
from geodistill.scenes import Scenes
from geodistill.scenes.packed import Digests
from geodistill.stages.held_out import set_apart


def _with(config: Config, **sections: Any) -> Config:
    values = config.model_dump()
    for name, changes in sections.items():
        values[name] = {**values[name], **changes} if isinstance(changes, dict) else changes
    return Config.model_validate(values)


def _operations(scenes: Scenes, config: Config, folder: Path) -> dict[str, float]:
    return {stage.name: stage.operations for stage in make_plan(scenes, config, folder).stages}


@pytest.fixture
def hub(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A hub that has the tiny pipeline under every name; the sizes of its files, with some that are not fetched."""
    files = {str(path.relative_to(sd_folder)): path.stat().st_size for path in sd_folder.rglob("*") if path.is_file()}
    others = {"v1.safetensors": 10**9, "unet/diffusion_pytorch_model.fp16.safetensors": 10**9, "unet/model.bin": 10**9}
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in (files | others).items()]
    listing = SimpleNamespace(siblings=siblings, card_data={"license": "openrail++"})
    monkeypatch.setattr(planning, "_listing", lambda name: listing)
    monkeypatch.setattr(planning, "_fetched", lambda name, path: json.loads((sd_folder / path).read_text()))
    return files


class TestOperations:
    def test_of_a_convolution(self):
        layer, images = nn.Conv2d(3, 5, 3, padding=1).to("meta"), torch.empty(2, 3, 8, 8, device="meta")
        assert planning._operations(lambda: layer(images)) == 2 * 2 * 5 * 3 * 9 * 8 * 8

    @pytest.mark.slow
    def test_follow_the_settings(self, pair: Scenes, on_pipeline: Config, tmp_path: Path):
        base = _with(on_pipeline, sampling={"steps": 10, "strength": 0.5, "guidance": 3.0, "candidates": 4})
        base = _with(base, refinement={"steps": 6, "rounds": 3, "students": (2,)})
        before = _operations(pair, base, tmp_path)
        for changes, stage, ratio in (
            ({"sampling": {"candidates": 8}}, "candidates", 2),
            ({"sampling": {"candidates": 8}}, "chosen", 2),
            ({"refinement": {"steps": 18}}, "refined", 3),
            ({"refinement": {"rounds": 6}}, "students", 2),
            ({"sampling": {"guidance": 1.0}}, "candidates", 0.5),
            ({"sampling": {"follow": "none"}}, "candidates", 2),
            ({"sampling": {"steps": 30}}, "candidates", 3),
            ({"finetune": {"steps": 2 * base.finetune.steps}}, "adapter", 2),
            ({"latents": {"views": 8}}, "latents", 8 / base.latents.views),
        ):
            assert _operations(pair, _with(base, **changes), tmp_path)[stage] == pytest.approx(ratio * before[stage])

    def test_images_are_drawn_to_find_a_strength_that_is_left_open(
        self, pair: Scenes, on_pipeline: Config, tmp_path: Path
    ):
        given = _with(on_pipeline, sampling={"strength": 0.6, "candidates": 4}, selection={"by": "herding"})
        found = _operations(pair, _with(given, sampling={"strength": None}), tmp_path)
        slots = len(pair.classes) * given.ipc
        # 300 images or more in place of four a prototype, each decoded, and so is the scene that it starts from.
        each = -(-300 // slots)
        assert found["following"] == pytest.approx(each / 4 * (found["candidates"] + 2 * found["chosen"]))
        assert "following" not in _operations(pair, given, tmp_path)

    def test_screening_draws_again_from_more_noise(self, pair: Scenes, on_pipeline: Config, tmp_path: Path):
        base = _with(on_pipeline, sampling={"steps": 10, "strength": 0.5}, selection={"by": "herding"})
        found = _operations(pair, _with(base, privacy="screen"), tmp_path)
        decoding = found["chosen"]  # of each candidate once
        assert found["screened"] == pytest.approx(found["candidates"] * 0.6 / 0.5 + 2 * decoding)
        assert "screened" not in _operations(pair, base, tmp_path)


class TestPlan:
    def test_folder(self, pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(planning, "peak_memory_mib", lambda: 0)
        found = make_plan(pair, on_pipeline, tmp_path / "not" / "there")
        assert found.downloads == ()
        assert not (tmp_path / "not").exists()
        assert found.free_disk == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
        latent = 4 * 8 * 8
        prior = load_prior(on_pipeline.base)
        unet = 4 * sum(p.numel() for p in prior.unet.parameters())
        latents, features = len(pair) * on_pipeline.latents.views * latent * 2, len(pair) * 1280 * 4
        # Beside these, the U-Net in half precision, and for a while its checkpoint: weights, average and two moments.
        assert trains_all(prior.unet, on_pipeline.finetune)
        assert found.disk == latents + features + 2 * 2 * 2 * latent * 4 + unet // 2 + 4 * unet
        parts = (prior.vae, prior.unet, prior.unet, prior.text_encoder)  # a second U-Net while the adapter is trained
        weights = 4 * sum(p.numel() for part in parts for p in part.parameters())
        assert found.memory > weights

        def kept(**changes: Any) -> int:
            plan = make_plan(pair, _with(on_pipeline, **changes), tmp_path)
            return plan.memory - weights - planning._data(pair, _with(on_pipeline, **changes))

        unrefined, few = {"steps": 0}, on_pipeline.finetune.batch
        assert kept(refinement=unrefined, finetune={"batch": 2 * few}) == pytest.approx(
            2 * kept(refinement=unrefined), rel=0.05
        )
        assert kept() > kept(refinement=unrefined)
        assert kept(ipc=4) == 2 * kept(ipc=2)
        narrow, wide = (kept(refinement=unrefined, precision=name) for name in ("bf16", "f32"))
        assert 1.5 * narrow < wide < 2 * narrow  # float32 keeps no scores, its attention is fused
        assert found.seconds == sum(stage.seconds for stage in found.stages)
        monkeypatch.setattr(planning, "peak_memory_mib", lambda: 100)  # what is loaded by now
        assert make_plan(pair, on_pipeline, tmp_path).memory == found.memory + 100 * 2**20

    def test_an_archive_of_any_size_takes_the_same_memory(self, on_pipeline: Config, tmp_path: Path):
        config = _with(on_pipeline, latents={"views": 8}, refinement={"steps": 3, "students": (2, 3)})
        array, plans = np.zeros((32, 32, 3), np.uint8), []
        for count in (32_768, 300_000):
            keys = Digests(np.arange(count * 4, dtype=np.int64).view(np.uint8).reshape(count, 32))
            scenes = Scenes([array] * count, torch.arange(count) % 2, ("a", "b"), keys, [""] * count)
            plans.append(make_plan(scenes, config, tmp_path))
            assert planning._data(scenes, config) == 32_768 * (3 * 32**2 + 5 * 5120)
        few, many = plans
        assert many.memory - few.memory < 2**30  # what is loaded by now, above all the scenes of this test
        # One view of each instead of eight. For a while there are the features twice, or those of two students.
        latent = 4 * 8 * 8 * 2
        assert many.disk - few.disk == 300_000 * (latent + 2 * 5120) - 32_768 * (8 * latent + 3 * 5120)
        works = [{stage.name: stage.work for stage in found.stages}["latents"] for found in plans]
        assert works == ["262,144 views", "300,000 views"]

    def test_terms_of_the_base_and_what_it_was_trained_on(
        self,
        pair: Scenes,
        on_pipeline: Config,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ):
        assert make_plan(pair, on_pipeline, tmp_path).overlap == ""
        base = Path(shutil.copytree(on_pipeline.base, tmp_path / "base"))
        (base / "base.json").write_text(facts_text(BaseFacts("quay", (32,), "not for sale", ("harbours",))))
        (base / "trained_on.jsonl").write_text(footprint(pair.keys, "harbours"))
        found = make_plan(pair, _with(on_pipeline, base=str(base)), tmp_path)
        assert caplog.messages == ["base 'quay': not for sale"]
        told = "about 60 of the 60 training images are among those that the base was trained on (harbours)"
        assert found.overlap == told
        print_plan(found)
        assert f"base: {told}: figures measured on them are too optimistic\n" in capsys.readouterr().out

    def test_counts_the_self_test_on_scenes_that_are_held_out(self, pair: Scenes, on_pipeline: Config, tmp_path: Path):
        config = _with(on_pipeline, self_test={"held_out": 0.4})
        found, without = make_plan(pair, config, tmp_path), make_plan(pair, on_pipeline, tmp_path)
        assert (found.scenes, found.held_out) == (60, 60 - len(set_apart(pair, config).train))
        assert (without.scenes, without.held_out) == (60, 0)
        (stage,) = [stage for stage in found.stages if stage.name == "self_test"]
        assert stage.work == "51,200 images"  # two trainings of 400 steps of 64
        kept = {stage.name: stage.work for stage in found.stages}["latents"]
        assert kept == f"{(60 - found.held_out) * config.latents.views} views"
        assert "self_test" not in {stage.name for stage in without.stages}

    def test_counts_the_soft_label_teacher(self, pair: Scenes, on_pipeline: Config, tmp_path: Path):
        config = on_pipeline.model_copy(update={"soft_labels": True})
        (stage,) = [stage for stage in make_plan(pair, config, tmp_path).stages if stage.name == "labeller"]
        assert stage.work == "25,600 images"  # 400 steps of 64
        assert stage.seconds > 0

    def test_says_what_it_does_not_count(self, pair: Scenes, on_pipeline: Config, tmp_path: Path):
        assert make_plan(pair, on_pipeline, tmp_path).not_estimated == ()
        server = "openai:http://localhost:8000/v1"
        described = _with(on_pipeline, descriptions={"describer": server})
        assert make_plan(pair, described, tmp_path).not_estimated == (f"answers of {server}",)
        private = _with(on_pipeline, privacy="dp", epsilon=8.0, delta=1e-5, refinement={"steps": 0})
        (what,) = make_plan(pair, private, tmp_path).not_estimated
        assert what.startswith("gradients of each image alone")

    def test_under_differential_privacy_only_what_is_done_is_counted(
        self, pair: Scenes, on_pipeline: Config, tmp_path: Path
    ):
        private = {"privacy": "dp", "epsilon": 8.0, "delta": 1e-5, "selection": {"by": "herding"}}
        asked = {
            "ipc": 1,
            "base": on_pipeline.base,
            "size": on_pipeline.size,
            "sampling": {"follow": "none"},
            "finetune": {"steps": 0},
            "refinement": {"steps": 2, "rounds": 1},
            **private,
        }
        plan = make_plan(pair, make_config(asked), tmp_path)
        assert [stage.name for stage in plan.stages] == ["features", "candidates", "chosen", "refined"]
        assert plan.not_estimated == ()
        taught = make_config({**asked, "finetune": {"steps": 3, "consistency": 0.1}})
        names = [stage.name for stage in make_plan(pair, taught, tmp_path).stages]
        assert names == ["latents", "features", "teacher", "adapter", "candidates", "chosen", "refined"]

    def test_hub_says_the_same_as_the_folder(
        self, pair: Scenes, on_pipeline: Config, hub: dict[str, int], tmp_path: Path
    ):
        named = _with(on_pipeline, base="owner/base", descriptions={"describer": "owner/describer"})  # type: ignore[arg-type]
        found, local = make_plan(pair, named, tmp_path), make_plan(pair, on_pipeline, tmp_path)
        base, describer = found.downloads
        assert (base.name, base.licence, base.size) == ("owner/base", "openrail++", sum(hub.values()))
        assert describer.name == "owner/describer"
        assert [stage.operations for stage in found.stages] == [stage.operations for stage in local.stages]
        assert found.memory == pytest.approx(local.memory, rel=0.02)
        assert found.disk == local.disk + base.size + describer.size

    def test_hub_out_of_reach(self, pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def unreachable(name: str) -> Any:
            raise TimeoutError("no route")

        monkeypatch.setattr(planning, "_listing", unreachable)
        with pytest.raises(PriorError) as caught:
            make_plan(pair, _with(on_pipeline, base="owner/base"), tmp_path)  # type: ignore[arg-type]
        assert str(caught.value) == (
            "the hub did not tell of 'owner/base' (no route): point to a folder, or plan where the hub can be reached"
        )

    def test_what_cannot_be_run_cannot_be_planned(self, pair: Scenes, on_pipeline: Config, tmp_path: Path):
        for changes, message in (
            ({"size": 36}, "size 36 does not fit the base"),
            ({"base": "scratch", "size": 40}, "size 40 does not fit a base built from scenes"),
        ):
            with pytest.raises(PriorError, match=re.escape(message)):
                make_plan(pair, _with(on_pipeline, **changes), tmp_path)  # type: ignore[arg-type]
        wide = Scenes.from_arrays(torch.zeros(8, 64, 64, 5, dtype=torch.uint8).numpy(), [0, 1] * 4, ("a", "b"))
        with pytest.raises(PriorError, match=r"draws images of 3 bands, the scenes have 5: use --base scratch"):
            make_plan(wide, _with(on_pipeline, ipc=1), tmp_path)
        with pytest.raises(SceneError, match="IPC 1000 needs at least 1000"):
            make_plan(pair, _with(on_pipeline, ipc=1000), tmp_path)  # type: ignore[arg-type]


def test_a_base_of_the_scenes_themselves_is_planned(tmp_path: Path) -> None:
    wide = Scenes.from_arrays(torch.zeros(8, 32, 32, 5, dtype=torch.uint8).numpy(), [0, 1] * 4, ("a", "b"))
    asked = {"base": "scratch", "size": 32, "ipc": 1, "compact": {"steps": 7, "batch": 3, "width": (32, 32)}}
    found = make_plan(wide, make_config(asked), tmp_path)
    base, adapter = (next(one for one in found.stages if one.name == name) for name in ("base", "adapter"))
    assert (base.work, found.downloads, found.overlap) == ("21 latents", (), "")
    assert base.seconds / base.operations == pytest.approx(adapter.seconds / adapter.operations)


@pytest.mark.usefixtures("hub")
def test_another_family_is_refused_by_name(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {name: ["diffusers", "Any"] for name in ("vae", "tokenizer", "text_encoder", "text_encoder_2", "scheduler")}
    index |= {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    monkeypatch.setattr(planning, "_fetched", lambda name, path: index)
    with pytest.raises(PriorError, match=r"^the base 'owner/name' is a StableDiffusionXLPipeline with two text encode"):
        make_plan(pair, _with(on_pipeline, base="owner/name"), tmp_path)


def test_what_is_here_already_is_not_downloaded(
    hub: dict[str, int], pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    before = make_plan(pair, _with(on_pipeline, base="owner/name"), tmp_path).downloads[0].size
    monkeypatch.setattr(planning, "try_to_load_from_cache", lambda name, path: path if path == weights else None)
    after = make_plan(pair, _with(on_pipeline, base="owner/name"), tmp_path).downloads[0].size
    assert before - after == hub[weights]
