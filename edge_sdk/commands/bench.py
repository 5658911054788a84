"""`edge-sdk bench`: what training costs on this device."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edge_sdk.commands.output_file import require_writable
from edge_sdk.errors import ConfigError

HELP = "measure what training costs on this device: time, memory, bytes, temperature, energy"
DESCRIPTION = """\
Measure what a federated round costs on this device, and what TrajSyn adds to it (nothing but the
installation of a release). The real agent runs in fresh processes, arms taking turns:

  federated   the federated client alone
  trajsyn     the same, and the server sends a release; its uploads must be byte-identical
  pgd7 pgd10  adversarial training on the device, which TrajSyn spares it
  dp_sgd      DP-SGD on the device

Then a foreground inference loop runs beside training under several budgets (the training tax).
Every value says whether it was measured, derived, estimated or is absent, from what, and why.
"""
EPILOG = """\
examples:
  edge-sdk bench --quick --report bench.html         # on a PC with torch: under a minute
  edge-sdk bench --json bench.json --report bench.html
  edge-sdk bench --config cam/device.toml            # this device's program, images and model
  edge-sdk bench --save-programs bench-programs      # with torch; copy it to a device, there:
  edge-sdk bench --program bench-programs/*.tsp
  edge-sdk bench --meter-command './meter.py'        # prints {"power_w": 3.7}, one a line

energy is read from an external meter, a Raspberry Pi 5's PMIC, a Jetson's INA3221 or a PC's RAPL;
where none answers, energy is absent and the report says what to do. See docs/overhead.md.

exit codes: 0 done, 1 uploads differ or an arm failed, 2 wrong options, 5 native library unusable,
130 interrupted (what was measured is written, marked as not complete)
"""
QUICK = {"steps": 6, "repeats": 1, "tax_s": 2.0, "idle_s": 2.0}
FULL = {"steps": 12, "repeats": 3, "tax_s": 10.0, "idle_s": 5.0}
ARMS = ("federated", "trajsyn", "pgd7", "pgd10", "dp_sgd")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "bench",
        help=HELP,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result = parser.add_argument_group("results")
    result.add_argument("--json", type=Path, metavar="FILE", help="write every value here")
    result.add_argument("--report", type=Path, metavar="FILE.html", help="write a page here")

    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--program", type=Path, nargs="+", default=[], metavar="FILE.tsp",
        help="program files of `edge-sdk bench --save-programs` or `edge-sdk export`",
    )  # fmt: skip
    what.add_argument(
        "--config", type=Path, metavar="FILE",
        help="a device.toml: the program, images and model that this device has",
    )  # fmt: skip
    what.add_argument(
        "--data", metavar="SOURCE",
        help="image folder, .npz file or `digits` (default: those of --config, else noise)",
    )  # fmt: skip
    what.add_argument("--width", type=int, default=128, help="of the ConvNet exported here")
    what.add_argument("--depth", type=int, default=3, help="of the ConvNet exported here")
    what.add_argument("--architecture", default="convnet", help="of the network exported here")
    what.add_argument("--channels", type=int, default=3, help="of its images")
    what.add_argument("--image-size", type=int, default=32, help="side of its images")
    what.add_argument("--classes", type=int, default=10)
    what.add_argument(
        "--save-programs", type=Path, metavar="DIR",
        help="only export the programs into DIR, to be copied to a device without torch; with "
        "--program, for that program's network",
    )  # fmt: skip

    how = parser.add_argument_group("how much")
    how.add_argument("--quick", action="store_true", help="one short repeat of everything")
    how.add_argument("--threads", type=int, default=1, help="of training in the arms (default 1)")
    how.add_argument("--batch", type=int, default=16, help="images a step (default 16)")
    how.add_argument("--steps", type=int, help=f"a round ({FULL['steps']}, quick {QUICK['steps']})")
    how.add_argument("--rounds", type=int, default=2, help="a process (default 2)")
    how.add_argument(
        "--repeats", type=int, help=f"of every arm ({FULL['repeats']}, quick {QUICK['repeats']})"
    )
    how.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--no-tax", action="store_true", help="leave out the foreground loop")
    how.add_argument("--rate", type=float, default=20.0, help="of the loop, images/s (default 20)")
    how.add_argument(
        "--tax", type=float, metavar="S",
        help=f"seconds of the loop a budget and repeat ({FULL['tax_s']:g}, "
        f"quick {QUICK['tax_s']:g})",
    )  # fmt: skip
    how.add_argument(
        "--idle", type=float, metavar="S",
        help=f"seconds of the idle baseline, before and after ({FULL['idle_s']:g}, "
        f"quick {QUICK['idle_s']:g})",
    )  # fmt: skip

    around = parser.add_argument_group("what is around")
    around.add_argument(
        "--broker", metavar="HOST:PORT",
        help="an MQTT broker to publish through, not the fleet's own (default: mosquitto on "
        "loopback where it is installed)",
    )  # fmt: skip
    around.add_argument("--no-broker", action="store_true", help="hand updates over in memory")
    around.add_argument(
        "--meter-command", metavar="CMD", help="external power meter: prints JSON lines"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, write the results and print the main ones."""
    from edge_sdk.overhead import bench
    from edge_sdk.overhead.report import report_html

    require_writable(options.json, options.report)
    request = _request(options)
    if options.save_programs is not None:
        from edge_sdk.overhead.subject import load_program_file

        known = [load_program_file(path).spec for path in request.program]
        _say("exporting; this takes a minute")
        for path in bench.save_programs(known[0] if known else request.spec, options.save_programs):
            print(path)
        return 0
    try:
        document = bench.run(request, say=_say)
    except KeyboardInterrupt:
        _say("interrupted before anything was measured; nothing is written")
        return 130
    _print(document)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if options.json is not None:
        options.json.write_text(text, encoding="utf-8")
    if options.report is not None:
        options.report.write_text(report_html(document), encoding="utf-8")
    if document["interrupted"]:
        return 130
    if bench.same_uploads(document) is False:
        raise bench.DifferentUploadsError(
            "uploads with TrajSyn differ from those of the federated client alone"
        )
    return 1 if document["failures"] else 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _request(options: argparse.Namespace) -> Any:
    from edge_sdk.overhead.bench import Request
    from edge_sdk.overhead.plan import Plan
    from models import ModelSpec, SpecError

    if options.broker and options.no_broker:
        raise ConfigError("--broker and --no-broker exclude each other")
    defaults = QUICK if options.quick else FULL

    def chosen(name: str) -> Any:
        value = getattr(options, name.removesuffix("_s"))
        return defaults[name] if value is None else value

    plan = Plan(
        threads=_within("--threads", options.threads, 1, 256),
        batch_size=_within("--batch", options.batch, 1, 4096),
        steps=_within("--steps", chosen("steps"), 2, 100_000),
        rounds=_within("--rounds", options.rounds, 1, 1000),
        repeats=_within("--repeats", chosen("repeats"), 1, 1000),
        seed=_within("--seed", options.seed, 0, 2**31 - 1),
        arms=tuple(a for a in ARMS if a in options.arms),
        tax_s=0.0 if options.no_tax else _within("--tax", chosen("tax_s"), 0.1, 3600),
        rate_hz=_within("--rate", options.rate, 0.1, 1000),
        idle_s=_within("--idle", chosen("idle_s"), 0, 3600),
        epsilon=8 / 255,
        step_size=2 / 255,
    )
    try:
        spec = ModelSpec(
            architecture=options.architecture,
            channels=options.channels,
            image_size=options.image_size,
            classes=options.classes,
            width=options.width,
            depth=options.depth,
            mean=(0.5,) * options.channels,
            std=(0.25,) * options.channels,
        )
    except SpecError as error:
        raise ConfigError(str(error)) from error
    config = None
    if options.config is not None:
        from edge_sdk.agent.config import load_config

        config = load_config(options.config)
    return Request(
        plan=plan,
        program=tuple(options.program),
        config=config,
        spec=spec,
        data=options.data,
        broker=_broker(options.broker),
        use_broker=not options.no_broker,
        meter_command=options.meter_command,
    )


def _within(name: str, value: Any, low: float, high: float) -> Any:
    if not low <= value <= high:  # not-a-number fails too
        raise ConfigError(f"{name} is {value}; it must be from {low:g} to {high:g}")
    return value


def _broker(text: str | None) -> Any:
    from edge_sdk.mqtt import BrokerSettings

    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"--broker is {text!r}; expected HOST:PORT")
    return BrokerSettings(host=host.strip("[]"), port=int(port))


def _print(document: dict[str, Any]) -> None:
    """Print the main values as a table."""
    from edge_sdk.overhead.report import BUSY_LOAD, show

    columns = ("step", "p95", "step CPU", "round", "bytes up", "peak memory", "step energy")
    print(f"\n{'':<31}" + "".join(f"{c:>12}" for c in columns))
    for tree in document["arms"].values():
        if "step" not in tree:
            print(f"{tree['title']:<31}absent: {tree['absent']['reason']}")
            continue
        step, whole = tree["step"], tree["round"]
        row = (
            step["time_median"], step["time_p95"], step["cpu_median"], whole["time_median"],
            whole["bytes_up"], tree["process"]["peak_rss"], step["energy"],
        )  # fmt: skip
        print(f"{tree['title']:<31}" + "".join(f"{show(v).split(' ±')[0]:>12}" for v in row))
    identical = document["uploads"]["identical"]
    if identical["value"] is not None:
        word = "byte-identical" if identical["value"] else "DIFFERENT"
        print(f"\nuploads with and without TrajSyn: {word} ({identical['source']})")
    release = document["arms"].get("trajsyn", {}).get("release", {}).get("whole")
    if release:
        print(
            f"installing a release: {show(release['bytes_down'])}, "
            f"{show(release['cpu_median'])} CPU, {show(release['time_median'])}"
        )
    for row in document["tax"].values():
        if "latency_p99" in row:
            steps = row["steps_per_s"]
            trained = "" if steps["value"] is None else f", {steps['value']:.1f} steps/s trained"
            print(
                f"foreground loop beside {row['title']}: median {show(row['latency_median'])}, "
                f"p99 {show(row['latency_p99'])}{trained}"
            )
    load = document["machine"]["load_before"]["value"]
    if load > BUSY_LOAD:
        print(f"the machine was busy before (load {load:.1f} a core): compare only within this run")
    if document["power"]["sensor"]["value"] is None:
        print("energy is absent: no power sensor answers; --report says what to do")
