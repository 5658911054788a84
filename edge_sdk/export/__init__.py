"""From a network to programs for devices. The only part of `edge_sdk` that imports torch."""

from edge_sdk.export.programs import evaluation_program, training_program

__all__ = ["evaluation_program", "training_program"]
