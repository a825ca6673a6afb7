import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from geodistill.commands.pretrain import _check_shares, open_sources, pretrain
from geodistill.config import Config, load_config, make_config
from geodistill.errors import ConfigError, PriorError, RunError, SceneError
from geodistill.prior import compact, training
from geodistill.prior.base import load_prior, source_of
from geodistill.prior.catalogue import BaseFacts, facts_text, read_facts
from geodistill.privacy.overlap import FOOTPRINT, PICTURES, footprint, known, known_archives
from geodistill.run import records
from geodistill.scenes import SceneData, Scenes, open_unlabelled, write_scenes
from geodistill.scenes.scenes import UNLABELLED
from geodistill.stages.base import Source

_NOTE = "built-in scenes, free of any right"
BUILTIN = (
    *("Beach", "DenseResidential", "Farmland", "Forest", "Harbour"),
    *("Intersection", "ParkingLot", "River", "Runway", "StorageTanks"),
)


@pytest.fixture(scope="module")
def settings() -> Config:
    """A convolutional autoencoder and a U-Net, a few steps each, at 16 px: the built-in scenes have twice as many."""
    small = {"channels": 4, "width": (32, 32), "steps": 3, "batch": 4, "autoencoder_steps": 4, "sharpening_steps": 3}
    return make_config({"size": 16, "compact": {"autoencoder": "convolutional", **small}})


