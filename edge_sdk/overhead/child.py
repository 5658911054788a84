"""One arm of the benchmark in a process of its own: `python -m edge_sdk.overhead.child FILE`.

FILE holds instructions as JSON; the result is written where they say. Standard input is the leash:
when it closes, because the parent says so or died, the child ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edge_sdk.errors import EdgeError
from edge_sdk.overhead.probes import Recorder, cpu_s, watch_agent

WARM_UP_FRAMES = 10
LAST_ANSWER_S = 5.0


def main(arguments: list[str]) -> int:
    """Do what the instructions say; an error that somebody can correct becomes the result."""
    instructions = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    leash = threading.Event()
    threading.Thread(target=_hold, args=(leash,), daemon=True).start()
    kinds = {"agent": run_agent, "foreground": run_foreground, "background": run_background}
    result: dict[str, Any]
    try:
        result = kinds[instructions["kind"]](instructions, leash)
    except EdgeError as error:
        result = {"error": str(error), "exit_code": error.exit_code}
    Path(instructions["result"]).write_text(json.dumps(result), encoding="utf-8")
    return 0


def _hold(leash: threading.Event) -> None:
    with contextlib.suppress(OSError):
        # Not sys.stdin: a thread that waits in it makes the interpreter abort at its end.
        while os.read(sys.stdin.fileno(), 1):
            pass
    leash.set()


def run_agent(instructions: dict[str, Any], leash: threading.Event) -> dict[str, Any]:
    """Run the real agent over all rounds, over a broker or over memory."""
    from edge_sdk.agent.agent import Agent
    from edge_sdk.agent.config import load_config

    recorder = Recorder()
    config = load_config(Path(instructions["config"]))
    replace_training(instructions["training"], recorder)
    watch_agent(recorder)
    agent = Agent(config)
    result: dict[str, Any] = {}
    if instructions["link"] == "mqtt":
        threading.Thread(target=_stop, args=(agent, recorder, leash), daemon=True).start()
        agent.run()
    else:
        result["server"] = _run_over_memory(agent, recorder, instructions["server"], leash)
    return result | recorder.to_json() | {"cpu_s": cpu_s(), "ended_s": time.monotonic()}


def _stop(agent: Any, recorder: Recorder, leash: threading.Event) -> None:
    """Stop the agent when the leash is cut, once the server's last answer has arrived."""
    leash.wait()
    deadline_s = time.monotonic() + LAST_ANSWER_S
    while recorder.is_open("publish") and time.monotonic() < deadline_s:
        time.sleep(0.01)
    agent.stop()


def _run_over_memory(
    agent: Any, recorder: Recorder, setup: dict[str, Any], leash: threading.Event
) -> dict[str, Any]:
    """Connect the agent to a server in this very process; its work is counted with the agent's."""
    from edge_sdk.mqtt import Connected, Received
    from edge_sdk.overhead.conversation import make_server, server_facts

    server = make_server(setup, lambda t, p: agent.events.put(Received(t, p)))

    class Link:
        connected = True

        def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:  # noqa: ARG002 - as MqttLink
            server.on_message(topic, payload)
            return True

        def tick(self) -> None:
            server.on_tick()

    agent.uplink.link = Link()
    agent.events.put(Connected())
    try:
        while (not server.finished or recorder.is_open("publish")) and not leash.is_set():
            with contextlib.suppress(queue.Empty):
                agent.handle(agent.events.get(timeout=0.02))
            agent.tick()
    finally:
        agent.close()
    return server_facts(server)


def replace_training(training: dict[str, Any], recorder: Recorder) -> None:
    """Let the agent train in another way; everything else of it stays as it is."""
    import edge_sdk.agent.local_training

    module: Any = edge_sdk.agent.local_training
    if training["kind"] == "adversarial":
        from edge_sdk.training import adversarial

        recorder.wrap(adversarial.PGD, "__call__", "attack")
        module.train = functools.partial(_with_attack, adversarial.train_adversarially, training)
    elif training["kind"] == "private":
        from edge_sdk.training.secure_random import SecureRandom

        recorder.wrap(SecureRandom, "add_normal", "noise")
        module.train = functools.partial(_with_privacy, training)


def _with_privacy(
    training: dict[str, Any], file: Any, start: Any, dataset: Any, *, seed: int, **options: Any
) -> Any:
    """Train with real, unseeded noise: the seed would change what is measured."""
    from edge_sdk.training.privacy import train_privately

    del seed
    names = ("clip_norm", "noise_multiplier", "delta")
    return train_privately(file, start, dataset, **{n: training[n] for n in names}, **options)


def _with_attack(
    train: Any, training: dict[str, Any], file: Any, start: Any, dataset: Any, **options: Any
) -> Any:
    from edge_sdk.runtime import ProgramFile

    attack = ProgramFile.load(training["attack_program"])
    budget = {k: training[k] for k in ("epsilon", "step_size", "attack_steps")}
    return train(file, attack, start, dataset, **budget, **options)


def run_foreground(instructions: dict[str, Any], leash: threading.Event) -> dict[str, Any]:
    """Classify one image every 1/rate seconds; a frame's latency counts from when it was due.

    A frame that comes late because the one before took too long waits, and its waiting counts.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        Path(instructions["model"]).read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    (name,) = [i.name for i in session.get_inputs()]
    image = np.random.default_rng(0).random((1, *instructions["image_shape"]), dtype=np.float32)
    for _ in range(WARM_UP_FRAMES):
        session.run(None, {name: image})
    period_s, frames = 1 / instructions["rate_hz"], instructions["frames"]
    start_s = time.monotonic() + period_s
    latencies_s = []
    for frame in range(frames):
        due_s = start_s + frame * period_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        session.run(None, {name: image})
        latencies_s.append(time.monotonic() - due_s)
        if leash.is_set():
            break
    return {"latencies_s": latencies_s, "start_s": start_s, "ended_s": time.monotonic()}


def run_background(instructions: dict[str, Any], leash: threading.Event) -> dict[str, Any]:
    """Train rounds as the agent would, in a thread, until the leash is cut."""
    from edge_sdk.agent.config import load_config
    from edge_sdk.agent.local_training import train_round
    from edge_sdk.overhead.conversation import task_of

    config = load_config(Path(instructions["config"]))
    task, files = task_of(instructions["server"])
    steps: list[float] = []

    def progress(step: int, _steps: int) -> None:
        if not steps:
            sys.stdout.write("training\n")
            sys.stdout.flush()
        steps.append(time.monotonic())
        del step

    def work() -> None:
        while not leash.is_set():
            train_round(
                task,
                config=config,
                program_path=files / task.program.sha256,
                base_path=files / task.base.sha256,
                residual=None,
                should_stop=leash.is_set,
                progress=progress,
            )

    with ThreadPoolExecutor(1) as thread:  # not the main thread: niceness is a thread's own
        thread.submit(work).result()
    return {"steps": steps, "cpu_s": cpu_s()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
