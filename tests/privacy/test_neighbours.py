import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geodistill.errors import ConfigError
from geodistill.privacy import neighbours
from geodistill.privacy.neighbours import by_embedding, by_structure, grey, ssim
from geodistill.scenes.views import dihedral


def noise(count: int, seed: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def by_hand(a: Tensor, b: Tensor) -> float:
    """Mean SSIM of two grey images [32, 32], window by window, from the definition."""
    values = []
    for top in range(0, 25, 4):
        for left in range(0, 25, 4):
            x, y = (image[top : top + 8, left : left + 8].double() for image in (a, b))
            covariance = ((x - x.mean()) * (y - y.mean())).mean()
            light = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
            spread = x.var(correction=0) + y.var(correction=0)
            values.append(light * (2 * covariance + 9e-4) / (spread + 9e-4))
    return float(torch.stack(values).mean())


def test_ssim_is_that_of_the_definition() -> None:
    a, b = grey(noise(3, 0)), grey(noise(4, 1) // 2)
    b[0] = a[1] * 0.5 + 0.2
    found = ssim(a, b)
    for i in range(3):
        for j in range(4):
            assert float(found[i, j]) == pytest.approx(by_hand(a[i, 0], b[j, 0]), abs=1e-5)
    assert torch.allclose(ssim(a, a).diag(), torch.ones(3), atol=1e-5)


def test_grey_weighs_colours_and_averages_areas() -> None:
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 1, ::2] = 255
    assert torch.allclose(grey(image), torch.full((1, 1, 32, 32), 0.587 / 2), atol=1e-4)


def test_turned_copies_are_at_distance_zero_in_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 3)
    monkeypatch.setattr(neighbours, "_TOGETHER", 2)
    train = noise(10, 0)
    found = by_structure(torch.stack([dihedral(train[k], k) for k in (7, 2, 5)]), train)
    assert found.nearest.tolist() == [7, 2, 5]
    assert torch.allclose(found.distance, torch.zeros(3), atol=1e-4)
    assert found.ratio.max() < 0.01


def test_embeddings_are_compared_by_cosine_in_all_orientations() -> None:
    def embed(images: Tensor) -> Tensor:
        return F.normalize(images[:, 0, :2, 0].float(), dim=1)

    real = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[0, 0, 0, 0], image[0, 0, 1, 0], image[0, 0, 3, 3], image[0, 0, 2, 3] = 3, 4, 12, 5
    found = by_embedding(image, real, embed)
    # (3, 4) as it lies, (12, 5) turned, (0, 1) transposed: the corner (12, 5) is nearest [1, 0], cosine 12/13.
    best = max(1.0, 12 / 13, 4 / 5)
    assert float(found.distance) == pytest.approx(1 - best, abs=1e-6)


def test_too_few_images() -> None:
    for images, train in ((noise(0, 0), noise(2, 1)), (noise(2, 0), noise(1, 1))):
        with pytest.raises(ConfigError) as caught:
            by_structure(images, train)
        assert str(caught.value) == (
            "too few images to compare: an audit needs distilled images and two training images or more"
        )
