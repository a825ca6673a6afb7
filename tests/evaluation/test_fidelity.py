import re
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from geodistill.errors import ConfigError
from geodistill.evaluation import fidelity as module
from geodistill.evaluation.fidelity import Score, clip_score, fid, kid
from geodistill.prior.compact import make_tokenizer

EXAMPLE = "openai/clip-vit-large-patch14"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def samples(count, width=6, seed=0):
    """Correlated features, positive as pooled activations are."""
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(count, width, generator=random) @ torch.randn(width, width, generator=random)).relu()


def with_moments(mean, deviations, count=4000, seed=0):
    """Features with exactly this mean and diagonal covariance."""
    noise = np.random.default_rng(seed).standard_normal((count, len(mean)))
    noise -= noise.mean(0)
    whitened = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T))).T
    return torch.from_numpy(whitened * deviations + mean)


def test_fid_of_gaussians_in_closed_form():
    # Diagonal covariances: sum of (difference of means)² and (difference of deviations)²: 9 + 16 + 1 + 0.25
    one, two = with_moments([1.0, 2.0], [1.0, 2.0]), with_moments([4.0, -2.0], [2.0, 2.5], seed=1)
    assert fid(one, two).value == pytest.approx(26.25, abs=1e-9)


def test_fid_equals_the_plain_formula():
    one, two = samples(50), samples(40, seed=1) + 1
    a, b = one.double().numpy(), two.double().numpy()
    s, r = np.cov(a.T), np.cov(b.T)
    plain = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + r - 2 * sqrtm(s @ r).real)
    assert fid(one, two).value == pytest.approx(plain, rel=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), dead=st.booleans())
def test_fid_is_0_for_a_set_and_itself_and_symmetric(seed, dead):
    one, two = samples(30, seed=seed), samples(25, seed=seed + 1)
    if dead:  # a feature that never fires: singular covariances
        one[:, 0] = two[:, 0] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fid(one, one).value == pytest.approx(0, abs=1e-9)
        assert fid(one, two).value == pytest.approx(fid(two, one).value, rel=1e-9)
    assert fid(one, two).value > 0


def test_fid_grows_with_a_shift_by_its_square():
    one = samples(60)
    assert fid(one, one + 2).value == pytest.approx(6 * 2**2, rel=1e-6)


def test_fid_needs_more_images_than_features():
    reason = "300 images: FID needs at least 1,281, more than the 1,280 features; read KID"
    few, many = torch.zeros(300, 1280), torch.zeros(2000, 1280)
    assert fid(few, many) == fid(many, few) == Score(None, reason)
    assert fid(samples(6), samples(9)) == Score(
        None, "6 images: FID needs at least 7, more than the 6 features; read KID"
    )
    assert fid(samples(7), samples(9)).value is not None


