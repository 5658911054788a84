"""The process that distils and hardens between rounds and, after the last, releases too."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from server_toolkit.ledger import Ledger
from server_toolkit.locks import PIPELINE_LOCK, try_lock

log = logging.getLogger(__name__)

PipelineState = Literal["waiting", "running", "finished", "failed"]
STOP_TIMEOUT_S = 30.0


class PipelineChild:
    """Runs `server-toolkit pipeline` beside the server, which stays small and responsive.

    The child inherits a lock. It outlives a server that is killed, and a new server waits for its
    end instead of starting a second one. A pipeline that failed after the last round is tried again
    at the next start of the server; its stages skip what is done.
    """

    def __init__(self, ledger: Ledger, config_file: Path) -> None:
        self.state: PipelineState = "finished" if ledger.pipeline_finished() else "waiting"
        self._ledger = ledger
        self._config_file = config_file
        self._log_file = ledger.directory / "pipeline.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._between_rounds = False  # what the process was started for

    def poll(self) -> bool:
        """See whether the child has ended; True if it was to harden between rounds and failed.

        Call it often: the next round may open before the child that hardened for it has ended.
        """
        if self._process is None or (code := self._process.poll()) is None:
            return False
        if code:
            log.error("the pipeline ended with exit code %d; see %s", code, self._log_file)
        if self._between_rounds:
            self.state = "waiting"  # for the next time; the ledger has the hardened weights, if any
        elif code == 0:
            self._ledger.record_pipeline_finished()
            self.state = "finished"
            log.info("the pipeline is done")
        else:
            self.state = "failed"
            log.error(
                "it is tried again when the server starts, or run "
                "'server-toolkit pipeline --config %s'",
                self._config_file,
            )
        self._process = None
        return code != 0 and self._between_rounds

    def start_if_due(self, *, between_rounds: bool = False) -> None:
        """Start the child unless it runs or has done its work.

        Call it while a round waits for `between_rounds` hardening, and once the rounds are over.
        """
        if self.state == "finished" and (between_rounds or not self._ledger.pipeline_finished()):
            self.state = "waiting"  # more rounds were configured, and they are over too
        if self.state == "waiting":
            self._start(between_rounds)

    def stop(self) -> None:
        """Ask a running child to keep a checkpoint and end, and wait for it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("the pipeline does not end; killing it")
            self._process.kill()
            self._process.wait()

    def _start(self, between_rounds: bool) -> None:
        lock = try_lock(self._ledger.directory / PIPELINE_LOCK)
        if lock is None:
            return  # one that an earlier server started is at work still
        config = str(self._config_file)
        command = [sys.executable, "-m", "server_toolkit.cli", "pipeline", "--config", config]
        if between_rounds:
            command.append("--between-rounds")
        try:
            with self._log_file.open("ab") as output:
                self._process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, pass_fds=(lock,)
                )
        finally:
            os.close(lock)
        self.state, self._between_rounds = "running", between_rounds
        when = "a round is over" if between_rounds else "the rounds are over"
        log.info("%s; the pipeline runs, its messages go to %s", when, self._log_file)
