"""Running an ONNX model the way a device does: onnxruntime, CPU, one thread."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import onnxruntime

Images = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]

INPUT = "images"
OUTPUT = "logits"
BATCH = 64


def pick_evenly(images: Images, count: int) -> Images:
    """Return at most `count` of the images, spread over their order, which is often by class."""
    indices = np.linspace(0, len(images) - 1, min(len(images), count)).round().astype(int)
    return np.ascontiguousarray(images[indices], np.float32)


class OnnxModel:
    """A loaded model; images `(N, C, H, W) float32 in [0, 1]` to logits `(N, classes) float32`.

    With `optimized=False` onnxruntime runs the graph as written: int8 parts are computed in float
    on dequantized numbers, with other kernels than usual.
    """

    def __init__(self, data: bytes, *, optimized: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if not optimized:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        self._session = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
        self._input, *_ = self._session.get_inputs()
        self._output, *_ = self._session.get_outputs()

    @property
    def input_shape(self) -> list[int | str]:
        """The shape of the images; a name where a side is free."""
        return list(self._input.shape)

    @property
    def output_shape(self) -> list[int | str]:
        """The shape of the logits; a name where a side is free."""
        return list(self._output.shape)

    def logits(self, images: Images, *, batch: int = BATCH) -> Logits:
        """Return the logits, computed in batches of at most `batch`."""
        parts = [
            self._session.run(
                [self._output.name], {self._input.name: np.ascontiguousarray(images[i : i + batch])}
            )[0]
            for i in range(0, len(images), batch)
        ]
        return cast(Logits, np.concatenate(parts))
