import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from geodistill.commands.audit import audit as audit_folder
from geodistill.commands.audit import unanswerable
from geodistill.commands.distill import distill
from geodistill.commands.source import Source, _half, read_source, shadow_sets
from geodistill.config import Config, make_config, recorded
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, RunError
from geodistill.methods import make_distilled
from geodistill.privacy.audit import REPLAYABLE
from geodistill.privacy.overlap import footprint
from geodistill.prototypes import Prototypes
from geodistill.run import Run, versions
from geodistill.scenes import SceneData, Scenes
from geodistill.stages.checks import warn_of_seen_tests
from geodistill.stages.chosen import Chosen
from geodistill.stages.context import Context
from geodistill.stages.held_out import set_apart

pytestmark = pytest.mark.usefixtures("little_audit")


@pytest.fixture(scope="module")
def data(audited_data: SceneData) -> SceneData:
    return audited_data


def test_figures_about_real_images_stay_out_of_a_private_set_s_card(
    data: SceneData, mixed_set: DistilledSet, tmp_path: Path
) -> None:
    private = replace(mixed_set, about={"guarantee": "Differentially private: ε = 4."})
    private.save(tmp_path / "set")
    audit_folder(tmp_path / "set", data)
    card = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "Differentially private: ε = 4." in card
    assert "Its findings stay with the data owner: figures about the real images are outside the guarantee." in card
    assert "copies" not in card


