"""Two processes against one, by the launcher that users have, and what each does alone."""

import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file

from geodistill.cli.options import told
from geodistill.commands.audit import audit
from geodistill.commands.distill import distill
from geodistill.config import load_config
from geodistill.distilled import DistilledSet
from geodistill.prior.finetune import WEIGHTS
from geodistill.processes import Processes, alone, processes
from geodistill.scenes import open_scenes, write_scenes
from geodistill.stages.chosen import Chosen

# As long as it takes for rounding to show, no longer.
QUICK = ("--config", "tiny", "--ipc", "2", "--set", "finetune.steps=6", "--set", "finetune.weights=lora")
# Two runs would draw other images.
SAME = "--reproducible"


def _launched(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Not `accelerate launch --cpu`, which starts one process whatever number it is given.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    launcher += ["-m", "geodistill"]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=240
    )


def _distill(scenes: Path, out: Path, count: int, *more: str) -> subprocess.CompletedProcess[str]:
    return _launched(count, "distill", str(scenes), "--out", str(out), *QUICK, *more)


def _alone(scenes: Path, out: Path, *, reproducible: bool = True) -> None:
    """Do the same in this process."""
    preset = Path(str(files("geodistill.presets") / "tiny.toml"))
    sets = ["finetune.steps=6", "finetune.weights=lora"]
    distill(open_scenes(scenes).train, load_config(preset, sets, ipc=2, reproducible=reproducible), out=out)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "scenes"
    write_scenes(folder, train_per_class=12, test_per_class=3, size=32)
    return folder


