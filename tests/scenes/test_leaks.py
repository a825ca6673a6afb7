import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import from_origin
from rasters import tif
from typer.testing import CliRunner

from geodistill.cli import app
from geodistill.errors import SceneError
from geodistill.scenes import leaks, open_scenes
from geodistill.scenes.leaks import find_leaks, tell_of_leaks
from geodistill.scenes.looks import look_of
from geodistill.scenes.procedural import draw_scene
from geodistill.scenes.readers import Info
from geodistill.scenes.scenes import FILE, GROUND, PICTURE, SceneFile

SHARED = Path(__file__).parents[3] / "shared" / "data"


def archive(root: Path) -> Path:
    """Write six training and two test scenes of two classes."""
    for part, seeds in (("train", range(6)), ("test", range(90, 92))):
        for name in ("Beach", "Forest"):
            (root / part / name).mkdir(parents=True)
            for seed in seeds:
                Image.fromarray(draw_scene(name, seed)).save(root / part / name / f"{seed}.png")
    return root


def picture(root: Path, name: str = "Beach/3.png") -> Image.Image:
    return Image.open(root / "train" / name)


def test_an_archive_without_leaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = open_scenes(archive(tmp_path), strict=True)
    assert data.leaks == ()
    assert caplog.messages == []


def test_a_picture_that_was_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive(tmp_path)
    own, test = picture(tmp_path), tmp_path / "test" / "Beach"
    own.save(test / "again.jpg", quality=50)
    own.transpose(Image.Transpose.ROTATE_90).save(test / "turned.png")
    own.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(test / "mirrored.png")
    own.resize((32, 32), Image.Resampling.BICUBIC).save(test / "small.png")
    data = open_scenes(tmp_path)
    assert [(leak.scene, leak.other, leak.why) for leak in data.leaks] == [
        (f"test/Beach/{name}", "train/Beach/3.png", PICTURE)
        for name in ("again.jpg", "mirrored.png", "small.png", "turned.png")
    ]
    assert min(leak.share for leak in data.leaks) > 0.95
    # Nothing is left out.
    assert (len(data.train), len(data.test or ())) == (12, 8)
    assert caplog.messages == [
        "4 test scene(s) are also in another part, the first is test/Beach/again.jpg and train/Beach/3.png (the same "
        "picture): results are too optimistic. `geodistill inspect` names them, and --strict stops here"
    ]


def test_strict_names_the_pairs(tmp_path: Path) -> None:
    archive(tmp_path)
    picture(tmp_path).save(tmp_path / "test" / "Beach" / "again.jpg", quality=50)
    (tmp_path / "test" / "Forest" / "x.png").write_bytes((tmp_path / "train" / "Forest" / "0.png").read_bytes())
    with pytest.raises(SceneError) as error:
        open_scenes(tmp_path, strict=True)
    assert str(error.value) == (
        "2 scene(s) are in two parts of the data: remove one of each pair, or leave --strict out\n"
        "  test/Beach/again.jpg and train/Beach/3.png (the same picture)\n"
        "  test/Forest/x.png and train/Forest/0.png (the same file)"
    )


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = archive(tmp_path / "data")
    picture(data).save(data / "test" / "Beach" / "again.jpg", quality=50)
    shown = CliRunner().invoke(app, ["inspect", str(data)])
    assert shown.exit_code == 0
    assert "in two parts: test/Beach/again.jpg and train/Beach/3.png (the same picture)" in shown.output
    for command in (["inspect"], ["distill", "--out", "run"], ["compare", "--out", "run"]):
        refused = CliRunner().invoke(app, [*command, str(data), "--strict"])
        assert refused.exit_code == 2
        assert "1 scene(s) are in two parts of the data" in refused.output
    assert not (tmp_path / "run").exists()


