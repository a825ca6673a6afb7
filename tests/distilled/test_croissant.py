import pytest
from made import make_set


def test_croissant_is_valid(tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    folder = make_set().save(tmp_path / "set")
    assert not mlcroissant.Dataset(folder / "croissant.json").metadata.issues.errors
