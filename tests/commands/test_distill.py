import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny_pipeline
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

import geodistill
from geodistill.commands.distill import distill
from geodistill.config import Config, load_config
from geodistill.descriptions import Description, Exchange, MeasuredDescriber
from geodistill.errors import ConfigError, DescriberError, PriorError, RunError, SceneError
from geodistill.evaluation import protocols
from geodistill.evaluation.soft_label_teacher import load_soft_label_teacher, soft_labels, train_soft_label_teacher
from geodistill.latent_teacher import load_latent_teacher, predict
from geodistill.networks import backbone_features
from geodistill.prior.base import load_prior
from geodistill.prior.catalogue import BaseFacts, facts_text
from geodistill.privacy.overlap import footprint
from geodistill.provenance import Made, Stage
from geodistill.run import records
from geodistill.scenes import SceneData, Scenes, write_scenes
from geodistill.seeding import derive_seed
from geodistill.stages.chosen import Chosen
from geodistill.stages.context import Context
from geodistill.stages.distilled import about


def _with(config: Config, **changes: object) -> Config:
    return Config.model_validate({**config.model_dump(), **changes})


def _bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def run(data: SceneData, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dpd") / "run"
    distill(data.train, tiny, out=out)
    return out


def test_scenes_are_asked_for(data: SceneData) -> None:
    with pytest.raises(SceneError) as caught:
        distill(data)  # type: ignore[arg-type]
    assert str(caught.value) == "scenes are SceneData: give the training part of what open_scenes returns"


def test_set_has_ipc_images_of_every_class(run: Path, data: SceneData) -> None:
    distilled = geodistill.DistilledSet.load(run / "distilled")
    assert distilled.classes == data.train.classes
    assert torch.bincount(distilled.labels).tolist() == [2] * 10
    assert distilled.images.shape == (20, 3, 32, 32)
    assert len({image.numpy().tobytes() for image in distilled.images}) == 20


def test_stock_diffusers_loads_the_unet_that_the_run_trained(run: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(run / "adapter" / "unet", torch_dtype=torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(run / "base", unet=unet, torch_dtype=torch.float32)
    image = pipeline("a beach", height=32, width=32, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3)
    (facts,) = (one["facts"] for one in records(run) if one["stage"] == "adapter")
    assert facts["weights"] == "all"


def test_without_a_folder_nothing_is_left(data: SceneData, tiny: Config, run: Path) -> None:
    distilled = distill(data.train, tiny)
    assert torch.equal(distilled.images, geodistill.DistilledSet.load(run / "distilled").images)


@pytest.mark.slow
def test_any_pipeline_folder_goes_the_same_way(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    distilled = distill(pair, _with(on_pipeline, selection={"by": "margin"}), out=tmp_path / "run")
    assert torch.bincount(distilled.labels).tolist() == [2, 2]
    assert not (tmp_path / "run" / "base").exists()


class _Talker:
    """Describes at length, badly for the second cluster, and is gone after `most` descriptions."""

    name = "talker"

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, images: torch.Tensor, class_name: str) -> Description:
        if not self.left:
            raise DescriberError("gone")
        self.left -= 1
        if self.left % 2:
            return Description(
                f"A satellite image of {class_name} " + "water " * 90, exchanges=(Exchange("q", "a", 0),)
            )
        return Description(f"A satellite image of {class_name}", "refused")


@pytest.mark.slow
def test_descriptions_by_a_model_resume_and_are_kept(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talkers = {"first": _Talker(3), "second": _Talker(1)}
    asked = iter(talkers.values())
    monkeypatch.setattr("geodistill.stages.descriptions.make_describer", lambda *_: next(asked))
    with pytest.raises(DescriberError):
        distill(pair, on_pipeline, out=tmp_path / "run")
    distill(pair, on_pipeline, out=tmp_path / "run")
    assert [talker.left for talker in talkers.values()] == [0, 0]
    texts = json.loads((tmp_path / "run/descriptions/descriptions.json").read_text())
    log = [json.loads(line) for line in (tmp_path / "run/descriptions/conversations.jsonl").read_text().splitlines()]
    assert texts == [line["text"] for line in log]
    assert [line["outcome"] for line in log] == ["refused", "shortened", "refused", "refused"]
    assert log[1]["exchanges"] == [{"prompt": "q", "answer": "a", "member": 0}]
    record = next(one for one in records(tmp_path / "run") if one["stage"] == "descriptions")
    assert record["facts"] == {"refused": 3, "shortened": 1}
    prior = load_prior(on_pipeline.base)
    assert prior.fits(texts[1])
    assert not prior.fits(texts[1] + " water")


@pytest.mark.slow
def test_base_of_v_prediction_with_class_embeddings(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_pipeline(tmp_path / "base", prediction="v_prediction", class_embeddings=3)
    given: list[tuple[bool, torch.Tensor]] = []
    forward = UNet2DConditionModel.forward

    def seeing(self: Any, noisy: torch.Tensor, *args: Any, class_labels: torch.Tensor, **named: Any) -> Any:
        given.append((self.training, class_labels))
        assert len(class_labels) == len(noisy)
        return forward(self, noisy, *args, class_labels=class_labels, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", seeing)
    distilled = distill(pair, _with(on_pipeline, base=str(base)), out=tmp_path / "run")
    assert torch.bincount(distilled.labels).tolist() == [2, 2]
    assert {training for training, _ in given} == {True, False}  # trained and sampled
    assert all((labels == 0).all() for _, labels in given)
    assert len({image.numpy().tobytes() for image in distilled.images}) == 4


def test_killed_among_the_candidates_ends_with_the_same_bytes(
    run: Path, data: SceneData, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "run"
    shutil.copytree(run, killed)
    for stage in ("candidates", "chosen", "refined", "distilled"):
        shutil.rmtree(killed / stage)
        (killed / "stages" / f"{stage}.json").unlink()
    forward, steps = UNet2DConditionModel.forward, []

    def dying(self: Any, noisy: torch.Tensor, *args: Any, **named: Any) -> Any:
        steps.append(len(noisy))
        if len(steps) == 5:  # two steps of `start` a batch: in the midst of the third batch
            raise KeyboardInterrupt
        return forward(self, noisy, *args, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", dying)
    with pytest.raises(KeyboardInterrupt):
        distill(data.train, tiny, out=killed)
    partial = killed / ".candidates.partial"
    kept = sorted(path.name for path in partial.glob(".part-*"))
    assert kept == [".part-00000.safetensors", ".part-00001.safetensors"]
    steps.clear()

    def counting(self: Any, noisy: torch.Tensor, *args: Any, **named: Any) -> Any:
        steps.append(len(noisy) // 2)
        return forward(self, noisy, *args, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counting)
    distill(data.train, tiny, out=killed)
    assert sum(steps) == 2 * (40 - 14)  # the two batches of 7 that were finished are not drawn again
    for stage in ("candidates", "chosen", "refined", "distilled"):
        assert _bytes(killed / stage) == _bytes(run / stage)


class TestInSecret:
    @pytest.fixture(scope="class")
    def hidden(self, run: Path, data: SceneData, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("secret") / "run"
        shutil.copytree(run, folder)
        distill(data.train, _with(tiny, reproducible=False), out=folder)
        return folder

    def test_a_reproducible_run_goes_on_from_its_adapter(self, run: Path, hidden: Path) -> None:
        for stage in ("latents", "teacher", "prototypes", "adapter"):
            assert _bytes(hidden / stage) == _bytes(run / stage)
            record = Path("stages") / f"{stage}.json"
            assert (hidden / record).read_bytes() == (run / record).read_bytes()
        own, public = (geodistill.DistilledSet.load(one / "distilled") for one in (hidden, run))
        assert not any(torch.equal(a, b) for a in own.images for b in public.images)

    def test_what_is_shared_tells_nothing_to_draw_it_again_from(self, run: Path, hidden: Path) -> None:
        manifest = json.loads((hidden / "distilled" / "manifest.json").read_text())
        assert {"seed", "reproducible"}.isdisjoint(manifest["about"]["config"])
        assert {frozenset(entry) for entry in manifest["images"]} == {
            frozenset({"file", "class", "label", "description", "scores"})
        }
        secret = (hidden / "secret").read_text()
        seed = str(derive_seed(int(secret, 16), "draws"))
        for path in (path for path in (hidden / "distilled").rglob("*") if path.is_file()):
            assert secret.encode() not in path.read_bytes()
            assert seed.encode() not in path.read_bytes()
        warning = "**Do not share this set.** It was made reproducibly"
        assert warning not in (hidden / "distilled" / "README.md").read_text()
        assert warning in (run / "distilled" / "README.md").read_text()

    def test_descriptions_are_of_the_images_and_not_of_the_scenes_that_they_were_drawn_for(
        self, run: Path, hidden: Path
    ) -> None:
        shared, public = (geodistill.DistilledSet.load(one / "distilled") for one in (hidden, run))
        told = [record["description"] for record in shared.records]
        names = [shared.classes[label] for label in shared.labels.tolist()]
        assert told == MeasuredDescriber().each(shared.images, names)
        prompts = json.loads((hidden / "descriptions" / "descriptions.json").read_text())
        assert {record["description"] for record in public.records} <= set(prompts)
        assert not set(told) <= set(prompts)

    def test_images_of_a_class_are_in_no_order(self, hidden: Path) -> None:
        rows = Chosen.load(hidden / "chosen").rows.view(-1, 2)
        assert {bool(first < second) for first, second in rows} == {True, False}

    def test_stopped_and_gone_on_with_it_ends_with_the_same_bytes(
        self, hidden: Path, data: SceneData, tiny: Config, tmp_path: Path
    ) -> None:
        again = tmp_path / "run"
        shutil.copytree(hidden, again)
        for stage in ("candidates", "chosen", "refined", "distilled"):
            shutil.rmtree(again / stage)
        distill(data.train, _with(tiny, reproducible=False), out=again)
        assert _bytes(again / "distilled") == _bytes(hidden / "distilled")

    def test_two_runs_differ(self, run: Path, hidden: Path, data: SceneData, tiny: Config, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "run")
        distill(data.train, _with(tiny, reproducible=False), out=tmp_path / "run")
        noise = [load_file(one / "candidates/candidates.safetensors")["latents"] for one in (hidden, tmp_path / "run")]
        assert (noise[0] - noise[1]).flatten(1).abs().amax(dim=1).min() > 0.5

    def test_without_its_secret_it_does_not_go_on(
        self, hidden: Path, data: SceneData, tiny: Config, tmp_path: Path
    ) -> None:
        shutil.copytree(hidden, tmp_path / "run")
        (tmp_path / "run" / "secret").unlink()
        with pytest.raises(RunError, match=r"secret is gone: the images of this run were drawn from it"):
            distill(data.train, _with(tiny, reproducible=False), out=tmp_path / "run")


def test_more_candidates_change_none_drawn_before(data: SceneData, tiny: Config, run: Path, tmp_path: Path) -> None:
    more = tiny.sampling.model_copy(update={"candidates": 3}).model_dump()
    distill(data.train, _with(tiny, sampling=more, base=str(run / "base")), out=tmp_path / "run")
    few = load_file(run / "candidates" / "candidates.safetensors")["latents"].view(20, 2, -1)
    many = load_file(tmp_path / "run" / "candidates" / "candidates.safetensors")["latents"].view(20, 3, -1)
    assert torch.allclose(many[:, :2], few, atol=0.05)  # bf16 sums differ by batch
    assert (few[:, 0] - few[:, 1]).abs().max() > 0.5


def test_the_distilled_set_names_no_source(run: Path, data: SceneData) -> None:
    told = (run / "distilled" / "manifest.json").read_text() + (run / "distilled" / "README.md").read_text()
    assert not [key for key in data.train.keys if key in told]


@pytest.mark.slow
def test_killed_while_the_adapter_is_trained_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train_per_class=12, test_per_class=1, size=32)
    command = [sys.executable, "-c", "from geodistill.cli import app; app()", "distill", str(tmp_path / "scenes")]
    command += ["--config", "tiny", "--set", "compact.steps=4", "--reproducible", "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, **quiet)  # type: ignore[call-overload]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, str(killed)], env=environment, **quiet)  # type: ignore[call-overload]
    while process.poll() is None and not any((killed / name).exists() for name in ("adapter", ".adapter.partial")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "distilled").exists()
    subprocess.run([*command, str(killed)], check=True, env=environment, **quiet)  # type: ignore[call-overload]
    assert _bytes(killed / "distilled") == _bytes(tmp_path / "whole" / "distilled")
    assert _bytes(killed / "adapter") == _bytes(tmp_path / "whole" / "adapter")


def test_herding_takes_the_candidates_whose_mean_is_nearest_to_the_class(
    pair: Scenes, on_pipeline: Config, tmp_path: Path
) -> None:
    one = on_pipeline.model_copy(update={"ipc": 1})
    herded = _with(one, selection={"by": "herding"}, refinement={"steps": 0})
    distilled = distill(pair, herded, out=tmp_path / "run")
    candidates = load_file(tmp_path / "run" / "candidates" / "candidates.safetensors")["latents"]
    prior, teacher = load_prior(one.base), load_latent_teacher(tmp_path / "run" / "teacher")

    def features(latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([predict(teacher, latents)[1], backbone_features(pixels)], dim=1)

    pixels = prior.decode(candidates)
    real = features(prior.encode(pair.pixels(size=32)).half(), pair.pixels(size=32))
    for label, image in enumerate(distilled.images):
        own = torch.arange(2) + 2 * label
        away = (features(candidates[own], pixels[own]) - real[pair.labels == label].mean(dim=0)).norm(dim=1)
        assert (image.int() - pixels[own[away.argmin()]].int()).abs().max() <= 1


@pytest.mark.slow
def test_soft_labels_are_stored_with_the_images_and_change_none(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_soft_label_teacher
    monkeypatch.setattr(
        "geodistill.stages.teacher.train_soft_label_teacher", lambda *args, **named: train(*args, steps=2, **named)
    )
    monkeypatch.setattr(protocols, "BATCH", 8)
    plain = distill(pair, on_pipeline, out=tmp_path / "plain")
    labelled = distill(pair, on_pipeline.model_copy(update={"soft_labels": True}), out=tmp_path / "labelled")
    assert torch.equal(plain.images, labelled.images)
    assert not [record for record in plain.records if "soft_label" in record]
    network = load_soft_label_teacher(tmp_path / "labelled" / "labeller" / "labeller.safetensors", 2)
    stored = torch.tensor([record["soft_label"] for record in labelled.records])
    assert torch.allclose(stored, soft_labels(network, labelled.images), atol=6e-5)
    again = geodistill.DistilledSet.load(tmp_path / "labelled" / "distilled")
    assert again.records == labelled.records


def test_soft_labels_of_images_too_small_for_a_classifier(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        distill(pair, _with(on_pipeline, soft_labels=True, size=16), out=tmp_path / "run")
    assert str(caught.value) == "images of 16 px are too small for the networks: use 32 px or more"
    assert not (tmp_path / "run").exists()


def test_class_with_too_few_images(data: SceneData, tiny: Config) -> None:
    with pytest.raises(SceneError) as caught:
        distill(data.train, _with(tiny, ipc=13))
    assert str(caught.value) == "class 'Beach' has 12 images, IPC 13 needs at least 13: lower --ipc or add images"


def test_a_private_set_cannot_be_drawn_again(data: SceneData, tmp_path: Path) -> None:
    asked = load_config(privacy="dp", epsilon=8.0, delta=1e-3, reproducible=True)
    with pytest.raises(ConfigError) as caught:
        distill(data.train, asked, out=tmp_path / "run")
    assert str(caught.value) == (
        "privacy 'dp' does not go with --reproducible: its noise comes from the operating system, and no command draws "
        "it again"
    )
    assert not (tmp_path / "run").exists()


def test_size_that_does_not_fit_is_found_before_the_base_is_built(data: SceneData, tiny: Config) -> None:
    with pytest.raises(PriorError, match="needs a multiple of 16: use --size 32"):
        distill(data.train, _with(tiny, size=40))


def test_unknown_describer(data: SceneData, tiny: Config) -> None:
    with pytest.raises(ConfigError, match="unknown describer 'poet': choose measured, template, openai:URL"):
        distill(data.train, _with(tiny, descriptions={"describer": "poet"}))


def test_a_class_name_longer_than_a_prompt_is_refused(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    name = "Forest" + " and forest" * 100
    images = list(pair.pixels(size=32).permute(0, 2, 3, 1).numpy())
    scenes = Scenes.from_arrays(images, pair.labels.tolist(), ("Beach", name))
    with pytest.raises(
        ConfigError, match=r"^the prompt of class 'Forest and .* has \d+ tokens, the base's text encoder "
    ):
        distill(scenes, on_pipeline, out=tmp_path / "run")


@pytest.mark.parametrize("preset", ["paper", "paper-r1"])
def test_presets_for_large_bases_make_a_set(
    preset: str, pair: Scenes, sd_folder: Path, on_pipeline: Config, tmp_path: Path
) -> None:
    smaller = ["size=32", "ipc=2", "finetune.steps=2", "finetune.warmup=1", "sampling.steps=4"]
    smaller += ["descriptions.describer=template"]
    # With one view of 37 scenes a teacher is as often as not no better than chance.
    smaller += ["latents.views=8"]
    config = _with(load_config(preset, smaller, base=str(sd_folder)), teacher=on_pipeline.teacher.model_dump())
    distilled = distill(pair, config, out=tmp_path / "run")
    assert torch.bincount(distilled.labels).tolist() == [2, 2]
    ranks = set((Chosen.load(tmp_path / "run" / "chosen").rows % config.sampling.candidates).tolist())
    assert ranks == {0} if preset == "paper" else ranks <= set(range(5))


def test_terms_of_the_base_and_what_it_was_trained_on_are_told_once(
    pair: Scenes,
    on_pipeline: Config,
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = Path(shutil.copytree(sd_folder, tmp_path / "base"))
    (base / "base.json").write_text(facts_text(BaseFacts("quay", (32,), "not for sale", ("harbours",))))
    (base / "trained_on.jsonl").write_text(footprint(pair.keys, "harbours"))
    config = _with(on_pipeline, base=str(base))
    told = [
        "base 'quay': not for sale",
        "about 60 of the 60 training images are among those that the base was trained on (harbours): figures "
        "measured on them are too optimistic",
    ]

    def begun(context: Context) -> Made[dict[str, Any]]:
        made = context.run.make(Stage("begun", 1), lambda folder: None, lambda folder: folder, given=[])
        return Made.source(about(context), made.marks[0])

    monkeypatch.setattr("geodistill.methods.dpd.make", begun)
    told_of_set = distill(pair, config, out=tmp_path / "run")
    assert caplog.messages == told
    assert told_of_set["base"] == {"name": "quay", "archives": ("harbours",), "terms": "not for sale"}  # type: ignore[index]
    distill(pair, config, out=tmp_path / "run")
    assert caplog.messages == told
    distill(pair, on_pipeline, out=tmp_path / "other")
    assert caplog.messages == told
    with pytest.raises(PriorError, match=r" draws images of 32 px, not 64: use --size 32, --base scratch, or a base "):
        distill(pair, _with(config, size=64), out=tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
