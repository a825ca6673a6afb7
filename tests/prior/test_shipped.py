from pathlib import Path

import pytest

from geodistill.errors import PriorError
from geodistill.prior.base import check_size, load_prior, source_of
from geodistill.prior.catalogue import BaseFacts, read_facts

PACKAGE = Path(__file__).parents[2] / "src" / "geodistill"
FOLDER = PACKAGE / "bases" / "compact"


def test_shipped_base_is_under_30_megabytes_with_a_card_and_safetensors_alone() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".txt", ".md"}
    assert "- Trained on: " in (FOLDER / "README.md").read_text()


def test_the_wheel_stays_under_35_megabytes() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 35e6


def test_shipped_base_loads_and_knows_its_classes_as_words() -> None:
    prior = load_prior(source_of("compact", 64))
    check_size(prior, 64)
    pieces = prior.tokenizer.tokenize("A satellite image of storage tanks")
    assert pieces == ["a</w>", "satellite</w>", "image</w>", "of</w>", "storage</w>", "tanks</w>"]


def test_what_it_says_of_itself() -> None:
    archives = ("UC Merced Land Use", "EuroSAT RGB", "NAIP", "OpenAerialMap", "drone images")
    assert read_facts(FOLDER) == BaseFacts("compact", (64,), "", archives)


def test_another_size_is_refused_with_what_to_do() -> None:
    with pytest.raises(PriorError) as caught:
        source_of("compact", 96)
    assert str(caught.value) == (
        "the base 'compact' draws images of 64 px, not 96: use --size 64, --base scratch, or a base made by "
        "`geodistill pretrain --size 96`"
    )


def test_folder_is_inside_the_package() -> None:
    assert source_of("compact", 64) == str(FOLDER)
