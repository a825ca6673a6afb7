import json
import logging
import shutil
from collections import Counter
from importlib.metadata import EntryPoints
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_pipeline
from diffusers import DiTPipeline, DiTTransformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

import geodistill.prior  # noqa: F401  (makes stock diffusers know our autoencoder)
from geodistill.config import CompactSettings
from geodistill.errors import PriorError
from geodistill.prior import compact
from geodistill.prior.autoencoder import PatchAutoencoder
from geodistill.prior.base import check_size, fingerprint_of_base, load_prior, source_of
from geodistill.prior.compact import Archive, _byte_pairs, build_compact, new_compact
from geodistill.scenes import SceneData, draw_scene
from geodistill.scenes.images import to_square_tensor
from geodistill.scenes.views import dihedral


def test_encode_and_decode_follow_the_autoencoders_own_scale(sd_folder: Path) -> None:
    prior = load_prior(str(sd_folder), "f32")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        mean = prior.vae.encode(images.float() / 127.5 - 1).latent_dist.mean
        decoded = prior.vae.decode(mean).sample
    latents = prior.encode(images)
    assert torch.allclose(latents, mean * prior.vae.config.scaling_factor, atol=1e-6)
    expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round()
    assert (prior.decode(latents).float() - expected).abs().max() <= 1
    assert prior.downscale == 4
    assert prior.latent_shape(32) == tuple(latents.shape[1:]) == (4, 8, 8)


def test_large_images_go_through_the_autoencoder_few_at_a_time(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = load_prior(str(sd_folder), "f32")
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    latents = prior.encode(images)
    pixels = prior.decode(latents)
    monkeypatch.setattr("geodistill.prior.base._PIXELS_TOGETHER", 2 * 32 * 32)
    seen = []
    encode, decode = prior.vae.encode, prior.vae.decode
    monkeypatch.setattr(prior.vae, "encode", lambda x: seen.append(len(x)) or encode(x))
    monkeypatch.setattr(prior.vae, "decode", lambda z: seen.append(len(z)) or decode(z))
    assert torch.allclose(prior.encode(images), latents, atol=1e-4)
    assert (prior.decode(latents).int() - pixels.int()).abs().max() <= 1
    assert seen == [2, 2, 1, 2, 2, 1]


def test_drafts_are_hardly_off() -> None:
    prior = load_prior(source_of("compact", 64), "bf16")
    latents = prior.encode(torch.stack([to_square_tensor(Image.fromarray(draw_scene("Harbour", 0)), 64)]))
    exact, draft = prior.decode(latents).int(), prior.decode(latents, draft=True).int()
    assert 0 < (exact - draft).abs().float().mean() < 0.3
    assert (exact - draft).abs().max() <= 4


def test_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(PriorError) as caught:
        load_prior(str(tmp_path))
    assert str(caught.value) == (
        f"the base folder {tmp_path} is not a whole pipeline: there is no model_index.json in {tmp_path}. "
        "Point --base to a folder saved by diffusers' save_pretrained"
    )


def test_folder_without_weights_and_the_run_folder_of_pretrain(sd_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd_folder, tmp_path / "run" / "base"))
    with pytest.raises(PriorError) as caught:
        source_of(str(tmp_path / "run"), 64)
    assert str(caught.value).endswith(f"there is no model_index.json in {tmp_path / 'run'}. Did you mean {folder}?")
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(PriorError) as caught:
        source_of(str(folder), 64)
    assert str(caught.value) == (
        f"the base folder {folder} is not a whole pipeline: there are no weights in {folder / 'unet'}. "
        "Point --base to a folder saved by diffusers' save_pretrained"
    )


def test_base_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geodistill.prior.catalogue.metadata.entry_points", lambda **_: EntryPoints())
    with pytest.raises(PriorError) as caught:
        load_prior("./nowhere")
    assert str(caught.value) == (
        "no such base './nowhere': give 'compact', 'scratch', a pipeline folder, or a hub name such as owner/name; a "
        "base in a package has a name once the package is installed"
    )


def test_size_that_does_not_fit(sd_folder: Path) -> None:
    prior = load_prior(str(sd_folder))
    check_size(64, prior.vae.config, prior.unet.config, prior.source)
    with pytest.raises(PriorError) as caught:
        check_size(36, prior.vae.config, prior.unet.config, prior.source)
    assert str(caught.value) == (
        f"size 36 does not fit the base {str(sd_folder)!r}, which needs a multiple of 8: use --size 32"
    )


def test_compact_size_that_does_not_fit() -> None:
    with pytest.raises(PriorError) as caught:
        new_compact(["a"], CompactSettings(), size=40, seed=0)
    assert (
        str(caught.value)
        == "size 40 does not fit a base built from scenes, which needs a multiple of 16: use --size 32"
    )


def test_fingerprint_follows_the_bytes(sd_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(sd_folder, copy)
    assert fingerprint_of_base(str(copy)) == fingerprint_of_base(str(sd_folder))
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("epsilon", "v_prediction"))
    assert fingerprint_of_base(str(copy)) != fingerprint_of_base(str(sd_folder))


