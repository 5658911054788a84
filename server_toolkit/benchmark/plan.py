"""From a preset to pieces of work: what every cell of the result rests on, shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from models import ModelSpec
from server_toolkit.benchmark.arms import Arm
from server_toolkit.benchmark.piece import Piece
from server_toolkit.benchmark.presets import Fleet, Judging
from server_toolkit.benchmark.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm on one data set, network, partition, attack size, server set and seed.

    `federated` are the devices' rounds in order, `server` what the server did on top of them,
    `proxies` the synthetic images among that.
    """

    dataset: str
    network: str
    partition: str
    epsilon: float
    arm: Arm
    server_images: int
    seed: int
    evaluation: Piece
    federated: tuple[Piece, ...]
    server: tuple[Piece, ...]

    @property
    def proxies(self) -> tuple[Piece, ...]:
        """The pieces that made synthetic images."""
        return tuple(piece for piece in self.server if piece.kind == "proxy")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One data set with one network and one seed; all its arms are planned together.

    `digest` says which data it is. `server_pool` images a class are kept for the server.
    """

    dataset: str
    digest: str
    network: str
    spec: ModelSpec
    seed: int
    epsilons: tuple[float, ...]
    partitions: dict[str, tuple[int, ...]]
    server_pool: int


@dataclass(frozen=True)
class Model:
    """A trained model's piece, with what led to it."""

    piece: Piece
    federated: tuple[Piece, ...] = ()
    server: tuple[Piece, ...] = ()


