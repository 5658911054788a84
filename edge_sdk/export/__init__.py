"""From a network to programs for devices; the only part of `edge_sdk` that imports torch.

torch is loaded on the first use of a function, so that the command line can list the options of
`edge-sdk export` where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.export.inference import inference_program
    from edge_sdk.export.programs import attack_program, evaluation_program, training_program

# What an operator can choose, and what `training_program` is told for it.
TRAINING_PRECISIONS: Mapping[str, Mapping[str, bool]] = {
    "fp32": {},
    "simulated-int8": {"quantized": True},
    "int8": {"int8_arithmetic": True},
}

__all__ = [
    "TRAINING_PRECISIONS",
    "attack_program",
    "evaluation_program",
    "inference_program",
    "training_program",
]


def __getattr__(name: str) -> Any:
    if name == "inference_program":
        from edge_sdk.export.inference import inference_program

        return inference_program
    if name in __all__:
        from edge_sdk.export import programs

        return getattr(programs, name)
    raise AttributeError(name)
