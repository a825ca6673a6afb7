import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rasters import archive as rasters
from test_folder import fill

from geodistill.errors import SceneError
from geodistill.scenes import open_scenes
from geodistill.scenes.archives import unpacked_archive


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "geodistill" / "unpacked"


def packed(folder: Path, suffix: str, top: str = "") -> Path:
    """Return an archive of the files in `folder`, in the folder `top`."""
    target = folder.with_name(f"{folder.name}{suffix}")
    files = [(path, f"{top}{path.relative_to(folder)}") for path in sorted(folder.rglob("*")) if path.is_file()]
    if suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path, name in files:
                zipped.write(path, name)
    else:
        with tarfile.open(target, "w:gz" if suffix in (".tar.gz", ".tgz") else "w") as tarred:
            for path, name in files:
                tarred.add(path, name)
    return target


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_an_archive_is_read_as_its_folder(
    suffix: str, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path / "data", count=30)
    (tmp_path / "data" / "Beach" / "zero.png").touch()
    expected = open_scenes(tmp_path / "data")
    caplog.clear()
    data = open_scenes(packed(tmp_path / "data", suffix))
    assert data.train.fingerprint() == expected.train.fingerprint()
    assert data.train.names == expected.train.names
    (folder,) = (path for path in home.iterdir() if not path.name.startswith("."))
    assert data.skipped == (f"{folder / 'Beach' / 'zero.png'}: the file is empty",)
    assert caplog.messages[0] == f"unpacking {tmp_path / f'data{suffix}'} once: 0.0 MB to {home}"
    assert "unreadable image left out" in caplog.messages[1]


def test_splits_lists_and_rasters_in_an_archive(tmp_path: Path) -> None:
    fill(tmp_path / "parts" / "train")
    fill(tmp_path / "parts" / "test", count=2, start=500)
    data = open_scenes(packed(tmp_path / "parts", ".zip"))
    assert (len(data.train), len(data.test or ())) == (24, 4)
    fill(tmp_path / "hub")
    lines = [json.dumps({"file_name": f"Beach/{k:02d}.png", "label": "xy"[k % 2]}) for k in range(12)]
    (tmp_path / "hub" / "metadata.jsonl").write_text("\n".join(lines))
    assert open_scenes(packed(tmp_path / "hub", ".tar", top="hub/")).train.classes == ("x", "y")
    rasters(tmp_path / "deep", lambda label, random: random.integers(0, 999, (4, 20, 20)).astype(np.uint16), each=12)
    assert open_scenes(packed(tmp_path / "deep", ".tar.gz"), bands="4").train.reading.bands == (4,)


def test_folders_around_the_classes(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "data")
    path = packed(tmp_path / "data", ".zip", top="UCMerced/Images/")
    assert open_scenes(path).train.classes == ("Beach", "River")
    folder = unpacked_archive(path)
    assert caplog.messages[1:] == [
        f"using {folder / 'UCMerced'}, the only folder in {folder}",
        f"using {folder / 'UCMerced' / 'Images'}, the only folder in {folder / 'UCMerced'}",
    ]


