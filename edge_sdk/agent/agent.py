"""The agent's loop: one thread owns all state, slow work runs in a second one.

Everything that arrives is an event in one queue. Everything durable is in the `Store` before
anybody is told of it, so that the process may be killed at any instruction.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import edge_sdk
from edge_sdk.agent.config import LoadedConfig
from edge_sdk.agent.fetcher import Fetcher
from edge_sdk.agent.installation import Installation
from edge_sdk.agent.installer import Candidate, Installer
from edge_sdk.agent.jobs import Finished, Jobs
from edge_sdk.agent.progress import write_progress
from edge_sdk.agent.slots import envelope_sha256, release_file
from edge_sdk.agent.store import Store
from edge_sdk.agent.uplink import Uplink
from edge_sdk.errors import EdgeError, ProtocolError, ReleaseError, StorageError
from edge_sdk.mqtt import Connected, Disconnected, MqttLink, Oversized, Received
from edge_sdk.protocol import topics
from edge_sdk.protocol.chunks import decode_chunk
from edge_sdk.protocol.messages import (
    DOWNLINK,
    AgentState,
    BlobRef,
    Done,
    Need,
    Reject,
    Release,
    Status,
    Task,
    decode_message,
    encode_message,
)
from edge_sdk.protocol.signing import load_private_key, load_public_key, open_sealed

if TYPE_CHECKING:
    from edge_sdk.agent.local_training import TrainedRound

log = logging.getLogger(__name__)

TICK_S = 0.2
PROGRESS_S = 2.0
STORAGE_PAUSE_S = 10.0
MAX_QUEUED_EVENTS = 500  # of at most 64 KiB each; a transfer has at most 16 chunks on their way


class Agent:
    """One device's client. Feed `handle` and `tick`; `run` does both for a real connection."""

    def __init__(
        self, config: LoadedConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        settings = config.settings
        self.config = config
        self.device = settings.device
        self.store = Store(config.state)
        self.events: queue.Queue[Any] = queue.Queue(MAX_QUEUED_EVENTS)
        self._clock = clock
        key = load_private_key(config.resolve(settings.private_key))
        self._server_key = load_public_key(config.resolve(settings.server_public_key))
        self._fetcher = Fetcher(config.state / "fetched", device=self.device)
        self._cancel = threading.Event()
        self._stop = threading.Event()
        self._jobs = Jobs(self.events, self._stop)
        self._installer = Installer(config, self.store, stopping=self._stop)
        self._installation = Installation(config, self._installer, self._jobs, stopping=self._stop)
        self.uplink = Uplink(self.device, key, self.store)
        self._task: Task | None = None
        self._newest_task_blobs: list[BlobRef] = []  # kept: the next round has the same program
        self._release: tuple[Release, bytes] | None = None
        self._bytes_down = self.store.number("bytes_down")
        self._steps = (0, 0)
        self._samples = 0
        self._reported: tuple[object, ...] = ()
        self._shown = ""
        self._heartbeat_due_s = self._progress_due_s = 0.0
        if self.store.get("probation_version") is not None:
            self._installation.resume(self._server_key)

    # The loop

    def run(self) -> None:
        """Connect and work until `stop` is called."""
        link = MqttLink(
            self.config.settings.broker,
            client_id=self.device,
            subscriptions=(
                topics.TASK,
                topics.RELEASE,
                topics.downlink(self.device, "msg"),
                topics.downlink(self.device, "chunk"),
            ),
            events=self.events,
        )
        self.uplink.link = link
        link.start()
        try:
            while not self._stop.is_set():
                try:
                    with contextlib.suppress(queue.Empty):
                        self.handle(self.events.get(timeout=TICK_S))
                    self.tick()
                except (OSError, StorageError, sqlite3.OperationalError) as error:
                    # A full disk, most likely; whatever was interrupted is asked for again.
                    log.warning("the state directory cannot be used: %s", error)
                    self._stop.wait(STORAGE_PAUSE_S)
        finally:
            self.close()
            link.stop()

    def stop(self) -> None:
        """Make `run` return soon; a training round in progress is given up and done again later."""
        self._stop.set()
        self._cancel.set()

    def close(self) -> None:
        """End the slow job and close the store."""
        self.stop()
        self._jobs.close()
        try:
            self.store.put(**self._bytes())
            self._write_progress("stopped")
        finally:
            self.store.close()

    def handle(self, event: Any) -> None:
        """Take one event; what a peer did wrong is logged and changes nothing."""
        match event:
            case Received(topic, payload):
                self._bytes_down += len(payload)
                try:
                    self._on_message(topic, payload)
                except ProtocolError as error:
                    log.warning("ignored a message on %s: %s", topic, error)
            case Connected():
                log.info("connected to the broker")
                self.uplink.offer_again()
                self.uplink.say(self._fetcher.on_connect(self._clock()))
                self._heartbeat_due_s = 0.0
            case Disconnected(reason):
                log.warning("connection lost: %s", reason)
            case Oversized(topic, size):
                log.warning("ignored %d bytes on %s", size, topic)
            case Finished():
                self._jobs.finish(event)
        self._advance()

    def tick(self) -> None:
        """Do what time alone asks for."""
        now_s = self._clock()
        if self.uplink.link is None:
            return
        self.uplink.link.tick()
        self._drop_expired_task()
        if self.uplink.connected:
            self.uplink.say(self._fetcher.on_tick(now_s))
            self.uplink.on_tick(now_s)
            self._report_status(now_s)
        state = self._state()
        if state != self._shown or now_s >= self._progress_due_s:
            self._shown, self._progress_due_s = state, now_s + PROGRESS_S
            self._write_progress(state)

    # What arrives

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic == topics.TASK:
            self._on_task(payload)
        elif topic == topics.RELEASE:
            self._on_release(payload)
        elif topic == topics.downlink(self.device, "chunk"):
            self.uplink.say(self._fetcher.on_chunk(decode_chunk(payload), self._clock()))
        elif topic == topics.downlink(self.device, "msg"):
            message = decode_message(open_sealed(payload, self._server_key), DOWNLINK)
            if getattr(message, "device", None) != self.device:
                raise ProtocolError("the message is for another device")
            match message:
                case Need():
                    self.uplink.send_chunks(message, self._clock())
                case Done():
                    self.uplink.settle(message.sha256, message.verdict)
                case Reject():
                    self.uplink.on_reject(message, self._clock())

    def _on_task(self, payload: bytes) -> None:
        if not payload:
            return  # the retained task was taken back; unsigned, so what we have runs until expiry
        task = decode_message(open_sealed(payload, self._server_key), (Task,))
        self.uplink.offer_again()  # a server that publishes its task has just begun to listen
        if not isinstance(task, Task) or task == self._task:
            return
        if task.expires_at_s < self._now_s(task.issued_at_s):
            raise ProtocolError(f"the task for round {task.round} has expired")
        current = self._task
        if current is not None and task.issued_at_s < current.issued_at_s:
            raise ProtocolError(f"the task for round {task.round} is older than the one at hand")
        if task.round <= self.store.highest_round(task.run):
            self._task = None
            return
        self._task = task
        if current is not None:
            if _work(current) == _work(task):
                return  # only its deadline has moved; training goes on
            log.info("round %d replaces round %d", task.round, current.round)
        self._cancel.set()  # a job for an older round is of no use any more
        self._newest_task_blobs = [task.program, task.base]
        self._fetch()

    def _drop_expired_task(self) -> None:
        """Give up a task that could not be begun in time; one in training is sent all the same."""
        task = self._task
        if task is not None and self._jobs.state != "train" and task.expires_at_s < self._now_s(0):
            log.info("round %d: its time is over", task.round)
            self._task = None
            self._fetch()

    def _on_release(self, envelope: bytes) -> None:
        if not envelope or self.store.release_verdict(envelope_sha256(envelope)) is not None:
            return
        if self._release is not None and self._release[1] == envelope:
            return
        try:
            release = decode_message(open_sealed(envelope, self._server_key), (Release,))
        except ProtocolError as error:
            reason = f"refused a release: {error}"
            self.store.note_foreign_release(envelope_sha256(envelope), reason)
            raise
        assert isinstance(release, Release)
        if release.version == self.store.number("probation_version"):
            return  # it runs already; its health check is under way and will say more
        try:
            self._installer.check_admissible(release, self._now_s(release.created_at_s))
        except ReleaseError as error:
            self._installer.refuse(release, envelope, error)
            return
        if self._release is not None and release.version <= self._release[0].version:
            return
        self._release = (release, envelope)
        self._fetch()

    # What is told

    def _report_status(self, now_s: float) -> None:
        state, detail = self._state(), self._detail()
        facts = (state, self._task and self._task.round, self.store.number("active_version"))
        if facts == self._reported and now_s < self._heartbeat_due_s:
            return
        self._reported = facts
        self._heartbeat_due_s = now_s + self.config.settings.heartbeat_s
        self.store.put(**self._bytes())
        self.uplink.say(
            Status(
                device=self.device,
                at_s=round(time.time(), 3),
                agent_version=edge_sdk.__version__,
                state=state,
                detail=detail,
                round=self._task.round if self._task else None,
                active_version=self.store.number("active_version"),
                samples=self._samples,
                outbox=len(self.store.outbox()),
                **self._bytes(),
            )
        )

    # What is done

    def _fetch(self) -> None:
        wanted: list[BlobRef] = []
        if self._release is not None:
            wanted += self._release_blobs(self._release[0])
        if self._task is not None:
            wanted += [self._task.program, self._task.base]
        self._fetcher.keep_only(wanted + self._newest_task_blobs)
        self.uplink.say(self._fetcher.want(wanted, self._clock()))

    def _advance(self) -> None:
        """Start the next slow job if there is one and everything for it is here."""
        if self._jobs.state is not None or self._stop.is_set():
            return
        if self._release is not None:
            release, envelope = self._release
            blobs = self._release_blobs(release)
            if any(self._fetcher.failed(b) for b in blobs):
                self._release = None
                error = ProtocolError("its files arrived without the sha256 that it names")
                self._installer.refuse(release, envelope, error)
            elif all(self._fetcher.has(b) for b in blobs):
                self._install(release, envelope)
                return
        if self._task is not None:
            blobs = [self._task.program, self._task.base]
            if any(self._fetcher.failed(b) for b in blobs):
                log.error("round %d cannot be trained: its files are damaged", self._task.round)
                self._task = None
            elif all(self._fetcher.has(b) for b in blobs):
                self._train(self._task)

    def _train(self, task: Task) -> None:
        log.info("round %d: training", task.round)
        self._cancel.clear()
        residual = self.store.residual(task.run, task.layout)

        def progress(step: int, steps: int) -> None:
            self._steps = (step, steps)

        def work() -> TrainedRound | None:
            # Only here: numpy and the runtime, 15 MB, are no burden to a device that waits.
            from edge_sdk.agent.local_training import train_round

            return train_round(
                task,
                config=self.config,
                program_path=self._fetcher.path(task.program),
                base_path=self._fetcher.path(task.base),
                residual=residual,
                should_stop=self._cancel.is_set,
                progress=progress,
            )

        self._jobs.start("train", work, lambda r, e: self._trained(task, r, e))

    def _trained(self, task: Task, trained: TrainedRound | None, error: EdgeError | None) -> None:
        self._steps = (0, 0)
        if error is not None:
            log.error("round %d was not trained: %s", task.round, error)
        elif trained is not None:
            self._samples = trained.offer.samples
            self.store.add_update(
                trained.data,
                encode_message(trained.offer),
                run=task.run,
                round_number=task.round,
                residual=trained.residual,
                layout=task.layout,
            )
            log.info(
                "round %d: trained on %d images in %.1f s, %d bytes to send",
                task.round, trained.offer.samples, trained.offer.wall_s, trained.offer.blob.size,
            )  # fmt: skip
        done = error is not None or trained is not None
        if done and self._task is not None and _work(self._task) == _work(task):
            self._task = None

    def _install(self, release: Release, envelope: bytes) -> None:
        candidate = Candidate(
            release,
            envelope,
            self._fetcher.path(release_file(release, self.config.settings.model.precision).blob),
            self._fetcher.path(release.reference),
        )

        def tried() -> None:
            if self._release == (release, envelope):  # else a newer one came meanwhile
                self._release = None

        self._installation.begin(candidate, tried)

    # Small things

    def _release_blobs(self, release: Release) -> list[BlobRef]:
        file = release_file(release, self.config.settings.model.precision)
        return [file.blob, release.reference]

    def _now_s(self, signed_time_s: float) -> float:
        """Return the wall clock, never behind the latest signed time: a Pi may have no clock."""
        seen_s = float(self.store.get("seen_time_s") or 0.0)
        if signed_time_s > seen_s + 60:
            self.store.put(seen_time_s=signed_time_s)
        return max(time.time(), seen_s, signed_time_s)

    def _bytes(self) -> dict[str, int]:
        return {"bytes_up": self.uplink.bytes_up, "bytes_down": self._bytes_down}

    def _state(self) -> AgentState:
        if self._jobs.state is not None:
            return self._jobs.state
        if self._task is not None or self._release is not None:
            return "fetch"
        return "publish" if any(i.kind == "update" for i in self.store.outbox()) else "idle"

    def _detail(self) -> str:
        done, steps = self._steps
        return f"step {done} of {steps}" if steps else ""

    def _write_progress(self, state: str) -> None:
        last = self.store.last_release()
        write_progress(
            self.config.state,
            {
                "device": self.device,
                "state": state,
                "detail": self._detail(),
                "connected": self.uplink.connected,
                "round": self._task.round if self._task else None,
                "outbox": len(self.store.outbox()),
                "active_slot": self.store.get("active_slot"),
                "active_version": self.store.number("active_version"),
                "last_release": None
                if last is None
                else {"version": last[0], "verdict": last[1], "reason": last[2]},
                "agent_version": edge_sdk.__version__,
                "at_s": round(time.time(), 3),
                **self._bytes(),
            },
        )


def _work(task: Task) -> Task:
    """Return the task without its times: what is to be trained."""
    return replace(task, issued_at_s=0.0, expires_at_s=0.0)
