import ast
import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodistill import pipeline as declared
from geodistill import provenance
from geodistill.provenance import Made, Stage, building, derived, fingerprint, inputs_of
from geodistill.run import Run

STAGE = Stage("later", 1)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def _kept(run: Run, name: str, value: int, inputs: list[object]) -> Made[int]:
    def build(folder: Path) -> None:
        (folder / "value").write_text(str(value))

    return run.make(Stage(name, 1), build, lambda folder: int((folder / "value").read_text()), given=inputs)


@given(JSON, JSON)
def test_fingerprints_are_equal_where_the_content_is(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_fingerprint_ignores_the_order_of_keys(values: dict[str, int]) -> None:
    assert fingerprint(values) == fingerprint(dict(reversed(values.items())))


def test_doctests() -> None:
    assert doctest.testmod(provenance).failed == 0


def test_a_stage_reads_what_it_was_given_and_what_that_follows_from(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}) as run:
        first = _kept(run, "first", 1, ["scenes"])
        second = _kept(run, "second", 2, [first, "settings"])
        both = derived(lambda: first.value + second.value, first, second)
        with building(STAGE, [second]):
            assert (first.value, second.value, both.value) == (1, 2, 3)


def test_a_stage_that_reads_what_it_was_not_given_stops(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}) as run:
        first, second = _kept(run, "first", 1, ["scenes"]), _kept(run, "second", 2, ["scenes", "settings"])

        def build(folder: Path) -> None:
            (folder / "sum").write_text(str(first.value + second.value))

        with pytest.raises(RuntimeError) as caught:
            run.make(STAGE, build, lambda folder: folder, given=[first])
        assert str(caught.value) == (
            f"stage 'later' reads what it was not given (of fingerprint {second.marks[0]}): add it to `given`"
        )
        assert not (tmp_path / "run" / "later").exists()


def test_what_was_read_before_is_not_read_in_a_stage_that_was_not_given_it() -> None:
    other = Made.source(5, "other")
    assert other.value == 5
    with building(STAGE, ["settings"]), pytest.raises(RuntimeError, match="reads what it was not given"):
        _ = other.value
    assert other.value == 5


def test_what_follows_from_the_same_inputs_may_be_read(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}) as run:
        features = _kept(run, "features", 1, ["scenes", 64])
        with building(STAGE, ["scenes", 64, "noise"]):
            assert features.value == 1
        with building(STAGE, ["scenes", 32]), pytest.raises(RuntimeError):
            _ = features.value


def test_the_fingerprint_changes_with_any_input(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {}) as run:
        marks = {_kept(run, "first", 1, inputs).marks for inputs in (["a"], ["b"], ["a", "b"], [Made.source(1, "c")])}
    assert len(marks) == 4


@given(st.lists(st.text(max_size=3), max_size=6), st.lists(st.integers(), max_size=3))
def test_inputs_name_each_result_once_and_keep_all_else(marks: list[str], settings: list[int]) -> None:
    made = [Made.source(None, mark) for mark in marks]
    assert inputs_of([*made, *settings]) == [*dict.fromkeys(marks), *settings]


def test_every_stage_has_a_name_of_its_own_or_stands_for_another() -> None:
    stages = {name: stage for name, stage in vars(declared).items() if isinstance(stage, Stage)}
    # Named so in runs of the first release.
    assert stages.pop("SOFT_LABEL_TEACHER").name == "labeller"
    for name, stage in stages.items():
        if stage.name.upper() != name:
            assert stage.name.upper() in stages


def test_names_of_stages_stand_in_one_place() -> None:
    stages = {stage.name for stage in vars(declared).values() if isinstance(stage, Stage)}
    # Names that are also those of settings, files or columns are told apart by what is made of them: a path in a run.
    for path in (Path(provenance.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
                assert node.right.value not in stages, f"{path}:{node.lineno}"


def test_stages_read_results_inside_their_builds_alone() -> None:
    for path in (Path(provenance.__file__).parent / "stages").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(inner, ast.FunctionDef) and inner.name == "build" for inner in function.body
            ):
                read = [node.lineno for line in function.body for node in _outside_of_functions(line)]
                assert not read, f"{path.name}: {function.name} reads a result outside its build, lines {read}"


def _outside_of_functions(node: ast.AST) -> list[ast.Attribute]:
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        return []
    own = [node] if isinstance(node, ast.Attribute) and node.attr == "value" else []
    return own + [one for child in ast.iter_child_nodes(node) for one in _outside_of_functions(child)]
