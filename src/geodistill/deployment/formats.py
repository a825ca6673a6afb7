"""Formats of an exported classifier, and the packages that write them."""

from dataclasses import dataclass
from typing import Any

from geodistill.errors import ConfigError, ExportError, did_you_mean
from geodistill.lazy import optional


@dataclass(frozen=True)
class Format:
    """A format: the name of its file, the modules that write it, and the extra of geodistill that installs them."""

    file: str
    modules: tuple[str, ...] = ()
    extra: str = ""


_ONNX = ("onnx", "onnxruntime", "onnxscript")
FORMATS = {
    "onnx": Format("model.onnx", _ONNX, "export"),
    "onnx-int8": Format("model-int8.onnx", _ONNX, "export"),
    "torchscript": Format("model.torchscript"),
    "litert": Format("model.tflite", ("litert_torch",), "litert"),
}


def check_format(name: str) -> None:
    """Raise ConfigError unless `name` is a format, ExportError if a package that writes it cannot be imported."""
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise ConfigError(f"unknown format {name!r}: {hint}known: {', '.join(FORMATS)}")
    for module in FORMATS[name].modules:
        needed(module, f"format {name}", FORMATS[name].extra)


def needed(module: str, what: str, extra: str) -> Any:
    """Return `module`, which `what` needs; raise ExportError that names the extra if it cannot be imported."""
    return optional(module, what, extra, ExportError)
