"""`server.toml`: everything that one run is told, checked when it is read."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from edge_sdk.export import TRAINING_PRECISIONS
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.protocol.messages import ENCODING, NAME, Encoding, TrainingSettings
from models import ModelSpec, SpecError, layout_of
from server_toolkit.errors import ConfigError
from server_toolkit.rounds.between import BetweenRounds
from server_toolkit.rounds.schedule import Schedule

T = TypeVar("T")


class Section(BaseModel):
    """A table of the file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunSection(Section):
    """What the run is called and how many rounds it has."""

    name: str = Field(pattern=f"^{NAME}$")
    rounds: int = Field(ge=1, le=100_000)


class ModelSection(Section):
    """The network that devices train; fixed once the directory is made."""

    architecture: str = "convnet"
    channels: int
    image_size: int
    classes: int
    width: int = 128
    depth: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: list[dict[str, Any]] | None = None  # of a "chain"; ModelSpec reads them

    @property
    def spec(self) -> ModelSpec:
        """The section as the description that both sides use."""
        return ModelSpec.from_dict(self.model_dump(mode="json", exclude_none=True))


class BrokerSection(Section):
    """How to reach the MQTT broker; TLS is used when `tls_ca` is set."""

    host: str = Field(default="127.0.0.1", pattern=r"^\S{1,255}$")
    port: int = Field(default=1883, ge=1, le=65535)
    keepalive_s: int = Field(default=60, ge=5, le=3600)
    client_id: str | None = None  # default: "trajsyn-server-" and the run's name
    username: str | None = None
    password_file: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None


class TrainingSection(Section):
    """How devices train in a round."""

    epochs: int = Field(default=1, ge=1, le=1000)
    batch_size: int = Field(default=32, ge=1, le=4096)
    learning_rate: float = Field(default=0.05, gt=0, le=100)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    proximal_mu: float = Field(default=0.0, ge=0, le=1000)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    micro_batch: int = Field(default=4, ge=1, le=64)
    precision: str = "fp32"
    encoding: Encoding = "int8"

    @field_validator("precision")
    @classmethod
    def _a_program(cls, precision: str) -> str:
        if precision not in TRAINING_PRECISIONS:
            raise ValueError(f"choose {', '.join(TRAINING_PRECISIONS)}")
        return precision

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        if not re.fullmatch(ENCODING, encoding):
            raise ValueError(
                'choose "int8", "int4", "fp32", or "topk-" with the fraction to send, such as '
                '"topk-0.05" (at most three decimals, no 0 at the end)'
            )
        return encoding

    @property
    def settings(self) -> TrainingSettings:
        """The part that travels in a task."""
        return TrainingSettings(**self.model_dump(exclude={"micro_batch", "precision", "encoding"}))


class RoundsSection(Section):
    """When a round closes: all active devices reported, or `deadline_s` after it began."""

    quorum: int = Field(default=1, ge=1, le=1_000_000)
    deadline_s: float = Field(default=600.0, gt=0, le=1e7)


class LimitsSection(Section):
    """What one device may ask of the server; 0 means the default or no limit."""

    max_update_bytes: int = Field(default=0, ge=0, le=1 << 30)  # 0: from the model's size
    max_open_transfers_per_device: int = Field(default=2, ge=1, le=100)
    max_update_norm: float = Field(default=0.0, ge=0)  # L2; 0: any


class DataSection(Section):
    """The server's own labelled images (npz); both are optional."""

    server_set: str | None = None
    test_set: str | None = None


class EvaluateSection(Section):
    """How models are judged: L-infinity radii on images in [0, 1] and PGD steps."""

    epsilons: tuple[float, ...] = (0.05, 0.1)
    steps: int = Field(default=20, ge=1, le=10_000)
    seed: int = Field(default=0, ge=0)


class HealthSection(Section):
    """What a release must reach on a device's own images, or the device goes back."""

    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    max_accuracy_drop: float = Field(default=1.0, ge=0, le=1)


