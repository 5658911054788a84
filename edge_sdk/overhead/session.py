"""Runs the arms in turns, each in a fresh process, and keeps what they measured as it was."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.mqtt import BrokerSettings
from edge_sdk.overhead.conversation import DEVICE, converse
from edge_sdk.overhead.plan import Arm, Budget, Plan, arms
from edge_sdk.overhead.processes import ArmError, Child
from edge_sdk.overhead.release_model import InstalledRelease, inference_model
from edge_sdk.overhead.server import add_blob
from edge_sdk.overhead.subject import Images, Programs
from edge_sdk.protocol.messages import (
    Release,
    ReleaseFile,
    ReleaseHealth,
    Task,
    TrainingSettings,
)
from edge_sdk.protocol.signing import create_key
from edge_sdk.protocol.updates import encode_weights

Float32 = npt.NDArray[np.float32]

ROUND_TIMEOUT_S = 3600.0
YEAR_S = 365 * 86400.0


@dataclass
class Raw:
    """What was measured so far, as it was."""

    arms: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tax: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    idle: list[tuple[float, float]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = False


class Session:
    """One benchmark in a directory of its own; `run` fills `raw` step by step."""

    def __init__(
        self,
        directory: Path,
        *,
        plan: Plan,
        programs: Programs,
        images: Images,
        weights: Float32,
        broker: BrokerSettings | None,
        installed: InstalledRelease | None,
        measures_power: bool,
        say: Callable[[str], None],
    ) -> None:
        self.directory, self.plan, self.programs = directory, plan, programs
        self.raw = Raw()
        self._broker, self._say, self._measures_power = broker, say, measures_power
        self._arms = arms(epsilon=plan.epsilon, step_size=plan.step_size)
        self._count = 0
        self._key = create_key(directory / "server.key")
        create_key(directory / "device.key")
        np.savez(
            directory / "images.npz", images=images.dataset.images, labels=images.dataset.labels
        )
        self._files = directory / "files"
        self._files.mkdir()
        spec = programs.training.spec
        self._base = add_blob(self._files, encode_weights(weights, programs.training.layout))
        self.model_source, model, reference = inference_model(spec, weights, installed)
        self.model_path = directory / "model.onnx"
        self.model_path.write_bytes(model)
        self.precision = installed.precision if installed else "fp32"
        file = ReleaseFile(
            blob=add_blob(self._files, model),
            max_abs_diff=installed.max_abs_diff if installed else 1e-3,
        )
        self._release = Release(
            name="bench",
            version=1,
            created_at_s=round(time.time(), 3),
            expires_at_s=round(time.time() + YEAR_S, 3),
            model=spec.to_dict(),
            fp32=file,
            int8=file,
            reference=add_blob(self._files, reference),
            health=ReleaseHealth(min_accuracy=0.0, max_accuracy_drop=1.0),
            metrics={},
        )

    def run(self, tax: dict[str, Budget | None]) -> None:
        """Measure everything; what is done is in `raw` whatever happens."""
        todo = list(self._todo(tax))
        for number, (name, work) in enumerate(todo, 1):
            started = time.monotonic()
            try:
                work()
            except ArmError as error:
                self.raw.failures[name] = str(error)
                self._say(f"[{number}/{len(todo)}] {name}: {error}")
                continue
            seconds = time.monotonic() - started
            self._say(f"[{number}/{len(todo)}] {name}, {seconds:.1f} s")
        self.raw.complete = True

    def _todo(self, tax: dict[str, Budget | None]) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield the work, arms and budgets in turns, each repeat beginning with another one."""
        names = [n for n in self.plan.arms if self._arms[n].needs in self.programs.files]
        idle = [("idle device", self._idle)] if self._measures_power else []
        yield from idle
        for repeat in range(self.plan.repeats):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                yield self._arms[name].title, lambda n=name: self._arm(self._arms[n])  # type: ignore[misc]
        yield from idle
        if self.plan.tax_s > 0:
            for _ in range(self.plan.repeats):
                for name, budget in tax.items():
                    label = f"foreground loop beside training: {name}"
                    yield label, lambda n=name, b=budget: self._tax(n, b)  # type: ignore[misc]

    def _idle(self) -> None:
        start = time.monotonic()
        time.sleep(self.plan.idle_s)
        self.raw.idle.append((start, time.monotonic()))

    def _arm(self, arm: Arm) -> None:
        directory = self._run_directory()
        training = dict(arm.training)
        if arm.training["kind"] == "adversarial":
            training["attack_program"] = str(self.programs.files["attack"][0].resolve())
        use = "private" if arm.training["kind"] == "private" else "training"
        setup = self._setup(directory, use=use, release=arm.gets_release)
        instructions = {
            "kind": "agent",
            "config": str(self._config(directory, Budget("arm", self.plan.threads, 0, 1.0))),
            "training": training,
            "server": setup,
            "link": "memory" if self._broker is None else "mqtt",
        }
        with Child(instructions, directory, threads=self.plan.threads) as child:
            if self._broker is None:
                result = child.finish(timeout_s=ROUND_TIMEOUT_S)
            else:
                facts = converse(setup, self._broker, check=child.check, timeout_s=ROUND_TIMEOUT_S)
                child.let_go()
                result = child.finish() | {"server": facts}
            result["started_s"] = child.started_s
        self.raw.arms.setdefault(arm.name, []).append(result)
        verdict = (result["server"]["release"] or {}).get("verdict")
        if arm.gets_release and verdict != "running":
            reason = (result["server"]["release"] or {}).get("reason")
            self.raw.failures[arm.title] = f"the release was not installed ({verdict}): {reason}"
        shutil.rmtree(directory)

    def _tax(self, name: str, budget: Budget | None) -> None:
        directory = self._run_directory()
        spec = self.programs.training.spec
        foreground = {
            "kind": "foreground",
            "model": str(self.model_path),
            "image_shape": [spec.channels, spec.image_size, spec.image_size],
            "rate_hz": self.plan.rate_hz,
            "frames": max(1, round(self.plan.tax_s * self.plan.rate_hz)),
        }
        front = directory / "foreground"
        front.mkdir()
        timeout_s = 10 * self.plan.tax_s + 60
        if budget is None:
            with Child(foreground, front, threads=1) as child:
                result = child.finish(timeout_s=timeout_s)
        else:
            background = {
                "kind": "background",
                "config": str(self._config(directory, budget)),
                "server": self._setup(directory, use="training", release=False),
            }
            with Child(background, directory, threads=budget.threads) as trainer:
                trainer.wait_for_line()
                with Child(foreground, front, threads=1) as child:
                    result = child.finish(timeout_s=timeout_s)
                trainer.let_go()
                result["background"] = trainer.finish()
        self.raw.tax.setdefault(name, []).append(result)
        shutil.rmtree(directory)

    def _run_directory(self) -> Path:
        self._count += 1
        directory = self.directory / f"run-{self._count}"
        shutil.copytree(self._files, directory / "files")
        return directory

    def _setup(self, directory: Path, *, use: str, release: bool) -> dict[str, Any]:
        """Return what `make_server` wants; the files are this run's own."""
        program = self.programs.files[use][1]
        files = directory / "files"
        now_s = round(time.time(), 3)
        task = Task(
            run="bench",
            round=0,
            layout=program.layout.fingerprint,
            program=add_blob(files, program.to_bytes()),
            base=self._base,
            training=TrainingSettings(
                epochs=1,
                batch_size=self.plan.batch_size,
                learning_rate=1e-3,
                momentum=0.9,
                weight_decay=0.0,
                proximal_mu=0.0,
                seed=self.plan.seed,
            ),
            encoding="int8",
            issued_at_s=now_s,
            expires_at_s=now_s + YEAR_S,
        )
        return {
            "directory": str(files),
            "key": str(self.directory / "server.key"),
            "device_key": str(self.directory / "device.pub"),
            "spec": program.spec.to_dict(),
            "task": asdict(task),
            "rounds": self.plan.rounds,
            "release": asdict(self._release) if release else None,
        }

    def _config(self, directory: Path, budget: Budget) -> Path:
        """Write the agent's configuration for one run."""
        broker = self._broker or BrokerSettings()
        lines: dict[str, dict[str, Any]] = {
            "": {
                "device": DEVICE,
                "state_directory": str(directory / "state"),
                "private_key": str(self.directory / "device.key"),
                "server_public_key": str(self.directory / "server.pub"),
                "heartbeat_s": 3600,
            },
            "broker": {"host": broker.host, "port": broker.port},
            "data": {"kind": "npz", "path": str(self.directory / "images.npz")},
            "compute": {
                "threads": budget.threads,
                "niceness": budget.niceness,
                "duty_cycle": budget.duty_cycle,
            },
            "model": {"precision": self.precision},
        }
        text = ""
        for table, fields in lines.items():
            text += f"[{table}]\n" if table else ""
            text += "".join(f"{k} = {json.dumps(v)}\n" for k, v in fields.items())
        path = directory / "device.toml"
        path.write_text(text, encoding="utf-8")
        return path
