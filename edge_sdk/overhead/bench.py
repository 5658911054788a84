"""The whole benchmark: find what to measure, measure it in turns, give everything its source."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from edge_sdk.agent.config import LoadedConfig
from edge_sdk.errors import EdgeError, ReleaseError
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.overhead import subject
from edge_sdk.overhead.broker import find_mosquitto, loopback_broker
from edge_sdk.overhead.comparison import against, compare_uploads, tax
from edge_sdk.overhead.conversation import check_broker
from edge_sdk.overhead.machine import load_per_core, machine_facts, usable_cores
from edge_sdk.overhead.plan import Arm, Budget, Plan, arms, budgets
from edge_sdk.overhead.release_model import InstalledRelease, installed_release
from edge_sdk.overhead.sampler import Sampler
from edge_sdk.overhead.session import Session
from edge_sdk.overhead.subject import Images, Programs
from edge_sdk.overhead.summary import Summary
from edge_sdk.overhead.values import absent, derived, measured, to_json
from models import ModelSpec

FORMAT = "trajsyn-bench-1"
MAX_TRACE_POINTS = 1500
NEEDS = ("training", "attack", "private")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; with `config`, files of `program` add to the device's own."""

    plan: Plan
    program: tuple[Path, ...]
    config: LoadedConfig | None
    spec: ModelSpec
    data: str | None
    broker: BrokerSettings | None
    use_broker: bool
    meter_command: str | None


def find_programs(request: Request, directory: Path) -> Programs:
    """Return the programs; what the arms lack is exported where that is possible."""
    plan, here = request.plan, directory / "programs"
    wanted = {a.needs for a in arms(epsilon=0, step_size=0).values() if a.name in plan.arms}
    needs = [need for need in NEEDS if need in wanted | {"training"}]
    if request.config is not None:
        found = subject.from_device(request.config, request.program)
    elif request.program:
        found = subject.from_files(request.program)
    else:
        return subject.exported(request.spec, here, needs)
    return subject.with_exported(found, here, needs)


