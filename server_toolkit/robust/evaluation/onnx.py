"""ONNX models as the attacks see a model: outputs, and no gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from server_toolkit.release.onnx_model import BATCH, OnnxModel


class OnnxLogits:
    """Maps images `(N, C, H, W) float32 in [0, 1]` to logits `(N, classes)` with onnxruntime.

    Computed on the CPU; the result comes back to where the images are and carries no gradient.
    """

    def __init__(self, data: bytes) -> None:
        self._model = OnnxModel(data)
        # Some exporters fix the batch to one image.
        self._batch = 1 if self._model.input_shape[0] == 1 else BATCH

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits = self._model.logits(images.detach().cpu().numpy(), batch=self._batch)
        return torch.from_numpy(logits).to(images.device)
