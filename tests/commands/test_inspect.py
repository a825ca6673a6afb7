from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasters import archive, tif
from typer.testing import CliRunner

from geodistill.cli import app
from geodistill.commands.inspect import contact_sheet, inspect
from geodistill.scenes import open_scenes, write_scenes


def test_what_a_folder_holds(tmp_path: Path) -> None:
    def reflectance(label: int, random: np.random.Generator) -> Any:
        values = random.integers(0, 1001, (4, 20, 30)).astype(np.int16)
        values[:, :5] = -1
        return values

    for split, each in (("train", 5), ("test", 2)):
        archive(tmp_path / split, reflectance, each=each, located=True, nodata=-1, names=("B2", "B3", "B4", "B8"))
    first = tmp_path / "train" / "a" / "0.tif"
    (tmp_path / "train" / "b" / "again.tif").write_bytes(first.read_bytes())
    found = inspect(open_scenes(tmp_path))
    assert found.classes == (("a", 5, 2, 0), ("b", 6, 2, 0))
    assert found.kinds == (("4 bands (B2, B3, B4, B8) of int16, tif, nodata -1", 15),)
    assert found.sizes == (30, 30, 20, 20)
    assert found.located == "15 of 15 files: EPSG:32629 (15); pixels of 10 units"
    assert found.missing == (15, 0.25)
    # The random numbers of both splits are the same.
    assert ("train/a/0.tif", "train/b/again.tif", "test/a/0.tif") in found.duplicates
    assert found.reading.bands == (3, 2, 1)
    assert found.read_as().startswith("RGB from bands 3, 2, 1; black to white: ")
    assert found.read_as().endswith(" (1st and 99th percentile of the training scenes)")


def test_a_validation_part_is_counted(tmp_path: Path) -> None:
    for rank, (split, each) in enumerate((("train", 5), ("test", 2), ("val", 3))):
        archive(
            tmp_path / split,
            lambda label, random: random.integers(0, 9, (3, 8, 8)).astype(np.uint8),
            seed=rank,
            each=each,
        )
    assert inspect(open_scenes(tmp_path)).classes == (("a", 5, 2, 3), ("b", 5, 2, 3))


def test_readings_in_words(tmp_path: Path) -> None:
    archive(tmp_path, lambda label, random: random.integers(0, 9, (2, 8, 8)).astype(np.float32))
    found = inspect(open_scenes(tmp_path, bands="2", scale="-3,0.5"))
    assert found.read_as() == "grey from band 2; black to white: -3 to 0.5 (as given by --scale)"
    assert found.located == "no file has a georeference"
    plain = archive(tmp_path / "8", lambda label, random: random.integers(0, 9, (3, 8, 8)).astype(np.uint8))
    assert inspect(open_scenes(plain)).read_as() == "8-bit images, in their own colours"


def test_the_contact_sheet_shows_each_class(tmp_path: Path) -> None:
    archive(tmp_path, lambda label, random: np.full((3, 8, 8), 100 * label, np.uint8), each=5)
    for k in range(20):
        tif(tmp_path / "a" / f"more{k}.tif", np.full((3, 8, 8), k + 1, np.uint8))
    sheet = contact_sheet(open_scenes(tmp_path).train)
    assert sheet.kind == "real"
    assert int((sheet.labels == 0).sum()) == 8
    assert 1 <= int((sheet.labels == 1).sum()) <= 5
    assert sheet.images[sheet.labels == 1].unique().tolist() == [100]


def test_the_share_of_missing_pixels_is_that_of_all_pixels(tmp_path: Path) -> None:
    whole = np.full((1, 100, 100), 7, np.uint8)
    for name, values in (("0", whole), ("1", whole + 1), ("2", whole + 2)):
        tif(tmp_path / "a" / f"{name}.tif", values, nodata=0)
    small = np.full((1, 10, 10), 9, np.uint8)
    small[0, :5] = 0
    tif(tmp_path / "b" / "0.tif", small, nodata=0)
    count, share = inspect(open_scenes(tmp_path, split="all")).missing
    assert (count, share) == (1, pytest.approx(50 / 30_100))


def test_a_contact_sheet_that_cannot_be_written_is_told_before_anything_is_read(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "none"), "--out", str(tmp_path / "sheet")])
    assert told.exit_code == 2
    wanted = "is no name of a picture: end it with one of .png, .jpg, .jpeg, .webp"
    assert " ".join(told.stderr.split()).endswith(wanted)
    write_scenes(tmp_path / "data", train_per_class=1, test_per_class=1, size=16)
    made = CliRunner().invoke(app, ["inspect", str(tmp_path / "data"), "--out", str(tmp_path)])
    assert made.exit_code == 0, made.stderr
    assert (tmp_path / "contact-sheet.png").is_file()
