"""What the demo runs: fixed choices, each with its reason, and their place in `server.toml`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edge_sdk.protocol.part_file import write_durably
from server_toolkit.errors import ConfigError

DEVICES = ("cam-01", "cam-02", "cam-03", "cam-04")
ROUNDS = 12
WIDTH = 32
SEED = 0
MEAN, STD = 0.3, 0.35  # of the enlarged digits, rounded: about what anyone knows of them
EPSILON = 0.1  # l-inf, pixels in [0, 1]: what an undefended network of this width feels
STEPS = 20
EPSILONS = (0.025, 0.05, 0.1, 0.15, 0.2)
MAIN_ARM = "trajsyn_server_set"
START_WITHOUT_IMAGES = "structured"

# Arms in the order of the table, and what each stands for.
ARMS = {
    "fedavg": "the federated model, undefended",
    "trajsyn_noise": "hardened on images distilled from trajectories alone",
    "trajsyn_server_set": "distilled starting at the server's 50 real images, hardened with them",
    "server_set_only": "control: the same hardening on the server's 50 real images alone",
    "noise_only": "control: the same hardening on the start images, nothing distilled",
}
CONTROLS = ("server_set_only", "noise_only")

SERVER_TOML: dict[tuple[str, str], Any] = {
    ("training", "epochs"): 2,
    ("training", "learning_rate"): 0.05,
    ("rounds", "quorum"): len(DEVICES),
    ("rounds", "deadline_s"): 60,
    ("evaluate", "epsilons"): list(EPSILONS),
    ("evaluate", "steps"): STEPS,
    ("release", "min_robust_gain"): 0.05,
    ("release", "max_clean_drop"): 0.1,
    ("release.health", "min_accuracy"): 0.5,
    ("release.health", "max_accuracy_drop"): 0.2,
    ("pipeline", "arm"): MAIN_ARM,
}


def set_values(file: Path, values: dict[tuple[str, str], Any]) -> None:
    """Change values in a commented TOML file and leave its comments where they are.

    A key that is there, also commented out, is replaced; raises `ConfigError` for any other. What
    is killed or has no power meanwhile leaves the old file or the new one.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    for (section, key), value in values.items():
        current = ""
        for index, line in enumerate(lines):
            if header := re.match(r"\[([\w.]+)\]", line):
                current = header[1]
            elif current == section and re.match(rf"#? ?{key} = ", line):
                lines[index] = f"{key} = {json.dumps(value)}"
                break
        else:
            raise ConfigError(f"{file} has no {key} in [{section}]")
    write_durably(file, ("\n".join(lines) + "\n").encode())
