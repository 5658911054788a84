"""Which engine trains the devices."""

from __future__ import annotations

import math
import warnings
from typing import Literal

from edge_sdk.runtime import ProgramFile
from models import ModelSpec
from server_toolkit.errors import ConfigError
from server_toolkit.simulate.local import LocalEngine
from server_toolkit.simulate.native import NativeEngine
from server_toolkit.simulate.settings import Engine, FederationSettings

# How many numbers the largest layer of a whole stack may give: on a CPU what still helped in the
# measurements of docs/simulator.md, on a GPU (1 GiB) what memory allows.
STACK_NUMBERS_ON_CPU, STACK_NUMBERS_ON_GPU = 300_000, 1 << 28


def make_engine(
    spec: ModelSpec,
    settings: FederationSettings,
    *,
    program: ProgramFile | None = None,
    attack_program: ProgramFile | None = None,
) -> LocalEngine:
    """Return the engine of the settings; exports the programs that it needs and nobody gave."""
    if chosen_engine(settings) == "stacked":
        from server_toolkit.simulate.stacked import StackedEngine

        if program is not None and program.ranges:
            raise ConfigError("the stacked engine computes in fp32; int8 needs the native one")
        together = settings.together or stack_size(spec, settings)
        return StackedEngine(spec, settings, together=together)
    if program is None:
        program = export_program("training", spec, settings)
    if program.micro_batch != settings.micro_batch:
        raise ConfigError(
            f"the program takes {program.micro_batch} images at a time, the settings say "
            f"{settings.micro_batch}"
        )
    if settings.objective == "plain":
        return NativeEngine(settings, program)
    if attack_program is None:
        attack_program = export_program("attack", spec, settings)
    return NativeEngine(settings, program, attack_program)


def export_program(
    kind: Literal["training", "attack"], spec: ModelSpec, settings: FederationSettings
) -> ProgramFile:
    """Return the program that a device would be sent; takes seconds."""
    from edge_sdk.export import attack_program, training_program

    export = training_program if kind == "training" else attack_program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about torch's own code
        return export(spec, micro_batch=settings.micro_batch)


def stack_size(spec: ModelSpec, settings: FederationSettings) -> int:
    """Return how many devices to train together: many where each is small, else one."""
    largest = settings.batch_size * max(math.prod(behind) for *_, behind in spec.shapes())
    on_cpu = settings.device == "cpu"
    return max(1, (STACK_NUMBERS_ON_CPU if on_cpu else STACK_NUMBERS_ON_GPU) // largest)


def chosen_engine(settings: FederationSettings) -> Engine:
    """Return "native" or "stacked": measured, the devices' runtime is the faster one on a CPU."""
    if settings.engine != "auto":
        return settings.engine
    return "native" if settings.device == "cpu" else "stacked"
