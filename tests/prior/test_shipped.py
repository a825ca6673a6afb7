from pathlib import Path

import pytest

from geodistill.errors import PriorError
from geodistill.prior.base import check_size, load_prior, shipped_base


def test_shipped_base_is_under_30_megabytes_with_a_card_and_safetensors_alone() -> None:
    files = [path for path in shipped_base(64).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".txt", ".md"}
    card = (shipped_base(64) / "README.md").read_text()
    assert "Trained on: 6000 images of 30 classes" in card
    assert "academic purposes" in card


def test_shipped_base_loads_and_knows_its_classes_as_words() -> None:
    prior = load_prior(str(shipped_base(64)))
    check_size(prior, 64)
    pieces = prior.tokenizer.tokenize("A satellite image of storage tanks")
    assert pieces == ["a</w>", "satellite</w>", "image</w>", "of</w>", "storage</w>", "tanks</w>"]


def test_another_size_is_refused_with_what_to_do() -> None:
    with pytest.raises(PriorError) as caught:
        shipped_base(128)
    assert str(caught.value) == (
        "the compact base draws images of 64 px, not 128: use --size 64, --base scratch, "
        "or a base made by `geodistill pretrain --size 128`"
    )


def test_folder_is_inside_the_package() -> None:
    assert Path(__file__).parents[2] / "src" / "geodistill" / "bases" / "compact" == shipped_base(64)
