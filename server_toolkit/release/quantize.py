"""An ONNX model in int8: static quantization with scales from a calibration set."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from server_toolkit.release.onnx_model import INPUT, Images, pick_evenly

MAX_CALIBRATION_IMAGES = 512
_BATCH = 64


def quantize_onnx(data: bytes, calibration: Images) -> bytes:
    """Return the fp32 ONNX file `data` with int8 convolutions and linear layers (QDQ).

    `calibration` `(N, C, H, W) float32 in [0, 1]` sets the range of every activation; at most
    `MAX_CALIBRATION_IMAGES`, evenly picked, are used. Weights are symmetric with one scale an
    output channel. Normalisation stays in float: it is cheap there and fragile in int8. The logits
    stay in float, so that they are not clipped to what calibration happened to see.
    """
    images = pick_evenly(calibration, MAX_CALIBRATION_IMAGES)
    with _quantization_module() as ort, tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / n for n in ("fp32", "prepared", "int8"))
        source.write_bytes(data)
        ort.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        ort.quantize_static(
            prepared,
            target,
            _Batches(images),
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            # 7-bit weights: x86 without VNNI adds products in 16 bits, which 8-bit weights
            # overflow. So what is judged here is what an Arm device computes.
            reduce_range=True,
            activation_type=ort.QuantType.QInt8,  # int8 by int8 has the fastest Arm kernels
            weight_type=ort.QuantType.QInt8,
            extra_options={
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            },
        )
        return target.read_bytes()


class _Batches:
    """Calibration images in batches, as onnxruntime's `CalibrationDataReader` wants them."""

    def __init__(self, images: Images) -> None:
        self._batches = iter([images[i : i + _BATCH] for i in range(0, len(images), _BATCH)])

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quantization_module() -> Iterator[ModuleType]:
    """Give `onnxruntime.quantization` without its side effects.

    Its import puts a folder on `sys.path` that holds another package named `models`, and it talks
    to the root logger.
    """
    path = list(sys.path)
    import onnxruntime.quantization

    sys.path[:] = path
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield onnxruntime.quantization
    finally:
        root.setLevel(level)
