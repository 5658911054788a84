"""`device.toml`: everything that an agent must be told."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edge_sdk.errors import ConfigError, ProtocolError
from edge_sdk.mqtt import BrokerSettings
from edge_sdk.protocol.messages import DEVICE
from edge_sdk.protocol.schema import bounded, decode
from edge_sdk.protocol.topics import check_device_id


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the device's labelled images are."""

    kind: Literal["folder", "npz", "digits"]
    path: str | None = None
    partition: str | None = None


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """How much of the device training may use."""

    threads: int = bounded(low=1, high=256, default=1)
    niceness: int = bounded(low=0, high=19, default=10)
    duty_cycle: float = bounded(low=0.01, high=1, default=1.0)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which file of a release this device runs."""

    precision: Literal["int8", "fp32"] = "int8"


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """The whole of `device.toml`; relative paths are relative to `directory`, the file's own."""

    device: str = bounded(pattern=DEVICE)
    state_directory: str
    private_key: str
    server_public_key: str
    data: DataSettings
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    heartbeat_s: float = bounded(low=1, high=3600, default=30.0)

    def __post_init__(self) -> None:
        check_device_id(self.device)


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration together with the file it came from."""

    settings: DeviceConfig
    file: Path

    def resolve(self, path: str) -> Path:
        """Return a path of the configuration as an absolute one."""
        return (self.file.parent / Path(path).expanduser()).resolve()

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.resolve(self.settings.state_directory)


def load_config(file: Path) -> LoadedConfig:
    """Read and check a `device.toml`; raises `ConfigError` naming the file and the key."""
    file = file.resolve()
    try:
        fields = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    try:
        settings = decode(DeviceConfig, fields)
    except ProtocolError as error:
        raise ConfigError(f"{file}: {error}") from error
    broker = settings.broker
    files: dict[str, Any] = {
        name: str((file.parent / Path(value).expanduser()).resolve())
        for name in ("password_file", "tls_ca", "tls_certificate", "tls_key")
        if (value := getattr(broker, name)) is not None
    }
    return LoadedConfig(replace(settings, broker=replace(broker, **files)), file)