@pytest.fixture(scope="module")
def run(data: SceneData, settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrain") / "run"
    assert pretrain([Source(data.train)], settings, out=out, data_note=_NOTE) == out / "base"
    return out


def test_result_is_a_pipeline_in_half_precision_that_stock_diffusers_draws_with(run: Path) -> None:
    weights = load_file(run / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    pipeline = StableDiffusionPipeline.from_pretrained(run / "base", torch_dtype=torch.float32)
    image = pipeline("a beach", height=16, width=16, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 16, 16, 3)
    assert not [path for path in (run / "base").rglob("*.json") if str(run) in path.read_text()]
    names = {path.name for path in (run / "base").iterdir()}
    assert not [name for name in names if name.startswith(".")]


def test_model_card_says_what_it_is(run: Path) -> None:
    card, facts = (run / "base" / "README.md").read_text(), records(run)[0]["facts"]
    assert "- Trained on: 120 images of 10 classes (" in card
    assert f"- Data and licence: {_NOTE}" in card
    assert (
        "- Autoencoder: convolutional, 4 steps of 64 images, its decoder 3 more under adversarial critics; 4 channels "
        f"at 1/8 of the resolution; {facts['autoencoder_psnr_db']} dB PSNR on the training scenes." in card
    )
    assert f"{facts['unet_parameters']:,} parameters, 3 steps of 4 latents" in card
    assert read_facts(run / "base") == BaseFacts("run", (16,), classes=BUILTIN)


@pytest.mark.slow
def test_killed_in_either_training_it_ends_with_the_same_bytes(
    run: Path, data: SceneData, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = run / "base", tmp_path / "run"
    for place in ("_sharpen", "train_denoiser", "_training_data", "_save"):

        def kill(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(compact, place, kill)
            with pytest.raises(KeyboardInterrupt):
                pretrain([Source(data.train)], settings, out=killed)
    pretrain([Source(data.train)], settings, out=killed, data_note=_NOTE)
    for path in whole.rglob("*.safetensors"):
        assert (killed / "base" / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_autoencoder_is_the_one_that_was_standardised(run: Path, data: SceneData) -> None:
    latents = load_prior(str(run / "base")).encode(data.train.pixels(size=16))
    assert latents.std(dim=(0, 2, 3)).sub(1).abs().max() < 0.02


def test_size_that_does_not_fit(data: SceneData, settings: Config, tmp_path: Path) -> None:
    with pytest.raises(PriorError) as caught:
        pretrain([Source(data.train)], settings.model_copy(update={"size": 24}), out=tmp_path / "run")
    assert (
        str(caught.value)
        == "size 24 does not fit a base built from scenes, which needs a multiple of 16: use --size 32"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["pretrain", "pretrain-gpu"])
def test_preset_is_the_recipe_of_the_shipped_base(name: str) -> None:
    preset = load_config(name).compact
    unet = json.loads((Path(source_of("compact", 64)) / "unet" / "config.json").read_text())
    assert preset.autoencoder == "convolutional"
    assert (preset.channels, list(preset.width)) == (unet["in_channels"], unet["block_out_channels"])


def test_goes_on_from_a_base_whose_autoencoder_and_words_stay(
    run: Path, data: SceneData, settings: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = Path(shutil.copytree(run / "base", tmp_path / "base"))
    shutil.copy(run / FOOTPRINT, tmp_path)
    facts = BaseFacts("first", (16, 32), "not for sale", ("ports",), ("Beach", "quay"))
    (base / "base.json").write_text(facts_text(facts))
    source = Source(data.train, name="fields")
    further = pretrain([source], settings, out=tmp_path / "further", start=str(base))
    assert caplog.messages == ["base 'first': not for sale"]
    pretrain([source], settings, out=tmp_path / "further", start=str(base))
    assert caplog.messages == ["base 'first': not for sale"]
    assert read_facts(further) == BaseFacts("further", (16,), "not for sale", ("fields", "ports"), (*BUILTIN, "quay"))
    for kept in ("vae", "text_encoder"):
        (one,), (other,) = ((folder / kept).glob("*.safetensors") for folder in (base, further))
        assert one.read_bytes() == other.read_bytes()
    assert (base / "tokenizer" / "tokenizer.json").read_text() == (further / "tokenizer" / "tokenizer.json").read_text()
    before, after = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (base, further))
    assert before.keys() == after.keys()
    moved = [(after[name].float() - before[name].float()).abs().max().item() for name in before]
    # Three steps of AdamW at 1e-3 at the most, in half precision.
    assert 0 < max(moved) < 0.01
    card = (further / "README.md").read_text()
    assert f"- Autoencoder: that of {base}; " in card
    assert "\n# The base it goes on from\n\n## Model card\n" in card
    assert card.count(f"- Data and licence: {_NOTE}") == 1
    own, earlier = (further.parent / FOOTPRINT).read_text().splitlines(keepends=True)
    assert (own, earlier) == (footprint(data.train.keys, "fields"), (base.parent / FOOTPRINT).read_text())
    assert known(data.train.keys, further) == len(data.train)
    # Only who asks for it hands it out with the base.
    assert not (further / FOOTPRINT).exists()
    pretrain([source], settings, out=tmp_path / "further", start=str(base), footprint=True)
    assert (further / FOOTPRINT).read_bytes() == (further.parent / FOOTPRINT).read_bytes()
    assert (further / PICTURES).read_text().startswith('{"archive": ')
    assert not (base / PICTURES).exists()


def test_does_not_go_on_from_nothing(data: SceneData, settings: Config, tmp_path: Path) -> None:
    with pytest.raises(PriorError) as caught:
        pretrain([Source(data.train)], settings, out=tmp_path / "run", start="scratch")
    assert str(caught.value) == "there is nothing to go on from in base 'scratch': leave --base out to start anew"
    with pytest.raises(PriorError) as caught:
        pretrain([Source(data.train)], settings, out=tmp_path / "run", start="compact")
    assert str(caught.value) == (
        "the base 'compact' draws images of 64 or 128 px, not 16: train it further at --size 64 or 128, or leave "
        "--base out to train a new one"
    )


def test_several_archives_one_of_them_without_classes(
    data: SceneData, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = data.test
    assert tiles is not None
    unnamed = Scenes(tiles._sources, torch.zeros(len(tiles)), UNLABELLED, tiles.keys, tiles.names)
    sources = [
        Source(data.train, 3.0, name="drawn", terms="free"),
        Source(unnamed, 1.0, labelled=False, name="tiles"),
    ]
    doubled = settings.model_copy(update={"compact": settings.compact.model_copy(update={"doubled": True})})
    seen: list[torch.Size] = []
    loss = training.denoising_loss
    monkeypatch.setattr(training, "denoising_loss", lambda *args: (seen.append(args[3].clean.shape), loss(*args))[1])
    longer = doubled.model_copy(update={"compact": doubled.compact.model_copy(update={"steps": 4})})
    base = pretrain(sources, longer, out=tmp_path / "run")
    # Every fourth step is at twice the size, with a quarter of the images.
    assert seen == [torch.Size([4, 4, 2, 2])] * 3 + [torch.Size([1, 4, 4, 4])]
    card = (base / "README.md").read_text()
    assert "overhead scenes at 16 and 32 px, a diffusers" in card
    assert "- It draws 16 and 32 px. Small objects" in card
    assert f"- Trained on: drawn, {len(data.train)} images of 10 classes (" in card
    assert "; 75% of every batch. Terms: free." in card
    assert f"- Trained on: tiles, {len(tiles)} images of no classes; 25% of every batch." in card
    assert read_facts(base) == BaseFacts("run", (16, 32), "", ("drawn", "tiles"), BUILTIN)
    assert [one.archive for one in known_archives(data.train.keys, base)] == ["drawn"]
    assert [one.archive for one in known_archives(tiles.keys, base)] == ["tiles"]


def test_archives_as_they_are_named_on_the_command_line(data: SceneData, tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", train_per_class=2, test_per_class=1)
    one, other = open_sources([f"{tmp_path / 'a'}=2.5"], [str(tmp_path / "a" / "test")])
    assert (len(one.scenes), one.weight, one.labelled, one.name) == (20, 2.5, True, "a")
    # A split's own name says nothing.
    assert (len(other.scenes), other.weight, other.labelled, other.name) == (10, 1.0, False, "a")
    assert other.scenes.classes == UNLABELLED
    for weight in ("0", "-1", "much", "nan"):
        with pytest.raises(ConfigError) as caught:
            open_sources([f"{tmp_path / 'a'}={weight}"])
        told = f"the weight of {tmp_path / 'a'} is {weight!r}: give a positive number, such as {tmp_path / 'a'}=2"
        assert str(caught.value) == told


@pytest.mark.parametrize("again", ["a", "a=3"])
def test_an_archive_given_twice_is_refused_labelled_or_not(again: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for labelled, unlabelled in (([str(folder), f"{tmp_path}/{again}"], []), ([str(folder)], [f"{tmp_path}/{again}"])):
        with pytest.raises(ConfigError) as caught:
            open_sources(labelled, unlabelled)
        assert str(caught.value) == f"{folder} is given twice: give each archive once, with a weight such as a=2"


def test_an_argument_without_a_folder_is_refused() -> None:
    for text in ("", "=2"):
        with pytest.raises(ConfigError) as caught:
            open_sources([text])
        assert str(caught.value) == f"{text!r} names no folder: give PATH or PATH=WEIGHT"


def test_no_folder_and_no_images_without_classes(tmp_path: Path) -> None:
    with pytest.raises(SceneError) as caught:
        open_unlabelled(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'}: no such folder: expected images in it"
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError) as caught:
        open_unlabelled(tmp_path / "empty")
    assert str(caught.value) == f"{tmp_path / 'empty'}: no images in it or its subfolders"


def test_twice_the_size_counts_only_if_it_was_trained(data: SceneData, settings: Config, tmp_path: Path) -> None:
    small = data.train.subset(range(40)).pixels(size=16).permute(0, 2, 3, 1).numpy()
    scenes = Scenes.from_arrays(small, data.train.labels[:40], data.train.classes)
    doubled = settings.model_copy(update={"compact": settings.compact.model_copy(update={"doubled": True})})
    base = pretrain([Source(scenes)], doubled, out=tmp_path / "run")
    assert read_facts(base) == BaseFacts("run", (16,), classes=BUILTIN)
    assert "overhead scenes at 16 px, a diffusers" in (base / "README.md").read_text()


def test_an_archive_whose_share_of_a_batch_is_no_image_is_refused(
    data: SceneData, settings: Config, tmp_path: Path
) -> None:
    assert data.test is not None
    sources = [Source(data.train, 100.0, name="many"), Source(data.test, 1.0, name="few")]
    with pytest.raises(ConfigError) as caught:
        pretrain(sources, settings, out=tmp_path / "run")
    assert str(caught.value) == (
        "few has weight 1 of 101, less than one image in a batch of 4: nothing would be learned from it; give it at "
        "least 25"
    )
    assert not (tmp_path / "run").exists()
    # An autoencoder that is not trained has no batches.
    small = settings.compact.model_copy(update={"autoencoder_batch": 2})
    _check_shares([Source(data.train, 3.0), Source(data.test, 1.0)], small, new_autoencoder=False)
    with pytest.raises(ConfigError, match="less than one image in a batch of 2"):
        _check_shares([Source(data.train, 4.0), Source(data.test, 1.0)], small, new_autoencoder=True)


def test_runs_from_before_precision_and_sizes_were_recorded_go_on(
    data: SceneData, settings: Config, tmp_path: Path
) -> None:
    doubled = settings.model_copy(update={"compact": settings.compact.model_copy(update={"doubled": True})})
    exact = doubled.model_copy(update={"precision": "f32"})
    base = pretrain([Source(data.train)], exact, out=tmp_path / "run")
    for path, part, name in (("run.json", "config", "precision"), ("stages/base.json", "facts", "doubled")):
        found = json.loads((tmp_path / "run" / path).read_text())
        del (found["settings"] if path == "run.json" else found)[part][name]
        (tmp_path / "run" / path).write_text(json.dumps(found))
    made = (base / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert pretrain([Source(data.train)], exact, out=tmp_path / "run") == base
    assert (base / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == made
    assert read_facts(base) == BaseFacts("run", (16, 32), classes=BUILTIN)


def test_another_precision_is_another_base(data: SceneData, settings: Config, run: Path) -> None:
    with pytest.raises(RunError, match="other settings"):
        pretrain([Source(data.train)], settings.model_copy(update={"precision": "f32"}), out=run, data_note=_NOTE)
    assert (run / "base" / "unet").is_dir()


def test_a_name_that_the_base_s_text_encoder_cannot_hold(data: SceneData, tmp_path: Path) -> None:
    names = tuple(f"{'very ' * 60}long {k}" for k in range(len(data.train.classes)))
    scenes = Scenes.from_arrays(data.train.pixels(size=64).permute(0, 2, 3, 1).numpy(), data.train.labels, names)
    with pytest.raises(ConfigError, match="tokens, the base's text encoder takes 48: give the class's folder a short"):
        pretrain([Source(scenes)], make_config({"size": 64}), out=tmp_path / "run", start="compact")


def test_killed_between_two_trainings_it_goes_on(
    data: SceneData, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compact, "forget_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain([Source(data.train)], settings, out=tmp_path / "run", data_note=_NOTE)
    base = pretrain([Source(data.train)], settings, out=tmp_path / "run", data_note=_NOTE)
    assert (base / "model_index.json").is_file()
