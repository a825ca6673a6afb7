import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from making import counting, make_stage
from safetensors import SafetensorError

from geodistill.errors import RunError
from geodistill.provenance import Stage
from geodistill.run import (
    Run,
    records,
    save_tensors,
    write_atomic,
)


def test_a_whole_stage_is_not_built_again(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        with Run(tmp_path / "run", {"a": 1}) as run:
            folder = make_stage(run, counting(calls), "latents", given=["x"])
    assert len(calls) == 1
    assert (folder / "result.txt").read_text() == "whole"
    record = records(tmp_path / "run")[0]
    assert record["stage"] == "latents"
    assert record["facts"] == {"calls": 1}
    assert record["peak_memory_mib"] > 0


def test_the_log_says_which_stages_are_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="geodistill")
    for _ in range(2):
        with Run(tmp_path / "run", {}) as run:
            make_stage(run, counting([]), "latents")
    told = f"stage latents of {tmp_path / 'run'} is"
    assert caplog.messages == [f"{told} made", f"{told} used again"]


def _cut(run: Path) -> str:
    (run / "stages" / "latents.json").write_text('{"stage": "lat')
    return "stages/latents.json"


def _removed_record(run: Path) -> str:
    (run / "stages" / "latents.json").unlink()
    return "stages/latents.json"


def _removed(run: Path) -> str:
    (run / "latents" / "result.txt").unlink()
    return "result.txt"


def _flipped(run: Path) -> str:
    (run / "latents" / "result.txt").write_text("whale")
    return "result.txt"


def _longer(run: Path) -> str:
    (run / "latents" / "result.txt").write_text("whole!")
    return "result.txt"


