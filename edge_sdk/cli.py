"""`edge-sdk`: the device's commands. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

import edge_sdk
from edge_sdk.errors import EdgeError

DESCRIPTION = "Train on this device for a TrajSyn fleet, and run the robust model it sends back."
EPILOG = """\
first steps on a device:
  edge-sdk init cam --device cam-01 --server-key server.pub --host broker.example --data images/
  edge-sdk agent --config cam/device.toml
  edge-sdk status --config cam/device.toml
  edge-sdk bench --config cam/device.toml --report bench.html     # what training costs here

exit codes:
  0 done                        5 native library or program unusable
  1 another error               6 bad message or file from the other side
  2 wrong option, file or data  7 the device's own files are damaged
  3 layer not supported         8 no usable release
  4 export gate not passed      130 interrupted
"""


COMMANDS = ("init", "agent", "status", "predict", "export", "bench")


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, or of one: an agent is not to load the others' modules."""
    parser = argparse.ArgumentParser(
        prog="edge-sdk",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trajsyn {edge_sdk.__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens in detail")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in [only] if only else COMMANDS:
        importlib.import_module(f"edge_sdk.commands.{name}").add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; a user's mistake is one line, not a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    first = next((word for word in words if not word.startswith("-")), None)
    options = build_parser(first if first in COMMANDS else None).parse_args(words)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    try:
        code: int = options.run(options)
    except EdgeError as error:
        sys.stderr.write(f"edge-sdk: {error}\n")
        return error.exit_code
    except OSError as error:  # a directory that may not be written, a full disk
        sys.stderr.write(f"edge-sdk: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
