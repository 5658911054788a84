"""`server-toolkit simulate`: a federation in one process, and a ledger as real devices leave it."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server_toolkit.commands.compute import DeviceOption, choose_device
from server_toolkit.commands.progress import interrupt_on_sigterm, show_progress
from server_toolkit.errors import ConfigError

if TYPE_CHECKING:
    from models import ModelSpec
    from server_toolkit.datasets import ImageData
    from server_toolkit.simulate.plan import Division, SimulationPlan

TRAINING, FLEET = "What devices do in a round", "The devices"
NETWORK, COMPUTE = "The network", "How it is computed"

NETWORK_DEFAULTS = {"architecture": "convnet", "width": 128, "depth": 3, "image_size": None}

SCHEDULES = ("none", "recommended")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(simulate)


def simulate(
    *,
    dataset: Annotated[
        str, typer.Option(help="mnist, fashion_mnist, cifar10, digits or folder:PATH.")
    ],
    out: Annotated[Path, typer.Option(help="The fleet directory to make, or to carry on with.")],
    data: Annotated[
        Path | None, typer.Option(help="Where the data set's files are; digits need none.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the data set into --data if it is not there.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="Rounds in all.")] = 20,
    devices: Annotated[
        int, typer.Option(min=1, max=100_000, help="Devices.", rich_help_panel=FLEET)
    ] = 10,
    partition: Annotated[
        str,
        typer.Option(
            help="Who gets which images: iid, dirichlet:ALPHA or classes:N.", rich_help_panel=FLEET
        ),
    ] = "iid",
    participation: Annotated[
        float, typer.Option(help="Share of the devices that a round asks.", rich_help_panel=FLEET)
    ] = 1.0,
    late: Annotated[
        float,
        typer.Option(help="Share of those whose update comes too late.", rich_help_panel=FLEET),
    ] = 0.0,
    never: Annotated[
        float, typer.Option(help="Share of those that never answer.", rich_help_panel=FLEET)
    ] = 0.0,
    images: Annotated[
        int, typer.Option(min=0, help="Of all devices together; 0: all.", rich_help_panel=FLEET)
    ] = 0,
    server_set_per_class: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images a class for the server, kept from the devices.",
            rich_help_panel=FLEET,
        ),
    ] = 0,
    test_images: Annotated[
        int, typer.Option(min=0, help="Of the test set; 0: all.", rich_help_panel=FLEET)
    ] = 0,
    algorithm: Annotated[
        str, typer.Option(help="fedavg, fedprox or scaffold.", rich_help_panel=TRAINING)
    ] = "fedavg",
    epochs: Annotated[
        int, typer.Option(min=1, help="Local epochs a round.", rich_help_panel=TRAINING)
    ] = 1,
    batch_size: Annotated[int, typer.Option(min=1, rich_help_panel=TRAINING)] = 32,
    learning_rate: Annotated[float, typer.Option(rich_help_panel=TRAINING)] = 0.05,
    momentum: Annotated[float, typer.Option(rich_help_panel=TRAINING)] = 0.9,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=TRAINING)] = 0.0,
    proximal_mu: Annotated[
        float, typer.Option(help="FedProx's mu.", rich_help_panel=TRAINING)
    ] = 0.0,
    encoding: Annotated[
        str, typer.Option(help="Of updates: int8, int4, fp32, topk-0.05.", rich_help_panel=TRAINING)
    ] = "int8",
    objective: Annotated[
        str,
        typer.Option(
            help="plain, or pgd: adversarial training on the devices.", rich_help_panel=TRAINING
        ),
    ] = "plain",
    attack_steps: Annotated[int, typer.Option(min=0, help="Of pgd.", rich_help_panel=TRAINING)] = 7,
    precision: Annotated[
        str, typer.Option(help="fp32, simulated-int8 or int8.", rich_help_panel=TRAINING)
    ] = "fp32",
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="The attack to withstand, l-infinity on pixels in [0, 1]. Default: 0.3 for "
            "mnist, 0.1 for fashion_mnist and digits, else 8/255.",
        ),
    ] = None,
    schedule: Annotated[
        str, typer.Option(help="Hardening between rounds: none or recommended.")
    ] = "none",
    architecture: Annotated[
        str, typer.Option(help="convnet or alexnet.", rich_help_panel=NETWORK)
    ] = "convnet",
    width: Annotated[
        int, typer.Option(help="Channels of the ConvNet's layers.", rich_help_panel=NETWORK)
    ] = 128,
    depth: Annotated[int, typer.Option(help="Blocks of the ConvNet.", rich_help_panel=NETWORK)] = 3,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Default: the images' own; 32 puts a border around 28.", rich_help_panel=NETWORK
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model description (.toml or .json) in place of the four above.",
            metavar="FILE",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="native: the devices' own runtime; stacked: many devices as one network in "
            "torch; auto: the faster one.",
            rich_help_panel=COMPUTE,
        ),
    ] = "auto",
    together: Annotated[
        int, typer.Option(min=0, help="Devices in a stack; 0: open.", rich_help_panel=COMPUTE)
    ] = 0,
    workers: Annotated[
        int,
        typer.Option(min=1, max=256, help="Devices at a time, native.", rich_help_panel=COMPUTE),
    ] = 1,
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="CPU threads of each.", rich_help_panel=COMPUTE)
    ] = 1,
    device: DeviceOption = "auto",
    name: Annotated[str, typer.Option(help="The run's name.")] = "simulation",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything.")] = 0,
) -> None:
    """Train a federation in this process; OUT is then as a server with real devices leaves it.

    `distill`, `harden`, `evaluate` and the other commands work on OUT/server.toml. Interrupted or
    killed, the same command carries on and ends with the same weights; with more --rounds it adds
    some. Data sets are fetched only with --download.
    """
    options = dict(locals())
    interrupt_on_sigterm()
    torch_device = choose_device(device, threads=threads)
    from edge_sdk.runtime import ProgramFile
    from server_toolkit.benchmark.presets import epsilons_of
    from server_toolkit.config import load_config
    from server_toolkit.datasets import load_dataset
    from server_toolkit.datasets.download import download_dataset
    from server_toolkit.locks import sole_writer
    from server_toolkit.rounds.schedule import FEWEST_ROUNDS
    from server_toolkit.simulate.accuracy import accuracy
    from server_toolkit.simulate.federation import Federation
    from server_toolkit.simulate.fleet import CONFIG, continue_fleet, create_fleet
    from server_toolkit.simulate.plan import divide
    from server_toolkit.simulate.run import run_rounds
    from server_toolkit.stages.workspace import Workspace

    if sys.stderr.isatty():  # the bar says what the coordinator would log
        logging.getLogger("server_toolkit.rounds").setLevel(logging.WARNING)
    if download:
        if data is None:
            raise ConfigError("--download needs --data, the directory to fetch into")
        download_dataset(dataset, data)
    images_of = load_dataset(dataset, data, seed=seed)
    if schedule not in SCHEDULES:
        raise ConfigError(f"--schedule {schedule!r:.40}: choose from {', '.join(SCHEDULES)}")
    if schedule != "none" and rounds < FEWEST_ROUNDS:
        raise ConfigError(
            f"--schedule {schedule}: it has room in {FEWEST_ROUNDS} rounds or more, not in {rounds}"
        )
    radius = max(epsilons_of(dataset, ())) if epsilon is None else epsilon
    options |= {"device": torch_device, "epsilon": radius}
    plan = _plan(options, _spec(options, images_of))
    division = divide(images_of, plan)
    out = out.resolve()
    if not (out / CONFIG).exists():
        typer.echo("exporting the training program and checking its gradients")
        create_fleet(out, plan, division, _config_values(options, division))
    with sole_writer(out):
        continue_fleet(out, plan, division, rounds=rounds)
        workspace = Workspace.open(load_config(out / CONFIG))
        ledger = workspace.ledger
        federation = Federation(
            plan.spec,
            list(division.shards.values()),
            plan.settings,
            program=ProgramFile.from_bytes(ledger.blobs.read(ledger.program.sha256)),
        )
        run_rounds(workspace, federation, show=show_progress, device=torch_device)
    weights = ledger.global_weights(ledger.latest_round())
    share = accuracy(plan.spec, weights, division.test, device=torch_device)
    typer.echo(
        f"{ledger.latest_round()} rounds of {devices} devices; accuracy on {len(division.test)} "
        f"test images {100 * share:.1f} %"
    )
    typer.echo(f"next: server-toolkit pipeline --config {out / CONFIG}")


def _spec(options: dict[str, Any], data: ImageData) -> ModelSpec:
    """Return the network that the options describe, for the data set's images."""
    from models import ModelSpec
    from models.description import read_description

    if options["model"] is not None:
        if any(options[key] != value for key, value in NETWORK_DEFAULTS.items()):
            raise ConfigError(f"--model takes the place of {', '.join(NETWORK_DEFAULTS)}")
        return read_description(options["model"])
    _, channels, side, _ = data.train.pixels.shape
    return ModelSpec(
        architecture=options["architecture"],
        channels=channels,
        image_size=options["image_size"] or side,
        classes=data.train.classes,
        width=options["width"],
        depth=options["depth"],
        mean=data.mean,
        std=data.std,
    )