@pytest.fixture(scope="module")
def shared(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "run"
    made = _distill(scenes, out, 2, SAME)
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("20 images of 10 classes") == 1
    return out


@pytest.mark.slow
def test_the_launcher_starts_as_many_processes_as_asked() -> None:
    # A launcher that starts one, as `accelerate launch --cpu` does, would make every test here pass.
    assert _launched(3, "--version").stdout.count("geodistill ") == 3


@pytest.mark.slow
def test_two_processes_make_the_images_that_one_makes(scenes: Path, shared: Path, tmp_path: Path) -> None:
    _alone(scenes, tmp_path / "run")
    one, two = (DistilledSet.load(out / "distilled") for out in (tmp_path / "run", shared))
    assert torch.equal(one.labels, two.labels)
    drawn = [load_file(out / "candidates" / "candidates.safetensors")["latents"] for out in (tmp_path / "run", shared)]
    # Sums over other batches round differently; another image would be off by more than 1.
    assert float((drawn[0] - drawn[1]).abs().mean()) < 0.02
    teachers = [load_file(out / "teacher" / "teacher.safetensors") for out in (tmp_path / "run", shared)]
    for name, own in teachers[0].items():
        assert float((own - teachers[1][name]).abs().mean()) < 1e-3 + 0.02 * float(own.abs().mean()), name
    facts = [json.loads((out / "stages" / "refined.json").read_text())["facts"] for out in (tmp_path / "run", shared)]
    rows = [Chosen.load(out / "chosen").rows for out in (tmp_path / "run", shared)]
    same = rows[0] == rows[1]
    # Two candidates may be equally good but for rounding: on a Xeon with matrix units two of twenty images are others.
    assert int(same.sum()) >= 18
    assert facts[0]["curve"] == pytest.approx(facts[1]["curve"], rel=0.02 if same.all() else 0.05)
    assert float((one.images[same].float() - two.images[same].float()).abs().mean()) < 3
    for name in ("latents", "features"):
        encoded = [load_file(out / name / f"{name}.safetensors")[name] for out in (tmp_path / "run", shared)]
        assert torch.equal(*encoded)
    # Each process sees half of a batch: without the other's gradients both the losses and the adapter would differ.
    losses = [json.loads((out / "adapter" / "losses.json").read_text()) for out in (tmp_path / "run", shared)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    adapters = [load_file(out / "adapter" / WEIGHTS) for out in (tmp_path / "run", shared)]
    for name, own in adapters[0].items():
        if "lora_B" in name and own.norm() > 0:  # these begin at 0: what is there has been learned
            assert torch.nn.functional.cosine_similarity(own.flatten(), adapters[1][name].flatten(), dim=0) > 0.9
    assert not list(shared.glob(".*.partial"))


@pytest.mark.slow
def test_two_processes_draw_from_one_secret(scenes: Path, shared: Path, tmp_path: Path) -> None:
    for name in ("two", "one"):
        shutil.copytree(shared, tmp_path / name)
    made = _distill(scenes, tmp_path / "two", 2)
    assert made.returncode == 0, made.stderr
    # The other run goes on with the same secret, alone.
    shutil.copy(tmp_path / "two" / "secret", tmp_path / "one")
    _alone(scenes, tmp_path / "one", reproducible=False)
    one, two = (
        load_file(tmp_path / name / "candidates" / "candidates.safetensors")["latents"] for name in ("one", "two")
    )
    assert float((one - two).abs().mean()) < 0.02
    public = load_file(shared / "candidates" / "candidates.safetensors")["latents"]
    assert float((two - public).abs().mean()) > 0.3


@pytest.mark.slow
def test_what_one_process_does_alone_waits_for_no_other(scenes: Path, tmp_path: Path) -> None:
    # The choice is made by the main process, and it searches for copies, which the audit shares.
    made = _distill(scenes, tmp_path / "run", 2, SAME, "--set", "privacy=screen")
    assert made.returncode == 0, made.stderr


@pytest.mark.slow
def test_processes_share_an_audit(scenes: Path, shared: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(shared, alone)
    audit(alone, open_scenes(scenes), out=tmp_path / "audit1")
    for count in (2, 4):
        run, out = tmp_path / f"run{count}", tmp_path / f"audit{count}"
        shutil.copytree(shared, run)
        made = _launched(count, "audit", str(run), "--data", str(scenes), "--out", str(out))
        # The run is reproducible, and so its audit ends with an error.
        assert made.stdout.count("images are copies of training images") == 1, made.stderr
        assert (out / "audit.html").is_file()
        assert "Audited by" in (run / "distilled" / "README.md").read_text()
    found = [json.loads((tmp_path / f"audit{count}" / "audit.json").read_text()) for count in (1, 2, 4)]
    for other in found[1:]:
        assert other["verdict"] == found[0]["verdict"]
        for name in ("images", "readings", "attacks", "null", "attribution", "replay"):
            assert _close(other[name], found[0][name]), name


def _close(a: object, b: object) -> bool:
    """Return whether two values of a JSON file are the same apart from rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    return a == b or (isinstance(a, float) and a == pytest.approx(b, abs=2e-3))


@pytest.mark.slow
def test_fewer_processes_go_on_where_more_stopped(scenes: Path, shared: Path) -> None:
    before = (shared / "candidates" / "candidates.safetensors").read_bytes()
    (shared / "distilled" / "manifest.json").unlink()
    _alone(scenes, shared)
    assert (shared / "candidates" / "candidates.safetensors").read_bytes() == before
    assert (shared / "distilled" / "manifest.json").exists()


def test_other_commands_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["geodistill", "compare"])
    with pytest.raises(typer.Exit), told():
        pass
    assert capsys.readouterr().err == (
        "error: only distill and audit run in several processes: start this without torchrun or accelerate\n"
    )


def test_alone() -> None:
    group = Processes()
    group.wait()
    one = torch.ones(2)
    group.add([one])
    assert one.tolist() == [1, 1]
    assert (group.main, group.any(True), group.any(False)) == (True, True, False)
    assert (group.gathered(3), group.shared((1, 2), str)) == ([3], ["1", "2"])
    assert list(Processes(1, 3).own(range(8))) == [1, 4, 7]
    assert (processes().rank, processes().count) == (0, 1)
    assert not Processes(1, 2).main
    with alone():
        assert processes().count == 1
