import json
from dataclasses import replace
from pathlib import Path

import pytest

from geodistill.errors import PriorError
from geodistill.prior.base import check_size, load_prior, source_of
from geodistill.prior.catalogue import BaseFacts, read_facts

PACKAGE = Path(__file__).parents[2] / "src" / "geodistill"
FOLDER = PACKAGE / "bases" / "compact"


def test_shipped_base_is_small_with_a_card_and_safetensors_alone() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") < 30e6
    # The lists of what it was trained on.
    assert sum(path.stat().st_size for path in files if path.suffix == ".jsonl") < 0.5e6
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".txt", ".md"}
    assert "- Trained on: " in (FOLDER / "README.md").read_text()


def test_the_wheel_stays_under_35_megabytes() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 35e6


def test_shipped_base_loads_and_knows_its_classes_as_words() -> None:
    prior = load_prior(source_of("compact", 64))
    check_size(64, prior.vae.config, prior.unet.config, prior.source)
    for name in ("permanent crop", "storage tanks"):
        pieces = prior.tokenizer.tokenize(f"A satellite image of {name}")
        assert pieces == [f"{word}</w>" for word in ("a", "satellite", "image", "of", *name.split())]


def test_what_it_says_of_itself() -> None:
    archives = ("UC Merced Land Use", "EuroSAT RGB", "NAIP", "OpenAerialMap", "drone images")
    facts = read_facts(FOLDER)
    assert facts is not None
    assert replace(facts, classes=()) == BaseFacts("compact", (64, 128), "", archives)
    assert len(facts.classes) == 31
    assert {"storage tanks", "airplane", "PermanentCrop"} <= set(facts.classes)


def test_another_size_is_refused_with_what_to_do() -> None:
    with pytest.raises(PriorError) as caught:
        source_of("compact", 96)
    assert str(caught.value) == (
        "the base 'compact' draws images of 64 or 128 px, not 96: use --size 64 or 128, --base scratch, or a base made "
        "by `geodistill pretrain --size 96`"
    )


def test_folder_is_inside_the_package() -> None:
    assert source_of("compact", 64) == source_of("compact", 128) == str(FOLDER)


def test_nothing_in_the_package_was_made_from_aid() -> None:
    names = {json.loads(line)["archive"] for line in (FOLDER / "trained_on.jsonl").read_text().splitlines()}
    assert names == set(read_facts(FOLDER).archives)
    assert "AID" not in names
    weights = {path.relative_to(FOLDER): path.read_bytes() for path in FOLDER.rglob("*.safetensors")}
    other = PACKAGE.parents[1] / "bases" / "aid" / "src" / "geodistill_base_aid" / "base"
    assert all((other / path).read_bytes() != own for path, own in weights.items())
