import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geodistill.commands.distill import distill
from geodistill.commands.sample import _adapted, _named
from geodistill.commands.sample import sample as draw_targeted
from geodistill.config import Config, SamplingSettings, make_config
from geodistill.errors import ConfigError, RunError
from geodistill.prior.catalogue import BaseFacts, facts_text
from geodistill.prior.sample import Requests
from geodistill.scenes import SceneData, write_scenes

CLASSES = ("Bridge", "DenseResidential", "Residential", "RiverBridge", "Storage_Tanks")


class TestClassOfAPrompt:
    @pytest.mark.parametrize(
        ("prompt", "name"),
        [
            ("A satellite image of storage tanks, snow", "Storage_Tanks"),
            ("STORAGE-TANKS", "Storage_Tanks"),
            ("dense residential at dusk", "DenseResidential"),
            ("a residential street", "Residential"),
            ("a river bridge", "RiverBridge"),
        ],
    )
    def test_named(self, prompt: str, name: str):
        assert _named(prompt, CLASSES) == name

    @pytest.mark.parametrize(
        ("prompt", "what"),
        [
            ("a harbour", "no class of this run"),
            ("bridges", "no class of this run"),
            ("a bridge and storage tanks", "several classes (Bridge, Storage_Tanks)"),
            ("a river bridge and a bridge", "several classes (Bridge, RiverBridge)"),
        ],
    )
    def test_not_one(self, prompt: str, what: str):
        with pytest.raises(ConfigError) as caught:
            _named(prompt, CLASSES)
        assert str(caught.value) == (
            f"the prompt {prompt!r} names {what}: say with --class which label the images get, of {', '.join(CLASSES)}"
        )