def _plan(options: dict[str, Any], spec: ModelSpec) -> SimulationPlan:
    """Return the options as a plan; what "auto" stands for is settled here."""
    from server_toolkit.simulate.engines import chosen_engine
    from server_toolkit.simulate.plan import SimulationPlan
    from server_toolkit.simulate.settings import FederationSettings

    names = {f.name for f in dataclasses.fields(FederationSettings)} & set(options)
    settings = FederationSettings(
        run=options["name"], **{option: options[option] for option in names}
    )
    if settings.engine == "auto" and options["precision"] != "fp32":
        settings = dataclasses.replace(settings, engine="native")
    settings = dataclasses.replace(settings, engine=chosen_engine(settings))
    names = {f.name for f in dataclasses.fields(SimulationPlan)} & set(options)
    return SimulationPlan(
        spec=spec, settings=settings, **{option: options[option] for option in names}
    )


def _config_values(options: dict[str, Any], division: Division) -> dict[tuple[str, str], Any]:
    """Return what the new server.toml says beside the devices' training."""
    radius = options["epsilon"]
    values: dict[tuple[str, str], Any] = {
        ("run", "rounds"): options["rounds"],
        ("data", "test_set"): "test.npz",
        ("harden", "epsilon"): radius,
        ("evaluate", "epsilons"): [radius / 2, radius],
        ("pipeline", "arm"): "trajsyn_noise",
    }
    if division.server_set is not None:
        values[("data", "server_set")] = "server_set.npz"
        values[("pipeline", "arm")] = "trajsyn_server_set"
    values[("schedule", "harden")] = options["schedule"]
    return values
