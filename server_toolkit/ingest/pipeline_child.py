"""The process that distils and hardens between rounds and, after the last, releases too."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from server_toolkit.ledger import Ledger
from server_toolkit.locks import try_lock

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

    def on_tick(self, *, between_rounds: bool = False) -> None:
        """Start the child if it is time, or see whether it has ended.

        Call it while a round waits for `between_rounds` hardening, and once the rounds are over.
        """
        if self.state == "finished" and (between_rounds or not self._ledger.pipeline_finished()):
            self.state = "waiting"  # more rounds were configured, and they are over too
        if self.state == "waiting":
            self._start(between_rounds)
        elif self.state == "running" and self._process is not None:
            code = self._process.poll()
            if code == 0 and between_rounds:
                self.state = "waiting"  # for the next time; the ledger has the hardened weights
            elif code == 0:
                self._ledger.record_pipeline_finished()
                self.state = "finished"
                log.info("the pipeline is done")
            elif code is not None:
                self.state = "failed"
                log.error("the pipeline ended with exit code %d; see %s", code, self._log_file)
                if not between_rounds:
                    log.error(
                        "it is tried again when the server starts, or run "
                        "'server-toolkit pipeline --config %s'",
                        self._config_file,
                    )

    def stop(self) -> None:
        """Ask a running child to keep a checkpoint and end, and wait for it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("the pipeline does not end; killing it")
            self._process.kill()
            self._process.wait()

    def _start(self, between_rounds: bool) -> None:
        lock = try_lock(self._ledger.directory / "pipeline.lock")
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
        self.state = "running"
        when = "a round is over" if between_rounds else "the rounds are over"
        log.info("%s; the pipeline runs, its messages go to %s", when, self._log_file)
