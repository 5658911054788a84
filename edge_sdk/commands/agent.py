"""`edge-sdk agent`: the long-running client."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

HELP = "run the client: take tasks, train, send updates, install releases"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("agent", help=HELP, description=HELP)
    parser.add_argument("--config", type=Path, default=Path("device.toml"), metavar="FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or Ctrl-C; both end cleanly, and so does a power cut."""
    from edge_sdk.agent.agent import Agent
    from edge_sdk.agent.config import load_config
    from edge_sdk.agent.progress import lock

    config = load_config(options.config)
    lock(config.state)
    agent = Agent(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.run()
    return 0
