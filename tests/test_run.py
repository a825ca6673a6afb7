import errno
import fcntl
import json
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from geodistill.errors import RunError
from geodistill.provenance import Stage, fingerprint
from geodistill.run import (
    Run,
    forget_parts,
    join_parts,
    kept_parts,
    read_secret,
    records,
    save_tensors,
    write_atomic,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, JSON)
def test_fingerprints_are_equal_where_the_content_is(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_fingerprint_ignores_the_order_of_keys(values: dict[str, int]) -> None:
    assert fingerprint(values) == fingerprint(dict(reversed(values.items())))


def _counting(calls: list[int]) -> Any:
    def build(folder: Path) -> dict[str, int]:
        calls.append(1)
        (folder / "result.txt").write_text("whole")
        return {"calls": len(calls)}

    return build


def _stage(run: Run, build: Any, name: str, version: int = 1, given: Sequence[Any] = ()) -> Path:
    stage = Stage(name, version, lent=name in ("base", "latents"))
    return run.make(stage, build, lambda folder: folder, given=given).value


def test_a_whole_stage_is_not_built_again(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        with Run(tmp_path / "run", {"a": 1}) as run:
            folder = _stage(run, _counting(calls), "latents", given=["x"])
    assert len(calls) == 1
    assert (folder / "result.txt").read_text() == "whole"
    record = records(tmp_path / "run")[0]
    assert record["stage"] == "latents"
    assert record["facts"] == {"calls": 1}
    assert record["peak_memory_mib"] > 0


@pytest.mark.parametrize("change", [{"version": 2}, {"given": ["y"]}])
def test_another_version_or_input_builds_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    calls: list[int] = []
    with Run(tmp_path / "run", {}) as run:
        _stage(run, _counting(calls), "latents", given=["x"])
        _stage(run, _counting(calls), "latents", **{"given": ["x"], **change})
    assert len(calls) == 2


def test_an_interrupted_stage_goes_on_in_its_folder(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        done = folder / "half.txt"
        if not done.exists():
            done.write_text("half")
            raise KeyboardInterrupt
        (folder / "result.txt").write_text(done.read_text() + " whole")

    with pytest.raises(KeyboardInterrupt), Run(tmp_path / "run", {}) as run:
        _stage(run, build, "adapter")
    assert not (tmp_path / "run" / "adapter").exists()
    with Run(tmp_path / "run", {}) as run:
        folder = _stage(run, build, "adapter")
    assert (folder / "result.txt").read_text() == "half whole"


def test_what_an_interrupted_stage_left_is_dropped_when_its_input_changed(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        assert not (folder / "half.txt").exists()
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    for version in (1, 2):
        with pytest.raises(KeyboardInterrupt), Run(tmp_path / "run", {}) as run:
            _stage(run, build, "adapter", version=version)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {"config": {"sampling": {"steps": 50}}, "seed": 0}) as run:
        _stage(run, _counting([]), "latents")
    with pytest.raises(RunError) as caught:
        Run(tmp_path / "run", {"config": {"sampling": {"steps": 25}}, "seed": 0})
    assert str(caught.value) == (
        f"{tmp_path}/run was made with other settings (config.sampling.steps: 50 -> 25): "
        "choose another --out, or repeat the settings it was made with"
    )


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError) as caught:
        Run(tmp_path, {})
    assert str(caught.value) == (
        f"{tmp_path} is not empty and is not a geodistill run (it holds 'thesis.tex'): choose another --out"
    )
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file, not a folder: choose another --out"):
        Run(tmp_path / "run", {})


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError) as caught:
            Run(tmp_path / "run", {})
    assert str(caught.value) == (
        f"another geodistill process is working in {tmp_path}/run: wait for it or choose another --out"
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            errno.ENOSPC,
            "the disk that holds {} is full: free some space and run the same command again; what was finished is kept",
        ),
        (errno.EROFS, "cannot write to {}: make it writable or choose another --out"),
        (errno.EACCES, "cannot write to {}: make it writable or choose another --out"),
    ],
)
def test_disk_troubles_are_told_and_lose_nothing(tmp_path: Path, code: int, message: str) -> None:
    def build(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise OSError(code, "trouble")

    with Run(tmp_path / "run", {}) as run:
        _stage(run, _counting([]), "latents")
        with pytest.raises(RunError) as caught:
            _stage(run, build, "adapter")
    assert str(caught.value) == message.format(tmp_path / "run")
    assert (tmp_path / "run" / "latents" / "result.txt").exists()
    assert (tmp_path / "run" / ".adapter.partial" / "half.txt").exists()


def test_a_torn_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    write_atomic(path, "old")

    def torn(_: int) -> None:
        raise OSError(errno.EIO, "power cut")

    monkeypatch.setattr("os.fsync", torn)
    with pytest.raises(OSError, match="power cut"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_disk_that_safetensors_finds_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("geodistill.run.save_file", full)
    with Run(tmp_path / "run", {}) as run, pytest.raises(RunError, match="is full: free some space"):
        _stage(run, lambda folder: save_tensors({}, folder / "latents.safetensors"), "latents")


def test_a_refused_run_lets_go_of_its_lock_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError):
        Run(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with Run(tmp_path / "run", {"seed": 0}) as run:
        _stage(run, _counting([]), "latents")
    with pytest.raises(RunError, match="seed: 0 -> 1") as caught:
        Run(tmp_path / "run", {"seed": 1})
    with Run(tmp_path / "run", {"seed": 0}):
        assert caught.tb  # the error is still held, and its frames with it


def test_settings_may_change_until_a_stage_has_begun(tmp_path: Path) -> None:
    for seed in (0, 1):
        with Run(tmp_path / "run", {"seed": seed}) as run:
            # A report of a run that has just begun binds nobody.
            (run.folder / "report.html").write_text("")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"] == {"seed": 1}


def test_another_program_s_run_json(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[1]")
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(RunError) as caught:
        Run(tmp_path, {})
    assert str(caught.value) == f"{tmp_path}/run.json is not the record of a geodistill run: choose another --out"


def test_files_that_safetensors_was_writing_are_cleared(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        torn = folder / "unet" / ".tmpAbC"
        if (folder / "unet").exists():
            assert not torn.exists()
            return
        torn.parent.mkdir()
        torn.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Run(tmp_path, {}) as run:
        _stage(run, build, "base")
    with Run(tmp_path, {}) as run:
        _stage(run, build, "base")


def test_a_lender_makes_and_keeps_the_stages_that_runs_share(tmp_path: Path) -> None:
    calls: list[int] = []
    with Run(tmp_path / "all", {}) as lender:
        for name in ("one", "two"):
            with Run(tmp_path / name, {}, lender=lender) as run:
                assert _stage(run, _counting(calls), "latents") == tmp_path / "all" / "latents"
                assert run.record_of(Stage("latents", 1, lent=True))["facts"] == {"calls": 1}
                _stage(run, _counting(calls), "candidates")
                assert [stage.name for stage in run.used] == ["latents", "candidates"]
    assert len(calls) == 3
    assert not (tmp_path / "one" / "latents").exists()
    assert (tmp_path / "two" / "candidates").is_dir()


def test_parts_are_made_once_and_joined_in_order(tmp_path: Path) -> None:
    made: list[int] = []

    def make(part: slice) -> torch.Tensor:
        if part.start == 4 and len(made) == 2:
            raise KeyboardInterrupt
        made.append(part.start)
        return torch.arange(part.start, part.stop)

    parts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    with pytest.raises(KeyboardInterrupt):
        kept_parts("work", parts, make, tmp_path)
    made.append(-1)
    assert kept_parts("work", parts, make, tmp_path).tolist() == [0, 1, 2, 3, 4]
    assert made == [0, 2, -1, 4]
    (tmp_path / "whole.safetensors").write_text("")
    forget_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.safetensors"]


def test_cost_is_written_down_while_a_stage_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geodistill.run._HEARTBEAT_SECONDS", 0.01)
    record = tmp_path / "run" / "stages" / "base.json"

    def build(folder: Path) -> None:
        while not record.exists():
            time.sleep(0.01)
        assert json.loads(record.read_text())["facts"] is None

    with Run(tmp_path / "run", {}) as run:
        _stage(run, build, "base")
    assert json.loads(record.read_text())["facts"] == {}


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.integers(1, 3), max_size=3),
    st.sampled_from([torch.float16, torch.float32, torch.bfloat16, torch.uint8, torch.int64]),
)
def test_joined_parts_are_what_safetensors_reads(rows: list[int], rest: list[int], kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(rows))
    parts = [torch.randint(0, 100, (count, *rest), generator=generator).to(kind) for count in rows]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{rank}.safetensors" for rank in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            save_tensors({"part": part}, path)
        join_parts(paths, "all", Path(folder) / "joined.safetensors")
        joined = load_file(Path(folder) / "joined.safetensors")
        assert list(joined) == ["all"]
        assert joined["all"].dtype == kind
        assert torch.equal(joined["all"], torch.cat(parts))


def test_joining_holds_one_part_at_a_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{rank}.safetensors" for rank in range(30)]
    for path in paths:
        save_tensors({"part": torch.zeros(1, 1 << 20)}, path)
    tracemalloc.start()
    join_parts(paths, "all", tmp_path / "joined.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * (4 << 20)
    assert (tmp_path / "joined.safetensors").stat().st_size > 30 * (4 << 20)


class TestSecret:
    def test_it_is_drawn_once_and_is_its_owner_s_alone(self, tmp_path: Path) -> None:
        drawn = set()
        for _ in range(2):
            with Run(tmp_path / "run", {}) as run:
                _stage(run, _counting([]), "latents")
                drawn |= {run.secret(), run.secret(), read_secret(run.folder)}
        assert [len(secret) for secret in drawn] == [32]
        assert (tmp_path / "run" / "secret").stat().st_mode & 0o777 == 0o600
        with Run(tmp_path / "other", {}) as run:
            assert run.secret() not in drawn

    def test_a_kill_before_it_is_recorded_keeps_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Run(tmp_path / "run", {}) as run, monkeypatch.context() as patched:
            patched.setattr("geodistill.run.write_atomic", _killed)
            with pytest.raises(KeyboardInterrupt):
                run.secret()
        kept = (tmp_path / "run" / "secret").read_text()
        with Run(tmp_path / "run", {}) as run:
            assert run.secret().hex() == kept

    @pytest.mark.parametrize(
        ("content", "what"),
        [(None, "is gone"), ("xyz", "cannot be read"), ("00" * 32, "is not the secret that this run was begun with")],
    )
    def test_a_run_without_its_secret_says_so(self, tmp_path: Path, content: str | None, what: str) -> None:
        with Run(tmp_path / "run", {}) as run:
            _stage(run, _counting([]), "latents")
            run.secret()
        path = tmp_path / "run" / "secret"
        path.unlink()
        if content is not None:
            path.write_text(content)
        with Run(tmp_path / "run", {}) as run, pytest.raises(RunError) as caught:
            run.secret()
        assert str(caught.value) == (
            f"{path} {what}: the images of this run were drawn from it, and cannot be drawn again. Put it back, or "
            "choose another --out"
        )

    def test_others_who_can_read_it_are_warned_of(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with Run(tmp_path / "run", {}) as run:
            run.secret()
        assert not caplog.messages
        path = tmp_path / "run" / "secret"
        path.chmod(0o644)
        with Run(tmp_path / "run", {}) as run:
            run.secret()
        assert caplog.messages == [
            f"{path} can be read by others, who can tell which scenes the images began as: chmod 600 it"
        ]


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt
