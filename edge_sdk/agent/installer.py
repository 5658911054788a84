"""From a fetched release to a running model, or back to the one before with the reason."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.agent.slots import (
    SlotName,
    envelope_sha256,
    fill_slot,
    other,
    slot_directory,
)
from edge_sdk.agent.store import ReleaseVerdict, Store
from edge_sdk.agent.trial import TrialResult, run_trial
from edge_sdk.errors import EdgeError, ReleaseError, TrialInterruptedError
from edge_sdk.protocol.messages import (
    InstallReport,
    InstallVerdict,
    Release,
    encode_message,
    readable,
)

log = logging.getLogger(__name__)

TRIES = 3  # of a trial that something else ended
PAUSE_BETWEEN_TRIES_S = 60.0


@dataclass(frozen=True)
class Candidate:
    """A release whose signature, version and hashes have been checked, and where its files lie."""

    release: Release
    envelope: bytes
    model: Path
    reference: Path


class Installer:
    """Fills the idle slot, tries it, switches, checks its health and goes back if it is ill.

    The switch and everything that must be known to undo it are one database transaction, so that
    a power cut at any point leaves a slot that was tried; an interrupted health check is made
    again at the next start. The slow parts (`prepare`, `check_health`) touch no
    database and may run in another thread.
    """

    def __init__(self, config: LoadedConfig, store: Store, *, stopping: threading.Event) -> None:
        self._config = config
        self._store = store
        self._stopping = stopping
        self._precision = config.settings.model.precision

    def check_admissible(self, release: Release, now_s: float) -> None:
        """Raise `ReleaseError` if the release is older than one that ran here, or has expired."""
        highest = self._store.number("highest_version")
        if release.version <= highest:
            raise ReleaseError(
                f"version {release.version} is not newer than version {highest}, which was "
                "installed here before; to go back, release the old model under a new version"
            )
        if release.expires_at_s < now_s:
            raise ReleaseError(f"version {release.version} has expired; sign it anew")

    def active_slot(self) -> SlotName | None:
        """Return the slot that is running."""
        return _slot(self._store.get("active_slot"))

    def idle_slot(self) -> SlotName:
        """Return the slot that is not running."""
        return other(self.active_slot())

    def prepare(self, candidate: Candidate, slot: SlotName) -> TrialResult:
        """Fill the idle slot and run the trial inference.

        Raises `ReleaseError` for a bad model, `TrialInterruptedError` or `OSError` for what says
        nothing about it.
        """
        fill_slot(
            slot_directory(self._config.state, slot),
            envelope=candidate.envelope,
            precision=self._precision,
            model=candidate.model,
            reference=candidate.reference,
        )
        return self._try(slot, "reference")

    def switch(self, release: Release, slot: SlotName) -> None:
        """Make the tried slot the active one, on probation."""
        self._store.put(
            previous_slot=self.active_slot(),
            previous_version=self._store.number("active_version"),
            active_slot=slot,
            active_version=release.version,
            highest_version=release.version,
            probation_version=release.version,
        )

    def check_health(self, release: Release, slot: SlotName, previous: SlotName | None) -> float:
        """Return the accuracy on the device's own images in [0, 1].

        Raises `ReleaseError` if it is too low, `TrialInterruptedError` if it cannot be measured.
        """
        accuracy = self._try(slot, "local").local_accuracy
        if accuracy is None or accuracy < release.health.min_accuracy:
            raise ReleaseError(
                f"accuracy on this device's images is {accuracy or 0:.3f}, "
                f"below the {release.health.min_accuracy:.3f} that the release asks for"
            )
        if previous is not None:
            try:
                before = self._try(previous, "local").local_accuracy or 0.0
            except ReleaseError as error:
                log.warning("the model before cannot be compared with: %s", error)
                return accuracy
            if accuracy < before - release.health.max_accuracy_drop:
                raise ReleaseError(
                    f"accuracy on this device's images fell from {before:.3f} to {accuracy:.3f}, "
                    f"more than the {release.health.max_accuracy_drop:.3f} that is allowed"
                )
        return accuracy

    def previous_slot(self) -> SlotName | None:
        """Return the slot that ran before the active one."""
        return _slot(self._store.get("previous_slot"))

    def refuse(self, release: Release, envelope: bytes, error: EdgeError) -> None:
        """Leave everything as it is and say why.

        Only a `ReleaseError` is the release's fault and final; after anything else it is tried
        again at the agent's next start.
        """
        self._record(
            release,
            envelope,
            "refused",
            str(error),
            remembered="refused" if isinstance(error, ReleaseError) else "postponed",
            active_version=self._store.number("active_version"),
        )

    def go_back(
        self, release: Release, envelope: bytes, reason: str, trial: TrialResult | None
    ) -> None:
        """Make the slot before the active one again; without one there is no model."""
        values = self._values_before()
        self._record(
            release,
            envelope,
            "rolled_back",
            reason,
            active_version=self._store.number("previous_version"),
            trial=trial,
            values=values,
        )

    def leave_damaged(self) -> None:
        """Go back from a slot that no longer tells which release it held."""
        self._store.put(**self._values_before())

    def pass_probation(
        self, release: Release, envelope: bytes, trial: TrialResult | None, accuracy: float | None
    ) -> None:
        """End the probation: the active slot is healthy."""
        self._record(
            release,
            envelope,
            "running",
            "healthy",
            active_version=release.version,
            trial=trial,
            accuracy=accuracy,
            values={"probation_version": None},
        )

    def _values_before(self) -> dict[str, str | int | float | None]:
        return {
            "active_slot": self._store.get("previous_slot"),
            "active_version": self._store.number("previous_version"),
            "previous_slot": None,
            "probation_version": None,
        }

    def _record(
        self,
        release: Release,
        envelope: bytes,
        verdict: InstallVerdict,
        reason: str,
        *,
        active_version: int,
        remembered: ReleaseVerdict | None = None,
        trial: TrialResult | None = None,
        accuracy: float | None = None,
        values: dict[str, str | int | float | None] | None = None,
    ) -> None:
        """Keep the verdict, what it changes and the report for the server, in one transaction."""
        report = InstallReport(
            device=self._config.settings.device,
            release=release.name,
            version=release.version,
            verdict=verdict,
            reason=readable(reason),
            active_version=active_version,
            precision=self._precision,
            trial_max_abs_diff=trial.max_abs_diff if trial else None,
            local_accuracy=accuracy,
            inference_ms=trial.inference_ms if trial else None,
            at_s=round(time.time(), 3),
        )
        self._store.judge_release(
            envelope_sha256(envelope),
            release.version,
            remembered or verdict,
            reason,
            encode_message(report),
            **(values or {}),
        )
        level = logging.INFO if verdict == "running" else logging.ERROR
        log.log(
            level, "release %s version %d: %s %s", release.name, release.version, verdict, reason
        )

    def _try(self, slot: SlotName, kind: Literal["reference", "local"]) -> TrialResult:
        """Run a trial, again after a pause if something else ended it."""
        for _ in range(TRIES - 1):
            try:
                return run_trial(self._config.file, slot, kind, stopping=self._stopping)
            except TrialInterruptedError as error:
                log.warning("%s; trying again in %.0f s", error, PAUSE_BETWEEN_TRIES_S)
                if self._stopping.wait(PAUSE_BETWEEN_TRIES_S):
                    raise
        return run_trial(self._config.file, slot, kind, stopping=self._stopping)


def _slot(text: str | None) -> SlotName | None:
    return None if text is None else ("A" if text == "A" else "B")
