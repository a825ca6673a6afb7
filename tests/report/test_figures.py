import json
import math
import os
from pathlib import Path

import pytest

from geodistill.errors import RunError
from geodistill.evaluation.rows import Row
from geodistill.evaluation.table import load_table
from geodistill.report.figures import ablation, by_bench, read_evaluations


def _row(method: str, oa: float, ipc: int = 10, **more: object) -> Row:
    return Row(method, ipc, "probe", "convnet3", oa, 0.0, **more)  # type: ignore[arg-type]


def _measures(oa: float, confusion: list[list[int]]) -> dict[str, object]:
    return {"oa": oa, "aa": oa, "kappa": oa, "per_class": [oa, math.nan], "confusion": confusion}


def _write_figures(path: Path, oa: float, full: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    own = [_measures(oa, [[1, 2], [0, 0]]), _measures(oa + 0.2, [[3, 0], [0, 0]])]
    found = {"protocol": "probe", "network": "convnet3", "seeds": [0, 1], "classes": ["a", "b"], "ipc": 2}
    found |= {"distilled": own, "random": [_measures(0.25, [[1, 2], [0, 0]])] * 2}
    found |= {"full": [_measures(0.8, [[3, 0], [0, 0]])] * 2 if full else []}
    near = {"pixel": 0.5, "feature": 0.4, "ratio": 0.4}
    spread = {"fid": {"value": 91.5}, "kid": {"value": 0.02}}
    path.write_text(json.dumps({**found, "likeness": {"nearness": near, "coverage": 0.6, **spread}}))


def test_rows_are_compared_within_protocol_and_network() -> None:
    rows = [_row("a", 0.1), Row("a", 1, "probe", "resnet18", 0.2, 0.0), _row("b", 0.3)]
    assert by_bench(rows) == {("probe", "convnet3"): [rows[0], rows[2]], ("probe", "resnet18"): [rows[1]]}


def test_ablation_tells_what_each_rung_adds_at_its_ipc() -> None:
    rows = [
        _row("dpd", 0.9),
        *(_row(m, oa, ipc) for ipc in (10, 1) for m, oa in (("template", 0.2), ("+ x", 0.2 + ipc / 100))),
    ]
    found = [(row.method, row.ipc, None if added is None else round(added, 6)) for row, added in ablation(rows)]
    assert found == [("template", 1, None), ("+ x", 1, 0.01), ("template", 10, None), ("+ x", 10, 0.1)]


def test_template_alone_is_no_ablation() -> None:
    assert ablation([_row("template", 0.2), _row("dpd", 0.5)]) == []


def test_evaluations_become_rows_of_their_means(tmp_path: Path) -> None:
    _write_figures(tmp_path / "probe-convnet3" / "figures-1.json", 0.3)
    own, random, full = read_evaluations(tmp_path, "dpd").rows
    assert (own.method, own.ipc, own.rho, own.rho_pixel, own.rho_feature) == ("dpd", 2, 0.4, 0.5, 0.4)
    assert own.oa_mean == pytest.approx(0.4)
    assert own.oa_std == pytest.approx(0.1 * 2**0.5)  # two values 0.1 from their mean
    assert (own.share_of_full, own.hlr, own.ior) == pytest.approx((0.5, 0.4, 0.15))
    assert own.confusion == ((4, 2), (0, 0))
    assert (own.nearest_similarity, own.fid, own.kid) == (0.6, 91.5, 0.02)
    assert (random.method, random.ipc, random.kind, random.rho) == ("random real", 2, "real", None)
    assert (full.name, full.ipc, full.hlr) == ("all real images", 0, 0.0)


def test_the_last_evaluation_counts(tmp_path: Path) -> None:
    for name, oa, time in (("figures-b.json", 0.3, 100), ("figures-a.json", 0.5, 200)):
        _write_figures(tmp_path / "probe-convnet3" / name, oa, full=False)
        os.utime(tmp_path / "probe-convnet3" / name, (time, time))
    own, _ = read_evaluations(tmp_path, "dpd").rows
    assert own.oa_mean == pytest.approx(0.6)
    assert (own.share_of_full, own.hlr) == (None, None)


def test_no_evaluation_gives_no_rows(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path / "evaluation", "dpd").rows == ()


def test_comparison_reads_nan_as_not_measured(tmp_path: Path) -> None:
    row = {"method": "dpd", "ipc": 1, "protocol": "probe", "network": "n", "oa_mean": 0.5, "oa_std": 0, "rho": math.nan}
    (tmp_path / "compare.json").write_text(json.dumps({"classes": ["a", "b"], "rows": [row]}))
    found = load_table(tmp_path)
    assert found.classes == ("a", "b")
    assert found.rows == (Row("dpd", 1, "probe", "n", 0.5, 0),)
    assert found.pairs == ()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", 'JSONDecodeError("Expecting property name enclosed in double quotes: line 1 column 2 (char 1)")'),
        ('{"classes": []}', "KeyError('rows')"),
        ('{"classes": [], "rows": [{"method": "dpd"}]}', "KeyError('ipc')"),
    ],
)
def test_damaged_comparison(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "compare.json"
    path.write_text(content)
    with pytest.raises(RunError) as caught:
        load_table(tmp_path)
    expected = (
        f"{path} is no table of this version of geodistill ({why}): delete it and run the same compare command again, "
        "predictions are kept"
    )
    assert str(caught.value).replace("'", '"') == expected.replace("'", '"')


def test_damaged_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "probe-convnet3" / "figures-1.json"
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(RunError) as caught:
        read_evaluations(tmp_path, "dpd")
    assert str(caught.value) == (
        f"{path} is no record of an evaluation (KeyError('distilled')): delete it and evaluate again"
    )


def test_validation_scenes_give_no_results(tmp_path: Path) -> None:
    test, val = (tmp_path / "probe-convnet3" / f"figures-{k}.json" for k in (1, 2))
    _write_figures(test, 0.3)
    _write_figures(val, 0.7)
    val.write_text(json.dumps({**json.loads(val.read_text()), "tested_on": "val"}))
    os.utime(test, (1, 1))
    own, *_ = read_evaluations(tmp_path, "dpd").rows
    assert own.oa_mean == pytest.approx(0.4)
    test.unlink()
    assert read_evaluations(tmp_path, "dpd").rows == ()


@pytest.mark.parametrize(
    ("method", "kind"), [("dpd", "synthetic"), ("random", "real"), ("dm", "derived"), ("x", "real")]
)
def test_images_are_what_their_method_makes(method: str, kind: str, tmp_path: Path) -> None:
    _write_figures(tmp_path / "probe-convnet3" / "figures-1.json", 0.3)
    assert read_evaluations(tmp_path, method).rows[0].kind == kind
