"""ExecuTorch without torch: run programs on numpy arrays, read the files in which they travel.

Importing this package loads numpy-level code only; the native library is loaded on first use and
built by `python -m edge_sdk.runtime.build`.
"""

from edge_sdk.runtime.buffers import aligned_zeros
from edge_sdk.runtime.program import (
    Program,
    TensorInfo,
    instruction_sets,
    int8_instruction_sets,
    set_instruction_set,
    set_threads,
    thread_count,
)
from edge_sdk.runtime.program_file import (
    Form,
    GateResult,
    InferenceResult,
    ProgramFile,
    ProgramParameter,
)

__all__ = [
    "Form",
    "GateResult",
    "InferenceResult",
    "Program",
    "ProgramFile",
    "ProgramParameter",
    "TensorInfo",
    "aligned_zeros",
    "instruction_sets",
    "int8_instruction_sets",
    "set_instruction_set",
    "set_threads",
    "thread_count",
]
