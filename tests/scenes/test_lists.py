import json
import re
from pathlib import Path

import pytest
from test_folder import fill

from geodistill.errors import SceneError
from geodistill.scenes import open_scenes
from geodistill.scenes.lists import read_list

FILES = [(f"{name}/{k:02d}.png", name.lower()) for name in ("Beach", "River") for k in range(12)]


def _csv(folder: Path, lines: list[str], name: str = "labels.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder / name


def test_a_list_with_its_own_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "images")
    parts = {0: "Train", 1: "test", 2: "validation", 3: ""}
    rows = [f"images/{path},{label},{parts[min(k % 12 // 3, 3)]}" for k, (path, label) in enumerate(FILES)]
    data = open_scenes(_csv(tmp_path, ["File_Name,Class,Split", *rows]))
    assert data.train.classes == ("beach", "river")
    assert [len(part) for part in (data.train, data.test, data.val) if part is not None] == [6, 6, 6]
    assert data.train.names[:2] == ("beach/00.png", "beach/01.png")
    assert f"6 images of {tmp_path / 'labels.csv'} are in no part, and are left out" in caplog.messages
    hashed = open_scenes(tmp_path / "labels.csv", split="hash")
    assert len(hashed.train) + len(hashed.test or ()) == 24


def test_metadata_of_a_folder_from_the_hub(tmp_path: Path) -> None:
    fill(tmp_path)
    lines = [json.dumps({"file_name": path, "label": label}) for path, label in FILES]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    for what in (tmp_path, tmp_path / "metadata.jsonl"):
        data = open_scenes(what)
        assert data.train.classes == ("beach", "river")
        assert len(data.train) + len(data.test or ()) == 24
    with pytest.raises(SceneError, match=r"the list has no split column: leave --split column out$"):
        open_scenes(tmp_path, split="column")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,name", "a.png,x"], "no column label or class or class_name or category: the columns are path, name"),
        (["path,label"], "the list has no entries"),
        (["path,label", "none.png,x", "a.png,x"], "2 of 2 listed files do not exist, {folder}/none.png first"),
        (
            ["path,label,split", "Beach/00.png,x,later", "Beach/01.png,y,test"],
            "'later' in the split column is no part: write train, test or val",
        ),
        (["path,label,split", "Beach/00.png,x,test", "Beach/01.png,y,test"], "no image is in the part train"),
    ],
)
def test_lists_that_cannot_be_used(lines: list[str], message: str, tmp_path: Path) -> None:
    fill(tmp_path)
    path = _csv(tmp_path, lines)
    with pytest.raises(SceneError, match=f"^{re.escape(str(path))}: {re.escape(message.format(folder=tmp_path))}$"):
        open_scenes(path)


def test_lines_that_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(SceneError, match=r"a\.jsonl: not a list of labelled files \(a line is no object: \[1\]\)$"):
        read_list(tmp_path / "a.jsonl")


def test_blanks_around_values_are_not_part_of_them(tmp_path: Path) -> None:
    fill(tmp_path / "images")
    rows = [f" images/{path} , {label}{' ' * (k % 2)}, train " for k, (path, label) in enumerate(FILES)]
    assert open_scenes(_csv(tmp_path, ["path, label, split", *rows])).train.classes == ("beach", "river")
