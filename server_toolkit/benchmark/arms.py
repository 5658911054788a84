"""The arms that are compared: one row each, methods and controls under the same rules.

A new method is a row here, and where it makes its images in a new way a maker in
`proxy_makers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server_toolkit.errors import ConfigError

Role = Literal["floor", "ceiling", "control", "method"]
Training = Literal["federated", "federated_adversarial", "central_adversarial", "hardened"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What an arm does, and what it is there for.

    `training` says who trains how. A `hardened` arm takes the images of `maker` (see
    `proxy_makers.py`; None: no synthetic images) and, with `server_images`, the server's real
    ones; it is run for every size of the server set, without them for size 0. `control` names the
    arm that a method has to beat: the same hardening without the method's images. An arm that is
    not `scheduled` hardens once behind the last round, whatever the recipe's schedule; such arms
    run only where they are asked for.
    """

    name: str
    meaning: str
    role: Role
    training: Training
    maker: str | None = None
    server_images: bool = False
    control: str | None = None
    scheduled: bool = True


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(
            name="fedavg",
            meaning="federated learning as it is: undefended",
            role="floor",
            training="federated",
        ),
        Arm(
            name="client_at",
            meaning="PGD adversarial training on the devices, in the same rounds",
            role="ceiling",
            training="federated_adversarial",
        ),
        Arm(
            name="server_at_real",
            meaning="PGD adversarial training on all device data in one place: not allowed, ideal",
            role="ceiling",
            training="central_adversarial",
        ),
        Arm(
            name="noise_only",
            meaning="hardened on the images that trajsyn_noise starts from, nothing distilled",
            role="control",
            training="hardened",
            maker="start",
        ),
        Arm(
            name="server_set_only",
            meaning="hardened on the server's real images alone",
            role="control",
            training="hardened",
            server_images=True,
        ),
        Arm(
            name="trajsyn_noise",
            meaning="hardened on images distilled from weights; no real image anywhere",
            role="method",
            training="hardened",
            maker="trajsyn",
            control="noise_only",
        ),
        Arm(
            name="trajsyn_server_set",
            meaning="hardened on the server's images and those distilled from weights and them",
            role="method",
            training="hardened",
            maker="trajsyn",
            server_images=True,
            control="server_set_only",
        ),
        Arm(
            name="server_set_once",
            meaning="hardened once, behind the last round, on the server's real images alone",
            role="control",
            training="hardened",
            server_images=True,
            scheduled=False,
        ),
        Arm(
            name="trajsyn_noise_once",
            meaning="hardened once on images distilled from the first rounds; no real image",
            role="method",
            training="hardened",
            maker="trajsyn",
            control="noise_only",
            scheduled=False,
        ),
    )
}


def choose_arms(names: Sequence[str]) -> list[Arm]:
    """Return the named arms with those that they are compared with, in the table's order.

    Without `fedavg` nothing can be compared, and a method is worth nothing without its control, so
    both are added. Raises `ConfigError` for a name that is not in the table.
    """
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise ConfigError(f"no arm is called {unknown[0]!r}; choose from {', '.join(ARMS)}")
    chosen = {"fedavg", *names}
    chosen |= {control for name in names if (control := ARMS[name].control)}
    return [arm for name, arm in ARMS.items() if name in chosen]