def test_it_is_unpacked_once_until_it_changes(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = packed(fill(tmp_path / "data"), ".zip")
    first = unpacked_archive(path)
    (first / "mark").touch()
    assert unpacked_archive(path) == first
    assert (first / "mark").exists()
    assert len(caplog.messages) == 1
    fill(tmp_path / "data", count=14)
    other = unpacked_archive(packed(tmp_path / "data", ".zip"))
    assert other != first
    assert (other / "River" / "13.png").is_file()


def test_nothing_stays_of_what_could_not_be_unpacked(tmp_path: Path, home: Path) -> None:
    path = packed(fill(tmp_path / "data"), ".tar.gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SceneError):
        unpacked_archive(path)
    assert [one.name for one in home.iterdir() if not one.name.endswith(".lock")] == []


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_archives_that_are_cut(suffix: str, kept: float, tmp_path: Path) -> None:
    path = packed(fill(tmp_path / "data"), suffix)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(SceneError) as error:
        open_scenes(path)
    assert str(error.value).startswith(f"{path}: the archive is damaged or cut short (")
    assert str(error.value).endswith("): fetch it again")


def test_a_tar_cut_between_two_members(tmp_path: Path) -> None:
    """Its members are whole, and TAR has no count of them."""
    path = packed(fill(tmp_path / "data"), ".tar")
    with tarfile.open(path) as tarred:
        end = tarred.getmembers()[20].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(SceneError, match=r"data\.tar: the archive is damaged or cut short \(its end is missing\)"):
        open_scenes(path)


def _tar(path: Path, member: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        file.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def _named(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, int(kind == tarfile.REGTYPE)
    return member


OUT = "leads out of the archive: unpack it yourself, if you trust it"
LINK = "is a link or a device: unpack it yourself, if you trust it"


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (_named("../a.png"), OUT),
        (_named("a/../../a.png"), OUT),
        (_named("/etc/a.png"), OUT),
        (_named("C:\\a.png"), OUT),
        (_named("a\\..\\..\\a.png"), OUT),
        (_named("a.png", tarfile.SYMTYPE, "/etc/passwd"), LINK),
        (_named("a.png", tarfile.LNKTYPE, "b.png"), LINK),
        (_named("a.png", tarfile.FIFOTYPE), LINK),
        (_named("a.png", tarfile.CHRTYPE), LINK),
    ],
)
def test_members_that_are_refused(member: tarfile.TarInfo, reason: str, tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.tar", member)
    with pytest.raises(SceneError) as error:
        open_scenes(path)
    assert str(error.value) == f"{path}: member {member.name!r} {reason}"
    if member.type == tarfile.REGTYPE:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.writestr(member.name, b"x")
        with pytest.raises(SceneError, match="leads out of the archive"):
            open_scenes(tmp_path / "a.zip")


def _edited(path: Path, edit: Callable[[zipfile.ZipInfo], None]) -> Path:
    one = zipfile.ZipInfo("a.png")
    edit(one)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(one, b"/etc/passwd")
    return path


def test_links_and_encryption_in_a_zip_file(tmp_path: Path) -> None:
    def link(one: zipfile.ZipInfo) -> None:
        one.external_attr = (stat.S_IFLNK | 0o777) << 16

    path = _edited(tmp_path / "link.zip", link)
    with pytest.raises(SceneError) as error:
        open_scenes(path)
    assert str(error.value) == f"{path}: member 'a.png' {LINK}"
    path = _edited(tmp_path / "secret.zip", lambda one: None)
    content = bytearray(path.read_bytes())
    # The flags in the list of members at the end.
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(SceneError) as error:
        open_scenes(path)
    assert str(error.value) == f"{path}: member 'a.png' is encrypted: unpack it with its password"


def test_an_archive_without_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("notes.txt", "about")
    with pytest.raises(SceneError) as error:
        open_scenes(tmp_path / "a.zip")
    assert str(error.value) == (
        f"{tmp_path}/a.zip: no image in the archive: expected <class>/<image> or <split>/<class>/<image>"
    )


def test_a_disk_that_is_too_small(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(fill(tmp_path / "data"), ".zip")
    monkeypatch.setattr("geodistill.scenes.unpacked.shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(SceneError) as error:
        unpacked_archive(path)
    assert str(error.value) == (
        f"{path}: takes 0.0 MB in {home}, where 0.0 MB are free: make room there, or set XDG_DATA_HOME to a folder on "
        "another disk"
    )


def test_a_place_that_cannot_be_written(tmp_path: Path, home: Path) -> None:
    path = packed(fill(tmp_path / "data"), ".zip")
    home.parent.mkdir(parents=True)
    home.touch()
    with pytest.raises(SceneError) as error:
        unpacked_archive(path)
    assert str(error.value) == (
        f"{path}: cannot be unpacked to {home} (File exists): make room there, or set XDG_DATA_HOME to another folder"
    )
