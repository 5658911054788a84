"""Export the benchmark's programs, in a process of its own because it loads torch.

python -m edge_sdk.overhead.make_programs DIRECTORY SPEC_JSON training attack private
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

from edge_sdk.errors import EdgeError
from edge_sdk.overhead.subject import MICRO_BATCH
from models import ModelSpec


def main(arguments: list[str]) -> int:
    """Write `DIRECTORY/NEED.tsp` for every need; the last line of stderr tells of a failure."""
    directory, spec = Path(arguments[0]), ModelSpec.from_dict(json.loads(arguments[1]))
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    try:
        from edge_sdk.export.programs import attack_program, training_program

        for need in arguments[2:]:
            if need == "attack":
                file = attack_program(spec, micro_batch=MICRO_BATCH)
            else:
                file = training_program(spec, micro_batch=1 if need == "private" else MICRO_BATCH)
            file.save(directory / f"{need}.tsp")
    except (EdgeError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
