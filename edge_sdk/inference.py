"""The application's door to the installed model: `InstalledModel.open(config).predict(images)`."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.agent.slots import Slot, SlotName, open_slot, slot_directory
from edge_sdk.agent.trial import TrialResult
from edge_sdk.errors import ProtocolError, ReleaseError, StorageError
from edge_sdk.protocol.signing import load_public_key
from edge_sdk.protocol.tensors import unpack
from models import ModelSpec, SpecError

Images = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]

BATCH = 64
MAX_REFERENCE_IMAGES = 4096


class InstalledModel:
    """A release's ONNX model in onnxruntime, loaded only after its hash is checked again."""

    def __init__(self, slot: Slot, config: LoadedConfig) -> None:
        import onnxruntime  # slow to import, and only who predicts needs it

        self._errors = _onnxruntime_errors()
        self.slot = slot
        self._config = config
        try:
            self.spec = ModelSpec.from_dict(slot.release.model)
        except SpecError as error:
            raise ReleaseError(f"{slot.directory}: {error}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = config.settings.compute.threads
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                slot.model_path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
            (self._input,) = [i.name for i in self._session.get_inputs()]
        except self._errors as error:
            raise ReleaseError(f"{slot.model_path} cannot be run: {error}") from error

    @classmethod
    def open(cls, config: LoadedConfig, *, slot: SlotName | None = None) -> InstalledModel:
        """Open the active model, or the one in `slot`; raises `ReleaseError` if there is none."""
        name = slot or active_slot(config)
        if name is None:
            raise ReleaseError(
                "no release is installed yet; `edge-sdk status` shows what is going on"
            )
        key = load_public_key(config.resolve(config.settings.server_public_key))
        return cls(open_slot(slot_directory(config.state, name), key), config)

    def predict(self, images: Images) -> Logits:
        """Return logits `(N, classes) float32` of `(N, C, H, W) float32 in [0, 1]`."""
        shape = (self.spec.channels, self.spec.image_size, self.spec.image_size)
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.float32:
            raise ReleaseError(f"images are {images.shape} {images.dtype}; expected (N, {shape})")
        parts = []
        for start in range(0, len(images), BATCH):
            batch = np.ascontiguousarray(images[start : start + BATCH])
            try:
                (logits,) = self._session.run(None, {self._input: batch})
            except self._errors as error:
                raise ReleaseError(
                    f"{self.slot.model_path} failed while running: {error}"
                ) from error
            parts.append(np.asarray(logits, np.float32))
        result: Logits = np.concatenate(parts) if parts else np.zeros((0, self.spec.classes), "f4")
        if result.shape != (len(images), self.spec.classes) or not np.isfinite(result).all():
            raise ReleaseError(f"{self.slot.model_path} gives {result.shape} or non-finite outputs")
        return result

    def compare_with_reference(self) -> TrialResult:
        """Run the reference images; raises `ReleaseError` if any output is too far off."""
        images, expected = self._reference()
        self.predict(images[:1])  # the first run pays for preparations
        start = time.perf_counter()
        logits = self.predict(images)
        inference_ms = 1000 * (time.perf_counter() - start) / len(images)
        difference = float(np.abs(logits - expected).max())
        if difference > self.slot.max_abs_diff:
            raise ReleaseError(
                f"outputs differ from the reference by {difference:.3g}, "
                f"more than the {self.slot.max_abs_diff:.3g} that the release allows"
            )
        return TrialResult(max_abs_diff=difference, inference_ms=inference_ms)

    def judge_locally(self) -> TrialResult:
        """Return the accuracy on the device's own labelled images."""
        from edge_sdk.agent.local_data import load_local_data

        data = load_local_data(self._config, self.spec)
        correct = self.predict(data.images).argmax(axis=1) == data.labels
        return TrialResult(local_accuracy=float(correct.mean()))

    def _reference(self) -> tuple[Images, Logits]:
        import safetensors

        path = self.slot.reference_path
        try:
            with safetensors.safe_open(str(path), "numpy") as file:
                count = int(file.get_slice("images").get_shape()[0])
            if not 1 <= count <= MAX_REFERENCE_IMAGES:
                raise ReleaseError(f"{path} holds {count} images")
            side, classes = self.spec.image_size, self.spec.classes
            arrays = unpack(
                path.read_bytes(),
                {
                    "images": ((count, self.spec.channels, side, side), np.float32),
                    "logits_fp32": ((count, classes), np.float32),
                    "logits_int8": ((count, classes), np.float32),
                },
            )
        except (safetensors.SafetensorError, ProtocolError, IndexError) as error:
            raise ReleaseError(f"{path} is no reference file: {error}") from error
        return (
            arrays["images"].astype(np.float32, copy=False),
            arrays[f"logits_{self.slot.precision}"].astype(np.float32, copy=False),
        )


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: its own classes share no base but `Exception`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    classes = [c for c in vars(state).values() if isinstance(c, type)]
    return (RuntimeError, ValueError, *(c for c in classes if issubclass(c, Exception)))


def active_slot(config: LoadedConfig) -> SlotName | None:
    """Return the active slot's name, read beside a running agent; raises `StorageError`."""
    value = _stored(config, "active_slot")
    return None if value is None else ("A" if value == "A" else "B")


def active_version(config: LoadedConfig) -> int:
    """Return the active release's version, 0 if there is none; raises `StorageError`."""
    return int(_stored(config, "active_version") or 0)


def _stored(config: LoadedConfig, name: str) -> str | None:
    path = config.state / "state.db"
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT value FROM value WHERE name = ?", (name,)).fetchone()
    except sqlite3.Error as error:
        raise StorageError(f"cannot read {path} ({error}); run as the agent's user") from error
    return None if row is None else str(row[0])
