import pytest
import torch

from geodistill.descriptions import MeasuredDescriber
from geodistill.descriptions.indices import index_phrase, measured_indices
from geodistill.scenes.reading import PLAIN, Reading

NAMES = ("red", "green", "blue", "nir", "B12")
SCALED = Reading((1, 2, 3, 4, 5), 5 * ((0.0, 5100.0),), dtype="uint16", names=NAMES)


def scene(*levels: int) -> torch.Tensor:
    """Return a plain image with these levels, one for each band."""
    return torch.tensor(levels, dtype=torch.uint8)[None, :, None, None].expand(1, len(levels), 64, 64)


@pytest.mark.parametrize(
    ("levels", "values", "phrase"),
    [
        ((20, 40, 20, 180, 60), (0.8, -7 / 11, 0.5), "high NDVI, low NDWI, high NBR"),
        ((30, 60, 60, 20, 15), (-0.2, 0.5, 1 / 7), "low NDVI, high NDWI, medium NBR"),
        ((100, 90, 80, 150, 170), (0.2, -0.25, -1 / 16), "medium NDVI, medium NDWI, low NBR"),
    ],
)
def test_indices(levels: tuple[int, ...], values: tuple[float, ...], phrase: str) -> None:
    found = {name: float(one) for name, one in measured_indices(scene(*levels), SCALED).items()}
    assert list(found.values()) == pytest.approx(values)
    assert index_phrase(found) == phrase
    prompt = MeasuredDescriber(SCALED)(scene(*levels), "Forest").text
    assert prompt.endswith(f", {phrase}")
    assert MeasuredDescriber(SCALED).each(scene(*levels), ["Forest"]) == [prompt]


def test_values_are_measured_in_the_units_of_the_files() -> None:
    shifted = Reading((1, 2), ((1000.0, 3550.0), (500.0, 3050.0)), dtype="uint16", names=("red", "nir"))
    # red 1000 + 50 * 10, near infrared 500 + 250 * 10
    assert float(measured_indices(scene(50, 250), shifted)["NDVI"]) == pytest.approx((3000 - 1500) / 4500)


def test_bands_that_are_unknown_have_no_index() -> None:
    assert measured_indices(scene(1, 2, 3), PLAIN) == {}
    reading = Reading((1, 2, 3, 4), dtype="uint8", names=("red", "green", "blue", "nir"))
    assert list(measured_indices(scene(1, 2, 3, 4), reading)) == ["NDVI", "NDWI"]
    assert "NDVI" not in MeasuredDescriber()(scene(1, 2, 3), "Forest").text
