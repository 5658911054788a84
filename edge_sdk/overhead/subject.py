"""What is benchmarked: programs, images and start weights, from where they can be had."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.errors import ConfigError, EdgeError, ProtocolError
from edge_sdk.runtime import ProgramFile
from edge_sdk.training.dataset import Dataset
from edge_sdk.training.sources import load_dataset
from models import ModelSpec, layout_of

Float32 = npt.NDArray[np.float32]
Need = str  # "training", "attack" or "private"
MICRO_BATCH = 4


@dataclass(frozen=True)
class Programs:
    """The program files by what they are for; a name that is missing says why in `why_not`.

    "training" is always there. "attack" gives the gradients of images, for PGD; "private" is a
    training program of micro-batch 1, for DP-SGD.
    """

    files: dict[Need, tuple[Path, ProgramFile]]
    source: str
    why_not: dict[Need, str] = field(default_factory=dict)

    @property
    def training(self) -> ProgramFile:
        """The program of the federated client."""
        return self.files["training"][1]


def from_files(paths: Sequence[Path]) -> Programs:
    """Sort program files by what they are; raises `ConfigError` if none can train."""
    files = _load(paths)
    if "training" not in files and "private" in files:
        files["training"] = files["private"]
    if "training" not in files:
        raise ConfigError("--program: none of the files is a training program")
    return _complete(Programs(files, f"files: {', '.join(p.name for p in paths)}"))


def _load(paths: Sequence[Path]) -> dict[Need, tuple[Path, ProgramFile]]:
    files: dict[Need, tuple[Path, ProgramFile]] = {}
    for path in paths:
        file = load_program_file(path)
        need = _use(file)
        if need is None:
            raise ConfigError(f"--program {path}: a program of kind {file.kind} is of no use here")
        files[need] = (path, file)
    return files


def load_program_file(path: Path) -> ProgramFile:
    """Read a file that the user named; raises `ConfigError`."""
    try:
        return ProgramFile.load(path)
    except ProtocolError as error:
        raise ConfigError(f"--program {error}") from error


def from_device(config: LoadedConfig, others: Sequence[Path]) -> Programs:
    """Take the program that the server has sent to this device; raises `ConfigError`.

    `others` may hold an attack program and one of micro-batch 1 for the same network.
    """
    found = []
    directory = config.state / "fetched"
    for path in sorted(directory.glob("*"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            file = ProgramFile.load(path)
        except ProtocolError:
            continue  # weights, or a download that is not complete
        if file.kind == "training":
            found.append((path, file))
    if not found:
        raise ConfigError(
            f"{directory} holds no training program: this device has not been given a task yet. "
            "Start the agent once while the server runs, or give --program FILE.tsp"
        )
    files = {n: f for n, f in _load(others).items() if n != "training"} | {"training": found[0]}
    return _complete(Programs(files, f"the fleet's own, from {directory}"))


def with_exported(programs: Programs, directory: Path, needs: Sequence[Need]) -> Programs:
    """Export what is still needed for the same network, where torch and executorch are there."""
    missing = [need for need in needs if need not in programs.files]
    if not missing or not can_export():
        return programs
    try:
        more = _export(programs.training.spec, directory, missing)
    except EdgeError as error:
        return replace(programs, why_not=programs.why_not | dict.fromkeys(missing, str(error)))
    source = f"{programs.source}; exported here: {', '.join(missing)}"
    return _complete(Programs(programs.files | more, source))


def can_export() -> bool:
    """Say whether programs can be exported on this machine."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "executorch"))


def exported(spec: ModelSpec, directory: Path, needs: Sequence[Need]) -> Programs:
    """Export the programs in another process, where torch and executorch are installed.

    Raises `ConfigError` saying how else to get a program where they are not.
    """
    if not can_export():
        raise ConfigError(
            "there is no program to measure. Either\n"
            "  - give --config device.toml of a device that has had a task from its server, or\n"
            "  - run `edge-sdk bench --save-programs DIR` where the server is installed (`make\n"
            "    setup` in a clone), copy DIR here and give --program DIR/*.tsp, or\n"
            "  - install torch and executorch here: pip install 'WHEEL[server]', WHEEL being the\n"
            "    file of this wheel"
        )
    return _complete(Programs(_export(spec, directory, needs), "exported here for this run"))


