import base64
import io
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

from geodistill.distilled import DistilledSet
from geodistill.prototypes import Prototypes
from geodistill.report.figures import Row
from geodistill.report.sets import SetFolder, compared_sets, gallery, main_set, png_uri, thumbnails
from geodistill.stages.chosen import Chosen


def pixels_of(uri: str) -> torch.Tensor:
    """Return uint8 [3, s, s] of a PNG's data URI."""
    head, content = uri.split(",")
    assert head == "data:image/png;base64"
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(content))))).permute(2, 0, 1)


def _image(seed: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _save(
    folder: Path, method: str, records: tuple[dict[str, object], ...] = (), about: dict[str, object] | None = None
) -> SetFolder:
    images = torch.stack([_image(seed) for seed in range(4)])
    labels = torch.tensor([0, 0, 1, 1])
    DistilledSet(images, labels, ("a", "b"), records, {"method": method, **(about or {})}).save(folder / "distilled")
    return SetFolder(folder, method, 2)


def test_an_image_is_embedded_as_it_is() -> None:
    assert torch.equal(pixels_of(png_uri(_image(0, 48))), _image(0, 48))
    assert pixels_of(png_uri(_image(0, 256), most=64)).shape == (3, 64, 64)
    assert torch.equal(pixels_of(png_uri(_image(0, 48), most=64)), _image(0, 48))


@pytest.mark.parametrize(
    ("method", "told", "real"),
    [
        ("dpd", None, False),
        ("dpd", False, False),
        ("random", None, True),
        ("random", True, True),
        ("d4m", None, False),
        ("quay", None, True),
        ("quay", False, False),
        ("dm", False, True),
        ("d4m", False, False),
        ("reconstruction", False, True),
    ],
)
def test_what_is_not_known_to_be_generated_counts_as_real(
    tmp_path: Path, method: str, told: bool | None, real: bool
) -> None:
    rows = [] if told is None else [Row(method, 2, "probe", "n", 0.5, 0.0, kind="real" if told else "synthetic")]
    other = Row("other", 2, "probe", "n", 0.5, 0.0, kind="synthetic" if real else "real")
    assert _save(tmp_path, method).holds_real([other, *rows]) is real


def test_sets_of_a_comparison(tmp_path: Path) -> None:
    for name in ("k-means-ipc10", "dpd-ipc10", "dpd-ipc2", "notes", "x-ipcy"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    assert [one.name for one in compared_sets(tmp_path, [])] == ["dpd, IPC 2", "dpd, IPC 10", "k-means, IPC 10"]
    rows = [Row("k-means", 10, "probe", "n", 0.5, 0.0)]
    assert [one.name for one in compared_sets(tmp_path, rows)] == ["k-means, IPC 10", "dpd, IPC 2", "dpd, IPC 10"]


def test_dpd_stands_for_a_comparison_and_otherwise_the_last_method() -> None:
    def sets(*names: str) -> list[SetFolder]:
        return [SetFolder(Path(), name, ipc) for name in names for ipc in (1, 10)]

    assert main_set(sets("d4m", "dpd", "mgd3")) == SetFolder(Path(), "dpd", 10)
    assert main_set(sets("mgd3", "d4m")) == SetFolder(Path(), "d4m", 10)
    assert main_set([]) is None


def test_gallery_tells_what_is_known_of_each_image(tmp_path: Path) -> None:
    record = {"seed": 7, "description": "a lake", "scores": {"teacher_probability": 0.876}}
    found = gallery(_save(tmp_path, "dpd", (record, {}, {}, {})), per_class=1)
    assert [(name, [picture.alt for picture in group]) for name, group in found.items()] == [
        ("a", ["distilled image 1 of a"]),
        ("b", ["distilled image 1 of b"]),
    ]
    first, other = found["a"][0], found["b"][0]
    assert (first.facts, first.description, first.sources) == (("teacher 0.88",), "a lake", ())
    assert (other.facts, other.description) == ((), "")
    assert torch.equal(pixels_of(other.uri), _image(2))


def test_sources_are_the_members_nearest_the_own_prototype(tmp_path: Path) -> None:
    scenes = fakes.make_scenes(("a", "b"), per_class=6)
    members = ([4, 1, 2, 0], [3, 5], [11, 6, 7], [8, 9, 10])
    (tmp_path / "prototypes").mkdir()
    prototypes = Prototypes(torch.tensor([1, 3, 6, 8]), torch.tensor([0, 0, 1, 1]), tuple(map(torch.tensor, members)))
    prototypes.save(tmp_path / "prototypes")
    (tmp_path / "chosen").mkdir()
    # Of five candidates each: the second prototype, the first, the third, the fourth.
    Chosen(torch.tensor([7, 4, 10, 19]), torch.zeros(4, 1, 1, 1), torch.zeros(4, 2)).save(tmp_path / "chosen")
    one = _save(tmp_path, "dpd", about={"config": {"sampling": {"candidates": 5}}})
    found = gallery(one, 2, scenes)
    shown = [picture for group in found.values() for picture in group]
    for picture, wanted in zip(shown, ([3, 5], [4, 1, 2], [11, 6, 7], [8, 9, 10]), strict=True):
        assert torch.equal(torch.stack([pixels_of(s.uri) for s in picture.sources]), scenes.pixels(wanted, size=32))
    assert shown[0].sources[0].alt == "real image of a near this prototype"


def test_thumbnails_show_the_first_image_of_each_class(tmp_path: Path) -> None:
    found = thumbnails(_save(tmp_path, "dpd").images)
    assert [(name, picture.alt) for name, picture in found.items()] == [
        ("a", "distilled image of a"),
        ("b", "distilled image of b"),
    ]
    assert torch.equal(pixels_of(found["b"].uri), _image(2))
