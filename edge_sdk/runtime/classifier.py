"""Images in, logits out: an inference program as an application uses it."""

from __future__ import annotations

from types import TracebackType
from typing import Self, cast

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import ConfigError
from edge_sdk.runtime.program_file import ProgramFile

Float32 = npt.NDArray[np.float32]


class Classifier:
    """A loaded inference program: `with Classifier(ProgramFile.load(path)) as c: c.predict(x)`.

    `threads` is `set_threads`, which holds for the process. Raises `ConfigError` for a program of
    another kind, `RuntimeLibraryError` or `ProtocolError` where it cannot be loaded.
    """

    def __init__(self, file: ProgramFile, *, threads: int | None = None) -> None:
        if file.kind != "inference":
            raise ConfigError(
                f"a program of kind {file.kind} has no weights inside; "
                "make one with `edge-sdk export --inference`"
            )
        self.spec = file.spec
        self._program = file.load_program(threads=threads)
        self._images = cast(Float32, self._program.inputs[0].empty())
        self._logits = cast(Float32, self._program.outputs[0].empty())

    def predict(self, images: Float32) -> Float32:
        """Return logits `(N, classes) float32` of `(N, C, H, W) float32 in [0, 1]`, any N.

        Raises `ConfigError` for images of another shape or type. One thread at a time.
        """
        shape = (self.spec.channels, self.spec.image_size, self.spec.image_size)
        if images.ndim != 4 or images.shape[1:] != shape or images.dtype != np.float32:
            raise ConfigError(
                f"images are {images.shape} {images.dtype}; expected (N, {shape}) float32"
            )
        batch = len(self._images)
        result = np.empty((len(images), self.spec.classes), np.float32)
        for first in range(0, len(images), batch):
            part = images[first : first + batch]
            self._images[: len(part)] = part.transpose(0, 2, 3, 1)
            self._program.execute([self._images], [self._logits])
            result[first : first + len(part)] = self._logits[: len(part)]
        return result

    def close(self) -> None:
        """Free the native memory."""
        self._program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
