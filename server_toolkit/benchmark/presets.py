"""How large a benchmark is: every number of the presets, readable in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from server_toolkit.benchmark.arms import ARMS
from server_toolkit.benchmark.recipe import Recipe
from server_toolkit.distill.config import DistillConfig
from server_toolkit.errors import ConfigError
from server_toolkit.robust.harden import HardenConfig
from server_toolkit.rounds.between import BetweenRounds

THREAT_MODELS: dict[str, tuple[float, ...]] = {
    "mnist": (0.3,),
    "fashion_mnist": (0.1,),
    "cifar10": (2 / 255, 8 / 255),
}
"""The l∞ sizes that a named data set is judged at, for pixels in [0, 1]: fixed."""

DEFAULT_EPSILONS = {"digits": (0.1,)}
FALLBACK_EPSILON = 8 / 255  # for a folder of images, unless --epsilon says otherwise


@dataclass(frozen=True, kw_only=True)
class Network:
    """An architecture of `ModelSpec`; only the ConvNet has a width."""

    architecture: str = "convnet"
    width: int = 128


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The devices and what they do in a round.

    `images` are those of all devices together (None: all but the server's). `attack_steps` is the
    PGD of `client_at` and `server_at_real`.
    """

    devices: int
    images: int | None
    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    attack_steps: int


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How many test images each figure rests on (None: all), and how hard it is attacked.

    AutoAttack is tried only on the images that PGD leaves; its images are the first of the others.
    """

    images: int | None
    autoattack_images: int | None
    pgd_steps: int = 20
    square_queries: int = 5000
    batch_size: int = 32  # what a CPU's cache holds of a narrow network
    autoattack_batch_size: int = 128


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that decides a benchmark but its data.

    `partitions` maps a partition of the devices' images to the sizes of the server set, in images
    a class, that are run with it; 0 are the arms without real images. No device has any of the
    `server_pool` images a class from which all sizes are taken.
    """

    name: str
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    partitions: dict[str, tuple[int, ...]]
    server_pool: int
    networks: tuple[Network, ...]
    fleet: Fleet
    recipe: Recipe = field(default_factory=Recipe)
    judging: Judging
    arms: tuple[str, ...] = tuple(name for name, arm in ARMS.items() if arm.scheduled)

    def __post_init__(self) -> None:
        for sizes in self.partitions.values():
            if not sizes or min(sizes) < 0 or max(sizes) > self.server_pool:
                raise ConfigError(
                    f"server images a class are {sizes}; they must lie in 0 to {self.server_pool}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self) | {"recipe": self.recipe.to_dict()}


SERVER_IMAGES = (0, 1, 10, 100)

SMALL = Preset(
    name="small",
    datasets=("mnist", "fashion_mnist", "cifar10"),
    seeds=(0, 1, 2),
    partitions={"iid": SERVER_IMAGES, "dirichlet:0.5": (0, 10)},
    server_pool=100,
    networks=(Network(width=16),),
    fleet=Fleet(
        devices=10,
        images=3000,
        rounds=15,
        epochs=2,
        batch_size=32,
        learning_rate=0.05,
        momentum=0.9,
        attack_steps=5,
    ),
    recipe=Recipe(
        distill_server_set=DistillConfig(start="server_blends"),
        schedule="recommended",
    ),
    judging=Judging(images=1000, autoattack_images=100),
)

PAPER = Preset(
    name="paper",
    datasets=("mnist", "fashion_mnist", "cifar10"),
    seeds=(0, 1, 2),
    partitions={"iid": SERVER_IMAGES, "dirichlet:0.5": SERVER_IMAGES},
    server_pool=100,
    networks=(Network(width=128), Network(architecture="alexnet")),
    fleet=Fleet(
        devices=10,
        images=None,
        rounds=50,
        epochs=2,
        batch_size=64,
        learning_rate=0.05,
        momentum=0.9,
        attack_steps=10,
    ),
    recipe=Recipe(
        distill=DistillConfig(images_per_class=50, iterations=3000, batch_size=100),
        distill_server_set=DistillConfig(
            start="server_blends", images_per_class=50, iterations=3000, batch_size=100
        ),
        harden=HardenConfig(batch_size=128, attack_steps=10),
        schedule="recommended",
        between=BetweenRounds(early_steps=200, late_steps=400, last_steps=200),
    ),
    judging=Judging(
        images=None, autoattack_images=1000, batch_size=1000, autoattack_batch_size=1000
    ),
)

TINY = Preset(
    name="tiny",
    datasets=("digits",),
    seeds=(0, 1),
    partitions={"iid": (0, 2)},
    server_pool=2,
    networks=(Network(width=4),),
    fleet=Fleet(
        devices=3,
        images=300,
        rounds=3,
        epochs=1,
        batch_size=16,
        learning_rate=0.1,
        momentum=0.9,
        attack_steps=2,
    ),
    recipe=Recipe(
        distill=DistillConfig(images_per_class=1, iterations=2, student_steps=2, batch_size=10),
        distill_server_set=DistillConfig(
            start="server_set", images_per_class=1, iterations=2, student_steps=2, batch_size=10
        ),
        harden=HardenConfig(steps=4, batch_size=10, attack_steps=2),
        start_images_per_class=2,
    ),
    judging=Judging(images=40, autoattack_images=8, pgd_steps=3, square_queries=20),
)

PRESETS = {preset.name: preset for preset in (SMALL, PAPER, TINY)}


def with_choices(
    preset: Preset,
    *,
    datasets: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    arms: tuple[str, ...] = (),
    partitions: tuple[str, ...] = (),
    server_images: tuple[int, ...] = (),
) -> Preset:
    """Return the preset with what a user chose of it; an empty choice keeps the preset's."""
    chosen = dict(preset.partitions)
    if partitions:
        widest = max(preset.partitions.values(), key=len)
        chosen = {name: preset.partitions.get(name, widest) for name in partitions}
    if server_images:
        chosen = dict.fromkeys(chosen, tuple(sorted(set(server_images))))
    return replace(
        preset,
        datasets=datasets or preset.datasets,
        seeds=seeds or preset.seeds,
        arms=arms or preset.arms,
        partitions=chosen,
        server_pool=max(preset.server_pool, *(s for sizes in chosen.values() for s in sizes)),
    )


def epsilons_of(dataset: str, given: tuple[float, ...]) -> tuple[float, ...]:
    """Return the attack sizes of a data set; `given` counts only where none is fixed."""
    if dataset in THREAT_MODELS:
        return THREAT_MODELS[dataset]
    return given or DEFAULT_EPSILONS.get(dataset, (FALLBACK_EPSILON,))
