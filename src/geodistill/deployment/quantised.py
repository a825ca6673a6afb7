"""A classifier in 8-bit integers, as ONNX: static quantisation with quantise and dequantise nodes (QDQ).

Weights have a scale for each output channel, activations one for each tensor, measured on calibration images. A
distilled set serves well: it is small, covers every class, and can be shipped with the model.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from geodistill.deployment.formats import needed
from geodistill.deployment.graph import IMAGES, Input, as_input, metadata, quiet, save_onnx, write_onnx
from geodistill.errors import ExportError
from geodistill.evaluation.classifier import Classifier, check_images

# Fewest images to calibrate on (docs/device.md has the accuracy for several numbers).
LEAST_IMAGES = 20
_BATCH = 16


def write_int8(classifier: Classifier, path: Path, takes: Input, images: Tensor) -> None:
    """Write the classifier to the ONNX file `path`, quantised on `images`, uint8 RGB [n, 3, size, size].

    Raises:
        ConfigError: the images have another size.
        ExportError: there are fewer than 20 images, ONNX lacks an operator of the network, or a package is missing.
    """
    check_images(images, classifier.about)
    check_calibration(len(images))
    onnx = needed("onnx", "format onnx-int8", "export")
    with tempfile.TemporaryDirectory(prefix="geodistill-") as folder, quiet():
        exact, fused, quantised = (Path(folder) / f"{name}.onnx" for name in ("exact", "fused", "quantised"))
        write_onnx(classifier, exact, takes)
        _quantise(exact, fused, quantised, (takes, images))
        save_onnx(onnx, onnx.load(quantised), path, metadata(classifier.about, takes))


def check_calibration(count: int) -> None:
    """Raise ExportError unless `count` images are enough to calibrate on."""
    if count < LEAST_IMAGES:
        raise ExportError(
            f"{count} images are too few to calibrate int8 on, at least {LEAST_IMAGES} are needed: give --calibrate a "
            "set with more images per class"
        )


def _quantise(exact: Path, fused: Path, quantised: Path, calibration: tuple[Input, Tensor]) -> None:
    tools = needed("onnxruntime.quantization", "format onnx-int8", "export")
    shapes = needed("onnxruntime.quantization.shape_inference", "format onnx-int8", "export")
    # Batch norms become part of the convolutions before them. Symbolic shapes are known already.
    shapes.quant_pre_process(str(exact), str(fused), skip_symbolic_shape=True)
    tools.quantize_static(
        str(fused),
        str(quantised),
        _Reader(*calibration),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        nodes_to_exclude=_preprocessing(fused),
    )


def _preprocessing(path: Path) -> list[str]:
    """Return the names of the nodes before the first convolution: 8 bits are too few for normalised pixels."""
    names: list[str] = []
    for node in needed("onnx", "format onnx-int8", "export").load(path).graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            return names
        names.append(node.name)
    return names


class _Reader:
    """Calibration images in batches, as ONNX Runtime's `CalibrationDataReader` gives them."""

    def __init__(self, takes: Input, images: Tensor) -> None:
        self._batches: Iterator[Tensor] = iter(images.split(_BATCH))
        self._takes = takes

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch as the graph's input; None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: as_input(batch, self._takes).numpy()}