def test_a_validation_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive(tmp_path)
    for name in ("Beach", "Forest"):
        (tmp_path / "val" / name).mkdir(parents=True)
        one = Image.open(tmp_path / "test" / name / "90.png")
        one.transpose(Image.Transpose.TRANSPOSE).save(tmp_path / "val" / name / "0.png")
    assert [str(leak) for leak in open_scenes(tmp_path).leaks] == [
        f"val/{name}/0.png and test/{name}/90.png (the same picture)" for name in ("Beach", "Forest")
    ]
    assert caplog.messages[0].startswith("2 validation scene(s) are also in another part, the first is val/Beach/0.png")


def tiles(root: Path, step: float) -> Path:
    """Write test tiles of 100 m between training tiles, whose left sides are `step` metres from theirs."""
    for part, shift in (("train", 0.0), ("test", step)):
        for k in range(6):
            values = np.random.default_rng(k + int(shift)).integers(0, 255, (3, 10, 10)).astype(np.uint8)
            place = from_origin(1000.0 * k + shift, 0.0, 10.0, 10.0)
            path = root / part / "ab"[k % 2] / f"{k}.tif"
            tif(path, values, crs="EPSG:32629", transform=place, photometric="RGB")
    return root


def test_tiles_that_overlap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leaks = open_scenes(tiles(tmp_path / "half", 50.0)).leaks
    assert len(leaks) == 6
    assert leaks[0].share == pytest.approx(0.5)
    assert str(leaks[0]) == "test/a/0.tif and train/a/0.tif (the same ground, 50% of it)"
    told = "Unless the data has parts of its own, --split spatial keeps neighbours together. `geodistill inspect`"
    assert f"too optimistic. {told}" in caplog.text
    caplog.clear()
    tell_of_leaks(open_scenes(tmp_path / "half").leaks, strict=False, spatial=True)
    assert "They lie on both sides of a border of two squares: larger squares (--split spatial:METRES)" in caplog.text
    assert open_scenes(tiles(tmp_path / "beside", 100.0)).leaks == ()
    assert len(open_scenes(tiles(tmp_path / "little", 98.0)).leaks) == 6


boxes = st.lists(st.tuples(*[st.floats(-50, 50)] * 2, *[st.floats(0.5, 60)] * 2), min_size=1, max_size=12)


