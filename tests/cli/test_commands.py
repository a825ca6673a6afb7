"""The command line: one end-to-end test in processes of its own, the other commands called in this one."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import rasterio
import typer
from click.testing import Result
from PIL import Image
from rasters import archive
from typer.testing import CliRunner

from geodistill.cli import app, options
from geodistill.distilled import set_folder, tell_of_source
from geodistill.scenes import open_scenes, write_scenes


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from geodistill.cli import app; app()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _call(*arguments: object) -> Result:
    """Call a command in this process: starting one takes five seconds."""
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert _call("scenes", folder / "all", "--train", 12, "--test", 3, "--size", 32).exit_code == 0
    return folder / "all"


def test_scenes_distill_evaluate(tmp_path: Path) -> None:
    scenes, run = tmp_path / "scenes", tmp_path / "run"
    assert _run("scenes", scenes, "--train", 12, "--test", 3, "--size", 32).returncode == 0
    made = _run("distill", scenes, "--config", "tiny", "--ipc", 1, "--out", run, "--seed", 3)
    assert made.returncode == 0, made.stderr
    assert "10 images of 10 classes" in made.stdout
    assert "time and memory" in made.stdout
    assert len(list((run / "distilled").glob("*/*.png"))) == 10
    assert Image.open(run / "grid.png").height > 10 * 96
    again = _run("distill", scenes, "--config", "tiny", "--ipc", 1, "--out", run, "--seed", 3)
    assert again.returncode == 0
    assert "candidates:" not in again.stderr  # nothing was drawn anew
    judged = _run("evaluate", run, "--data", scenes, "--protocol", "probe", "--seeds", 2)
    assert judged.returncode == 0, judged.stderr
    for row in ("all real images", "random real, 1 a class", "distilled, 1 a class"):
        assert re.search(rf"{row}.*\d+\.\d ± \d+\.\d", judged.stdout)
    assert (run / "evaluation" / "probe-efficientnet-lite0").is_dir()
    drawn = _run("sample", run, "--prompt", "A satellite image of storage tanks, snow", "--n", 3)
    assert drawn.returncode == 0, drawn.stderr
    (folder,) = (run / "samples").iterdir()
    assert folder.name.startswith("a-satellite-image-of-storage-tanks-snow-")
    assert f"3 images: {folder}" in drawn.stdout
    assert len(list((folder / "StorageTanks").glob("*.png"))) == 3


def test_plan_spends_nothing(scenes: Path, tmp_path: Path) -> None:
    found = _call("plan", scenes, "--ipc", 2, "--set", "sampling.candidates=3", "--out", tmp_path / "run")
    assert found.exit_code == 0, found.stderr
    assert "downloads nothing" in found.stdout
    assert re.search(r"candidates\W+60 images\W+\d\.\de\+\d\d", found.stdout)
    assert not (tmp_path / "run").exists()


def test_plan_takes_the_options_of_protection(scenes: Path) -> None:
    screened = _call("plan", scenes, "--ipc", 2, "--privacy", "screen")
    assert re.search(r"screening\W+400 images drawn again", screened.stdout), screened.output
    without = _call("plan", scenes, "--ipc", 2, "--privacy", "dp", "--epsilon", 8)
    assert without.stderr.strip() == "error: privacy 'dp' needs both: such as --epsilon 8 --delta 1e-5"


def test_plan_says_why_there_will_be_no_self_test(tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", train_per_class=2, test_per_class=1)
    found = _call("plan", tmp_path / "few", "--ipc", 2)
    assert "no self-test: class 'Beach' has 2 training images, IPC 2 leaves none to spare" in found.stdout


def test_bases_lists_what_the_names_stand_for() -> None:
    found = _call("bases")
    assert found.exit_code == 0, found.stderr
    assert re.search(r"compact\W+64, 128 px\W+UC Merced", found.stdout)
    assert "scratch" in found.stdout


def test_a_base_that_is_not_there_stops_before_images_are_read(tmp_path: Path) -> None:
    for command in (["distill", "--out", tmp_path / "run"], ["plan"]):
        told = _call(command[0], tmp_path / "no-images-here", *command[1:], "--base", "compat")
        assert told.exit_code == 2
        assert "error: no such base 'compat': did you mean 'compact'?" in told.stderr
        assert not (tmp_path / "run").exists()


def test_a_describer_that_is_not_there_stops_before_the_first_stage(scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = _call("distill", scenes, "--describe", "openai:localhost", "--config", "tiny", "--out", run)
    assert told.exit_code == 2
    assert told.stderr.splitlines()[-1] == (
        "error: the describer's address 'localhost' is none: write openai:http://localhost:8000/v1"
    )
    assert not run.exists()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("distill", "DATA/<split>/<class>/<image>"),
        ("evaluate", "<class>/<image>"),
        ("scenes", "OUT/train/<class>"),
    ],
)
def test_help_shows_what_folders_look_like(command: str, told: str) -> None:
    assert told in _call(command, "--help").stdout


@pytest.mark.slow
def test_a_run_keeps_how_its_files_are_read(tmp_path: Path) -> None:
    def reflectance(label: int, random: Any) -> Any:
        return random.integers(0, 1000 + 2000 * label, (13, 32, 32)).astype("uint16")

    for split, each in (("train", 12), ("test", 3)):
        archive(tmp_path / "data" / split, reflectance, each=each, seed=each)
    asked = ["--bands", "8,4,3", "--scale", "0,3000"]
    seen = _call("inspect", tmp_path / "data", *asked, "--out", tmp_path / "sheet.png")
    assert seen.exit_code == 0, seen.stderr
    assert "30 files: 13 bands of uint16, tif" in seen.stdout
    wanted = "RGB from bands 8, 4, 3; black to white: 0 to 3000, 0 to 3000, 0 to 3000 (as given by --scale)"
    assert f"distill reads them as: {wanted}" in seen.stdout
    assert f"next: geodistill distill {tmp_path / 'data'} --bands 8,4,3 --scale 0,3000 --out RUN" in seen.stdout
    assert Image.open(tmp_path / "sheet.png").height > 2 * 32
    chosen = ["--method", "kmeans", "--config", "tiny", "--out", tmp_path / "run"]
    made = _call("distill", tmp_path / "data", *asked, *chosen)
    assert made.exit_code == 0, made.stderr
    about = json.loads((tmp_path / "run" / "distilled" / "manifest.json").read_text())["about"]
    reading = {"bands": [8, 4, 3], "scale": 3 * [[0.0, 3000.0]], "alpha": False, "measured": False}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["reading"] == reading
    reading["of_bands"] = 13
    assert about["reading"] == reading
    # Without --bands, these would be read as Sentinel-2's bands 4, 3 and 2.
    options = ["--data", tmp_path / "data", "--protocol", "probe", "--seeds", 1, "--no-full"]
    for what in (tmp_path / "run", tmp_path / "run" / "distilled"):
        told = _call("evaluate", what, *options)
        assert told.exit_code == 0, told.stderr
        assert "nearness ρ 0.00" in told.stdout  # the set's images are training images read in the same way
    told = _call("audit", tmp_path / "run", "--data", tmp_path / "data")
    assert told.exit_code == 0, told.stderr
    other = _call("distill", tmp_path / "data", *chosen)
    assert "was made with other settings (reading" in " ".join(other.stderr.split())


@pytest.mark.slow
def test_a_set_is_updated_without_its_archive(scenes: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (scenes / "train").iterdir())
    for part, own in (("first", names[:6]), ("second", names[5:])):
        for name in own:
            shutil.copytree(scenes / "train" / name, tmp_path / part / "train" / name)
    # So small an archive cannot show that its teacher does better than guessing.
    asked = ["--config", "tiny", "--set", "teacher.held_out=0.01", "--set", "self_test.held_out=0"]
    assert _call("distill", tmp_path / "first", "--ipc", 2, *asked, "--out", tmp_path / "old").exit_code == 0
    # The card of the new set has the source of the old one, and that of the new scenes.
    tell_of_source(tmp_path / "old" / "distilled", "old scenes", "CC0")
    adding = ["distill", tmp_path / "old", "--add", tmp_path / "second", *asked]
    made = _call(*adding, "--source-name", "drawn scenes", "--strict", "--profile", "--out", tmp_path / "new")
    assert made.exit_code == 0, made.stderr
    assert "the largest memory, " in made.stdout
    card = (tmp_path / "new/updated/README.md").read_text()
    assert "Made from old scenes. Licence of the source: CC0. Updated with scenes of drawn scenes." in card
    assert 'license_name: "CC0 and a licence that is not stated"' in card
    assert "--source-name and --source-license add them" in made.stdout
    assert "with test scenes of all its classes" in made.stdout
    assert f"new classes: {', '.join(names[6:])}" in made.stdout
    assert f"20 images of 10 classes: {tmp_path / 'new/updated'}" in made.stdout
    # The classes without new scenes keep their images.
    for name in names[:5]:
        before, after = (
            sorted(path.read_bytes() for path in (tmp_path / folder / name).glob("*.png"))
            for folder in ("old/distilled", "new/updated")
        )
        assert before == after
    assert json.loads((tmp_path / "new/updated/manifest.json").read_text())["about"]["batches"] == 2
    # The run stands for the updated set, not for the one that its own stages made.
    judged = _call("evaluate", tmp_path / "new", "--data", scenes, "--protocol", "probe", "--seeds", 1)
    assert judged.exit_code == 0, judged.stderr
    assert "was made from other training scenes" not in judged.stderr
    assert judged.stdout.rstrip().endswith(f"next: geodistill report {tmp_path / 'new'}")
    assert "the images follow training images" in made.stdout
    assert "reproducible: do not share this set" not in made.stdout
    seeded = _call(*adding, "--reproducible", "--out", tmp_path / "seeded")
    assert "reproducible: do not share this set" in seeded.stdout
    assert set_folder(tmp_path / "new") == tmp_path / "new/updated"
    # One new class is the update that is made most; here the set is a folder without a run.
    shutil.copytree(scenes / "train" / names[9], tmp_path / "third" / "train" / names[9])
    assert open_scenes(tmp_path / "third", least=1).train.classes == (names[9],)
    other = _call("distill", tmp_path / "old", "--add", tmp_path / "second", "--size", 64, "--out", tmp_path / "x")
    assert other.exit_code == 2
    assert other.stderr == "error: the set has images of 32 px: use --size 32\n"
    inside, read = tmp_path / "second" / "train" / "run", "which is only read: give a place outside"
    other = _call(*adding, "--out", inside)
    assert other.stderr == f"error: --out {inside} is in {tmp_path / 'second'}, {read}\n"
    other = _call(*adding, "--method", "kmeans", "--out", tmp_path / "x")
    assert other.exit_code == 2
    assert other.stderr == "error: --add draws new images as dpd does: leave --method kmeans out\n"


@pytest.mark.parametrize("command", ["evaluate", "audit", "report"])
def test_a_run_that_is_not_there_is_told_before_the_data_are_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geodistill.scenes.open_scenes", lambda *_, **__: pytest.fail("the data were read"))
    (tmp_path / "data").mkdir()
    told = _call(command, tmp_path / "nope", "--data", tmp_path / "data")
    assert told.exit_code == 2
    assert told.stderr == f"error: {tmp_path / 'nope'}: no such folder\n"


@pytest.mark.slow
def test_all_bands_from_files_to_files(tmp_path: Path) -> None:
    def reflectance(label: int, random: Any) -> Any:
        return (random.integers(0, 1000, (5, 32, 32)) + 2000 * label).astype("uint16")

    names = ("B02", "B03", "B04", "B08", "B12")
    for split, each in (("train", 12), ("test", 3)):
        archive(tmp_path / "data" / split, reflectance, each=each, seed=each, names=names)
    data, run = tmp_path / "data", tmp_path / "run"
    seen = _call("inspect", data, "--bands", "all", "--out", tmp_path / "sheet.png")
    assert "distill reads them as: 5 bands of uint16 (3, 2, 1, 4, 5), the first shown as RGB" in seen.stdout
    options = ["--bands", "all", "--config", "tiny", "--ipc", 2, "--out", run]
    refused = _call("distill", data, *options, "--base", "compact", "--size", 64)
    assert refused.exit_code == 2
    wanted = (
        "the base 'compact' draws images of 3 bands, the scenes have 5: use --base scratch, or --bands with 3 bands"
    )
    assert " ".join(refused.stderr.split()).endswith(wanted)
    made = _call("distill", data, *options, "--base", "scratch", "--out", tmp_path / "own")
    assert made.exit_code == 0, made.stderr
    with rasterio.open(tmp_path / "own/distilled/a/a_000.tif") as file:
        assert (file.count, file.dtypes[0], file.descriptions) == (5, "uint16", names)
        lower = float(file.read().mean())
    with rasterio.open(tmp_path / "own/distilled/b/b_000.tif") as file:
        assert lower < 1500 < float(file.read().mean())  # the level is that of the class, in the units of the files
    assert "NDVI" in (tmp_path / "own/descriptions/descriptions.json").read_text()
    judged = _call("evaluate", tmp_path / "own", "--data", data, "--protocol", "probe", "--seeds", 1)
    assert judged.exit_code == 0, judged.stderr
    assert re.search(r"all real images +│ 100\.0 ±", judged.stdout)
    assert re.search(r"distilled, 2 a class +│ +\d+\.\d ±", judged.stdout)
    audited = _call("audit", tmp_path / "own", "--data", data)
    assert audited.exit_code == 0
    assert f"next: geodistill report {tmp_path / 'own'} --data {data}\n" in audited.stdout
    assert _call("report", tmp_path / "own", "--data", data).exit_code == 0
    drawn = _call("sample", tmp_path / "own", "--prompt", "A satellite image of a", "--n", 1)
    assert drawn.exit_code == 0, drawn.stderr
    assert len(list((tmp_path / "own/samples").glob("*/a/*.tif"))) == 1


@pytest.mark.slow
def test_pretrain_makes_a_base_that_distill_takes(scenes: Path, tmp_path: Path) -> None:
    made = _call(
        "pretrain", scenes, "--config", "tiny", "--out", tmp_path / "base", "--data-note", "drawn by geodistill"
    )
    assert made.exit_code == 0, made.stderr
    base = tmp_path / "base" / "base"
    assert f"base: {base}   its model card: {base / 'README.md'}" in made.stdout
    assert "- Data and licence: drawn by geodistill" in (base / "README.md").read_text()
    settings = ["--config", "tiny", "--ipc", 1, "--base", base, "--out", tmp_path / "run"]
    assert _call("distill", scenes, *settings).exit_code == 0
    assert not (tmp_path / "run" / "base").exists()


@pytest.mark.slow
def test_compare_and_report(scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ["--ipc", 1, 2, "--methods", "random", "dpd", "--protocols", "probe", "--seeds", 2, "--config", "tiny"]
    made = _call("compare", scenes, *asked, "--out", run)
    assert made.exit_code == 0, made.stderr
    for row in (r"full +all", r"random +1 .+0\.00\*", r"dpd +1", r"dpd +2"):
        assert re.search(row, made.stdout), made.stdout
    assert (run / "compare.csv").read_text().count("\n") == 1 + 5
    shown = _call("report", run, "--data", scenes)
    assert shown.exit_code == 0, shown.stderr
    page = (run / "report.html").read_text()
    assert "dpd" in page
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)


def test_settings_are_explained() -> None:
    told = _call("settings", "refinement").stdout
    assert "refinement.lr" in told
    assert "0.03" in told
    assert "sampling" not in told
    wrong = _call("settings", "refinment")
    assert "no setting begins with 'refinment'" in wrong.stderr


def test_version_is_the_package_s() -> None:
    assert _call("--version").stdout.strip() == f"geodistill {version('geodistill')}"


def test_methods_are_listed() -> None:
    told = _call("methods").stdout
    for name, kind in (("kmeans", "real"), ("reconstruction", "derived"), ("dpd", "synthetic")):
        assert re.search(rf"{name} +│ .* │ {kind}", told)


def test_errors_are_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    failed = _call("distill", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert failed.exit_code == 2
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
    failed = _call("distill", tmp_path / "nowhere", "--out", tmp_path / "run", "--ipc", 0)
    assert failed.stderr.strip() == "error: setting 'ipc': input should be greater than or equal to 1, got 0"


@pytest.mark.parametrize("command", ["distill", "evaluate", "compare", "methods", "report", "scenes"])
def test_help_teaches_with_an_example(command: str) -> None:
    told = _call(command, "--help")
    assert told.exit_code == 0
    assert f"Example: geodistill {command}" in told.stdout


@pytest.mark.parametrize("command", ["distill", "compare", "evaluate", "audit", "inspect", "pretrain"])
def test_nothing_is_written_into_the_data(command: str, scenes: Path) -> None:
    out = scenes / "train" / "run"
    given = [scenes, "--data", scenes] if command in ("evaluate", "audit") else [scenes]
    told = _call(command, *given, "--out", out)
    assert told.exit_code == 2
    assert told.stderr.strip() == (f"error: --out {out} is in {scenes}, which is only read: give a place outside")


def test_pretrain_takes_the_base_to_go_on_from_as_an_option_alone(scenes: Path, tmp_path: Path) -> None:
    told = _call("pretrain", scenes, "--config", "tiny", "--set", "base=aid", "--out", tmp_path / "run")
    assert told.exit_code == 2
    assert told.stderr.strip() == "error: the setting base='aid' has no effect here: give --base aid"


def test_compare_makes_as_many_images_as_the_settings_say(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("geodistill.commands.compare.compare", lambda *_, ipcs, **__: asked.append(ipcs))
    monkeypatch.setattr("geodistill.commands.compare.comparison_tables", lambda out: [])
    for given, flags in (([2], ["--config", "tiny"]), ([3], ["--set", "ipc=3"]), ([10], []), ([1], ["--ipc", 1])):
        assert _call("compare", scenes, *flags, "--out", tmp_path / "run").exit_code == 0
        assert asked.pop() == given


def test_a_finished_run_says_so(scenes: Path, tmp_path: Path) -> None:
    asked = ["--method", "kmeans", "--config", "tiny", "--ipc", 1, "--out", tmp_path / "[red]run[/red]"]
    first, again = (_call("distill", scenes, *asked) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert "nothing to do" not in first.stdout
    assert re.search(
        r"nothing to do: .*\[red\]run\[/red\] was finished on 20\d\d-\d\d-\d\d at \d\d:\d\d\n", again.stdout
    )
    # What rich would take for markup is a part of the path.
    assert f"10 images of 10 classes: {tmp_path / '[red]run[/red]' / 'distilled'}\n" in first.stdout


def test_the_next_command_splits_alike(scenes: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(scenes / "train", flat)
    asked = ["--method", "random", "--config", "tiny", "--ipc", 1, "--out", tmp_path / "run"]
    made = _call("distill", flat, "--split", "hash", *asked)
    assert f"next: geodistill evaluate {tmp_path / 'run'} --data {flat} --split hash\n" in made.stdout
    told = ["--data", flat, "--protocol", "probe", "--seeds", 1, "--no-full"]
    judged = _call("evaluate", tmp_path / "run", *told, "--split", "hash")
    assert f"next: geodistill report {tmp_path / 'run'} --data {flat} --split hash\n" in judged.stdout


def test_without_test_images_no_test_is_advised(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "train", tmp_path / "data" / "train")
    asked = ["--method", "random", "--config", "tiny", "--ipc", 1, "--out", tmp_path / "run"]
    made = _call("distill", tmp_path / "data", *asked)
    assert made.exit_code == 0, made.stderr
    assert "DATA has no test images, which `geodistill evaluate` needs" in made.stdout
    assert "next:" not in made.stdout


def test_options_without_effect_are_refused(scenes: Path, tmp_path: Path) -> None:
    asked = ["--method", "random", "--config", "tiny", "--ipc", 1, "--out", tmp_path / "run"]
    told = _call("distill", scenes, "--soft-labels", *asked)
    assert told.exit_code == 2
    assert told.stderr == "error: method 'random' stores no soft labels, only 'dpd' does: leave --soft-labels out\n"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--set", "sampling.candidates=20000"], "sampling.candidates is 20000: at most 10000"),
        (["--privacy", "screen", "--ipc", 1], "class 'Beach' has 2 images, screening needs at least 3: add images or"),
    ],
)
def test_plan_refuses_what_distill_refuses(asked: list[object], told: str, tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", train_per_class=2, test_per_class=1)
    for command in (["plan"], ["distill", "--out", tmp_path / "run"]):
        found = _call(command[0], tmp_path / "few", *command[1:], *asked, *([] if "--ipc" in asked else ["--ipc", 1]))
        assert found.exit_code == 2
        assert found.stderr.startswith(f"error: {told}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["distill", "DATA"], "goes on from here"),
        (["audit", "RUN", "--shadows", "2"], "goes on from here"),
        (["audit", "RUN"], "begins anew"),
        (["train", "SET"], "begins anew"),
    ],
)
def test_ctrl_c_says_what_the_same_command_does(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["geodistill", *arguments])
    with pytest.raises(typer.Exit), options.told():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == f"stopped; the same command {told}\n"


def test_a_run_under_a_file_is_refused(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    told = _call("distill", scenes, "--method", "random", "--ipc", 1, "--size", 32, "--out", tmp_path / "file" / "sub")
    assert told.exit_code == 2
    wanted = f"error: {tmp_path / 'file' / 'sub'} cannot be a folder, a file is in its place: choose another --out"
    assert told.stderr.strip() == wanted


@pytest.mark.usefixtures("little_audit")
@pytest.mark.slow
def test_an_audit_answers_what_can_be_answered(scenes: Path, tmp_path: Path) -> None:
    asked = ["--method", "kmeans", "--config", "tiny", "--ipc", 1, "--out", tmp_path / "run"]
    assert _call("distill", scenes, *asked).exit_code == 0
    options = ["--data", scenes, "--out", tmp_path / "audit", "--fail-on"]
    both = _call("audit", tmp_path / "run", *options, "copy", "membership")
    assert both.exit_code == 3, both.stderr  # its images are training images
    alone = _call("audit", tmp_path / "run", *options, "membership")
    assert alone.exit_code == 2
    assert "error: --fail-on membership cannot be answered: " in alone.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes by /proc")
@pytest.mark.slow
def test_sigterm_stops_the_workers_too(scenes: Path, tmp_path: Path) -> None:
    code = (
        "import joblib; joblib.cpu_count = lambda: 2\n"
        "import sys; from geodistill.cli import app\n"
        f"sys.argv = ['geodistill', 'evaluate', {str(scenes / 'train')!r}, '--data', {str(scenes)!r}, '--no-full']\n"
        "app()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        while not re.search(r"training 6 classifiers: [1-9]", command.stderr.readline()):
            assert command.poll() is None
        tasks = Path(f"/proc/{command.pid}/task").glob("*/children")
        workers = [pid for path in tasks for pid in path.read_text().split()]
        assert workers
        command.terminate()
        assert command.wait(timeout=60) == 130
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_half_a_guarantee_is_refused(scenes: Path, tmp_path: Path) -> None:
    told = _call("distill", scenes, "--privacy", "dp", "--epsilon", 8, "--out", tmp_path / "run")
    assert told.exit_code == 2
    assert told.stderr.strip() == "error: privacy 'dp' needs both: such as --epsilon 8 --delta 1e-5"
    other = _call("distill", scenes, "--epsilon", 8, "--delta", 1e-5, "--out", tmp_path / "run")
    assert other.stderr.strip() == "error: epsilon and delta belong to privacy 'dp': add --privacy dp"


def test_the_built_in_scenes_do_not_wait_for_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from geodistill.cli import app\n"
        f"done = CliRunner().invoke(app, ['scenes', {str(tmp_path / 'scenes')!r}, '--train', '1', '--test', '1'])\n"
        "print(done.exit_code, sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n"


@pytest.mark.parametrize("command", ["distill", "plan", "pretrain", "evaluate", "compare", "sample", "audit"])
def test_every_command_that_runs_models_takes_a_device(command: str, tmp_path: Path) -> None:
    needed = {"evaluate": ["--data", tmp_path], "audit": ["--data", tmp_path], "sample": ["--prompt", "a beach"]}
    told = _call(command, tmp_path, *needed.get(command, ["--out", tmp_path / "out"]), "--device", "tpu")
    assert told.exit_code == 2
    assert told.stderr.strip() == "error: unknown device 'tpu': use cpu, cuda, cuda:N or mps"
