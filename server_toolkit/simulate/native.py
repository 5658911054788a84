"""Local training as a real agent does it, on the devices' own runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from edge_sdk.errors import ConfigError as EdgeConfigError
from edge_sdk.runtime import ProgramFile
from edge_sdk.training import TrainingResult, train, train_adversarially
from edge_sdk.training.loop import LoopOptions
from server_toolkit.errors import ConfigError
from server_toolkit.simulate.local import LocalJob, LocalResult
from server_toolkit.simulate.settings import FederationSettings


class NativeEngine:
    """Calls `edge_sdk.training.train`, so that every bit is what an agent would have sent."""

    def __init__(
        self,
        settings: FederationSettings,
        program: ProgramFile,
        attack_program: ProgramFile | None = None,
    ) -> None:
        self._settings, self._program, self._attack = settings, program, attack_program

    def train(
        self, jobs: Sequence[LocalJob], *, done: Callable[[int], None] = lambda _: None
    ) -> list[LocalResult]:
        """Return a result for every job; raises `ConfigError` naming a device that diverges."""
        results = []
        stop = threading.Event()  # else an interrupted round would train its devices to the end
        with ThreadPoolExecutor(self._settings.workers) as pool:
            futures = [pool.submit(self._one, job, stop) for job in jobs]
            try:
                for future in futures:
                    results.append(future.result())
                    done(len(results))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return results

    def _one(self, job: LocalJob, stop: threading.Event) -> LocalResult:
        try:
            result = self._train(job, stop)
        except EdgeConfigError as error:
            raise ConfigError(f"{job.device}: {error}") from error
        return LocalResult(
            weights=result.weights,
            steps=result.steps,
            loss_first_epoch=result.loss_first_epoch,
            loss_last_epoch=result.loss_last_epoch,
            wall_s=result.wall_s,
            cpu_s=result.cpu_s,
        )

    def _train(self, job: LocalJob, stop: threading.Event) -> TrainingResult:
        settings = self._settings
        options = LoopOptions(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            proximal_mu=settings.proximal_mu,
            correction=job.correction,
            threads=settings.threads,
            should_stop=stop.is_set,
        )
        if self._attack is None:
            return train(self._program, job.start, job.dataset, seed=job.seed, **options)
        return train_adversarially(
            self._program,
            self._attack,
            job.start,
            job.dataset,
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            attack_steps=settings.attack_steps,
            seed=job.seed,
            **options,
        )