def test_stock_diffusers_loads_the_compact_base_and_draws(data: SceneData, tmp_path: Path) -> None:
    settings = CompactSettings(channels=8, width=(32, 32), steps=2, batch=4)
    pixels = data.train.pixels(range(20), size=32)
    archive = Archive(pixels, data.train.labels[:20], [["a beach", "sand and sea"]] * 20)
    facts = build_compact([archive], settings, seed=0, folder=tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    image = pipeline("a beach", height=32, width=32, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 32, 32, 3)
    ours = load_prior(str(tmp_path))
    error = (ours.decode(ours.encode(pixels)).double() - pixels.double()).square().mean(dim=(1, 2, 3))
    assert facts["autoencoder_psnr_db"] == pytest.approx(float((10 * torch.log10(255**2 / error)).mean()), abs=0.05)


def test_a_base_learns_from_eight_views_and_as_many_nearer_ones_as_are_asked_for(data: SceneData) -> None:
    some = range(6)
    pixels, larger = data.train.pixels(some, size=32), data.train.pixels(some, size=48)
    settings = CompactSettings(channels=8, width=(32, 32), nearer_views=3)
    prior = new_compact(["a beach"], settings, size=32, seed=0)
    assert isinstance(prior.vae, PatchAutoencoder)
    prior.vae.fit([pixels.float() / 127.5 - 1])

    def views(larger: torch.Tensor | None) -> torch.Tensor:
        archive = Archive(pixels, data.train.labels[:6], [["a beach"]] * 6, larger)
        return compact._training_data(prior, [archive], settings, seed=0).parts[0].latents

    seen = views(larger)
    assert seen.shape == (6, 11, 8, 4, 4)
    assert all(torch.equal(seen[:, view], prior.encode(dihedral(pixels, view)).half()) for view in range(8))
    assert (seen[:, 8:] - seen[:, :1]).abs().flatten(2).mean(dim=2).min() > 0.01
    assert torch.equal(views(None), seen[:, :8])


def test_an_autoencoder_sees_whole_scenes_and_parts_of_scenes_in_equal_shares(data: SceneData) -> None:
    some = range(40)
    pixels, larger = data.train.pixels(some, size=32), data.train.pixels(some, size=48)
    settings = CompactSettings(channels=8, autoencoder_batch=10)
    archive = Archive(pixels, data.train.labels[:40], [["a beach"]] * 40, larger)
    images, noise, shares = compact._Batches([archive], settings, seed=0).named("autoencoder step")(3)
    assert images.shape == (10, 3, 32, 32)
    assert noise.shape == (10, 8, 4, 4)
    assert ((shares >= 0) & (shares < 1)).all()
    views = {dihedral(pixels[index], view).numpy().tobytes() for index in some for view in range(8)}
    back = ((images + 1) * 127.5).round().to(torch.uint8)
    whole = [image.contiguous().numpy().tobytes() in views for image in back]
    assert whole == [True] * 5 + [False] * 5


def test_channels_of_the_text_embeddings_tell_prompts_apart() -> None:
    prompts = [f"a satellite image of {name}" for name in ("beach", "river", "forest", "harbour")]
    prior = new_compact(prompts, CompactSettings(), size=32, seed=0)
    before = prior.embed(prompts).flatten(1)
    compact._tell_apart(prior, prompts)
    states = prior.embed(prompts)
    assert states.mean(dim=(0, 1)).abs().max() < 1e-4
    assert torch.allclose(states.std(dim=(0, 1), correction=0), torch.ones(states.shape[-1]), atol=0.01)
    after = states.flatten(1)
    likeness = [float(torch.corrcoef(each)[0, 1:].mean()) for each in (before, after)]
    assert likeness[1] < likeness[0]


def test_compact_tokenizer_spells_anything_and_cuts_what_is_too_long() -> None:
    tokenizer = new_compact(["a satellite image of beach"], CompactSettings(), size=32, seed=0).tokenizer
    assert tokenizer.tokenize("Satellite image of beach") == ["satellite</w>", "image</w>", "of</w>", "beach</w>"]
    assert tokenizer.decode(tokenizer("zürich harbour").input_ids, skip_special_tokens=True) == "zürich harbour"
    prior = new_compact(["a"], CompactSettings(), size=32, seed=0)
    assert prior.embed(["a " * 200]).shape == (1, 48, 256)
    # The start and the end of the text take one token each.
    assert [prior.fits("a " * words) for words in (46, 47)] == [True, False]


def test_byte_pairs_by_hand() -> None:
    # "aab" twice, "ab" once: (a, b</w>) occurs three times, then (a, ab</w>) twice.
    assert _byte_pairs(Counter({"aab": 2, "ab": 1})) == [("a", "b</w>"), ("a", "ab</w>")]


def test_the_tokenizer_does_not_depend_on_the_order_of_the_corpus() -> None:
    texts = ["a satellite image of beach", "mostly vegetation, dark green", "lines running north-south"]
    one, other = (new_compact(list(corpus), CompactSettings(), size=32, seed=0) for corpus in (texts, reversed(texts)))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Cannot load model owner/name: no connection\nand much more")

    monkeypatch.setattr("geodistill.prior.base.StableDiffusionPipeline.load_config", unreachable)
    with pytest.raises(PriorError) as caught:
        load_prior("owner/name")
    assert str(caught.value) == (
        "there is no folder 'owner/name' here, and the hub did not give a base of that name "
        "(Cannot load model owner/name: no connection): point --base to a folder saved by diffusers' save_pretrained"
    )


def test_base_that_predicts_something_else(tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "sd", prediction="sample")
    with pytest.raises(PriorError, match="predicts 'sample': geodistill needs one that predicts epsilon or v_predict"):
        load_prior(str(folder))


def test_stable_diffusion_xl_is_refused_by_name(sd_folder: Path, tmp_path: Path) -> None:
    parts = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None).components
    text = CLIPTextConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    StableDiffusionXLPipeline(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=parts["tokenizer"],
        tokenizer_2=parts["tokenizer"],
        unet=parts["unet"],
        scheduler=parts["scheduler"],
    ).save_pretrained(tmp_path)
    with pytest.raises(PriorError) as caught:
        load_prior(str(tmp_path))
    assert str(caught.value) == (
        f"the base {str(tmp_path)!r} is a StableDiffusionXLPipeline with two text encoders: geodistill needs a "
        "Stable-Diffusion-type pipeline (vae, tokenizer, text_encoder, unet, scheduler), such as Stable Diffusion 1.x "
        "and 2.x, Text2Earth or a compact base"
    )


