import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geodistill.scenes.looks import LENGTH, SAME, alike_besides, look_of, most_alike
from geodistill.scenes.procedural import CLASSES, draw_scene

EVERYWHERE = np.ones((64, 64), bool)


def look(pixels: np.ndarray) -> np.ndarray:
    """Return the look of uint8 [h, w, 3] as int8 [1, LENGTH]."""
    bands = pixels.transpose(2, 0, 1)
    return np.frombuffer(look_of(bands, np.ones(bands.shape[1:], bool)), np.int8)[None]


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def half(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((width // 2, height // 2), Image.Resampling.BICUBIC))


CHANGES = {
    "jpeg": lambda pixels: compressed(pixels, 50),
    "turn": lambda pixels: np.rot90(pixels),
    "mirror": lambda pixels: pixels[:, ::-1],
    "half": half,
    "all": lambda pixels: compressed(half(np.rot90(pixels[::-1])), 75),
    "brighter": lambda pixels: (pixels * 0.7 + 40).astype(np.uint8),
}


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Six scenes of each built-in class, uint8 [64, 64, 3]."""
    return [draw_scene(name, seed, size=64) for name in CLASSES for seed in range(6)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_found_among_others(change: str, pictures: list[np.ndarray]) -> None:
    known = np.concatenate([look(one) for one in pictures])
    again = np.concatenate([look(np.ascontiguousarray(CHANGES[change](one))) for one in pictures])
    nearest, alike = most_alike(again, known)
    found = (nearest == np.arange(len(pictures))) & (alike >= SAME)
    assert found.mean() >= 0.95


def test_other_pictures_of_the_same_classes_are_not(pictures: list[np.ndarray]) -> None:
    fresh = [draw_scene(name, seed, size=64) for name in CLASSES for seed in range(100, 106)]
    looks = [np.concatenate([look(one) for one in some]) for some in (fresh, pictures)]
    assert (most_alike(*looks)[1] >= SAME).sum() == 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_the_eight_orientations_of_a_look_are_those_of_the_image(seed: int, view: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    turned = np.rot90(pixels, view % 4)[:, :: -1 if view > 3 else 1]
    nearest, alike = most_alike(look(np.ascontiguousarray(turned)), look(pixels))
    assert nearest.tolist() == [0]
    assert alike[0] > 0.999


@given(st.integers(2, 40), st.integers(2, 40), st.sampled_from(["uint8", "int16", "float32", "complex64"]))
def test_looks_of_any_size_and_type(height: int, width: int, dtype: str) -> None:
    values = np.random.default_rng(height).integers(0, 99, (2, height, width)).astype(dtype)
    expected = LENGTH if min(height, width) >= 12 else 0
    assert len(look_of(values, np.ones((height, width), bool))) == expected


def test_what_is_no_measurement_does_not_count() -> None:
    values = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)
    valid = EVERYWHERE.copy()
    valid[:5] = False
    holed = values.copy()
    holed[:, :5] = np.nan
    assert look_of(holed, valid) == look_of(values, valid) != look_of(values, EVERYWHERE)


def test_an_even_image_has_no_look() -> None:
    assert look_of(np.full((3, 64, 64), 7, np.uint8), EVERYWHERE) == b""
    assert look_of(np.full((1, 64, 64), 1e4, np.float32), EVERYWHERE) == b""


def test_none_is_near_in_no_images() -> None:
    none = np.zeros((0, LENGTH), np.int8)
    nearest, alike = most_alike(np.ones((2, LENGTH), np.int8), none)
    assert nearest.tolist() == [-1, -1]
    assert alike.tolist() == [0, 0]
    assert len(most_alike(none, np.ones((2, LENGTH), np.int8))[0]) == 0


def test_every_table_finds_what_plain_search_finds() -> None:
    """All pairs compared one by one: among random looks, the copies with noise are the nearest ones."""
    random = np.random.default_rng(0)
    known = random.integers(-127, 128, (3000, LENGTH)).astype(np.int8)
    chosen = random.choice(3000, 200, replace=False)
    noisy = (known[chosen] + random.normal(0, 15, (200, LENGTH))).clip(-127, 127).astype(np.int8)
    unit = [some / np.linalg.norm(some.astype(float), axis=1, keepdims=True) for some in (noisy, known)]
    plain = (unit[0] @ unit[1].T).argmax(axis=1)
    assert plain.tolist() == chosen.tolist()
    nearest, alike = most_alike(noisy, known)
    assert (nearest == plain).mean() >= 0.97
    assert alike[nearest == plain].min() > SAME


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize(("name", "size", "lowest"), [("ucmerced", 256, 1.0), ("eurosat", 64, 0.8)])
def test_changed_pictures_of_a_real_archive(name: str, size: int, lowest: float) -> None:
    """A tenth of the test scenes, changed, among the test scenes. EuroSAT's sea and forest lose their texture."""
    paths = sorted((SHARED / name / "test").glob("*/*"))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    assert max(map(len, pictures)) <= size + 10
    known = np.concatenate([looked_up(one) for one in pictures])
    for change in CHANGES.values():
        rows = np.arange(0, len(paths), 10)
        again = np.concatenate([looked_up(np.ascontiguousarray(change(pictures[row]))) for row in rows])
        nearest, alike = most_alike(again, known)
        assert ((nearest == rows) & (alike >= SAME)).mean() >= lowest


def looked_up(pixels: np.ndarray) -> np.ndarray:
    """Return the look, or one that is like no other where there is none."""
    found = look(pixels)
    return found if found.size else np.eye(1, LENGTH, dtype=np.int8)


def framed(pixels: np.ndarray) -> np.ndarray:
    """Return a picture with a black frame and a white label."""
    made = pixels.copy()
    made[:4], made[-4:], made[:, :4], made[:, -4:] = 0, 0, 0, 0
    made[-14:-6, -30:-6] = 255
    return made


def test_what_all_pictures_share_does_not_make_them_the_same(pictures: list[np.ndarray]) -> None:
    scenes = np.concatenate([look(framed(one)) for one in pictures])
    first, others = scenes[::6], scenes[np.arange(len(scenes)) % 6 > 0]
    best, alike = most_alike(first, others)
    hits = np.flatnonzero(alike >= SAME)
    assert len(hits) > len(first) // 2
    assert alike_besides(first[hits], others[best[hits]], others).sum() <= 1
    again = np.concatenate([look(compressed(framed(one), 50)) for one in pictures])
    assert alike_besides(again, scenes, scenes).mean() > 0.95


def test_few_pictures_or_ones_that_share_little_are_not_looked_at_again(pictures: list[np.ndarray]) -> None:
    scenes = np.concatenate([look(framed(one)) for one in pictures])
    assert alike_besides(scenes[:1], scenes[1:2], scenes[:29]).tolist() == [True]
    noise = np.random.default_rng(0).integers(-99, 99, (40, LENGTH)).astype(np.int8)
    assert alike_besides(noise[:1], noise[1:2], noise).tolist() == [True]
    assert alike_besides(noise[:0], noise[:0], noise).tolist() == []
