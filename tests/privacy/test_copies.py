import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from geodistill.errors import ConfigError
from geodistill.privacy import copies
from geodistill.privacy.copies import COPY, are_copies, find_copies
from geodistill.scenes import Scenes, draw_scene, open_scenes
from geodistill.scenes.pixels import Pixels
from geodistill.scenes.views import dihedral

AID = Path(__file__).parents[3] / "shared" / "data" / "aid"
CLASSES = ("Beach", "DenseResidential", "Forest", "Harbour", "ParkingLot")


def drawn(seeds: range) -> Tensor:
    scenes = [draw_scene(name, seed, size=64) for name in CLASSES for seed in seeds]
    return torch.stack([torch.from_numpy(np.array(scene)).permute(2, 0, 1) for scene in scenes])


@pytest.fixture(scope="module")
def train() -> Tensor:
    return drawn(range(12))


def recompressed(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def cropped(image: Tensor, top: int, left: int, side: int) -> Tensor:
    window = image[None, :, top : top + side, left : left + side].float()
    return F.interpolate(window, (64, 64), mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)[0]


def turned(image: Tensor, degrees: float, share: float) -> Tensor:
    """Return `image` turned by an angle, then its middle square, of `share` of its side, at the old size."""
    angle = math.radians(degrees)
    c, s = share * math.cos(angle), share * math.sin(angle)
    grid = F.affine_grid(torch.tensor([[[c, -s, 0.0], [s, c, 0.0]]]), [1, 3, 64, 64], align_corners=False)
    whole = F.grid_sample(image[None].float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return whole[0].round().clamp(0, 255).to(torch.uint8)


def recoloured(image: Tensor) -> Tensor:
    gains, offsets = torch.tensor([0.6, 1.0, 0.8])[:, None, None], torch.tensor([40.0, -20.0, 10.0])[:, None, None]
    return (image * gains + offsets).clamp(0, 255).to(torch.uint8)


def changed(image: Tensor, kind: str) -> Tensor:
    if kind.startswith("jpeg"):
        return recompressed(image, int(kind.removeprefix("jpeg")))
    if kind == "cropped":
        return cropped(image, 3, 5, 58)
    if kind == "all at once":
        return recompressed(dihedral(cropped(image, 6, 1, 58), 6), 50)
    if kind.startswith("turned"):
        angle, share = (float(part) for part in kind.removeprefix("turned").split("x"))
        return turned(image, angle, share)
    return {
        "exact": image,
        "flipped": dihedral(image, 1),
        "rotated": dihedral(image, 5),
        "brighter": (image.int() + 40).clamp(0, 255).to(torch.uint8),
        "fainter": (image.float() * 0.6).to(torch.uint8),
        "corner": cropped(image, 0, 19, 45),
        "noisy": (image + 20 * torch.randn(image.shape, generator=torch.manual_seed(1))).clamp(0, 255).to(torch.uint8),
        "recoloured": recoloured(image),
        "blurred": F.avg_pool2d(image[None].float(), 5, 1, 2, count_include_pad=False)[0].to(torch.uint8),
    }[kind]


KINDS = ["exact", "flipped", "rotated", "jpeg30", "jpeg75", "cropped", "brighter", "fainter", "all at once"]
KINDS += ["turned20x0.8", "turned45x0.7", "turned110x0.9", "corner", "noisy", "recoloured", "blurred"]


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_are_found(train: Tensor, kind: str) -> None:
    planted = torch.arange(1, len(train), 12)
    found = find_copies(torch.stack([changed(train[index], kind) for index in planted]), train)
    assert are_copies(found).all()
    assert torch.equal(found.nearest, planted)
    if kind == "exact":
        assert torch.allclose(found.distance, torch.zeros(len(planted)), atol=1e-4)
        assert found.ratio.tolist() == [0] * len(planted)


def test_fresh_images_are_not_flagged(train: Tensor) -> None:
    fresh = find_copies(drawn(range(100, 105)), train)
    assert are_copies(fresh).float().mean() <= 0.02
    assert fresh.ratio.median() > 0.8


@pytest.mark.skipif(not AID.is_dir(), reason=f"AID is not at {AID}")
@pytest.mark.slow
def test_of_250_held_out_real_images_at_most_one_in_a_hundred_is_flagged() -> None:
    data = open_scenes(AID)
    fresh = data.test.pixels(torch.randperm(len(data.test), generator=torch.manual_seed(0))[:250], size=64)
    assert int(are_copies(find_copies(fresh, data.train.pixels(size=64))).sum()) <= 2


def test_of_two_equal_training_images_a_copy_is_still_one(train: Tensor) -> None:
    found = find_copies(train[:1], torch.cat([train, train[:1]]))
    assert are_copies(found).all()


@settings(max_examples=3)
@given(st.permutations(range(12)), st.integers(1, 4))
def test_order_and_company_of_images_change_nothing(order: list[int], count: int) -> None:
    train = drawn(range(3))
    images = drawn(range(50, 53))[:12][order[:count]]
    together = find_copies(images, train)
    alone = [find_copies(image[None], train) for image in images]
    assert together.nearest.tolist() == [int(one.nearest) for one in alone]
    assert torch.allclose(together.ratio, torch.cat([one.ratio for one in alone]), atol=1e-4)


def test_correlation_with_another_crop_of_the_same_size_by_hand() -> None:
    # One image is the negative of the other: correlation -1, whatever windows are compared, but for the orientations.
    ramp = torch.linspace(0, 255, 64).expand(3, 64, 64).round().to(torch.uint8)
    plain = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    found = find_copies(ramp[None], torch.stack([255 - ramp, plain]))
    assert found.nearest.tolist() == [0]  # mirrored, it is the same ramp
    assert float(found.distance) == pytest.approx(0, abs=1e-3)
    assert float(found.ratio) < COPY


@pytest.mark.parametrize(("count", "real"), [(0, 5), (3, 1), (3, 0)])
def test_too_few(train: Tensor, count: int, real: int) -> None:
    with pytest.raises(ConfigError) as caught:
        find_copies(train[:count], train[:real])
    assert str(caught.value) == (
        "too few images to compare: an audit needs distilled images and two training images or more"
    )


def test_training_images_in_blocks_and_in_files_are_found_alike(train: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.cat([dihedral(train[[3, 40]], 5), drawn(range(100, 101))])
    whole = find_copies(images, train)
    arrays = [image.permute(1, 2, 0).numpy() for image in train]
    files = Pixels(Scenes.from_arrays(arrays, [0] * len(train), ("a", "b")), 64)
    monkeypatch.setattr(copies, "_PREPARED", 16)
    monkeypatch.setattr(copies, "_ASKED", 4)
    for kept in (train, files):
        found = find_copies(images, kept)
        assert torch.equal(found.nearest, whole.nearest)
        assert torch.allclose(found.distance, whole.distance, atol=1e-5)
        assert torch.allclose(found.ratio, whole.ratio, atol=1e-3)
    assert whole.nearest[:2].tolist() == [3, 40]