class SubjectPlan:
    """Plans the arms of one subject."""

    def __init__(
        self,
        subject: Subject,
        *,
        fleet: Fleet,
        recipe: Recipe,
        judging: Judging,
        arms: list[Arm],
    ) -> None:
        self._subject, self._fleet, self._recipe = subject, fleet, recipe
        self._judging, self._arms = judging, arms
        self._before = fleet.rounds - recipe.schedule.rounds  # rounds before the first hardening
        self._data = {
            "digest": subject.digest,
            "seed": subject.seed,
            "device_images": fleet.images,
            "server_pool": subject.server_pool,
        }

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, those of one partition and attack size together."""
        for partition, sizes in self._subject.partitions.items():
            for epsilon in self._subject.epsilons:
                for arm in self._arms:
                    for size in self._sizes(arm, sizes):
                        yield self._cell(partition, epsilon, arm, size)

    @staticmethod
    def _sizes(arm: Arm, sizes: tuple[int, ...]) -> list[int]:
        """Return the server sets that an arm is run with; the references have none always."""
        if arm.training != "hardened":
            return [0]
        return [size for size in sizes if (size > 0) == arm.server_images]

    def _cell(self, partition: str, epsilon: float, arm: Arm, size: int) -> Cell:
        model = self._model(partition, epsilon, arm, size)
        subject = self._subject
        evaluation = Piece(
            kind="evaluate",
            settings={
                "data": self._data | {"test_images": self._judging.images},
                "spec": subject.spec.to_dict(),
                "epsilon": epsilon,
                "judging": asdict(self._judging),
            },
            inputs={"model": model.piece},
            label=self._label(arm.name, size, partition, epsilon),
        )
        return Cell(
            dataset=subject.dataset,
            network=subject.network,
            partition=partition,
            epsilon=epsilon,
            arm=arm,
            server_images=size,
            seed=subject.seed,
            evaluation=evaluation,
            federated=model.federated,
            server=model.server,
        )

    def _model(self, partition: str, epsilon: float, arm: Arm, size: int) -> Model:
        if arm.training == "federated":
            return self._federated(partition, None)
        if arm.training == "federated_adversarial":
            return self._federated(partition, epsilon)
        if arm.training == "central_adversarial":
            piece = self._central(epsilon)
            return Model(piece, server=(piece,))
        return self._hardened(partition, epsilon, arm, size)

    def _federated(self, partition: str, epsilon: float | None) -> Model:
        """Return all rounds with one objective: plain, or adversarial with `epsilon`."""
        first = self._rounds(partition, 0, self._before, epsilon=epsilon)
        if self._before == self._fleet.rounds:
            return Model(first, (first,))
        rest = self._rounds(
            partition, self._before, self._fleet.rounds, epsilon=epsilon, start=first, state=first
        )
        return Model(rest, (first, rest))

    def _central(self, epsilon: float) -> Piece:
        """Return adversarial training of one device that has all images, on the server."""
        alone = replace(self._fleet, devices=1)
        return self._training(
            "iid", (0, self._fleet.rounds), alone, epsilon=epsilon, encoding="fp32", inputs={}
        )

    def _hardened(self, partition: str, epsilon: float, arm: Arm, size: int) -> Model:
        """Return the model of the recipe's schedule, the same for methods and controls."""
        schedule = self._recipe.schedule
        base = self._rounds(partition, 0, self._before)
        rounds, server = [base], []
        proxies: list[Piece] = []
        if arm.maker is not None:
            proxies.append(self._proxy(arm.maker, partition, size, base, cycle=0))
        server += proxies
        model = base
        hardenings = schedule.cycles + (0 if schedule.end_in_round else 1)
        for cycle in range(hardenings):
            teacher = base if schedule.teacher == "federated" else model
            model = self._harden(partition, epsilon, arm, size, model, teacher, proxies, cycle)
            server.append(model)
            if cycle == schedule.cycles:
                break
            begin = self._before + cycle * schedule.rounds_per_cycle
            model = self._rounds(
                partition, begin, begin + schedule.rounds_per_cycle, start=model, state=rounds[-1]
            )
            rounds.append(model)
            if schedule.distil_again and arm.maker is not None and cycle + 1 < hardenings:
                proxies.append(self._proxy(arm.maker, partition, size, model, cycle=cycle + 1))
                server.append(proxies[-1])
        return Model(model, tuple(rounds), tuple(server))

    def _rounds(
        self,
        partition: str,
        begin: int,
        end: int,
        *,
        epsilon: float | None = None,
        start: Piece | None = None,
        state: Piece | None = None,
    ) -> Piece:
        """Return rounds `begin` to `end`, from `start` and the devices' `state`."""
        late_rate = self._recipe.schedule.learning_rate
        rate = self._fleet.learning_rate
        if begin >= self._before and late_rate is not None:
            rate = late_rate
        return self._training(
            partition,
            (begin, end),
            replace(self._fleet, learning_rate=rate),
            epsilon=epsilon,
            encoding="int8",
            inputs={name: p for name, p in (("start", start), ("state", state)) if p is not None},
        )

    def _training(
        self,
        partition: str,
        rounds: tuple[int, int],
        fleet: Fleet,
        *,
        epsilon: float | None,
        encoding: str,
        inputs: dict[str, Piece],
    ) -> Piece:
        """Return federated rounds; with `epsilon` adversarial ones."""
        adversarial = "" if epsilon is None else f", adversarial ε={epsilon:.4g}"
        place = self._place(partition if fleet.devices > 1 else "all data")
        return Piece(
            kind="federate",
            settings={
                "data": self._data,
                "spec": self._subject.spec.to_dict(),
                "partition": partition,
                "fleet": asdict(fleet if epsilon is not None else replace(fleet, attack_steps=0)),
                "encoding": encoding,
                "objective": "plain" if epsilon is None else "pgd",
                "epsilon": 0.0 if epsilon is None else epsilon,
                "rounds": list(rounds),
                "keep_devices": epsilon is None and self._recipe.needs_device_paths,
            },
            inputs=inputs,
            label=f"{place}: rounds {rounds[0]} to {rounds[1]}{adversarial}",
        )

    def _proxy(
        self, maker: str, partition: str, size: int, trajectory: Piece, *, cycle: int
    ) -> Piece:
        recipe = self._recipe.distill_server_set if size else self._recipe.distill
        seed = self._subject.seed + 1000 * cycle
        settings: dict[str, Any] = {
            "maker": maker,
            "config": replace(recipe, seed=seed).to_dict(),
            "spec": self._subject.spec.to_dict(),
            "server_images": size,
        }
        if size:
            settings["data"] = self._data
        # Start images are the same whatever the devices learned.
        inputs = {} if maker == "start" else {"trajectory": trajectory}
        where = "any fleet" if maker == "start" else self._place(partition)
        with_real = f" from {size} real a class" if size else ""
        return Piece(
            kind="proxy",
            settings=settings,
            inputs=inputs,
            label=f"{where}: images of {maker}{with_real}",
        )

    def _harden(
        self,
        partition: str,
        epsilon: float,
        arm: Arm,
        size: int,
        start: Piece,
        teacher: Piece,
        proxies: list[Piece],
        cycle: int,
    ) -> Piece:
        seed = self._subject.seed + 1000 * cycle
        config = replace(self._recipe.harden, epsilon=epsilon, seed=seed)
        settings: dict[str, Any] = {
            "config": config.to_dict(),
            "spec": self._subject.spec.to_dict(),
            "server_images": size,
        }
        if config.label_source == "ensemble":
            settings["ensemble"] = [self._recipe.ensemble_size, self._recipe.ensemble_from]
        if size:
            settings["data"] = self._data
        return Piece(
            kind="harden",
            settings=settings,
            inputs={
                "start": start,
                "teacher": teacher,
                **{f"proxy{i}": proxy for i, proxy in enumerate(proxies)},
            },
            label=f"{self._label(arm.name, size, partition, epsilon)}: hardening {cycle + 1}",
        )

    def _place(self, partition: str) -> str:
        subject = self._subject
        return f"{subject.dataset} {subject.network} seed {subject.seed} {partition}"

    def _label(self, arm: str, size: int, partition: str, epsilon: float) -> str:
        real = f" with {size} a class" if size else ""
        return f"{self._place(partition)} ε={epsilon:.4g}: {arm}{real}"
