import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from geodistill.commands.compare import compare, comparison_tables
from geodistill.config import Config, make_config
from geodistill.errors import ConfigError, GeodistillError, PriorError, RunError, SceneError
from geodistill.evaluation.rows import Row
from geodistill.evaluation.table import Ledger, load_predictions, load_table
from geodistill.prior.catalogue import BaseFacts, facts_text
from geodistill.privacy.overlap import footprint
from geodistill.provenance import Stage
from geodistill.run import Run
from geodistill.scenes import SceneData, Scenes

METHODS = ("random", "kmeans", "reconstruction", "dpd")


def run(data: SceneData, tiny: Config, out: Path, **options: object) -> tuple[Row, ...]:
    chosen = {"methods": METHODS, "ipcs": [1], "protocols": ["probe"], "seeds": 2, **options}
    return compare(data, tiny, out=out, **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(data: SceneData, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "run"
    run(data, tiny, out)
    return out


def test_table_has_a_row_for_each_method_and_one_for_all_real_images(done: Path) -> None:
    rows = {row.method: row for row in load_table(done).rows}
    assert list(rows) == ["full", *METHODS]
    full, random = rows["full"], rows["random"]
    for row in rows.values():
        assert row.share_of_full == pytest.approx(row.oa_mean / full.oa_mean)
        assert row.hlr == pytest.approx(full.oa_mean - row.oa_mean)
        assert torch.tensor(row.confusion).sum() == 2 * 30  # 2 seeds, 30 test images
        assert torch.tensor(row.confusion).diag().sum() / 60 == pytest.approx(row.oa_mean)
    assert full.ior is None
    assert rows["dpd"].ior == pytest.approx(rows["dpd"].oa_mean - random.oa_mean)
    assert [rows[name].copying for name in METHODS[:2]] == [True, True]
    assert random.seeds == (0, 1)


def test_figures_follow_from_stored_predictions(done: Path) -> None:
    for row in load_table(done).rows:
        predicted, labels = load_predictions(done, row)
        right = (predicted == labels).double().mean(dim=1)
        assert right.tolist() == pytest.approx(row.oa)


def test_random_real_images_are_drawn_anew_for_each_seed_and_generated_ones_made_once(done: Path) -> None:
    sets = {path.name for path in (done / "sets").iterdir()}
    assert {"random-ipc1", "random-ipc1-seed1", "dpd-ipc1"} <= sets
    assert "dpd-ipc1-seed1" not in sets


def test_the_stages_that_methods_share_are_made_once(done: Path) -> None:
    assert (done / "latents").is_dir()
    assert not (done / "sets" / "dpd-ipc1" / "latents").exists()


def test_a_run_that_moved_goes_on(done: Path, data: SceneData, tiny: Config, tmp_path: Path) -> None:
    moved = shutil.copytree(done, tmp_path / "elsewhere")
    finished = {path: path.read_bytes() for path in sorted(moved.rglob("stages/*.json"))}
    assert finished
    rows = run(data, tiny, moved, ipcs=[1, 2])
    assert {row.ipc for row in rows} == {0, 1, 2}
    assert all(path.read_bytes() == record for path, record in finished.items())
    assert str(tmp_path) not in (moved / "sets" / "dpd-ipc2" / "config.toml").read_text()


def test_csv_has_the_same_figures(done: Path) -> None:
    with (done / "compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["full", *METHODS]
    for line, row in zip(lines, load_table(done).rows, strict=True):
        assert float(line["oa_mean"]) == pytest.approx(row.oa_mean, rel=1e-4)


def test_another_ipc_adds_rows_and_trains_nothing_anew(
    data: SceneData, tiny: Config, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geodistill.evaluation import bench

    trained = []
    real = bench.train_and_predict
    monkeypatch.setattr(bench, "train_and_predict", lambda *a, **k: trained.append(len(a[2])) or real(*a, **k))
    before = load_table(done).rows
    rows = run(data, tiny, done, methods=["random"], ipcs=[1, 2])
    assert trained == [20, 20]  # IPC 2 with ten classes, two draws
    assert [row for row in rows if row.ipc < 2] == list(before)
    assert [row.method for row in rows if row.ipc == 2] == ["random"]


def test_pairs_compare_the_own_method_with_each_other(done: Path) -> None:
    rows = {row.method: row for row in load_table(done).rows if row.ipc == 1}
    pairs = [pair for pair in load_table(done).pairs if pair["ipc"] == 1]
    assert [pair["b"] for pair in pairs] == ["random", "kmeans", "reconstruction"]
    for pair in pairs:
        assert pair["difference"] == pytest.approx(rows["dpd"].oa_mean - rows[pair["b"]].oa_mean, abs=1e-6)
        assert pair["low"] <= pair["difference"] <= pair["high"]


def test_tables_fit_80_columns_with_all_their_figures(done: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*comparison_tables(done))
    text = console.export_text()
    assert "…" not in text
    for row in load_table(done).rows:
        assert re.search(rf"{row.method} +{row.ipc or 'all'} +{100 * row.oa_mean:.1f} ± {100 * row.oa_std:.1f} ", text)
    for pair in load_table(done).pairs:
        points = "({:+.1f} to {:+.1f})".format(*(100 * pair[name] for name in ("low", "high")))
        assert re.search(rf"{pair['verdict']},[^(]* {100 * pair['difference']:+.1f}".replace("+", r"\+"), text)
        assert points in text


def test_nothing_depends_on_the_labels_of_the_test_split(
    data: SceneData, tiny: Config, done: Path, tmp_path: Path
) -> None:
    assert data.test is not None
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    images = [data.test.pixels([k], size=32)[0].permute(1, 2, 0).numpy() for k in range(len(data.test))]
    shuffled = SceneData(data.train, Scenes.from_arrays(images, data.test.labels[order], data.test.classes))
    run(shuffled, tiny, tmp_path / "run", methods=["kmeans", "dpd"], full=False)
    for method in ("kmeans", "dpd"):
        folders = [out / "sets" / f"{method}-ipc1" / "distilled" for out in (done, tmp_path / "run")]
        one, other = ({p.name: p.read_bytes() for p in sorted(folder.rglob("*.png"))} for folder in folders)
        assert one == other
        name = f"evaluation/probe-efficientnet-lite0/row-{method}-ipc1.safetensors"
        one_row, other_row = (load_file(out / name) for out in (done, tmp_path / "run"))
        assert torch.equal(one_row["predicted"], other_row["predicted"])
        assert not torch.equal(one_row["labels"], other_row["labels"])


def test_bad_names_are_found_before_anything_is_made(data: SceneData, tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown method 'k-means': did you mean 'kmeans'\?"):
        run(data, tiny, tmp_path / "run", methods=["k-means"])
    with pytest.raises(ConfigError, match=r"^unknown protocol 'probes': did you mean 'probe'\?"):
        run(data, tiny, tmp_path / "run", protocols=["probes"])
    with pytest.raises(ConfigError, match=r"^IPC is 0 and seeds is 2: both have to be at least 1$"):
        run(data, tiny, tmp_path / "run", ipcs=[0])
    with pytest.raises(SceneError, match=r"^class 'Beach' has 12 images, IPC 13 needs at least 13: lower --ipc"):
        run(data, tiny, tmp_path / "run", ipcs=[1, 13])
    with pytest.raises(ConfigError, match=r"^images of 16 px are too small for the networks: use 32 px or more$"):
        run(data, tiny.model_copy(update={"size": 16}), tmp_path / "run")
    missing = tiny.model_copy(update={"descriptions": tiny.descriptions.model_copy(update={"describer": "/no/such"})})
    with pytest.raises(GeodistillError, match="/no/such"):
        run(data, missing, tmp_path / "run", methods=["random", "dpd"])
    private = make_config(
        tiny.model_dump(exclude={"refinement"}) | {"base": "compact", "privacy": "dp", "epsilon": 8, "delta": 1e-3}
    )
    with pytest.raises(ConfigError, match=r"^privacy 'dp' is dpd's alone: leave out random, d4m$"):
        run(data, private, tmp_path / "run", methods=["d4m", "dpd", "random"])
    assert not (tmp_path / "run").exists()


def test_terms_of_the_base_and_what_it_was_trained_on_are_told_once(
    data: SceneData,
    tiny: Config,
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = Path(shutil.copytree(sd_folder, tmp_path / "base"))
    (base / "base.json").write_text(facts_text(BaseFacts("quay", (32,), "not for sale", ("harbours",))))
    (base / "trained_on.jsonl").write_text(footprint(data.train.keys, "harbours"))
    config = make_config({**tiny.model_dump(), "base": str(base)})

    def begun(plan: object, config: Config, run: Run, bench: object) -> list[object]:
        run.make(Stage("begun", 1), lambda folder: None, lambda folder: folder, given=[])
        return []

    monkeypatch.setattr("geodistill.commands.compare._rows", begun)
    for _ in range(2):
        run(data, config, tmp_path / "run")
        assert caplog.messages == [
            "base 'quay': not for sale",
            "about 120 of the 120 training images are among those that the base was trained on (harbours): figures "
            "measured on them are too optimistic",
        ]
    with pytest.raises(PriorError, match=r" draws images of 32 px, not 64: use --size 32, --base scratch, or a base "):
        run(data, make_config({**config.model_dump(), "size": 64}), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()


def test_fewer_seeds_do_not_replace_more(data: SceneData, tiny: Config, tmp_path: Path) -> None:
    asked = {"methods": ["random"], "ipcs": (1,), "protocols": ("probe",), "full": False, "out": tmp_path / "run"}
    (two,) = compare(data, tiny, seeds=2, **asked)
    (kept,) = compare(data, tiny, seeds=1, **asked)
    assert two.seeds == (0, 1)
    assert kept == two
    predicted, _ = load_predictions(tmp_path / "run", kept)
    assert len(predicted) == 2
    (three,) = compare(data, tiny, seeds=3, **asked)
    assert three.seeds == (0, 1, 2)


def test_a_table_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps({"rows": [{"method": "dpd"}], "pairs": []}))
    with pytest.raises(RunError, match=r"compare\.json is no table of this version of geodistill \("):
        Ledger(tmp_path, ("a", "b"), torch.tensor([0, 1]), METHODS)
