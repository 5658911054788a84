"""The pipeline: every stage from the last round to the release, and hardening between rounds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from server_toolkit.distill.config import DistillConfig
from server_toolkit.distill.start_kinds import needs_server_set
from server_toolkit.stages.distill import run_distill
from server_toolkit.stages.evaluate import find_judge, run_evaluate
from server_toolkit.stages.harden import HardenSettings, run_harden
from server_toolkit.stages.release import Released, is_released, run_release
from server_toolkit.stages.workspace import FEDAVG, Progress, Workspace

log = logging.getLogger(__name__)

WITH_SERVER_SET = "trajsyn_server_set"
WITHOUT_SERVER_SET = "trajsyn_noise"


def run_pipeline(
    workspace: Workspace,
    *,
    show: Callable[[str], AbstractContextManager[Progress]],
    device: str = "cpu",
) -> Released | None:
    """Distil, harden, evaluate (the arm and "fedavg") and release the arm of [pipeline].

    Returns None if the newest release is this model already. `show(title)` gives each stage its
    progress. A stage whose result is there, made from the same inputs, does nothing, so that an
    interrupted pipeline carries on. Raises what the stages raise; `GateError` leaves the devices
    with what they have.
    """
    arm = workspace.config.pipeline.arm
    _distill_and_harden(workspace, arm, show=show, device=device)
    judge = find_judge(workspace, [arm, FEDAVG])
    if judge.warning:
        log.warning(judge.warning)
    for name in (FEDAVG, arm):
        with show(f"evaluate {name}") as progress:
            run_evaluate(workspace, name, judge=judge, progress=progress, device=device)
    if is_released(workspace, arm):
        log.info("%s is released already", arm)
        return None
    return run_release(workspace, arm)


def run_between_rounds(
    workspace: Workspace,
    *,
    show: Callable[[str], AbstractContextManager[Progress]],
    device: str = "cpu",
) -> str | None:
    """Distil and harden the newest aggregate and let the next round start from the result.

    Returns the model's name, or None if the next round has its hardened weights already or has
    begun. Interrupted, it carries on. Raises what the stages raise.
    """
    ledger = workspace.ledger
    number = ledger.latest_round()
    hardened = any(row.round == number for row in ledger.hardened_bases())
    if hardened or ledger.round(number) is not None:
        return None
    name = f"{workspace.config.pipeline.arm}-before-round-{number}"
    _distill_and_harden(workspace, name, show=show, device=device)
    weights, _ = workspace.weights(name)
    ledger.record_hardened_base(number, weights, model=name)
    return name


def _distill_and_harden(
    workspace: Workspace,
    name: str,
    *,
    show: Callable[[str], AbstractContextManager[Progress]],
    device: str,
) -> None:
    settings = distill_settings(workspace)
    with show(f"distil {name}") as progress:
        run_distill(workspace, name, settings=settings, progress=progress, device=device)
    with show(f"harden {name}") as progress:
        run_harden(
            workspace,
            name,
            proxy=name,
            settings=harden_settings(workspace),
            progress=progress,
            device=device,
        )


def distill_settings(workspace: Workspace) -> DistillConfig:
    """Return [distill] with the start that the arm's name promises.

    "trajsyn_server_set" starts from the server set, "trajsyn_noise" from no real image; any other
    arm starts as [distill] says.
    """
    settings = workspace.config.settings_of("distill", DistillConfig)
    arm = workspace.config.pipeline.arm
    if arm == WITH_SERVER_SET:
        return dataclasses.replace(settings, start="server_set")
    if arm == WITHOUT_SERVER_SET and needs_server_set(settings.start):
        return dataclasses.replace(settings, start="structured")
    return settings


def harden_settings(workspace: Workspace) -> HardenSettings:
    """Return [harden] with the real images that the arm's name promises, or without them."""
    settings = workspace.config.settings_of("harden", HardenSettings)
    arm = workspace.config.pipeline.arm
    if arm in (WITH_SERVER_SET, WITHOUT_SERVER_SET):
        return dataclasses.replace(settings, with_server_set=arm == WITH_SERVER_SET)
    return settings
