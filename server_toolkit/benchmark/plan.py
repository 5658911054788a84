"""From a preset to pieces of work: what every cell of the result rests on, shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from models import ModelSpec
from server_toolkit.benchmark.arms import Arm
from server_toolkit.benchmark.piece import Piece
from server_toolkit.benchmark.presets import Fleet, Judging
from server_toolkit.benchmark.recipe import Recipe
from server_toolkit.robust.harden_config import HardenConfig


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
        self._schedule = recipe.schedule_of(fleet.rounds)
        self._stops = [t for t in range(1, fleet.rounds) if self._is_stop(t)]
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

    def _is_stop(self, number: int) -> bool:
        """Say whether the server does anything before this round."""
        hardens = self._schedule.hardens_before(number, rounds=self._fleet.rounds)
        return hardens or number in self._schedule.distil

    def _federated(self, partition: str, epsilon: float | None) -> Model:
        """Return all rounds with one objective: plain, or adversarial with `epsilon`."""
        end = self._fleet.rounds
        if epsilon is not None or not self._stops:
            whole = self._rounds(partition, 0, end, epsilon=epsilon)
            return Model(whole, (whole,))
        # The rounds before the first hardening are those of all hardened arms.
        first = self._rounds(partition, 0, self._stops[0])
        rest = self._rounds(partition, self._stops[0], end, start=first, state=first)
        return Model(rest, (first, rest))

    def _central(self, epsilon: float) -> Piece:
        """Return adversarial training of one device that has all images, on the server."""
        alone = replace(self._fleet, devices=1)
        return self._training(
            "iid", (0, self._fleet.rounds), alone, epsilon=epsilon, encoding="fp32", inputs={}
        )

    def _hardened(self, partition: str, epsilon: float, arm: Arm, size: int) -> Model:
        """Return the model of the recipe's schedule, the same for methods and controls."""
        if not (self._stops and arm.scheduled):
            return self._hardened_once(partition, epsilon, arm, size)
        rounds: list[Piece] = []
        server: list[Piece] = []
        proxies: list[Piece] = []
        distils = arm.maker is not None and arm.maker != "start"
        if arm.maker is not None:
            proxies = [self._proxy("start", partition, 0, [])]  # until there is something distilled
            server += proxies
        schedule, end_of_all = self._schedule, self._fleet.rounds

        def harden(start: Piece, number: int) -> Piece:
            config = self._recipe.between.config(
                replace(self._recipe.harden, epsilon=epsilon, seed=self._subject.seed * 1000),
                number,
                rounds=end_of_all,
                schedule=schedule,
                real_per_class=size if proxies else 0,
            )
            place = f"hardening before round {number}"
            server.append(
                self._harden(partition, arm, size, start, proxies, config=config, place=place)
            )
            return server[-1]

        model: Piece | None = None
        first = 0  # of the rounds that distillation reads: those since the first hardening
        for begin, end in pairwise([0, *self._stops, end_of_all]):
            state = rounds[-1] if rounds else None
            model = self._rounds(partition, begin, end, start=model, state=state)
            rounds.append(model)
            if end == end_of_all:
                break
            if distils and end in schedule.distil:
                assert arm.maker is not None
                own = [piece for piece in proxies if piece.settings["maker"] != "start"]
                made = self._proxy(arm.maker, partition, size, rounds[first:], cycle=len(own))
                proxies = [*own, made]
                server.append(made)
            if schedule.hardens_before(end, rounds=end_of_all):
                first = first or len(rounds)
                model = harden(model, end)
        assert model is not None
        model = harden(model, end_of_all)
        return Model(model, tuple(rounds), tuple(server))

    def _hardened_once(self, partition: str, epsilon: float, arm: Arm, size: int) -> Model:
        """Return the model of `fedavg` hardened behind the last round."""
        plain = self._federated(partition, None)
        proxies: list[Piece] = []
        if arm.maker is not None:
            path = [] if arm.maker == "start" else list(plain.federated)
            shown = 0 if arm.maker == "start" else size
            proxies = [self._proxy(arm.maker, partition, shown, path, once=True)]
        config = replace(self._recipe.harden, epsilon=epsilon, seed=self._subject.seed)
        model = self._harden(
            partition, arm, size, plain.piece, proxies, config=config, place="hardening"
        )
        return Model(model, plain.federated, (*proxies, model))

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
        return self._training(
            partition,
            (begin, end),
            self._fleet,
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
        self,
        maker: str,
        partition: str,
        size: int,
        path: list[Piece],
        *,
        cycle: int = 0,
        once: bool = False,
    ) -> Piece:
        """Return images made from the weights of these rounds; those of `start` need none."""
        recipe = self._recipe.distill_server_set if size else self._recipe.distill
        if maker == "start":
            recipe = replace(recipe, images_per_class=self._recipe.start_images_per_class)
        elif not once:
            # The rounds since the first hardening are the window.
            recipe = replace(recipe, window="rounds", first_round=0, last_round=None)
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
        inputs = {f"rounds{i:03}": piece for i, piece in enumerate(path)}
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
        arm: Arm,
        size: int,
        start: Piece,
        proxies: list[Piece],
        *,
        config: HardenConfig,
        place: str,
    ) -> Piece:
        """Return the hardening of a model whose own answers, before it, are the teacher's."""
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
                **{f"proxy{i}": proxy for i, proxy in enumerate(proxies)},
            },
            label=f"{self._label(arm.name, size, partition, config.epsilon)}: {place}",
        )

    def _place(self, partition: str) -> str:
        subject = self._subject
        return f"{subject.dataset} {subject.network} seed {subject.seed} {partition}"

    def _label(self, arm: str, size: int, partition: str, epsilon: float) -> str:
        real = f" with {size} a class" if size else ""
        return f"{self._place(partition)} ε={epsilon:.4g}: {arm}{real}"
