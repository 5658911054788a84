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
    if workspace.config.hardening.distil:
        rounds = workspace.ledger.latest_round()
        proxy = _scheduled_proxy(workspace, rounds, show=show, device=device)
    else:
        proxy = arm
        with show(f"distil {arm}") as progress:
            run_distill(
                workspace,
                arm,
                settings=distill_settings(workspace),
                progress=progress,
                device=device,
            )
    with show(f"harden {arm}") as progress:
        run_harden(
            workspace,
            arm,
            proxy=proxy,
            settings=_last_settings(workspace),
            progress=progress,
            device=device,
        )
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
    name = workspace.config.hardened_name(number)
    proxy = _scheduled_proxy(workspace, number, show=show, device=device)
    settings = scheduled_settings(workspace, number)
    with show(f"harden {name}") as progress:
        run_harden(
            workspace, name, proxy=proxy, settings=settings, progress=progress, device=device
        )
    weights, _ = workspace.weights(name)
    ledger.record_hardened_base(number, weights, model=name)
    return name


def _last_settings(workspace: Workspace) -> HardenSettings:
    """Return how the pipeline hardens: as [harden] says, or as a schedule ends that distils."""
    if not workspace.config.hardening.distil:
        return harden_settings(workspace)
    return scheduled_settings(workspace, workspace.config.run.rounds)


def scheduled_settings(workspace: Workspace, number: int) -> HardenSettings:
    """Return how the weights are hardened that round `number` starts from."""
    config, settings = workspace.config, harden_settings(workspace)
    real_per_class = 0.0
    path = workspace.server_set_path()
    if settings.with_server_set and path is not None:
        real_per_class = len(workspace.images(path)[0]) / config.model.spec.classes
    return config.schedule.between.config(
        settings,
        number,
        rounds=config.run.rounds,
        schedule=config.hardening,
        real_per_class=real_per_class,
    )


def _scheduled_proxy(
    workspace: Workspace,
    number: int,
    *,
    show: Callable[[str], AbstractContextManager[Progress]],
    device: str,
) -> str:
    """Return the newest proxy set that the schedule has made before round `number`.

    Each is distilled from the fleet's path since the first hardened round and holds the images of
    the one before it. Before the first there are only the images that a distillation starts from:
    with the arm "trajsyn_server_set", which hardens on its real images anyway, random ones.
    """
    schedule = workspace.config.hardening
    arm = workspace.config.pipeline.arm
    settings = dataclasses.replace(
        distill_settings(workspace),
        segment="fleet",
        window="rounds",
        first_round=0,
        last_round=0,
        rounds_ahead=1,  # no segment crosses a hardening, and there is one before every round
    )
    if arm == WITH_SERVER_SET:
        settings = dataclasses.replace(settings, start="server_blends")
    made: str | None = None
    for index, distilled in enumerate(t for t in schedule.distil if t <= number):
        earlier, made = made, workspace.config.hardened_name(distilled)
        window = dataclasses.replace(
            settings,
            first_round=schedule.harden[0][0],
            last_round=distilled - 1,
            seed=settings.seed + index,
        )
        with show(f"distil {made}") as progress:
            run_distill(
                workspace,
                made,
                settings=window,
                progress=progress,
                device=device,
                earlier=earlier,
            )
    if made is not None:
        return made
    start = f"{arm}-start"
    images = dataclasses.replace(
        settings,
        start="structured" if arm == WITH_SERVER_SET else settings.start,
        iterations=0,
        images_per_class=workspace.config.schedule.start_images_per_class,
    )
    with show(f"make {start}") as progress:
        run_distill(workspace, start, settings=images, progress=progress, device=device)
    return start


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