class ReleaseSection(Section):
    """What a model must reach before it is signed, against the undefended federated model."""

    name: str = Field(default="model", pattern=f"^{NAME}$")
    min_clean: float = Field(default=0.0, ge=0, le=1)
    max_clean_drop: float = Field(default=1.0, ge=0, le=1)
    min_robust_gain: float = Field(default=0.0, ge=-1, le=1)
    expires_after_s: float = Field(default=90 * 86400.0, gt=0, le=1e9)
    health: HealthSection = HealthSection()


class PipelineSection(Section):
    """What `serve` runs after the last round."""

    enabled: bool = True
    arm: str = Field(default="trajsyn_server_set", pattern=f"^{NAME}$")


class ScheduleSection(Section):
    """Hardening between rounds: "none", "recommended", or windows of rounds (see `Schedule`).

    `start_images_per_class` are made to harden on before the first distillation; the other fields
    replace those of [harden] there (see `BetweenRounds`).
    """

    harden: Literal["none", "recommended"] | tuple[tuple[int, int], ...] = "none"
    distil: tuple[int, ...] = ()
    start_images_per_class: int = Field(default=100, ge=1, le=10_000)
    early_steps: int = Field(default=BetweenRounds.early_steps, ge=1, le=10**7)
    late_steps: int = Field(default=BetweenRounds.late_steps, ge=1, le=10**7)
    last_steps: int = Field(default=BetweenRounds.last_steps, ge=1, le=10**7)
    attack_steps: int = Field(default=BetweenRounds.attack_steps, ge=1, le=1000)
    attack_step: float = Field(default=BetweenRounds.attack_step, ge=0, le=2)
    learning_rate: float = Field(default=BetweenRounds.learning_rate, ge=0, le=100)
    last_learning_rate: float = Field(default=BetweenRounds.last_learning_rate, ge=0, le=100)
    early_epsilon_factor: float = Field(default=BetweenRounds.early_epsilon_factor, ge=0, le=100)
    early_epsilon_at_most: float = Field(default=BetweenRounds.early_epsilon_at_most, ge=0, le=1)

    @property
    def between(self) -> BetweenRounds:
        """How the server hardens between rounds."""
        names = [field.name for field in dataclasses.fields(BetweenRounds)]
        return BetweenRounds(**{name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if isinstance(self.harden, str) and self.distil:
            raise ValueError("distil belongs to windows of one's own: harden = [[1, 9], [14, 20]]")
        if not isinstance(self.harden, str):
            Schedule(harden=self.harden, distil=self.distil)
        return self


class ServerConfig(Section):
    """The whole file. Relative paths in it are relative to the file's directory.

    `distill` and `harden` are the fields of those stages' own settings; `settings_of` checks them.
    """

    run: RunSection
    model: ModelSection
    broker: BrokerSection = BrokerSection()
    training: TrainingSection = TrainingSection()
    rounds: RoundsSection = RoundsSection()
    limits: LimitsSection = LimitsSection()
    data: DataSection = DataSection()
    distill: dict[str, Any] = {}
    harden: dict[str, Any] = {}
    evaluate: EvaluateSection = EvaluateSection()
    release: ReleaseSection = ReleaseSection()
    pipeline: PipelineSection = PipelineSection()
    schedule: ScheduleSection = ScheduleSection()
    _file: Path = PrivateAttr(default=Path("server.toml"))

    @property
    def file(self) -> Path:
        """The file itself, absolute."""
        return self._file

    @model_validator(mode="after")
    def _can_keep_the_schedule(self) -> Self:
        if self.schedule.harden != "none" and not self.pipeline.enabled:
            raise ValueError("[schedule] harden needs [pipeline] enabled = true")
        if self.schedule.distil and self.schedule.distil[-1] > self.run.rounds:
            raise ValueError(
                f"[schedule] distil: round {self.schedule.distil[-1]} is behind the last of "
                f"[run] rounds = {self.run.rounds}"
            )
        if self.schedule.harden != "none" and not re.fullmatch(
            NAME, self.hardened_name(self.run.rounds)
        ):
            raise ValueError(
                f"[pipeline] arm has {len(self.pipeline.arm)} characters; with a [schedule] what "
                "is hardened between rounds is named after it, which needs a shorter one"
            )
        return self

    def hardened_name(self, number: int) -> str:
        """Return what the model and the proxy set made before round `number` are called."""
        return f"{self.pipeline.arm}-before-round-{number}"

    @property
    def hardening(self) -> Schedule:
        """Which rounds start from hardened weights."""
        if self.schedule.harden == "none":
            return Schedule()
        if self.schedule.harden == "recommended":
            return Schedule.recommended(self.run.rounds)
        return Schedule(harden=self.schedule.harden, distil=self.schedule.distil)

    @property
    def directory(self) -> Path:
        """The fleet directory: where the file is."""
        return self._file.parent

    @property
    def max_update_bytes(self) -> int:
        """The largest update accepted: as configured, or float32 parameters and a header."""
        return self.limits.max_update_bytes or 4 * layout_of(self.model.spec).size + (1 << 20)

    def resolve(self, path: str) -> Path:
        """Return a path of the file as an absolute one."""
        return (self.directory / Path(path).expanduser()).resolve()

    def broker_settings(self) -> BrokerSettings:
        """Return the connection's settings with absolute paths."""
        values = self.broker.model_dump(exclude={"client_id"})
        for key in ("password_file", "tls_ca", "tls_certificate", "tls_key"):
            if values[key] is not None:
                values[key] = str(self.resolve(values[key]))
        return BrokerSettings(**values)

    def settings_of(self, section: str, cls: type[T]) -> T:
        """Return the table `section` as the dataclass `cls`.

        Raises `ConfigError` naming the file and key for an unknown key or a value that does not
        fit.
        """
        fields: dict[str, Any] = getattr(self, section)
        known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in fields:
            if key not in known:
                raise ConfigError(f"{self.file}: [{section}] {_unknown(key, known)}")
        try:
            return TypeAdapter(cls).validate_python(fields)
        except ValidationError as error:
            raise ConfigError(_explain(self.file, error, prefix=(section,))) from error
        except ValueError as error:
            raise ConfigError(f"{self.file}: [{section}] {error}") from error


def load_config(file: Path) -> ServerConfig:
    """Read and check a `server.toml`; raises `ConfigError` naming the file, key and remedy."""
    file = file.resolve()
    try:
        fields = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}; "
            "name the file with --config or make one with 'server-toolkit init'"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error
    try:
        config = ServerConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(_explain(file, error)) from error
    try:
        _ = config.model.spec
    except SpecError as error:
        raise ConfigError(f"{file}: [model] {error}") from error
    config._file = file
    return config


def _explain(file: Path, error: ValidationError, *, prefix: tuple[str, ...] = ()) -> str:
    """Return every mistake on a line of its own: file, [section] key, what is wrong."""
    lines = []
    for item in error.errors(include_url=False):
        place = [str(part) for part in (*prefix, *item["loc"])]
        key = f"[{place[0]}] {'.'.join(place[1:])}".strip() if place else ""
        if item["type"] == "extra_forbidden":
            table = f"[{place[0]}] " if len(place) > 1 else ""
            lines.append(f"{file}: {table}{_unknown(place[-1], _known_keys(place))}")
        elif item["type"] == "missing":
            lines.append(f"{file}: {key} is missing; add it")
        else:
            given = f" = {item['input']!r}"[:80] if len(place) > 1 else ""
            where = f"{key}{given}: " if place else ""  # else it is about several sections
            lines.append(f"{file}: {where}{item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _known_keys(place: list[str]) -> list[str]:
    model: Any = ServerConfig
    for part in place[:-1]:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _unknown(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
    return f"{key} is no known key; {remedy}"
