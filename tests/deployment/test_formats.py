import sys

import pytest

from geodistill.deployment.formats import check_format, needed
from geodistill.errors import ConfigError, ExportError


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        check_format("onnx-int4")
    assert str(caught.value) == (
        "unknown format 'onnx-int4': did you mean 'onnx-int8'? known: onnx, onnx-int8, torchscript, litert"
    )


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("onnx", "onnx-int8"):
        with pytest.raises(ExportError) as caught:
            check_format(name)
        told = str(caught.value)
        assert told.startswith(f"format {name} needs onnxruntime, which cannot be imported (")
        assert told.endswith("): pip install 'geodistill[export]'")
    check_format("torchscript")
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(ExportError, match=r"^format litert needs litert_torch, .*: pip .*\[litert\]'$"):
        check_format("litert")


def test_a_package_that_is_there_is_returned() -> None:
    assert needed("json", "this", "none").dumps([1]) == "[1]"
