"""The native library and the signatures of its functions."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from edge_sdk.errors import RuntimeLibraryError

LIBRARY = Path(__file__).parent / "lib" / "libtrajsyn_runtime.so"


def last_error(library: ctypes.CDLL) -> str:
    """Return why the last call of this thread failed."""
    message: bytes = library.trajsyn_last_error()
    return message.decode(errors="replace")


@functools.cache
def native_library() -> ctypes.CDLL:
    """Return the library; raises `RuntimeLibraryError` where it does not load."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise RuntimeLibraryError(
            f"{LIBRARY.name} does not load ({error}); run `python -m edge_sdk.runtime.build`"
        ) from error
    pointers = ctypes.POINTER(ctypes.c_void_p)
    library.trajsyn_load.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.trajsyn_load.restype = ctypes.c_void_p
    library.trajsyn_free.argtypes = [ctypes.c_void_p]
    library.trajsyn_free.restype = None
    library.trajsyn_input_count.argtypes = [ctypes.c_void_p]
    library.trajsyn_output_count.argtypes = [ctypes.c_void_p]
    library.trajsyn_describe.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_int),
        ctypes.POINTER(ctypes.c_int32),
    ]
    library.trajsyn_execute.argtypes = [ctypes.c_void_p, pointers, pointers]
    library.trajsyn_set_threads.argtypes = [ctypes.c_uint32]
    library.trajsyn_instruction_sets.restype = ctypes.c_char_p
    library.trajsyn_int8_instruction_sets.restype = ctypes.c_char_p
    library.trajsyn_set_instruction_set.argtypes = [ctypes.c_char_p]
    library.trajsyn_sgd_step.argtypes = [
        *(ctypes.c_void_p for _ in range(4)),
        ctypes.c_size_t,
        *(ctypes.c_float for _ in range(5)),
    ]
    library.trajsyn_last_error.restype = ctypes.c_char_p
    return library
