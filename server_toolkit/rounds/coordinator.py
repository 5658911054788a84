"""When a round opens and closes. All state is in the ledger, so a restarted server carries on."""

from __future__ import annotations

import logging

from edge_sdk.protocol.messages import BlobRef, Encoding, Task, TrainingSettings
from server_toolkit.ledger import Ledger, schema
from server_toolkit.ledger.trajectories import aggregate
from server_toolkit.rounds.schedule import Schedule

log = logging.getLogger(__name__)


class Coordinator:
    """Runs `rounds` rounds on a ledger; sans-IO: callers pass in the time and publish `task`.

    A round closes once every active device's update is in, or at its deadline with at least
    `quorum` updates; with fewer the deadline moves on by `deadline_s`. Both kinds of closing need
    the quorum, so a fleet that is still being enrolled does not finish without its devices.

    Where `schedule` says so, the next round opens only when the ledger has its hardened weights, or
    after `skip_hardening`; until then there is no task.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        rounds: int,
        quorum: int,
        deadline_s: float,
        training: TrainingSettings,
        encoding: Encoding,
        schedule: Schedule | None = None,
    ) -> None:
        self.ledger = ledger
        self.rounds = rounds
        self.quorum = quorum
        self.deadline_s = deadline_s
        self.training = training
        self.encoding = encoding
        self.schedule = schedule or Schedule()
        self._skipped: int | None = None  # the round that starts unhardened after all

    @property
    def finished(self) -> bool:
        """Whether the configured number of rounds is closed."""
        return self.ledger.latest_round() >= self.rounds

    @property
    def waits_for_hardening(self) -> bool:
        """Whether the next round may not open yet because its weights are to be hardened."""
        return self.ledger.open_round() is None and self._is_due(self.ledger.latest_round())

    def _is_due(self, closed: int) -> bool:
        if not self.schedule.hardens_before(closed, rounds=self.rounds) or closed == self._skipped:
            return False
        return all(row.round != closed for row in self.ledger.hardened_bases())

    def skip_hardening(self) -> None:
        """Let the next round start from the aggregate as it is: devices must not wait for ever."""
        self._skipped = self.ledger.latest_round()
        log.error("round %d starts from weights that are not hardened", self._skipped)

    def start(self, now_s: float) -> None:
        """Open the first round, or carry on with the one that a stopped server was in."""
        current = self.ledger.open_round()
        if current is not None:
            log.info("round %d of %d goes on", current.number, self.rounds)
        elif not self.finished and not self.waits_for_hardening:
            row = self.ledger.begin_round(now_s=now_s, deadline_s=now_s + self.deadline_s)
            log.info("round %d of %d is open", row.number, self.rounds)

    def task(self) -> Task | None:
        """Return what devices are to do now, the same bytes after a restart; None at the end."""
        current = self.ledger.open_round()
        if current is None:
            return None
        return Task(
            run=self.ledger.run,
            round=current.number,
            layout=self.ledger.layout.fingerprint,
            program=self.ledger.program,
            base=BlobRef(sha256=current.base_sha256, size=current.base_size),
            training=self.training,
            encoding=self.encoding,
            issued_at_s=current.issued_at_s,
            expires_at_s=current.deadline_s,
        )

    def on_tick(self, now_s: float) -> bool:
        """Close or extend the open round if it is time; True if `task` has changed."""
        current = self.ledger.open_round()
        if current is None:
            self.start(now_s)
            return self.ledger.open_round() is not None
        reported = {u.device for u in self.ledger.updates(current.number)}
        active = {d.id for d in self.ledger.devices() if d.active}
        late = now_s >= current.deadline_s
        if len(reported) >= self.quorum and (late or (active and active <= reported)):
            self._close(current, len(reported), len(active), now_s)
            return True
        if late:
            log.warning(
                "round %d: %d of at least %d updates at the deadline; waiting %.0f s more",
                current.number,
                len(reported),
                self.quorum,
                self.deadline_s,
            )
            self.ledger.extend_round(
                current.number, now_s=now_s, deadline_s=now_s + self.deadline_s
            )
            return True
        return False

    def _close(self, current: schema.Round, reported: int, active: int, now_s: float) -> None:
        """Aggregate first, then close and open the next round in one transaction.

        Only this process adds updates, so none can come in between.
        """
        weights = aggregate(self.ledger, current.number)
        last = current.number + 1 >= self.rounds
        hardens = self._is_due(current.number + 1)
        self.ledger.close_round(
            current.number,
            weights,
            now_s=now_s,
            next_deadline_s=None if last or hardens else now_s + self.deadline_s,
        )
        log.info(
            "round %d closed with %d updates of %d active devices%s",
            current.number,
            reported,
            active,
            "; it was the last" if last else "; hardening before the next" if hardens else "",
        )
