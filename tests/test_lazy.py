import sys

import pytest

from geodistill.lazy import lazy_names


def test_a_name_is_imported_from_its_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    get = lazy_names("json", {"decoder": ("JSONDecoder", "JSONDecodeError"), "tool": ("main",)})
    assert "json.tool" not in sys.modules
    assert get("JSONDecodeError").__name__ == "JSONDecodeError"
    assert "json.tool" not in sys.modules


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match=r"^module 'json' has no attribute 'dumbs'$"):
        lazy_names("json", {"decoder": ("JSONDecoder",)})("dumbs")