def plain_mmd(one, two):
    def kernel(x, y):
        return (sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    n, m = len(one), len(two)
    inside = sum(kernel(one[i], one[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    across = sum(kernel(two[i], two[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return inside + across - 2 * sum(kernel(x, y) for x in one for y in two) / (n * m)


def test_kid_equals_a_double_loop(monkeypatch):
    monkeypatch.setattr(module, "MIN_KID", 10)
    one, two = samples(12), samples(12, seed=1)
    assert kid(one, two).value == pytest.approx(plain_mmd(one, two), rel=1e-9)


def test_kid_averages_seeded_subsets(monkeypatch):
    monkeypatch.setattr(module, "MIN_KID", 2)
    monkeypatch.setattr(module, "SUBSETS", 400)
    one, two = samples(3), samples(9, seed=1)
    found = kid(one, two, seed=5)
    assert found == kid(one, two, seed=5) != kid(one, two, seed=6)
    # The mean over all subsets of the larger set is the estimate from all of it.
    every = [plain_mmd(one, two[list(chosen)]) for chosen in combinations(range(9), 3)]
    assert np.mean(every) == pytest.approx(plain_mmd(one, two), rel=1e-9)
    assert found.value == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(400))
    # Smaller subsets than the sets, of both.
    monkeypatch.setattr(module, "SUBSET", 2)
    every = [
        plain_mmd(one[list(i)], two[list(j)]) for i in combinations(range(3), 2) for j in combinations(range(9), 2)
    ]
    assert kid(one, two).value == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(400))


def test_kid_is_0_on_average_for_one_distribution_and_symmetric():
    values = [kid(samples(100, seed=k)[:50], samples(100, seed=k)[50:]).value for k in range(60)]
    spread = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * spread
    assert min(values) < 0
    one, two = samples(50), samples(50, seed=1)
    assert kid(one, two).value == pytest.approx(kid(two, one).value, rel=1e-9)


def test_kid_needs_50_images():
    assert (
        kid(samples(49), samples(80))
        == kid(samples(80), samples(49))
        == Score(None, "49 images: KID needs at least 50")
    )
    assert kid(samples(50), samples(80)).value is not None


@pytest.mark.parametrize("measure", [fid, kid])
def test_features_of_two_networks_are_refused(measure):
    message = "features are [60, 6] and [60, 5]: give [n, d] and [m, d] of one network"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        measure(samples(60), samples(60, 5))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP of random weights, in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer(TEXTS)
    end, length = tokenizer.eos_token_id, tokenizer.model_max_length
    part = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": length, "bos_token_id": end - 1}
    torch.manual_seed(1)  # cosines of both signs
    config = CLIPConfig(
        text_config={**part, **words, "eos_token_id": end, "pad_token_id": end},
        vision_config={**part, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    shape = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPProcessor(CLIPImageProcessor(**shape), tokenizer).save_pretrained(folder)
    return folder


TEXTS = ["a satellite image of beach", "a satellite image of river and forest", "harbour", "runway", "field"]


def pictures(count=5):
    return torch.randint(0, 256, (count, 3, 24, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def plain_cosines(folder, images, texts):
    """Each pair on its own: resized by Pillow, normalised by hand, through the two towers of the model."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), make_tokenizer(TEXTS)
    cosines = []
    for image, text in zip(images, texts, strict=True):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
        pixels = (np.asarray(small) / 255 - CLIP_MEAN) / CLIP_STD
        ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            seen = model.vision_model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float()).pooler_output
            read = model.text_model(ids).pooler_output
            pair = model.visual_projection(seen)[0], model.text_projection(read)[0]
        cosines.append(float(pair[0] @ pair[1] / (pair[0].norm() * pair[1].norm())))
    return cosines


def test_clip_score_equals_a_plain_computation(clip):
    texts = ["river " * 200, *TEXTS[1:]]  # the first is cut
    cosines = plain_cosines(clip, pictures(), texts)
    assert min(cosines) < -0.1 < 0.1 < max(cosines)  # a negative one counts as 0
    expected = sum(max(100 * cosine, 0) for cosine in cosines) / 5
    assert clip_score(pictures(), texts, clip) == pytest.approx(expected, abs=1e-3)
    assert clip_score(pictures(), texts, str(clip), batch=2) == pytest.approx(expected, abs=1e-3)


def test_clip_models_that_cannot_be_loaded(clip, tmp_path):
    def refusal(why):
        advice = "give a folder with a CLIPModel and its CLIPProcessor in safetensors, or the name of one on the hub"
        return f"the CLIP model {str(tmp_path)!r} cannot be loaded ({why}): {advice}, for example {EXAMPLE}"

    model = CLIPModel.from_pretrained(clip)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # a pickle is not read
    with pytest.raises(ConfigError) as caught:
        clip_score(pictures(), TEXTS, tmp_path)
    why = f"Error no file named model.safetensors found in directory {tmp_path}."
    assert str(caught.value) == refusal(why)

    weights = load_file(clip / "model.safetensors")
    del weights["visual_projection.weight"]  # transformers would draw it at random
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    CLIPProcessor.from_pretrained(clip).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        clip_score(pictures(), TEXTS, tmp_path)
    assert str(caught.value) == refusal("it lacks 1 of CLIP's weights")


def test_clip_score_needs_a_text_an_image(clip):
    with pytest.raises(ConfigError, match=r"^5 images and 4 texts: the CLIP score needs one text an image$"):
        clip_score(pictures(), TEXTS[:4], clip)
    with pytest.raises(ConfigError, match=r"^0 images and 0 texts: the CLIP score needs one text an image$"):
        clip_score(pictures(0), [], clip)