@pytest.fixture(scope="module")
def run(data: SceneData, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("targeted") / "run"
    distill(data.train, tiny, out=out)
    return out


def test_terms_of_the_base_are_told(
    on_pipeline: Config, sd_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = Path(shutil.copytree(sd_folder, tmp_path / "base"))
    (base / "base.json").write_text(facts_text(BaseFacts("quay", (32,), "not for sale")))
    plain = {"base": str(base), "finetune": {**on_pipeline.finetune.model_dump(), "steps": 0}}
    _adapted(tmp_path, make_config({**on_pipeline.model_dump(), **plain}))
    assert caplog.messages == ["base 'quay': not for sale"]


def test_a_run_without_an_adapted_base_is_refused(on_pipeline: Config, tmp_path: Path) -> None:
    scratch = make_config({**on_pipeline.model_dump(), "base": "scratch"})
    for config, name in ((on_pipeline, "adapter"), (scratch, "base")):
        with pytest.raises(RunError) as caught:
            _adapted(tmp_path, config)
        assert str(caught.value) == (
            f"{tmp_path} has no {name}: its method trains none, and `sample` draws with the base that a run has "
            "adapted to its scenes: give a run of the method dpd"
        )


class TestDrawTargeted:
    def test_images_depend_on_prompt_and_seed_alone(self, run: Path, data: SceneData, tmp_path: Path):
        name = data.train.classes[0]
        drawn = {
            key: draw_targeted(run, f"A satellite image of {prompt}", count=count, seed=seed, out=tmp_path / key)
            for key, prompt, count, seed in (
                ("one", f"{name}, snow", 9, 0),
                ("fewer", f"{name}, snow", 2, 0),
                ("seed", f"{name}, snow", 2, 1),
                ("prompt", f"{name}, dusk", 2, 0),
            )
        }
        images = {
            key: torch.stack(
                [torch.from_numpy(np.array(Image.open(path))) for path in sorted((folder / name).iterdir())][:2]
            )
            for key, folder in drawn.items()
        }
        assert images["one"].shape == (2, 32, 32, 3)
        assert len(list((drawn["one"] / name).iterdir())) == 9
        # Batches of another size round differently.
        assert (images["one"].int() - images["fewer"].int()).abs().max() <= 2
        assert not torch.equal(images["fewer"], images["seed"])
        assert not torch.equal(images["fewer"], images["prompt"])
        about = json.loads(next(drawn["seed"].glob("*-snow-*_1.json")).read_text())
        assert (about["class"], about["seed"], about["count"]) == (name, 1, 2)
        # The images of a call that drew more stay, and are counted.
        draw_targeted(run, f"A satellite image of {name}, snow", count=1, seed=0, out=drawn["one"])
        assert len(list((drawn["one"] / name).iterdir())) == 9
        assert json.loads(next(drawn["one"].glob("*-snow-*_0.json")).read_text())["count"] == 9

    def test_in_the_run_by_default(self, run: Path, data: SceneData):
        folder = draw_targeted(run, "Snow, at dusk!", count=1, class_name="dense residential")
        assert folder.parent == run / "samples"
        assert folder.name.startswith("snow-at-dusk-")
        assert Image.open(folder / data.train.classes[1] / f"{folder.name}_0_000.png").size == (32, 32)
        same_words = draw_targeted(run, "Snow - at dusk", count=1, class_name="dense residential")
        assert same_words != folder

    def test_other_files_are_not_mixed_with_samples(self, run: Path, data: SceneData, tmp_path: Path):
        prompt = f"an image of {data.train.classes[0].lower()}"
        write_scenes(tmp_path / "data", train_per_class=1, test_per_class=1, size=32)
        shutil.copytree(run / "distilled", tmp_path / "set")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for out in (tmp_path / "data", tmp_path / "data" / "train", tmp_path / "set"):
            with pytest.raises(ConfigError) as caught:
                draw_targeted(run, prompt, count=1, out=out)
            assert str(caught.value) == f"--out {out} holds other files than samples: choose a new folder"
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError) as caught:
            draw_targeted(run, prompt, count=1, out=tmp_path / "file")
        assert str(caught.value) == f"--out {tmp_path / 'file'} is a file: choose a new folder"
        for seed in (0, 1):
            draw_targeted(str(run), prompt, count=1, seed=seed, out=str(tmp_path / "samples"))
        assert len(list((tmp_path / "samples").glob("*/*.png"))) == 2

    def test_unknown_class(self, run: Path, data: SceneData):
        with pytest.raises(ConfigError) as caught:
            draw_targeted(run, "snow", class_name="Volcano")
        assert str(caught.value) == (
            f"there is no class 'Volcano' in this run: its classes are {', '.join(data.train.classes)}"
        )

    def test_prompt_over_the_limit(self, run: Path, data: SceneData):
        with pytest.raises(
            ConfigError, match=r"^the prompt has \d+ tokens, the base's text encoder takes \d+: shorten"
        ):
            draw_targeted(run, f"{data.train.classes[0]} " + "snow " * 100)

    def test_no_run(self, tmp_path: Path):
        with pytest.raises(RunError) as caught:
            draw_targeted(tmp_path, "snow")
        assert str(caught.value) == (
            f"{tmp_path} is no run of `geodistill distill`: it has no config.toml and run.json"
        )

    def test_run_that_is_not_finished(self, run: Path, tmp_path: Path):
        for name in ("config.toml", "run.json"):
            (tmp_path / name).write_bytes((run / name).read_bytes())
        with pytest.raises(RunError) as caught:
            draw_targeted(tmp_path, "snow")
        assert str(caught.value) == (
            f"the run in {tmp_path} is not finished: the command that began it goes on where it stopped"
        )


def test_a_name_in_a_longer_one_that_is_not_meant_does_not_count() -> None:
    with pytest.raises(ConfigError, match=r"names several classes \(Airport, Port\): say with --class"):
        _named("a port beside an airport", ("Airport", "Port"))
    assert _named("an airport", ("Airport", "Port")) == "Airport"


@pytest.mark.parametrize(
    ("prompt", "classes"),
    [
        ("a dense residential area", ("DenseResidential", "ResidentialArea")),
        ("storage tanks", ("StorageTanks", "Storage_Tanks")),
        ("a park, a car park", ("CarPark", "Park")),
    ],
)
def test_names_that_overlap_or_are_read_alike_are_both_meant(prompt: str, classes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="names several classes"):
        _named(prompt, classes)


def test_images_are_drawn_as_those_of_the_set_were(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[float] = []

    def drawing(prior: object, requests: Requests, settings: SamplingSettings, **_: object) -> torch.Tensor:
        seen.append(settings.guidance_scale)
        return requests.prototypes[requests.slots]

    monkeypatch.setattr("geodistill.commands.sample.sample_fitting", drawing)
    (run / "following").mkdir(exist_ok=True)
    (run / "following" / "following.json").write_text('{"closely": true}')
    config = make_config({**tomllib.loads((run / "config.toml").read_text()), "sampling": {"steps": 2}})
    monkeypatch.setattr("geodistill.commands.sample.load_config", lambda file: config)
    draw_targeted(run, "a beach", count=1, out=tmp_path / "drawn")
    assert seen == [1.5]


def test_settings_that_are_damaged_are_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text("ipc = [")
    with pytest.raises(ConfigError, match=r"config\.toml is not valid TOML"):
        draw_targeted(tmp_path / "run", "An image of a beach")
