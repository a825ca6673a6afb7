"""What keeps the code readable, checked: see ARCHITECTURE.md. Imports are checked by import-linter (`make lint`)."""

import ast
from pathlib import Path

import pytest

import geodistill

ROOT = Path(geodistill.__file__).parent
PATH = sorted([*(ROOT / "stages").glob("*.py"), *(ROOT / "methods").glob("*.py")])


def _parameters(function: ast.FunctionDef) -> int:
    own = function.args
    names = [one.arg for one in (*own.posonlyargs, *own.args, *own.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("file", PATH, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_functions_of_the_path_take_at_most_five_arguments(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert _parameters(node) <= 5, f"{node.name} takes {_parameters(node)}"


@pytest.mark.parametrize("file", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_a_stage_has_less_than_150_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < 150
