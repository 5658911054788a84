"""What the C library does with the memory of tensors that are gone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
KEPT_BYTES = 256 << 20


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the whole process keep up to `KEPT_BYTES` of freed memory meanwhile, under glibc.

    By default it gives every large tensor back to the kernel, which clears the pages and maps them
    in again for the next one: a fifth to a third of a small network's reverse step. Afterwards the
    thresholds are the highest that glibc's own rule reaches by itself, and what was kept is given
    back. Without glibc nothing happens.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        library.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        library.malloc_trim(0)
