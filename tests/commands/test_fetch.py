"""Archives are fetched from a server on this machine that speaks as the hub does."""

import contextlib
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from geodistill.commands import fetch as module
from geodistill.commands.fetch import ARCHIVES, fetch
from geodistill.errors import RunError, SceneError
from geodistill.scenes import open_scenes
from geodistill.scenes.fetched import fetched


def _zipped() -> bytes:
    buffer, random = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("UCMerced_LandUse/readme.txt", "about")
        for name in ("beach", "river"):
            for k in range(30):
                image = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(image, "PNG")
                file.writestr(f"UCMerced_LandUse/Images/{name}/{name}{k:02d}.png", image.getvalue())
    return buffer.getvalue()


class Hub(ThreadingHTTPServer):
    """Serves one file; `cut` bytes of it, before it hangs up, if that is given."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.cut, self.served, self.asked = content, 0, 0, list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._head(0)

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        start = int(asked)
        self._head(start)
        content = self.server.content[start:]
        if self.server.cut:
            content, self.server.cut = content[: self.server.cut], 0
        self.wfile.write(content)
        self.server.served += len(content)

    def _head(self, start: int) -> None:
        self.server.asked.append(self.path)
        content = self.server.content
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", ARCHIVES["ucmerced"].revision)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    server = Hub(_zipped())
    pinned = replace(ARCHIVES["ucmerced"], md5=hashlib.md5(server.content).hexdigest())
    monkeypatch.setattr(module, "ARCHIVES", {**ARCHIVES, "ucmerced": pinned})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_an_archive_is_fetched_once_and_known_by_name(hub: Hub, tmp_path: Path) -> None:
    for _ in range(2):
        folder = fetch("ucmerced", tmp_path / "archives", endpoint=hub.address)
    assert folder == tmp_path / "archives" / "ucmerced" / "UCMerced_LandUse" / "Images"
    assert hub.served == len(hub.content)
    revision = ARCHIVES["ucmerced"].revision
    assert {*hub.asked} == {f"/datasets/torchgeo/ucmerced/resolve/{revision}/UCMerced_LandUse.zip"}
    assert fetched() == {"ucmerced": folder}
    assert open_scenes("ucmerced").train.classes == ("beach", "river")
    assert not list((tmp_path / "archives").glob("*.zip"))


def test_a_download_that_was_cut_goes_on(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client keeps whole chunks, of 10 MB by default.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut = len(hub.content) // 2
    with contextlib.suppress(SceneError):  # the client may go on by itself
        fetch("ucmerced", tmp_path, endpoint=hub.address)
    fetch("ucmerced", tmp_path, endpoint=hub.address)
    assert len(list((tmp_path / "ucmerced").rglob("*.png"))) == 60
    assert hub.served < len(hub.content) + 2000


def test_a_wrong_file_is_refused_and_removed(hub: Hub, tmp_path: Path) -> None:
    wanted = module.ARCHIVES["ucmerced"].md5
    hub.content = hub.content[:-7] + b"changed"
    with pytest.raises(SceneError) as caught:
        fetch("ucmerced", tmp_path, endpoint=hub.address)
    found = hashlib.md5(hub.content).hexdigest()
    assert str(caught.value) == (
        f"UCMerced_LandUse.zip has MD5 {found}, expected {wanted}: it is removed. The same command downloads it again; "
        "if that does not help, the copy on the hub has changed"
    )
    assert not (tmp_path / "UCMerced_LandUse.zip").exists()
    assert not (tmp_path / "ucmerced").exists()


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    # The client waits longer before each of its five attempts: 23 seconds in all.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SceneError, match=r"^UCMerced_LandUse\.zip could not be downloaded from torchgeo/ucmerced \("):
        fetch("ucmerced", tmp_path, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ucmercd", "did you mean 'ucmerced'? known: ucmerced, resisc45, eurosat-ms, patternnet"),
        ("eurosat", "use eurosat-ms, which has the same tiles: its bands 4, 3 and 2 are read as RGB"),
    ],
)
def test_names_that_are_none(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SceneError) as caught:
        fetch(name, tmp_path)
    assert str(caught.value) == f"no archive {name!r} to fetch: {message}"


def test_a_damaged_list_of_archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "geodistill").mkdir()
    (tmp_path / "geodistill" / "archives.json").write_text("[")
    with pytest.raises(
        SceneError, match=r"archives\.json cannot be read \(.*\): delete it, and fetch the archives again$"
    ):
        fetched()


def test_a_folder_that_is_no_complete_archive_is_not_taken_for_one(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "ucmerced").mkdir()
    with pytest.raises(SceneError) as caught:
        fetch("ucmerced", tmp_path, endpoint=hub.address)
    assert str(caught.value) == (
        f"{tmp_path / 'ucmerced'} is there already, and `geodistill fetch` did not complete it: remove it, or choose "
        "another --out"
    )
    assert fetched() == {}


def test_a_data_folder_that_cannot_be_written_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match=rf"^{tmp_path / 'file' / 'geodistill'} cannot be a folder"):
        fetch("ucmerced", tmp_path / "archives", endpoint=hub.address)