def _export(
    spec: ModelSpec, directory: Path, needs: Sequence[Need]
) -> dict[Need, tuple[Path, ProgramFile]]:
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "edge_sdk.overhead.make_programs", str(directory)]
    command += [json.dumps(spec.to_dict()), *needs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgeError(f"the programs could not be exported: {said}")
    paths = {need: directory / f"{need}.tsp" for need in needs}
    return {need: (path, ProgramFile.load(path)) for need, path in paths.items()}


def _use(file: ProgramFile) -> Need | None:
    if file.kind == "attack":
        return "attack"
    if file.kind == "training":
        return "private" if file.micro_batch == 1 else "training"
    return None


def _complete(programs: Programs) -> Programs:
    """Drop programs for another network and say why arms are left out."""
    spec, batch = programs.training.spec, programs.training.micro_batch
    files, why_not = dict(programs.files), dict(programs.why_not)
    for need, (path, file) in programs.files.items():
        if file.spec != spec or (need == "attack" and file.micro_batch != batch):
            del files[need]
            why_not[need] = (
                f"{path} is for another network or micro-batch than the training program"
            )
    for need, name in (("attack", "an attack program"), ("private", "a micro-batch of 1")):
        if need not in files:
            why_not.setdefault(need, f"no program with {name} was given")
    return replace(programs, files=files, why_not=why_not)


@dataclass(frozen=True)
class Images:
    """`dataset` has as many examples as the steps need; `source` says where they are from."""

    dataset: Dataset
    source: str


def synthetic_images(spec: ModelSpec, count: int, seed: int) -> Images:
    """Return seeded noise with labels; what an image shows changes nothing about its cost."""
    rng = np.random.default_rng(seed)
    shape = (count, spec.channels, spec.image_size, spec.image_size)
    images = rng.integers(256, size=shape, dtype=np.uint8).astype(np.float32) / np.float32(255)
    labels = rng.integers(spec.classes, size=count, dtype=np.int64)
    return Images(Dataset(images, labels, spec.classes), f"synthetic noise, seed {seed}")


def images_from(data: str, spec: ModelSpec, count: int, seed: int) -> Images:
    """Return `count` images of a folder, `.npz` file or `digits`; raises `ConfigError`."""
    if data == "digits":
        whole = load_dataset("digits", None, spec)
    else:
        path = Path(data)
        whole = load_dataset("npz" if path.suffix == ".npz" else "folder", path, spec)
    return _pick(whole, data, count, seed)


def device_images(config: LoadedConfig, spec: ModelSpec, count: int, seed: int) -> Images:
    """Return `count` of the device's own images; raises `ConfigError`."""
    from edge_sdk.agent.local_data import load_local_data

    return _pick(load_local_data(config, spec), f"[data] of {config.file}", count, seed)


def _pick(whole: Dataset, name: str, count: int, seed: int) -> Images:
    if not len(whole):
        raise ConfigError(f"{name} holds no image")
    order = np.random.default_rng(seed).permutation(len(whole))
    again = "" if len(whole) >= count else f", of which there are only {len(whole)}, repeated"
    return Images(whole.subset(np.resize(order, count)), f"{count} images of {name}{again}")


def start_weights(spec: ModelSpec, seed: int) -> Float32:
    """Return seeded weights of usual size: normal with deviation sqrt(2 / fan-in), norms at 1."""
    layout = layout_of(spec)
    flat = np.zeros(layout.size, np.float32)
    rng = np.random.default_rng(seed)
    for parameter, place in layout.slices():
        if len(parameter.shape) > 1:
            fan_in = parameter.size // parameter.shape[0]
            flat[place] = rng.normal(0, np.sqrt(2 / fan_in), parameter.size)
        elif "norm" in parameter.name and parameter.name.endswith("weight"):
            flat[place] = 1
    return flat
