"""A few kills and a full disk; `benchmarks/faults.py` does a hundred."""

import random
from pathlib import Path

import pytest
from spoiling import COMMANDS, Bench, Command, digests, told


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("faults"))
    made.prepare(run=False)
    return made


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_ends_with_the_same_bytes(bench: Bench, kills: int) -> None:
    found = bench.spoil_by_kills(COMMANDS["distill"], kills, random.Random(0))
    assert (found.faults, found.sound) == (kills, True), told(found)


@pytest.mark.slow
def test_a_run_that_meets_a_full_disk_ends_with_the_same_bytes(bench: Bench) -> None:
    try:
        found = bench.spoil_by_full_disk(COMMANDS["distill"], 1, random.Random(0))
    except OSError as error:
        pytest.skip(f"no right to mount a small disk ({error})")
    assert (found.faults, found.sound) == (1, True), told(found)


@pytest.mark.slow
def test_the_harness_sees_what_is_not_made_again(bench: Bench, tmp_path: Path) -> None:
    def scenes(folder: Path, run: Path, out: Path) -> list[str]:
        return ["scenes", str(out), "--train", "2", "--test", "1", "--size", "32"]

    command = Command("scenes", scenes)
    wanted, _ = bench.wanted(command)
    assert len(wanted) == 30
    (bench.folder / "killed").mkdir(exist_ok=True)
    (bench.folder / "killed" / "rest.partial").write_bytes(b"x")
    found = bench.spoil_by_kills(command, 0, random.Random(0))
    assert found.sound
    bench._end(command, bench.folder / "killed", {"train/Beach/gone.png": "0" * 64, **wanted}, found)
    assert any("train/Beach/gone.png: missing" in one for one in found.different)
    assert any("rest.partial: left over" in one for one in found.different)


def test_times_do_not_count(tmp_path: Path) -> None:
    for name, text in (("stages/base.json", "1"), ("base/x.json", "1"), ("run.json", "1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = digests(tmp_path)
    (tmp_path / "stages/base.json").write_text("2")
    assert digests(tmp_path) == before
    (tmp_path / "base/x.json").write_text("2")
    assert digests(tmp_path) != before
