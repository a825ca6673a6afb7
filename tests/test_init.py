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
            "bench",
            "builtin_scenes",
            "compare",
            "cut_tiles",
            "distill",
            "evaluate",
            "export",
            "inspect",
            "load_config",
            "load_predictor",
            "on_device",
            "open_dataset",
            "open_scenes",
            "open_sources",
            "plan",
            "predict",
            "pretrain",
            "reported_to",
            "sample",
            "train",
            *(f"{kind}Error" for kind in kinds.split()),
        ]
    )
    assert all(hasattr(geodistill, name) for name in dir(geodistill))


def test_unknown_name() -> None:
    assert not hasattr(geodistill, "distil")


@pytest.mark.slow
@pytest.mark.usefixtures("little_audit")
@pytest.mark.parametrize("name", ["audit", "compare", "distill", "inspect", "plan", "pretrain", "sample", "train"])
def test_examples(name: str) -> None:
    found = doctest.testmod(import_module(f"geodistill.commands.{name}"))
    assert found.attempted > 2
    assert not found.failed


def test_quick_examples() -> None:
    names = (
        "cli.options config deployment.tiles devices errors lazy prefetch progress scenes.items scenes.looks "
        "scenes.scenes scenes.unpacked"
    )
    for name in names.split():
        found = doctest.testmod(import_module(f"geodistill.{name}"))
        assert found.attempted
        assert not found.failed
