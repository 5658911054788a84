"""Run an ExecuTorch program on numpy arrays, through the native library and ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.errors import RuntimeLibraryError
from edge_sdk.runtime.buffers import aligned_zeros
from edge_sdk.runtime.library import last_error, native_library

MIN_PROGRAM_BYTES = 64

Array = npt.NDArray[np.generic]

_DTYPES = {0: np.uint8, 1: np.int8, 3: np.int32, 4: np.int64, 6: np.float32, 7: np.float64}
_MAX_RANK = 8


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of one input or output."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def empty(self) -> Array:
        """Return an array to use for it, aligned and zero."""
        return aligned_zeros(self.shape, self.dtype)


class Program:
    """A loaded program. Its calls are serialised; different programs may run at the same time.

    Inputs are read and outputs are written in place: a step copies and allocates nothing beyond
    the arrays of pointers.
    """

    def __init__(self, handle: int) -> None:
        self._library = native_library()
        self._handle: int | None = handle
        self.inputs = self._describe(is_output=False)
        self.outputs = self._describe(is_output=True)

    @classmethod
    def load(cls, source: Path | str | bytes, *, threads: int | None = None) -> Program:
        """Load a `.pte` file or its bytes; `threads` is `set_threads`.

        Raises `RuntimeLibraryError` where the library is missing or the program is damaged.
        """
        library = native_library()
        if isinstance(source, bytes):
            name, data = "program", source
        else:
            name, data = str(source), _read(Path(source))
        if len(data) < MIN_PROGRAM_BYTES:
            raise RuntimeLibraryError(f"{name}: {len(data)} bytes are no program")
        if threads is not None:
            set_threads(threads)
        handle = library.trajsyn_load(data, len(data))
        if not handle:
            raise RuntimeLibraryError(f"{name}: {last_error(library)}")
        return cls(handle)

    def execute(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run once; `inputs` and `outputs` match `self.inputs` and `self.outputs`, C-contiguous.

        Raises `ValueError` naming the first array that does not fit, `RuntimeLibraryError` when
        the program fails. Output arrays must not overlap input arrays.
        """
        if self._handle is None:
            raise RuntimeLibraryError("the program was closed")
        for index, array in enumerate(outputs):
            if not array.flags.writeable:
                raise ValueError(f"output {index} is read-only")
        read = _pointers("input", inputs, self.inputs)
        written = _pointers("output", outputs, self.outputs)
        if self._library.trajsyn_execute(self._handle, read, written):
            raise RuntimeLibraryError(last_error(self._library))

    def close(self) -> None:
        """Free the native memory; further calls of `execute` raise `RuntimeLibraryError`."""
        if self._handle is not None:
            self._library.trajsyn_free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _describe(self, *, is_output: bool) -> tuple[TensorInfo, ...]:
        library, found = self._library, []
        count = (library.trajsyn_output_count if is_output else library.trajsyn_input_count)(
            self._handle
        )
        dtype, sizes = ctypes.c_int(), (ctypes.c_int32 * _MAX_RANK)()
        for index in range(count):
            rank = library.trajsyn_describe(
                self._handle, is_output, index, ctypes.byref(dtype), sizes
            )
            if dtype.value not in _DTYPES:
                self.close()
                raise RuntimeLibraryError(f"the program uses tensor type {dtype.value}")
            shape = tuple(int(s) for s in sizes[:rank])
            found.append(TensorInfo(np.dtype(_DTYPES[dtype.value]), shape))
        return tuple(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RuntimeLibraryError(f"{path}: {error.strerror}") from error


def set_threads(count: int) -> None:
    """Use `count` threads in this process; loaded programs are prepared again.

    Raises `ValueError` outside 1 to 256, `RuntimeLibraryError` where the pool cannot be replaced.
    """
    if not 1 <= count <= 256:
        raise ValueError(f"{count} threads; choose 1 to 256")
    library = native_library()
    if library.trajsyn_set_threads(count):
        raise RuntimeLibraryError(last_error(library))


def thread_count() -> int:
    """Return how many threads programs run on; raises `RuntimeLibraryError`."""
    library = native_library()
    count = int(library.trajsyn_threads())
    if count < 0:
        raise RuntimeLibraryError(last_error(library))
    return count


def instruction_sets() -> tuple[str, ...]:
    """Return the names of the kernels that this processor runs, the fastest first."""
    names: bytes = native_library().trajsyn_instruction_sets()
    return tuple(names.decode().split())


def int8_instruction_sets() -> tuple[str, ...]:
    """Return the same for int8 arithmetic."""
    names: bytes = native_library().trajsyn_int8_instruction_sets()
    return tuple(names.decode().split())


def set_instruction_set(name: str) -> None:
    """Compute with other kernels of either kind; raises `ValueError` where there are none."""
    if native_library().trajsyn_set_instruction_set(name.encode()):
        known = ", ".join(instruction_sets() + int8_instruction_sets())
        raise ValueError(f"{name!r}: this processor has {known}")


def _pointers(
    kind: str, arrays: Sequence[Array], expected: tuple[TensorInfo, ...]
) -> ctypes.Array[ctypes.c_void_p]:
    if len(arrays) != len(expected):
        raise ValueError(f"{len(arrays)} {kind}s given; the program has {len(expected)}")
    pointers = (ctypes.c_void_p * len(expected))()
    for index, (array, info) in enumerate(zip(arrays, expected, strict=True)):
        if array.dtype != info.dtype or array.shape != info.shape:
            raise ValueError(
                f"{kind} {index}: expected {info.shape} {info.dtype}, "
                f"got {array.shape} {array.dtype}"
            )
        if not array.flags.c_contiguous or not array.flags.aligned:
            raise ValueError(f"{kind} {index} is not C-contiguous and aligned")
        pointers[index] = array.ctypes.data
    return pointers
