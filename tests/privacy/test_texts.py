from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geodistill.descriptions import MeasuredDescriber, class_prompt
from geodistill.distilled import DistilledSet
from geodistill.privacy.texts import foreign_texts
from geodistill.scenes.reading import Reading

CLASSES = ("beach", "sparse residential")


def set_of(images: Tensor, texts: list[str] | None = None, **about: object) -> DistilledSet:
    labels = torch.arange(len(images)) % 2
    records = tuple({"description": text} for text in texts or [])
    return DistilledSet(images, labels, CLASSES, records, {"method": "dpd", **about})


@pytest.fixture
def images() -> Tensor:
    """Six images of one colour each."""
    colours = torch.tensor(
        [[20, 40, 160], [30, 120, 40], [240, 240, 240], [10, 10, 10], [200, 170, 120], [200, 30, 30]]
    )
    return colours.to(torch.uint8)[:, :, None, None].expand(6, 3, 32, 32).contiguous()


def own_texts(images: Tensor, reading: Reading | None = None) -> list[str]:
    names = [CLASSES[k % 2] for k in range(len(images))]
    return (MeasuredDescriber(reading) if reading else MeasuredDescriber()).each(images, names)


def test_what_is_measured_in_the_images_follows_from_them(images: Tensor) -> None:
    texts = own_texts(images)
    assert len(set(texts)) == 6
    assert foreign_texts(set_of(images, texts)) == 0


def test_class_names_and_no_descriptions_tell_nothing(images: Tensor) -> None:
    assert foreign_texts(set_of(images, [class_prompt(CLASSES[k % 2]) for k in range(6)])) == 0
    assert foreign_texts(set_of(images)) == 0


def test_descriptions_of_other_images_are_counted(images: Tensor) -> None:
    texts = own_texts(images)
    assert foreign_texts(set_of(images, [texts[2], *texts[1:]])) == 1
    assert foreign_texts(set_of(images, ["a pond with three swans"] * 6)) == 6
    assert foreign_texts(set_of(images, ["a pond with three swans"] * 6, guarantee="ε = 1")) == 0


def test_images_with_all_bands_keep_their_descriptions_in_files(tmp_path: Path) -> None:
    reading = Reading((1, 2, 3, 4), scale=((0.0, 3000.0),) * 4, dtype="uint16", names=("B2", "B3", "B4", "B8"))
    images = torch.randint(0, 256, (6, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = own_texts(images, reading)
    made = set_of(images, texts, reading=reading.as_dict())
    loaded = DistilledSet.load(made.save(tmp_path / "set"))
    assert loaded.suffix == ".tif"
    assert foreign_texts(loaded) == foreign_texts(made) == 0
    assert foreign_texts(replace(loaded, images=255 - loaded.images)) == 6
