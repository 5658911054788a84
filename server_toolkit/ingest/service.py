"""The daemon behind `server-toolkit serve`: one thread that owns the ledger, fed by MQTT."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.mqtt import Connected, Disconnected, Event, MqttLink, Oversized, Received
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import encode_message
from edge_sdk.protocol.signing import seal
from server_toolkit.config import ServerConfig
from server_toolkit.errors import LedgerError
from server_toolkit.ingest.checks import Limits
from server_toolkit.ingest.handler import Handler
from server_toolkit.ingest.pipeline_child import PipelineChild
from server_toolkit.ledger import Ledger
from server_toolkit.locks import SERVE_LOCK, try_lock
from server_toolkit.rounds.coordinator import Coordinator

log = logging.getLogger(__name__)

TICK_S = 1.0
GARBAGE_S = 3600.0
PAUSE_AFTER_FAILURE_S = 30.0
MAX_QUEUED_EVENTS = 2000  # of at most 64 KiB each


@dataclass(frozen=True, kw_only=True)
class ServeState:
    """What `serve.json` says: for `status`, scripts and the line on the terminal."""

    state: str
    run: str
    round: int
    rounds: int
    deadline_s: float | None
    reported: int
    devices: int
    accepted: int
    late: int
    refused: int
    messages: int
    connected: bool
    release: int | None
    pipeline: str
    pid: int
    at_s: float


class Service:
    """Runs rounds, records updates, answers devices, publishes releases, until `stop`.

    Every part is guarded: what fails is logged with its traceback and tried again later, while
    the rest goes on.
    """

    def __init__(
        self,
        config: ServerConfig,
        ledger: Ledger,
        key: Ed25519PrivateKey,
        *,
        on_state: Callable[[ServeState], None],
    ) -> None:
        self.ledger = ledger
        self._config = config
        self._key = key
        self._on_state = on_state
        self._events: queue.Queue[Event] = queue.Queue(MAX_QUEUED_EVENTS)
        self._link = MqttLink(
            config.broker_settings(),
            client_id=config.broker.client_id or f"trajsyn-server-{config.run.name}",
            subscriptions=(topics.ALL_UPLINKS,),
            events=self._events,
        )
        limits = Limits(
            max_update_bytes=config.max_update_bytes,
            max_open_transfers=config.limits.max_open_transfers_per_device,
            max_norm=config.limits.max_update_norm,
        )
        self._handler = Handler(ledger, limits=limits, key=key, publish=self._link.publish)
        self._coordinator = Coordinator(
            ledger,
            rounds=config.run.rounds,
            quorum=config.rounds.quorum,
            deadline_s=config.rounds.deadline_s,
            training=config.training.settings,
            encoding=config.training.encoding,
            schedule=config.hardening,
        )
        self._pipeline = PipelineChild(ledger, config.file) if config.pipeline.enabled else None
        self._task: bytes | None = None  # what the broker retains, as far as we know
        self._release: int | None = None
        self._stopping = threading.Event()
        self._paused_until: dict[str, float] = {}
        self._garbage_due_s = 0.0

    def stop(self) -> None:
        """Make `run` end soon; may be called from a signal handler or another thread."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until `stop`; raises `LedgerError` if another process has this directory."""
        lock = try_lock(self.ledger.directory / SERVE_LOCK)
        if lock is None:
            raise LedgerError(
                "another process ('serve' or 'simulate') runs the rounds in "
                f"{self.ledger.directory}; wait until it has ended, or end it with SIGTERM"
            )
        try:
            self._coordinator.start(time.time())
            self._link.start()
            next_tick = time.monotonic()
            while not self._stopping.is_set():
                try:
                    event = self._events.get(timeout=max(next_tick - time.monotonic(), 0.001))
                    self._guard("event", self._take, event)
                except queue.Empty:
                    pass
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + TICK_S
                    self._tick()
        finally:
            log.info("stopping")
            if self._pipeline is not None:
                self._pipeline.stop()
            self._link.stop()
            self._guard("messages", self._handler.on_tick, time.time())
            self._guard("state", self._write_state, "stopped")
            os.close(lock)

    def _take(self, event: Event) -> None:
        match event:
            case Received(topic, payload):
                recorded = self._handler.transfers.recorded
                self._handler.handle(topic, payload, time.time())
                if self._handler.transfers.recorded > recorded:
                    self._guard("rounds", self._advance_rounds)
            case Oversized(topic, size):
                self._handler.letters.add(topic, size, "larger than any message", time.time())
            case Connected():
                log.info("connected to the broker")
                self._task = self._release = None
                self._publish_task()
                self._publish_release()
            case Disconnected(reason):
                log.warning("no connection to the broker: %s", reason)

    def _tick(self) -> None:
        self._guard("link", self._link.tick)
        self._guard("messages", self._handler.on_tick, time.time())
        self._guard("rounds", self._advance_rounds)
        self._guard("task", self._publish_task)
        self._guard("release", self._publish_release)
        self._guard("pipeline", self._advance_pipeline)
        if time.monotonic() >= self._garbage_due_s:
            self._garbage_due_s = time.monotonic() + GARBAGE_S
            self._guard("garbage", self._handler.transfers.collect_garbage)
        self._guard("state", self._write_state, "serving")

    def _guard(self, part: str, action: Callable[..., None], *arguments: object) -> None:
        """Run a part of the daemon; a failure is logged and that part pauses, the others go on."""
        if time.monotonic() < self._paused_until.get(part, 0.0):
            return
        try:
            action(*arguments)
        except Exception:
            log.exception("%s failed; trying again in %.0f s", part, PAUSE_AFTER_FAILURE_S)
            if part != "event":
                self._paused_until[part] = time.monotonic() + PAUSE_AFTER_FAILURE_S

    def _advance_rounds(self) -> None:
        if self._coordinator.on_tick(time.time()):
            self._publish_task()

    def _advance_pipeline(self) -> None:
        if self._pipeline is None:
            return
        failed = self._pipeline.poll()
        if self._coordinator.finished:
            self._pipeline.start_if_due()
        elif self._coordinator.waits_for_hardening:
            if failed:
                self._coordinator.skip_hardening()
            else:
                self._pipeline.start_if_due(between_rounds=True)

    def _publish_task(self) -> None:
        """Publish the retained task if it is news; an empty message takes back the last one."""
        task = self._coordinator.task()
        envelope = b"" if task is None else seal(encode_message(task), self._key)
        if envelope != self._task and self._link.publish(topics.TASK, envelope, retain=True):
            self._task = envelope

    def _publish_release(self) -> None:
        """Publish the newest release if it is news; raises `LedgerError` if a file is damaged.

        Devices that pulled a damaged file would refuse this version for good.
        """
        newest = self.ledger.latest_release()
        if newest is None or newest.version == self._release or not self._link.connected:
            return
        for file in newest.files:
            self.ledger.blobs.read(file["sha256"])
        if self._link.publish(topics.RELEASE, newest.envelope, retain=True):
            self._release = newest.version
            log.info("release %s version %d is published", newest.name, newest.version)

    def _write_state(self, state: str) -> None:
        current = self.ledger.open_round()
        counts = self.ledger.update_counts()
        shown = ServeState(
            state=state,
            run=self.ledger.run,
            round=self.ledger.latest_round(),
            rounds=self._coordinator.rounds,
            deadline_s=current.deadline_s if current else None,
            reported=len(self.ledger.updates(current.number)) if current else 0,
            devices=sum(device.active for device in self.ledger.devices()),
            accepted=counts["accepted"],
            late=counts["late"],
            refused=self._handler.letters.count,
            messages=self._handler.messages,
            connected=self._link.connected,
            release=self._release,
            pipeline=self._pipeline.state if self._pipeline else "off",
            pid=os.getpid(),
            at_s=time.time(),
        )
        _replace(self.ledger.directory / "serve.json", json.dumps(dataclasses.asdict(shown)))
        self._on_state(shown)


def _replace(path: Path, text: str) -> None:
    """Readers see the old file or the new one; it tells of the present and need not be durable."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.rename(path)