class TestOfRuns:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory, pair: Scenes, on_pipeline: Config) -> Path:
        folder = tmp_path_factory.mktemp("audited") / "run"
        distill(pair, on_pipeline, out=folder)
        return folder

    def test_what_the_base_was_trained_on(self, run: Path, pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
        source = read_source(run, pair)
        assert source.overlap(pair) == ""
        (tmp_path / "trained_on.jsonl").write_text(footprint(pair.keys, "harbours"))
        told = "about 60 of the 60 training images are among those that the base was trained on (harbours)"
        for base, expected in ((tmp_path, told), (tmp_path / "gone", ""), ("scratch", "")):
            config = make_config({**on_pipeline.model_dump(), "base": str(base)})
            assert replace(source, config=config).overlap(pair) == expected

    def test_without_the_base_membership_has_no_answer(
        self, run: Path, pair: Scenes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Source, "prior", lambda _: None)
        found, *_ = audit_folder(run, SceneData(pair, None))
        base = Path(read_source(run, pair).base).name
        assert found.verdict.endswith(
            f" NOT CHECKED: the base {base!r} of the run's settings cannot be loaded. Attacks in its latents, the "
            "replay and what it was trained on are left out, so a leak may be missed."
        )
        assert str(Path(read_source(run, pair).base).parent) not in (run / "distilled" / "README.md").read_text()
        checked = replace(found, replayable=False, beside=(), strays=())
        assert checked.fails(["membership"])
        assert not replace(checked, unchecked="").fails(["membership"])

    def test_where_images_began(self, run: Path, pair: Scenes) -> None:
        found, distilled, _ = audit_folder(run, SceneData(pair, None))
        starts = read_source(run, pair).starts(distilled)
        assert starts is not None
        assert torch.equal(pair.labels[starts], distilled.labels)
        members = Prototypes.load(run / "prototypes").members
        slots = [2 * record["label"] + record["prototype"] for record in manifest(run)]
        assert all(int(start) in members[slot].tolist() for start, slot in zip(starts, slots, strict=True))
        assert found.attribution is not None
        assert found.attribution.chance == pytest.approx(2 / len(pair))
        assert "training image it was sampled from (guessing: " in found.verdict
        card = (run / "distilled" / "README.md").read_text()
        assert card.count("## Privacy") == 1
        assert "## Privacy\n\nNot anonymous: the images follow training images, or means of them" in card
        assert f"\n\nAudited by `geodistill audit` {versions()['geodistill']}. {found.verdict}\n\n## L" in card
        assert not [name for name in pair.names if name in card]

    def test_a_set_that_tells_its_seeds_fails(self, run: Path, pair: Scenes) -> None:
        found, distilled, _ = audit_folder(run, SceneData(pair, None))
        assert distilled.replayable
        assert found.fails(())
        assert found.verdict.startswith(f"{REPLAYABLE} ")
        assert "**Do not share this set.**" in (run / "distilled" / "README.md").read_text()

    def test_removing_the_seeds_does_not_mend_it(self, run: Path, pair: Scenes, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "run")
        path = tmp_path / "run" / "distilled" / "manifest.json"
        told = json.loads(path.read_text())
        for key in ("seed", "reproducible"):
            del told["about"]["config"][key]
        for entry in told["images"]:
            for key in ("seed", "prototype", "candidate"):
                del entry[key]
        path.write_text(json.dumps(told))
        found, distilled, _ = audit_folder(tmp_path / "run", SceneData(pair, None))
        assert not distilled.replayable
        assert found.replayable
        assert found.attribution is not None

    def test_a_set_drawn_in_secret_does_not_and_its_owner_knows_the_starts(
        self, run: Path, pair: Scenes, on_pipeline: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(run, tmp_path / "run")
        distill(pair, make_config({**on_pipeline.model_dump(), "reproducible": False}), out=tmp_path / "run")
        found, distilled, _ = audit_folder(tmp_path / "run", SceneData(pair, None))
        assert not distilled.replayable
        assert not found.fails(())
        assert "FAILED" not in found.verdict
        starts = read_source(tmp_path / "run", pair).starts(distilled)
        assert starts is not None
        assert torch.equal(pair.labels[starts], distilled.labels)
        members = Prototypes.load(tmp_path / "run" / "prototypes").members
        slots = Chosen.load(tmp_path / "run" / "chosen").rows // on_pipeline.sampling.candidates
        assert all(int(start) in members[slot].tolist() for start, slot in zip(starts, slots, strict=True))
        (tmp_path / "run" / "secret").unlink()
        blind, *_ = audit_folder(tmp_path / "run", SceneData(pair, None))
        assert (blind.attribution, blind.replay, blind.copies) == (None, None, found.copies)
        told = f"{tmp_path / 'run' / 'secret'} is gone or damaged, so the scenes that the images started from are not"
        assert any(record.getMessage().startswith(told) for record in caplog.records)
        card = (tmp_path / "run" / "distilled" / "README.md").read_text()
        assert "was made: the set's run, or the run's secret, is not at hand. A leak may be missed." in card
        # Nobody knows what a replay would have found.
        assert blind.fails(["membership"])
        assert not blind.fails([])

    def test_the_folder_of_a_run_s_set_is_audited_as_the_run(
        self, run: Path, pair: Scenes, data: SceneData, tmp_path: Path
    ) -> None:
        shutil.copytree(run, tmp_path / "run")
        folder = tmp_path / "run" / "distilled"
        found, *_ = audit_folder(folder, SceneData(pair, None))
        assert found.attribution is not None
        card = (folder / "README.md").read_text()
        with pytest.raises(RunError, match="was made from other scenes than these"):
            audit_folder(folder, data)
        assert (folder / "README.md").read_text() == card

    def test_what_was_not_tested_of_an_updated_set_is_told(self, run: Path, pair: Scenes, tmp_path: Path) -> None:
        made = DistilledSet.load(run / "distilled")
        updated = replace(made, about=made.about | {"batches": 2, "follows_scenes": True})
        folder = updated.save(tmp_path / "updated")
        found, *_ = audit_folder(folder, SceneData(pair, None))
        told = (
            "NOT CHECKED: the images start from training images or means of them, and no replay was made: "
            "the set was updated, so no run made all its images. A leak may be missed."
        )
        assert found.verdict.endswith(told)
        assert told in (folder / "README.md").read_text()
        away = made.save(tmp_path / "away")
        found, *_ = audit_folder(away, SceneData(pair, None))
        assert found.untested == "the set's run, or the run's secret, is not at hand"
        shutil.copytree(run, tmp_path / "rival")
        about = json.loads((tmp_path / "rival" / "run.json").read_text())
        about["settings"]["method"] = "d4m"
        (tmp_path / "rival" / "run.json").write_text(json.dumps(about))
        found, *_ = audit_folder(tmp_path / "rival", SceneData(pair, None))
        assert found.untested == "only that of method 'dpd' can be, and method 'd4m' drew them"

    def test_a_replay_that_has_no_suspects_is_none(
        self, run: Path, pair: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("geodistill.privacy.audit.replay", lambda *_: None)
        shutil.copytree(run, tmp_path / "run")
        found, *_ = audit_folder(tmp_path / "run", SceneData(pair, None))
        assert found.untested == "a class has a single real image, so there is no other to compare with"
        assert found.fails(["membership"])

    def test_descriptions_of_scenes_fail(self, run: Path, pair: Scenes, tmp_path: Path) -> None:
        shared = DistilledSet.load(run / "distilled")
        about = {**shared.about, "config": {k: v for k, v in shared.about["config"].items() if k != "seed"}}
        records = tuple({"description": f"a beach with {k} umbrellas"} for k in range(len(shared)))
        told = replace(shared, records=records, about=about).save(tmp_path / "set")
        found, *_ = audit_folder(told, SceneData(pair, None), out=tmp_path / "found")
        assert found.foreign == len(shared) == 4
        assert found.fails(())
        assert found.verdict.startswith(
            "FAILED: 4 descriptions of the set were not measured in its images. They describe groups of training "
            "images, and a group can be a single one, which is found by its description. Run the `geodistill distill` "
            "command that made the set again: it describes the images themselves."
        )

    def test_files_that_are_not_of_the_set_fail(self, run: Path, pair: Scenes, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "run")
        stray = tmp_path / "run" / "distilled" / pair.classes[0] / "real.png"
        Image.fromarray(pair.pixels(torch.tensor([0]), size=32)[0].permute(1, 2, 0).numpy()).save(stray)
        found, *_ = audit_folder(str(tmp_path / "run"), SceneData(pair, None))
        assert found.strays == (f"{pair.classes[0]}/real.png",)
        assert found.fails(())
        assert found.verdict.startswith(
            f"FAILED: the folder of the set holds 1 file(s) that are not of the set, {pair.classes[0]}/real.png first."
        )

    def test_a_base_that_has_seen_the_test_images(
        self, pair: Scenes, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "trained_on.jsonl").write_text(footprint(pair.keys, "harbours"))
        warn_of_seen_tests(str(tmp_path), SceneData(pair, pair, val=pair))
        for base in (None, "scratch", str(tmp_path / "gone")):
            warn_of_seen_tests(base, SceneData(pair, pair))
        warn_of_seen_tests(str(tmp_path), SceneData(pair, None))
        assert [record.getMessage() for record in caplog.records] == [
            f"about 60 of the 60 {images} images are among those that the base was trained on (harbours): accuracy and "
            "nearness measured on them are too optimistic"
            for images in ("test", "validation")
        ]

    def test_training_images_are_those_that_no_self_test_held_out(
        self, pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Enough are left for the teacher.
        monkeypatch.setattr("geodistill.stages.held_out.FEWEST", 4)
        asked = make_config({**on_pipeline.model_dump(), "self_test": {"held_out": 0.1}})
        apart = set_apart(pair, asked)
        folder = tmp_path / "run"
        with Run(folder, {"method": "dpd", "config": recorded(asked), "scenes": pair.fingerprint()}) as made:
            made_of = make_distilled("dpd", Context(apart.train, asked, made)).value
        found, distilled, train = audit_folder(folder, SceneData(pair, None))
        assert train.keys == apart.train.keys
        assert torch.equal(distilled.images, made_of.images)
        assert found.train_count == len(apart.train)
        assert all(train.names[image.nearest_index] == image.nearest for image in found.images)
        starts = read_source(folder, pair).starts(distilled)
        assert starts is not None
        assert torch.equal(train.labels[starts], distilled.labels)

    def test_shadow_attack_on_sets_of_halves_of_every_class(self, data: SceneData, tmp_path: Path) -> None:
        config = make_config({"ipc": 1, "size": 32})
        settings = {"config": config.model_dump(mode="json"), "scenes": data.train.fingerprint(), "method": "random"}
        with Run(tmp_path / "run", settings, "test") as run:
            make_distilled("random", Context(data.train, config, run))
        found, *_ = audit_folder(tmp_path / "run", data, shadows=2)
        assert [one.name for one in found.attacks][-1] == "shadow"
        assert found.attribution is None
        source = read_source(tmp_path / "run", data.train)
        (first, part), (_, other) = shadow_sets(source, data.train, 2, tmp_path / "run" / "audit")
        assert torch.bincount(data.train.labels[part]).tolist() == [2] * 10
        assert part.tolist() != other.tolist()
        assert {image.tobytes() for image in first.images.numpy()} <= {
            image.tobytes() for image in data.train.pixels(part, size=32).numpy()
        }

    def test_shadow_sets_reuse_the_latents_of_the_run(
        self, run: Path, pair: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = read_source(run, pair)
        part = _half(pair, 0)
        prior = source.prior()
        assert prior is not None
        encoded = prior.encode(pair.subset(part).pixels(size=32))
        # No scene is encoded again.
        monkeypatch.delattr("geodistill.stages.latents.make_parts")
        [(found, which)] = shadow_sets(source, pair, 1, tmp_path)
        assert torch.equal(which, part)
        assert found.images.shape == (4, 3, 32, 32)
        kept = load_file(tmp_path / "shadow-0" / "latents" / "latents.safetensors")["latents"]
        assert torch.equal(kept, load_file(run / "latents" / "latents.safetensors")["latents"][part])
        # Encoded beside other scenes, a scene's latents differ by rounding.
        assert (kept[:, 0].float() - encoded).abs().max() < 1e-2

    def test_errors(self, run: Path, pair: Scenes, data: SceneData, tmp_path: Path) -> None:
        with pytest.raises(RunError) as caught:
            audit_folder(run, data)
        assert str(caught.value) == (
            f"{run} was made from other scenes than these: give the data that it was made from"
        )
        about = json.loads((run / "run.json").read_text())
        about["settings"]["method"] = "quay"
        (tmp_path / "quay").mkdir()
        (tmp_path / "quay" / "run.json").write_text(json.dumps(about))
        with pytest.raises(RunError) as caught:
            read_source(tmp_path / "quay", pair)
        assert str(caught.value) == (
            f"{tmp_path / 'quay'} was made by method 'quay', which is not installed: install the package that has it"
        )
        with pytest.raises(RunError) as caught:
            read_source(tmp_path, pair)
        assert str(caught.value) == f"{tmp_path} is no run of one set: give the folder that `geodistill distill` wrote"
        shutil.copytree(run / "distilled", tmp_path / "moved")
        with pytest.raises(ConfigError) as refused:
            audit_folder(tmp_path / "moved", SceneData(pair, None), shadows=1)
        assert str(refused.value) == (
            f"{tmp_path / 'moved'} is no run that made all images of its set, so there are no shadow sets: leave "
            "--shadows out"
        )
        (tmp_path / "link").symlink_to(run / "distilled")
        for out in (run / "distilled" / "audit", tmp_path / "link" / "audit"):
            with pytest.raises(ConfigError, match="is in the folder of the set, which is shared"):
                audit_folder(run, SceneData(pair, None), out=out)
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError) as caught:
            audit_folder(run, SceneData(pair, None), out=tmp_path / "file" / "sub")
        assert str(caught.value) == (
            f"{tmp_path / 'file' / 'sub'} cannot be a folder, a file is in its place: choose another --out"
        )
        distilled = DistilledSet.load(run / "distilled")
        told = unanswerable(distilled, SceneData(pair, None))
        assert told == "--fail-on membership needs held-out images: give data with a test part"
        few = pair.subset([int((pair.labels == label).nonzero()[0]) for label in (0, 1)])
        with pytest.raises(ConfigError) as refused:
            shadow_sets(read_source(run, pair), few, 1, tmp_path)
        assert str(refused.value) == (
            "the smallest class has 1 training images: half of them are fewer than 2 a class, so there is no shadow "
            "attack on this set"
        )


def manifest(run: Path) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads((run / "distilled" / "manifest.json").read_text())["images"]
    return images