@given(boxes, boxes)
def test_overlaps_are_those_of_all_pairs(train: list[tuple[float, ...]], test: list[tuple[float, ...]]) -> None:
    def files(some: list[tuple[float, ...]], part: str) -> list[SceneFile]:
        infos = [Info(9, 9, "uint8", (), crs="EPSG:32629", bounds=(x, y, x + w, y + h)) for x, y, w, h in some]
        return [SceneFile(Path(f"{k}"), 0, f"{k}", f"{part}{k}", info) for k, info in enumerate(infos)]

    def shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        sides = [min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
        return max(sides[0], 0) * max(sides[1], 0) / min(a[2] * a[3], b[2] * b[3])

    expected = {f"test/{k}": max(shared(box, other) for other in train) for k, box in enumerate(test)}
    found = {leak.scene: leak.share for leak in find_leaks({"train": files(train, "a"), "test": files(test, "b")})}
    for name, share in expected.items():
        # At the limit rounding decides.
        if abs(share - 0.01) > 1e-6:
            assert (name in found) == (share > 0.01)
            assert name not in found or found[name] == pytest.approx(share)


def test_one_scene_over_all_others_costs_little() -> None:
    """A scene of a million times the side of the others lies in few cells."""
    infos = [Info(9, 9, "uint8", (), crs="x", bounds=(k, 0.0, k + 1.0, 1.0)) for k in range(100)]
    small = [SceneFile(Path(f"{k}"), 0, f"{k}", f"{k}", info) for k, info in enumerate(infos)]
    large = SceneFile(Path("l"), 0, "l", "l", Info(9, 9, "uint8", (), crs="x", bounds=(0.0, 0.0, 1e6, 1e6)))
    assert [leak.why for leak in find_leaks({"train": [large], "test": small})] == [GROUND] * 100


def place(
    name: str, left: float, bottom: float, *, crs: str = "x", top: float | None = None, look: bytes = b""
) -> SceneFile:
    """Return a file of a square of side 10 on the ground, whose key is its name."""
    info = Info(9, 9, "uint8", (), crs=crs, bounds=(left, bottom, left + 10, bottom + 10 if top is None else top))
    return SceneFile(Path(name), 0, name, name, info, look=look)


def test_one_place_in_two_coordinate_systems_is_two_places() -> None:
    train, test = [place("a", 0, 0, crs="EPSG:32629")], [place("b", 0, 0, crs="EPSG:32630")]
    assert find_leaks({"train": train, "test": test}) == ()


def test_a_file_with_its_first_row_in_the_south_lies_where_it_lies() -> None:
    # Its bottom is above its top: the square from 5 to 15.
    leaks = find_leaks({"train": [place("a", 0, 0)], "test": [place("b", 0, 15, top=5)]})
    assert [(leak.why, leak.share) for leak in leaks] == [(GROUND, 0.5)]


def look(seed: int) -> bytes:
    drawn = draw_scene("Harbour", seed).transpose(2, 0, 1)
    return look_of(drawn, np.ones(drawn.shape[1:], np.bool_))


def test_ground_counts_before_pictures() -> None:
    train = [place("a", 0, 0, look=look(1)), place("b", 100, 0, look=look(2))]
    test = [place("c", 1, 0, look=look(2)), place("d", 500, 0, look=look(2))]
    leaks = find_leaks({"train": train, "test": test})
    assert [(leak.scene, leak.other, leak.why) for leak in leaks] == [
        ("test/c", "train/a", GROUND),
        ("test/d", "train/b", PICTURE),
    ]


def test_scenes_without_a_look_do_not_shift_the_others() -> None:
    train = [place(f"{k}", 20 * k, 0, look=look(k) if k % 2 else b"") for k in range(6)]
    test = [place(f"t{k}", 1000 + 20 * k, 0, look=look(k) if k % 3 == 0 else b"") for k in range(6)]
    assert [(leak.scene, leak.other) for leak in find_leaks({"train": train, "test": test})] == [("test/t3", "train/3")]


def test_files_count_before_pictures_and_ground(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(draw_scene("Beach", 0)).save(buffer, "PNG")
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "x.png").write_bytes(buffer.getvalue())
    assert {leak.why for leak in open_scenes(tmp_path).leaks} == {FILE}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("name", "known"),
    [("ucmerced", set()), ("eurosat", {("test/River/River_597.jpg", "train/River/River_492.jpg")})],
)
def test_false_alarms_on_real_archives(name: str, known: set[tuple[str, str]]) -> None:
    """EuroSAT's pair shows the same stretch of a river. No other scene of both archives is named."""
    assert {(leak.scene, leak.other) for leak in open_scenes(SHARED / name).leaks} == known


def test_many_images_of_one_place_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(part: str) -> list[SceneFile]:
        infos = [Info(9, 9, "uint8", (), crs="x", bounds=(k % 2, 0.0, k % 2 + 1.0, 1.0)) for k in range(200)]
        return [SceneFile(Path(f"{k}"), 0, f"{k}", f"{part}{k}", info) for k, info in enumerate(infos)]

    compared = []
    shared = leaks._shared
    monkeypatch.setattr(leaks, "_shared", lambda box, others: compared.append(len(others)) or shared(box, others))
    found = find_leaks({"train": files("a"), "test": files("b")})
    assert sum(compared) <= 4
    assert [(leak.scene, leak.other, leak.share) for leak in found[:3]] == [
        ("test/0", "train/0", 1.0),
        ("test/1", "train/1", 1.0),
        ("test/2", "train/0", 1.0),
    ]
    assert len(found) == 200