@pytest.mark.parametrize("damage", [_cut, _removed_record, _removed, _flipped, _longer])
def test_a_damaged_stage_is_named_and_made_again(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    with Run(tmp_path / "run", {}) as run:
        make_stage(run, counting(calls), "latents")
    what = damage(tmp_path / "run")
    for _ in range(2):
        with Run(tmp_path / "run", {}) as run:
            folder = make_stage(run, counting(calls), "latents")
            assert run.record_of(Stage("latents", 1))["facts"] == {"calls": 2}
    assert len(calls) == 2
    assert (folder / "result.txt").read_text() == "whole"
    assert caplog.messages == [f"stage latents of {tmp_path / 'run'} is damaged ({what}): it is made again"]


def test_a_record_without_checksums_and_a_new_card_are_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def build(folder: Path) -> None:
        for name in ("README.md", "image.png"):
            (folder / name).write_text("first")

    with Run(tmp_path / "run", {}) as run:
        folder = make_stage(run, build, "distilled")
    (folder / "README.md").write_text("audited")
    (folder / "more.txt").write_text("added by hand")
    with Run(tmp_path / "run", {}) as run:
        assert (make_stage(run, build, "distilled") / "README.md").read_text() == "audited"
    path = tmp_path / "run" / "stages" / "distilled.json"
    record = json.loads(path.read_text())
    assert record.pop("files").keys() == {"image.png"}
    path.write_text(json.dumps(record))
    with Run(tmp_path / "run", {}) as run:
        make_stage(run, build, "distilled")
    assert not caplog.messages


def test_a_finished_stage_does_not_tell_what_it_was_made_from(tmp_path: Path) -> None:
    """Its fingerprint is in the run's record alone: the folder of a set is shared."""
    calls: list[int] = []
    with Run(tmp_path / "run", {}) as run:
        folder = make_stage(run, counting(calls), "distilled", given=["all scenes"])
    assert [path.name for path in folder.iterdir()] == ["result.txt"]
    record = json.loads((tmp_path / "run" / "stages" / "distilled.json").read_text())
    # Earlier releases left it in the folder. It is removed, and the stage is not made again.
    (folder / ".fingerprint").write_text(record["fingerprint"])
    with Run(tmp_path / "run", {}) as run:
        make_stage(run, counting(calls), "distilled", given=["all scenes"])
    assert [path.name for path in folder.iterdir()] == ["result.txt"]
    assert len(calls) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_the_files_of_a_run_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        save_tensors({"a": torch.zeros(1)}, folder / "weights.safetensors")
        (folder / "weights.safetensors").chmod(0o600)

    with Run(tmp_path / "run", {}) as run:
        folder = make_stage(run, build, "latents")
    (tmp_path / "new").touch()
    assert (folder / "weights.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    # So have weights that lie in no stage, such as a classifier's.
    save_tensors({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("change", [{"version": 2}, {"given": ["y"]}])
def test_another_version_or_input_builds_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    calls: list[int] = []
    with Run(tmp_path / "run", {}) as run:
        make_stage(run, counting(calls), "latents", given=["x"])
        make_stage(run, counting(calls), "latents", **{"given": ["x"], **change})
    assert len(calls) == 2


def test_an_interrupted_stage_goes_on_in_its_folder(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        done = folder / "half.txt"
        if not done.exists():
            done.write_text("half")
            raise KeyboardInterrupt
        (folder / "result.txt").write_text(done.read_text() + " whole")

    with pytest.raises(KeyboardInterrupt), Run(tmp_path / "run", {}) as run:
        make_stage(run, build, "adapter")
    assert not (tmp_path / "run" / "adapter").exists()
    with Run(tmp_path / "run", {}) as run:
        folder = make_stage(run, build, "adapter")
    assert (folder / "result.txt").read_text() == "half whole"


def test_what_an_interrupted_stage_left_is_dropped_when_its_input_changed(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        assert not (folder / "half.txt").exists()
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    for version in (1, 2):
        with pytest.raises(KeyboardInterrupt), Run(tmp_path / "run", {}) as run:
            make_stage(run, build, "adapter", version=version)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {"config": {"sampling": {"steps": 50}}, "seed": 0}) as run:
        make_stage(run, counting([]), "latents")
    with pytest.raises(RunError) as caught:
        Run(tmp_path / "run", {"config": {"sampling": {"steps": 25}}, "seed": 0})
    assert str(caught.value) == (
        f"{tmp_path}/run was made with other settings (config.sampling.steps: 50 -> 25): "
        "choose another --out, or repeat the settings it was made with"
    )


@pytest.mark.parametrize(("before", "now"), [("a" * 64, "b" * 64), ([["a" * 64, 1, True]], [["b" * 64, 1, True]])])
def test_other_scenes_are_named_without_their_fingerprints(tmp_path: Path, before: object, now: object) -> None:
    with Run(tmp_path / "run", {"scenes": before}) as run:
        make_stage(run, counting([]), "latents")
    with pytest.raises(RunError) as caught:
        Run(tmp_path / "run", {"scenes": now})
    assert str(caught.value) == (
        f"{tmp_path}/run was made with other settings (other scenes): "
        "choose another --out, or repeat the settings it was made with"
    )


OLD = {"sampling": {"steps": 30, "gone": 3}, "ipc": 10, "old": {"x": 1}}


@pytest.mark.parametrize(
    ("now", "differs"),
    [
        ({"sampling": {"steps": 30, "solver": "dpmsolver++"}, "ipc": 10}, ""),
        ({"sampling": {"steps": 30, "solver": "ddim"}, "ipc": 10}, "config.sampling.solver: None -> ddim"),
        ({"sampling": {"steps": 25}, "ipc": 10}, "config.sampling.steps: 30 -> 25"),
        # A record without a self-test is of a run without one.
        ({"sampling": {"steps": 30}, "ipc": 10, "self_test": {"held_out": 0}}, ""),
        (
            {"sampling": {"steps": 30}, "ipc": 10, "self_test": {"held_out": 0.1}},
            "config.self_test.held_out: None -> 0.1",
        ),
        # What is the default under this protection was not asked for without it.
        ({"sampling": {"steps": 30}, "ipc": 10, "privacy": "screen"}, "config.privacy: None -> screen"),
        ({"sampling": {"steps": 30}, "ipc": 10, "refinement": {"steps": 480}}, "config.refinement.steps: None -> 480"),
    ],
)
def test_a_run_of_an_earlier_release_has_today_s_defaults(tmp_path: Path, now: dict[str, Any], differs: str) -> None:
    with Run(tmp_path / "run", {"config": OLD, "scenes": "abc"}) as run:
        make_stage(run, counting([]), "latents")
    if not differs:
        Run(tmp_path / "run", {"config": now, "scenes": "abc"}).__exit__()
        return
    with pytest.raises(RunError, match="was made with other settings") as caught:
        Run(tmp_path / "run", {"config": now, "scenes": "abc"})
    assert differs in str(caught.value)


def test_a_self_test_that_is_left_out_is_a_difference(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {"config": {"ipc": 10, "self_test": {"held_out": 0.1}}}) as run:
        make_stage(run, counting([]), "latents")
    with pytest.raises(RunError, match=r"config.self_test: \{'held_out': 0.1\} -> None"):
        Run(tmp_path / "run", {"config": {"ipc": 10}})


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
    code = (
        "import pathlib, sys; from geodistill.run import Run; run = Run(pathlib.Path(sys.argv[1]), {}); "
        "print('open', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(RunError) as caught:
        Run(tmp_path / "run", {})
    other.kill()
    other.wait()
    # A process that was killed holds no lock.
    Run(tmp_path / "run", {}).__exit__()
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
        make_stage(run, counting([]), "latents")
        with pytest.raises(RunError) as caught:
            make_stage(run, build, "adapter")
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

    monkeypatch.setattr("geodistill.run.files.save_file", full)
    with Run(tmp_path / "run", {}) as run, pytest.raises(RunError, match="is full: free some space"):
        make_stage(run, lambda folder: save_tensors({}, folder / "latents.safetensors"), "latents")


def test_a_refused_run_lets_go_of_its_lock_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError):
        Run(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with Run(tmp_path / "run", {"seed": 0}) as run:
        make_stage(run, counting([]), "latents")
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


@pytest.mark.parametrize("left", ["", '{"format": 1, "sett', "[]"])
def test_a_damaged_record_of_a_run_can_be_deleted(left: str, tmp_path: Path) -> None:
    calls: list[int] = []
    with Run(tmp_path / "run", {"a": 1}) as run:
        make_stage(run, counting(calls), "latents")
        secret = run.secret()
    record = tmp_path / "run" / "run.json"
    before = json.loads(record.read_text())
    record.write_text(left)
    with pytest.raises(RunError) as caught:
        Run(tmp_path / "run", {"a": 1})
    assert str(caught.value) == (
        f"{record} is damaged: put a copy back, or delete it. The same command then uses the stages that were made "
        "with its settings again, and makes the others"
    )
    record.unlink()
    with Run(tmp_path / "run", {"a": 1}) as run:
        make_stage(run, counting(calls), "latents")
        assert run.secret() == secret
    assert len(calls) == 1
    assert json.loads(record.read_text()) == before


def test_a_stage_that_was_killed_before_it_got_its_name_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []

    def build(folder: Path) -> None:
        parts.append(len(list(folder.glob("part"))))
        (folder / "part").write_text("whole")

    def killed(folder: Path, recursive: bool = True) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, Run(tmp_path / "run", {}) as run:
        patched.setattr("geodistill.run.folder.flush_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            make_stage(run, build, "latents")
    with Run(tmp_path / "run", {}) as run:
        folder = make_stage(run, build, "latents")
    assert parts == [0, 1]  # the second time goes on from what the first one made
    assert [path.name for path in folder.iterdir()] == ["part"]


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
        make_stage(run, build, "base")
    with Run(tmp_path, {}) as run:
        make_stage(run, build, "base")


def test_a_lender_makes_and_keeps_the_stages_that_runs_share(tmp_path: Path) -> None:
    calls: list[int] = []
    with Run(tmp_path / "all", {}) as lender:
        for name in ("one", "two"):
            with Run(tmp_path / name, {}, lender=lender) as run:
                assert make_stage(run, counting(calls), "latents") == tmp_path / "all" / "latents"
                assert run.record_of(Stage("latents", 1, lent=True))["facts"] == {"calls": 1}
                make_stage(run, counting(calls), "candidates")
                assert [stage.name for stage in run.used] == ["latents", "candidates"]
    assert len(calls) == 3
    assert not (tmp_path / "one" / "latents").exists()
    assert (tmp_path / "two" / "candidates").is_dir()
