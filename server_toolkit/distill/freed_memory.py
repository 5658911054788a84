"""What the C library does with the memory of tensors that are gone."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
KEPT_BYTES = 256 << 20


def keep_freed_memory() -> None:
    """Let the process keep up to `KEPT_BYTES` of freed memory, where the C library is glibc.

    By default it gives every large tensor back to the kernel, which clears the pages and maps them
    in again for the next one: a fifth to a third of a small network's reverse step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
