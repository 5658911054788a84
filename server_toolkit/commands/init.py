"""`server-toolkit init`: make the directory of a new run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from models import ModelSpec, SpecError
from models.description import read_description, to_toml
from server_toolkit.commands.template import SERVER_TOML
from server_toolkit.errors import ConfigError
from server_toolkit.stages.new_run import fill_run_directory, new_directory


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(init)


def init(
    directory: Annotated[Path, typer.Argument(help="A directory that does not exist or is empty.")],
    *,
    name: Annotated[str, typer.Option(help="The run's name.")],
    classes: Annotated[int | None, typer.Option(help="Classes of images.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square images in pixels.")
    ] = None,
    channels: Annotated[int, typer.Option(help="1 for grey images, 3 for colour.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds before the pipeline runs.")] = 20,
    architecture: Annotated[str, typer.Option(help="convnet or alexnet.")] = "convnet",
    width: Annotated[int, typer.Option(help="Channels of the ConvNet's layers.")] = 128,
    depth: Annotated[int, typer.Option(help="Blocks of the ConvNet.")] = 3,
    mean: Annotated[
        list[float] | None,
        typer.Option(help="Mean of the pixels in [0, 1], once a channel. Default: 0.5."),
    ] = None,
    std: Annotated[
        list[float] | None, typer.Option(help="Their deviation, once a channel. Default: 0.5.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model description (.toml or .json) in place of --classes, --image-size and "
            "what else describes the network; the only way to a chain of layers.",
            metavar="FILE",
        ),
    ] = None,
    micro_batch: Annotated[int, typer.Option(help="Images in one step of the program.")] = 4,
    precision: Annotated[
        str, typer.Option(help="How devices compute: fp32, simulated-int8 or int8.")
    ] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the first weights and of training.")] = 0,
    host: Annotated[str, typer.Option(help="The MQTT broker's host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The MQTT broker's port.")] = 1883,
) -> None:
    """Make a new run: keys, server.toml, the devices' training program and the first weights."""
    directory = directory.resolve()
    if not all(math.isfinite(value) for value in [*(mean or []), *(std or [])]):
        raise ConfigError("--mean and --std must be finite numbers")
    given = [classes is not None, image_size is not None]
    if any(given) if model is not None else not all(given):
        raise ConfigError("give --model, or else both --classes and --image-size")
    try:
        if model is not None:
            spec = read_description(model)
        else:
            spec = ModelSpec.from_dict(
                dict(
                    architecture=architecture,
                    channels=channels,
                    image_size=image_size,
                    classes=classes,
                    width=width,
                    depth=depth,
                    mean=mean or [0.5] * channels,
                    std=std or [0.5] * channels,
                )
            )
    except SpecError as error:
        raise ConfigError(str(error)) from error
    text = SERVER_TOML.format(
        name=json.dumps(name),
        rounds=rounds,
        model=to_toml(spec),
        host=json.dumps(host),
        port=port,
        micro_batch=micro_batch,
        precision=json.dumps(precision),
        seed=seed,
    )
    with new_directory(directory) as draft:
        (draft / "server.toml").write_text(text)
        typer.echo("exporting the training program and checking its gradients")
        public_key = fill_run_directory(draft)
    typer.echo(f"{directory} is ready; the devices need this key: {public_key}")
    typer.echo(f"next: server-toolkit devices add --config {directory / 'server.toml'} ...")
