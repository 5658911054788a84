"""The course of an installation: try, switch, check the health, keep or go back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.agent.installer import Candidate, Installer
from edge_sdk.agent.jobs import Jobs
from edge_sdk.agent.slots import SlotName, open_slot, slot_directory
from edge_sdk.agent.trial import TrialResult
from edge_sdk.errors import EdgeError, ReleaseError
from edge_sdk.protocol.messages import Release

log = logging.getLogger(__name__)


class Installation:
    """Runs the installer's slow steps as jobs and its quick ones in the agent's own thread."""

    def __init__(
        self, config: LoadedConfig, installer: Installer, jobs: Jobs, *, stopping: threading.Event
    ) -> None:
        self._config = config
        self._installer = installer
        self._jobs = jobs
        self._stopping = stopping

    def begin(self, candidate: Candidate, tried: Callable[[], None]) -> None:
        """Try a release and go on to its verdict; `tried` is called when the trial is over."""
        release, envelope = candidate.release, candidate.envelope
        log.info("installing release %s version %d", release.name, release.version)
        slot = self._installer.idle_slot()

        def then(trial: TrialResult | None, error: EdgeError | None) -> None:
            if self._stopping.is_set():
                return  # the stop may be why it failed; it is done again at the next start
            tried()
            if error is not None:
                self._installer.refuse(release, envelope, error)
            elif trial is not None:
                self._installer.switch(release, slot)
                self._check_health(release, envelope, slot, trial)

        self._jobs.start("install", lambda: self._installer.prepare(candidate, slot), then)

    def resume(self, server_key: Ed25519PublicKey) -> None:
        """Make the health check that a power cut interrupted right after the switch."""
        slot = self._installer.active_slot()
        assert slot is not None
        directory = slot_directory(self._config.state, slot)
        try:
            release = open_slot(directory, server_key).release
        except ReleaseError as error:
            log.warning("the new model is damaged, going back to the one before: %s", error)
            self._installer.leave_damaged()
            return
        envelope = (directory / "release.signed").read_bytes()
        self._check_health(release, envelope, slot, None)

    def _check_health(
        self, release: Release, envelope: bytes, slot: SlotName, trial: TrialResult | None
    ) -> None:
        previous = self._installer.previous_slot()

        def then(accuracy: float | None, error: EdgeError | None) -> None:
            if self._stopping.is_set():
                return  # as above
            if error is not None:
                self._installer.go_back(release, envelope, str(error), trial)
            else:
                self._installer.pass_probation(release, envelope, trial, accuracy)

        self._jobs.start(
            "install", lambda: self._installer.check_health(release, slot, previous), then
        )
