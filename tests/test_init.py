import doctest
from importlib import import_module

import pytest

import geodistill


def test_public_names() -> None:
    kinds = "Config Describer DistilledSet Export Geodistill Prior Privacy Run Scene Training"
    assert dir(geodistill) == sorted(
        [
            "METHODS",
            "Classifier",
            "Config",
            "DistilledSet",
            "Evaluation",
            "SceneData",
            "Scenes",
            "add",
            "audit",
            "builtin_scenes",
            "compare",
            "cut_tiles",
            "distill",
            "evaluate",
            "inspect",
            "load_config",
            "on_device",
            "open_dataset",
            "open_scenes",
            "open_sources",
            "plan",
            "pretrain",
            "reported_to",
            "sample",
            *(f"{kind}Error" for kind in kinds.split()),
        ]
    )
    assert all(hasattr(geodistill, name) for name in dir(geodistill))


def test_unknown_name() -> None:
    assert not hasattr(geodistill, "distil")


@pytest.mark.slow
@pytest.mark.usefixtures("little_audit")
@pytest.mark.parametrize("name", ["audit", "compare", "distill", "inspect", "plan", "pretrain", "sample"])
def test_examples(name: str) -> None:
    found = doctest.testmod(import_module(f"geodistill.commands.{name}"))
    assert found.attempted > 2
    assert not found.failed


def test_quick_examples() -> None:
    for name in (
        "cli_options",
        "config",
        "devices",
        "errors",
        "lazy",
        "prefetch",
        "progress",
        "scenes.items",
        "scenes.looks",
        "scenes.scenes",
        "scenes.unpacked",
    ):
        found = doctest.testmod(import_module(f"geodistill.{name}"))
        assert found.attempted
        assert not found.failed
