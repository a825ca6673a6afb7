import json
from pathlib import Path
from typing import Any

import pytest
from test_folder import fill

from geodistill.errors import SceneError
from geodistill.scenes import open_scenes
from geodistill.scenes.parquet import name_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ["beach", "river"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "geodistill" / "unpacked"


def written(path: Path, rows: list[dict[str, Any]], names: list[str] | None = None) -> Path:
    """Write `rows`; `names` are those of the classes, as `datasets` keeps them."""
    table = pa.Table.from_pylist(rows)
    if names:
        about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def embedded(folder: Path, start: int = 0, count: int = 12) -> list[dict[str, Any]]:
    fill(folder, count=count, start=start)
    paths = sorted(folder.rglob("*.png"))
    return [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": int(path.parent.name == "River")}
        for path in paths
    ]


def test_a_list_of_paths(tmp_path: Path) -> None:
    fill(tmp_path / "images")
    files = sorted((tmp_path / "images").rglob("*.png"))
    rows = [
        {"file_name": str(path.relative_to(tmp_path)), "class": path.parent.name, "split": ("train", "test")[k % 2]}
        for k, path in enumerate(files)
    ]
    data = open_scenes(written(tmp_path / "list.parquet", rows))
    assert data.train.classes == ("Beach", "River")
    assert (len(data.train), len(data.test or ())) == (12, 12)
    assert data.train.names[:2] == ("Beach/00.png", "Beach/02.png")


def test_images_in_the_file(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = embedded(tmp_path / "images", count=30)
    path = written(tmp_path / "all.parquet", rows, CLASSES)
    expected = open_scenes(tmp_path / "images")
    caplog.clear()
    data = open_scenes(path)
    assert data.train.classes == ("beach", "river")
    assert data.train.keys == expected.train.keys
    assert data.train.names[0] == expected.train.names[0].lower()
    assert caplog.messages == [f"unpacking the images in {path} once: about 0.0 MB to {home}"]
    open_scenes(path)
    assert len(caplog.messages) == 1


def test_images_that_are_only_named(tmp_path: Path) -> None:
    """As `Dataset.to_parquet` writes images that are files."""
    rows = embedded(tmp_path / "images")
    for row, path in zip(rows, sorted((tmp_path / "images").rglob("*.png")), strict=True):
        row["image"] = {"bytes": None, "path": str(path.relative_to(tmp_path))}
    data = open_scenes(written(tmp_path / "all.parquet", rows, CLASSES))
    assert data.train.keys == open_scenes(tmp_path / "images").train.keys


def test_a_folder_of_shards(tmp_path: Path) -> None:
    """Images of several shards have the same names."""
    for name, start, count in (("train-00000-of-00002", 0, 5), ("train-00001-of-00002", 50, 5), ("test-0", 99, 2)):
        written(tmp_path / "set" / "data" / f"{name}.parquet", embedded(tmp_path / name, start, count), CLASSES)
    written(tmp_path / "set" / "data" / "validation.parquet", embedded(tmp_path / "v", 200, 3), CLASSES)
    data = open_scenes(tmp_path / "set")
    assert [len(part) for part in (data.train, data.test, data.val) if part is not None] == [20, 4, 6]
    assert len(set(data.train.keys)) == 20
    # Another table beside class folders is nobody's concern.
    fill(tmp_path / "plain")
    written(tmp_path / "plain" / "notes.parquet", [{"a": 1}])
    assert open_scenes(tmp_path / "plain").train.classes == ("Beach", "River")


def test_an_image_that_is_missing_or_damaged(tmp_path: Path) -> None:
    rows = embedded(tmp_path / "images", count=40)
    rows[3]["image"] = {"bytes": None, "path": "gone.png"}
    rows[4]["image"]["bytes"] = b"no image"
    data = open_scenes(written(tmp_path / "all.parquet", rows, CLASSES))
    assert [reason.rsplit("/", 1)[-1] for reason in data.skipped] == [
        "gone.png: the file is empty",
        "04.png: not a JPEG, PNG, TIFF, WebP or BMP image",
    ]


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ([{"image": {"bytes": b"", "path": "a"}, "kind": 1}], None, "no column label or class or class_name or"),
        ([{"image": {"bytes": b"", "path": "a"}, "label": -1}], CLASSES, "row 1 has no class: remove"),
        ([{"path": "a.png", "label": None}], None, "row 1 has no class: remove the rows without one"),
        (
            [{"image": {"bytes": b"", "path": "a"}, "label": "a/b"}],
            None,
            "has a slash, backslash or control character",
        ),
    ],
)
def test_tables_that_cannot_be_used(
    rows: list[dict[str, Any]], names: list[str] | None, message: str, tmp_path: Path, home: Path
) -> None:
    path = written(tmp_path / "a.parquet", rows, names)
    with pytest.raises(SceneError, match=message):
        open_scenes(path)
    assert not home.exists() or not [one for one in home.iterdir() if not one.name.endswith(".lock")]


def test_a_file_that_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", embedded(tmp_path / "images"), CLASSES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SceneError, match=r"a\.parquet: not a list of labelled files \(Parquet magic bytes not found"):
        open_scenes(path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", embedded(tmp_path / "images"), CLASSES)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(SceneError) as error:
        open_scenes(path)
    assert str(error.value).startswith(f"{path}: Parquet needs pyarrow.parquet, which cannot be imported (")
    assert str(error.value).endswith("): pip install 'geodistill[parquet]'")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b/sea.jpg", "sea.png"),
        ("C:\\x\\sea.tif", "sea.png"),
        ("../../.ssh", "0000007.png"),
        ("..", "0000007.png"),
        (None, "0000007.png"),
        ("a\0b.png", "0000007.png"),
    ],
)
def test_names_of_images(path: str | None, expected: str, tmp_path: Path) -> None:
    content = embedded(tmp_path, count=1)[0]["image"]["bytes"]
    assert name_of({"bytes": content, "path": path}, 7) == expected
    assert name_of({"bytes": b"II*\0", "path": "deep.tif"}, 7) == "deep.tif"
