from pathlib import Path

import pytest

from geodistill.errors import RunError
from geodistill.run import written_whole


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    with written_whole(path) as aside:
        assert (aside.parent, aside.suffix) == (path.parent, ".csv")
        aside.write_text("rows")
        assert not path.exists()
    assert path.read_text() == "rows"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")

    def fails() -> None:
        with written_whole(path) as aside:
            aside.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match=r"^stop$"):
        fails()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(RunError) as caught, written_whole(tmp_path / "a" / "b.csv"):
        pass
    assert str(caught.value) == f"{tmp_path / 'a'} cannot be a folder, a file is in its place: choose another --out"