def test_a_transformer_in_the_place_of_the_unet_is_refused_by_name(sd_folder: Path, tmp_path: Path) -> None:
    parts = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None).components
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, norm_num_groups=4
    )
    DiTPipeline(transformer=transformer, vae=parts["vae"], scheduler=parts["scheduler"]).save_pretrained(tmp_path)
    with pytest.raises(PriorError, match=r"is a DiTPipeline without tokenizer, text_encoder, unet: geodistill needs a"):
        load_prior(str(tmp_path))


def test_a_pipeline_class_that_diffusers_has_not_is_read_by_its_parts(sd_folder: Path, tmp_path: Path) -> None:
    # As Text2Earth's own pipeline; its parts are a Stable Diffusion's.
    shutil.copytree(sd_folder, tmp_path / "base")
    index = json.loads((sd_folder / "model_index.json").read_text())
    others = {"_class_name": "Text2EarthDiffusionPipeline", "safety_checker": ["gone", "Checker"]}
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index | others))
    loaded, plain = load_prior(str(tmp_path / "base")), load_prior(str(sd_folder))
    assert torch.equal(loaded.unet.conv_in.weight, plain.unet.conv_in.weight)


def test_an_inpainting_base_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_pipeline(tmp_path / "sd", in_channels=9)
    with pytest.raises(PriorError) as caught:
        load_prior(str(folder))
    assert str(caught.value) == (
        f"the U-Net of the base {str(folder)!r} takes 9 channels where latents have 4, as for inpainting, depth or "
        "editing: give a text-to-image base"
    )


def test_another_family_is_refused_before_its_weights_are_looked_at(tmp_path: Path) -> None:
    index = {"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"], "transformer": ["diffusers", "Flux"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PriorError, match=r"is a FluxPipeline without tokenizer, text_encoder, unet, scheduler: geodis"):
        load_prior(str(tmp_path))


def test_loading_leaves_the_libraries_as_they_were(sd_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("diffusers")
    level = library.level
    library.setLevel(logging.INFO)
    try:
        load_prior(str(sd_folder))
        assert library.level == logging.INFO
    finally:
        library.setLevel(level)
    assert diffusers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled()
    assert "Loading" not in capsys.readouterr().err


def test_a_scheduler_without_a_noise_schedule_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd_folder, tmp_path / "flow")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    with pytest.raises(PriorError) as caught:
        load_prior(str(folder))
    assert str(caught.value) == (
        f"the base {str(folder)!r} has the scheduler FlowMatchEulerDiscreteScheduler: geodistill needs a noise "
        "schedule, as DDPM has"
    )


def test_more_channels_than_a_patch_has_components() -> None:
    with pytest.raises(PriorError) as caught:
        new_compact(["a beach"], CompactSettings(channels=192), size=32, seed=0, channels=2)
    assert str(caught.value) == (
        "compact.channels is 192: patches of 2 bands have 128 principal components; give at most as many"
    )


def test_the_linear_autoencoder_is_fitted_to_images_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fake tensors refuse computations on several devices, as those of a GPU do.
    fitted: list[torch.Size] = []
    monkeypatch.setattr(PatchAutoencoder, "_set", lambda _, *found: fitted.extend(one.shape for one in found))
    with FakeTensorMode():
        PatchAutoencoder(16).fit([torch.randn(4, 3, 32, 32, device="cuda")])
    assert fitted == [(192,), (192,), (192, 192)]
