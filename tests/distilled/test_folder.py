import pytest
from made import make_set
from PIL import Image

from geodistill.distilled import DistilledSet, run_of, set_folder, set_in, strays
from geodistill.errors import DistilledSetError


def test_files_that_are_not_of_the_set_are_named(tmp_path, caplog):
    folder = make_set().save(tmp_path / "set")
    for name in ("LICENSE", "notes.txt", ".DS_Store", "Beach/beach_000.png.aux.xml", "Beach/._beach_000.png"):
        (folder / name).write_text("")
    assert strays(folder) == []
    caplog.clear()
    DistilledSet.load(folder)
    assert not caplog.records
    (folder / "Forest").mkdir()
    for name in ("Forest/a.png", "Beach/real.png", "more.zip", ".hidden/b.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    assert strays(folder) == [".hidden/b.jpg", "Beach/real.png", "Forest/a.png", "more.zip"]
    assert len(DistilledSet.load(folder)) == 6
    told = f"{folder} holds 4 file(s) that are not of the set, .hidden/b.jpg first: not used"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_images_of_a_plain_folder_that_are_not_read_are_named(tmp_path):
    for name in ("a/1.png", "b/2.png", "a/sub/3.png", "b/4.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "list.csv").write_text("")
    assert strays(tmp_path) == ["a/sub/3.png", "b/4.gif"]


def test_the_run_of_a_set(tmp_path):
    folder = make_set().save(tmp_path / "run" / "distilled")
    assert run_of(folder) is None
    (tmp_path / "run" / "run.json").write_text("{}")
    assert run_of(tmp_path / "run") == tmp_path / "run"
    assert run_of(folder) == tmp_path / "run"
    make_set().save(tmp_path / "run" / "updated")
    assert run_of(tmp_path / "run") is None


def test_an_update_that_is_not_finished_is_no_set(tmp_path):
    run = tmp_path / "run"
    make_set().save(run / "distilled")
    (run / "run.json").write_text('{"settings": {"adds_to": "0f"}}')
    assert set_in(run) == run / "updated"
    with pytest.raises(DistilledSetError) as caught:
        set_folder(run)
    assert str(caught.value) == f"{run} has not finished the update of its set: the same `distill --add` goes on"
    make_set().save(run / "updated")
    assert set_folder(run) == run / "updated"