def run(request: Request, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure and return the document; after Ctrl-C it holds what there is, not `complete`.

    Raises `ConfigError` and other `EdgeError`s for what stops everything before the first arm.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="edge-sdk-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(_sigterm_as_interrupt())
        busy = load_per_core()
        say("preparing programs, images and sensors; exporting programs takes up to a minute")
        programs = find_programs(request, directory)
        for _, file in programs.files.values():
            file.load_program(threads=1).close()  # said now, once, and not by every arm
        images = _images(request, programs.training.spec)
        installed = _installed(request.config, programs.training.spec, say)
        broker, broker_source = _broker(request, directory, stack)
        sampler = stack.enter_context(Sampler(meter_command=request.meter_command))
        plan = request.plan
        session = Session(
            directory,
            plan=plan,
            programs=programs,
            images=images,
            weights=subject.start_weights(programs.training.spec, plan.seed),
            broker=broker,
            installed=installed,
            measures_power=sampler.power_name is not None,
            say=say,
        )
        compute = request.config.settings.compute if request.config else None
        tax_budgets = budgets(
            default_threads=compute.threads if compute else 1, all_threads=usable_cores()
        )
        began_s = time.monotonic()
        try:
            session.run(tax_budgets)
        except KeyboardInterrupt:
            say("interrupted; what was measured so far is kept")
        return _document(
            request, session, sampler, programs, images, tax_budgets, broker_source, began_s, busy
        )


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End as Ctrl-C does when a service manager asks."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _images(request: Request, spec: ModelSpec) -> Images:
    plan = request.plan
    count = plan.steps * plan.batch_size
    if request.data is not None:
        return subject.images_from(request.data, spec, count, plan.seed)
    if request.config is not None:
        return subject.device_images(request.config, spec, count, plan.seed)
    return subject.synthetic_images(spec, count, plan.seed)


def _installed(
    config: LoadedConfig | None, spec: ModelSpec, say: Callable[[str], None]
) -> InstalledRelease | None:
    if config is None:
        return None
    try:
        found = installed_release(config)
    except ReleaseError as error:
        say(f"the installed release is left aside: {error}")
        return None
    if found is not None and found.spec != spec:
        say("the installed release is for another network than the program; it is left aside")
        return None
    return found


def _broker(
    request: Request, directory: Path, stack: contextlib.ExitStack
) -> tuple[BrokerSettings | None, str]:
    """Return the broker to use and where it comes from; None: updates are handed over in memory."""
    if request.broker is not None:
        check_broker(request.broker)
        return request.broker, f"{request.broker.host}:{request.broker.port}, given by --broker"
    mosquitto = find_mosquitto() if request.use_broker else None
    if mosquitto is None:
        return None, "none: no mosquitto on this machine and no --broker"
    return (
        stack.enter_context(loopback_broker(mosquitto, directory)),
        "mosquitto on loopback, started for this run: no network between device and server",
    )


def _document(
    request: Request,
    session: Session,
    sampler: Sampler,
    programs: Programs,
    images: Images,
    tax_budgets: dict[str, Budget | None],
    broker_source: str,
    began_s: float,
    busy: Any,
) -> dict[str, Any]:
    raw, plan = session.raw, request.plan
    program = programs.training
    summary = Summary(
        raw,
        plan=plan,
        sampler=sampler,
        has_broker=not broker_source.startswith("none"),
        update_bytes_note="int8 with zstd",
    )
    all_arms = arms(epsilon=plan.epsilon, step_size=plan.step_size)
    shown = {name: all_arms[name] for name in plan.arms}
    trees = {name: _arm(arm, summary, session, programs) for name, arm in shown.items()}
    reference = trees.get("federated", {})
    for tree in trees.values():
        if "step" in reference and "step" in tree:
            tree["against_federated"] = against(tree, reference)
    document = {
        "format": FORMAT,
        "complete": raw.complete and not raw.failures,
        "interrupted": not raw.complete,
        "made_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "options": asdict(plan) | {"arms": list(plan.arms)},
        "machine": machine_facts() | {"load_before": busy},
        "subject": {
            "network": measured(describe(program.spec), "text", "the program's description"),
            "parameters": derived(program.layout.size, "1", "the network's layout"),
            "micro_batch": measured(program.micro_batch, "1", "the program's description"),
            "program_bytes": measured(len(program.pte), "B", "the program's file"),
            "program": measured(programs.source, "text", "options"),
            "images": measured(images.source, "text", "options"),
            "broker": measured(broker_source, "text", "options"),
            "inference_model": measured(session.model_source, "text", "options"),
        },
        "power": summary.power(),
        "arms": trees,
        "uploads": compare_uploads(raw, "federated", "trajsyn"),
        "tax": tax(raw, tax_budgets, plan)
        if raw.tax
        else {"absent": absent("s", "the foreground loop was not run", "leave out --no-tax")},
        "failures": [f"{name}: {reason}" for name, reason in raw.failures.items()],
        "duration": measured(time.monotonic() - began_s, "s", "monotonic clock"),
        "series": _series(session, sampler, began_s),
    }
    return to_json(document)  # type: ignore[no-any-return]


def _arm(arm: Arm, summary: Summary, session: Session, programs: Programs) -> dict[str, Any]:
    tree = summary.arm(arm)
    if "step" in tree:
        return tree
    if arm.needs in programs.why_not:
        reason = programs.why_not[arm.needs]
        remedy = (
            "run `edge-sdk bench --save-programs DIR --program FILE.tsp` with the training program "
            "on a computer with torch, and give --program DIR/*.tsp here"
        )
        return tree | {"absent": absent("arm", reason, remedy)}
    reason = session.raw.failures.get(arm.title, "it was not reached")
    return tree | {"absent": absent("arm", reason, "let the bench run to its end")}


def _series(session: Session, sampler: Sampler, began_s: float) -> dict[str, Any]:
    """Return what the pictures show: seconds since the start, watts, degrees, latencies."""
    times, watts = sampler.trace().power()
    stride = max(1, -(-len(times) // MAX_TRACE_POINTS))
    return {
        "power": {
            "t_s": [round(float(t - began_s), 3) for t in times[::stride]],
            "w": [round(float(w), 4) for w in watts[::stride]],
        },
        "temperature": [[round(t - began_s, 1), c] for t, c in sampler.temperatures()],
        "runs": [
            [name, round(r["started_s"] - began_s, 3), round(r["ended_s"] - began_s, 3)]
            for name, runs in session.raw.arms.items()
            for r in runs
        ],
        "latency_s": {
            name: [round(s, 6) for r in runs for s in r["latencies_s"]]
            for name, runs in session.raw.tax.items()
        },
    }


def describe(spec: ModelSpec) -> str:
    """Return a network in words."""
    image = f"{spec.channels}x{spec.image_size}x{spec.image_size}"
    if spec.architecture == "convnet":
        return f"ConvNet, width {spec.width}, depth {spec.depth}, {image}, {spec.classes} classes"
    return f"{spec.architecture}, {image}, {spec.classes} classes"


def save_programs(spec: ModelSpec, directory: Path) -> list[Path]:
    """Export the programs into `directory` for another device; raises as `exported`."""
    programs = subject.exported(spec, directory, NEEDS)
    return [path for path, _ in programs.files.values()]


def same_uploads(document: dict[str, Any]) -> bool | None:
    """Return whether both arms sent the same bytes, None where that was not measured."""
    value = document["uploads"]["identical"]["value"]
    return None if value is None else bool(value)


class DifferentUploadsError(EdgeError):
    """The uploads with TrajSyn are not those of the federated client alone."""
