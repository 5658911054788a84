"""One MQTT connection for device or server: paho-mqtt, its callbacks turned into queued events."""

from __future__ import annotations

import logging
import queue
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge_sdk.errors import ConfigError
from edge_sdk.protocol.chunks import CHUNK_BYTES
from edge_sdk.protocol.schema import bounded

log = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = CHUNK_BYTES + 4096  # the largest message of the protocol, with room to spare
MAX_INFLIGHT = 4  # chunks between us and the broker; more would only delay the keep-alive
MAX_QUEUED_MESSAGES = 1024  # then `publish` says no, and the receiver asks again later
UNSUPPORTED_PROTOCOL_VERSION = 0x84


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """How to reach the broker. TLS is used when `tls_ca` is set, mutual with a certificate."""

    host: str = bounded(pattern=r"\S{1,255}", default="127.0.0.1")
    port: int = bounded(low=1, high=65535, default=1883)
    keepalive_s: int = bounded(low=5, high=3600, default=60)
    username: str | None = None
    password_file: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None


@dataclass(frozen=True)
class Connected:
    """The broker took us and has our subscriptions."""


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone; paho tries again by itself."""

    reason: str


@dataclass(frozen=True)
class Received:
    """A message; `payload` is at most `MAX_PAYLOAD_BYTES`."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Oversized:
    """A message too large to be one of ours; its payload is dropped."""

    topic: str
    size: int


Event = Connected | Disconnected | Received | Oversized


class MqttLink:
    """A connection that survives everything: events go to `events`, reconnects are automatic.

    Speaks MQTT 5 and falls back to 3.1.1 where the broker has no 5. Sessions are clean: whatever
    a lost connection loses is asked for again by the transfer protocol.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        client_id: str,
        subscriptions: tuple[str, ...],
        events: queue.Queue[Any],
    ) -> None:
        self.settings = settings
        self.connected = False
        self._client_id = client_id
        self._subscriptions = subscriptions
        self._events = events
        self._fall_back = False
        self._unsent = 0  # an estimate that only decides how long `stop` waits
        self._attempting = False  # from the first packet to the broker's answer
        self._refusal = ""  # the last one told, as attempts go on for ever
        self._client = self._build(paho.MQTTv5)

    def start(self) -> None:
        """Begin connecting in the background; raises `ConfigError` for unusable TLS files."""
        client = self._client
        client.connect_async(self.settings.host, self.settings.port, self.settings.keepalive_s)
        client.loop_start()

    def tick(self) -> None:
        """Change to MQTT 3.1.1 if the broker asked for it; call now and then from one thread."""
        if self._fall_back:
            self._fall_back = False
            log.info("the broker has no MQTT 5; using 3.1.1")
            self._client.loop_stop()
            self._client = self._build(paho.MQTTv311)
            self.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Queue a QoS 1 message; False if there is no connection (say it again after the next)."""
        if not self.connected:
            return False
        if self._client.publish(topic, payload, qos=1, retain=retain).rc != 0:
            return False
        self._unsent += 1
        return True

    def stop(self, *, flush_s: float = 2.0) -> None:
        """Disconnect and end the network thread, after giving queued messages `flush_s` to go."""
        deadline = time.monotonic() + flush_s
        while self.connected and self._unsent and time.monotonic() < deadline:
            time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()
        self.connected = False

    def _build(self, version: Any) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if version == paho.MQTTv5 else True,
            protocol=version,
        )
        client.suppress_exceptions = True  # or one bad callback ends paho's thread silently
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.max_queued_messages_set(MAX_QUEUED_MESSAGES)
        client.reconnect_delay_set(1, 60)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        s = self.settings
        if s.username is not None:
            password = read_secret(Path(s.password_file)) if s.password_file else None
            client.username_pw_set(s.username, password)
        if (context := tls_context(s)) is not None:
            client.tls_set_context(context)
        return client

    def _put(self, event: Event) -> None:
        try:
            self._events.put_nowait(event)
        except queue.Full:
            log.warning("more messages than can be handled; dropping one (it will be asked again)")

    def _on_pre_connect(self, _client: paho.Client, _user: Any) -> None:
        self._attempting = True

    def _on_connect(
        self, client: paho.Client, _user: Any, _flags: Any, reason: ReasonCode, _props: Any
    ) -> None:
        self._attempting = False
        if reason.is_failure:
            self._fall_back = reason.value == UNSUPPORTED_PROTOCOL_VERSION
            self._refused(f"the broker refused the connection: {reason}")
            return
        self._refusal = ""
        if self._subscriptions:
            client.subscribe([(topic, 1) for topic in self._subscriptions])
        else:
            self._ready()

    def _on_connect_fail(self, _client: paho.Client, _user: Any) -> None:
        self._attempting = False
        error = sys.exc_info()[1]  # paho calls this from where it handles the exception
        self._refused(f"cannot connect to {self.settings.host}:{self.settings.port}: {error}")

    def _on_disconnect(
        self, _client: paho.Client, _user: Any, _flags: Any, reason: ReasonCode, _props: Any
    ) -> None:
        if self.connected:
            self.connected = False
            self._put(Disconnected(str(reason)))
        elif self._attempting:
            self._refused(
                f"the broker at {self.settings.host}:{self.settings.port} ended the connection "
                "without an answer: does it want TLS, or does it not accept our certificate? "
                "Its own log says why"
            )
        self._attempting = False

    def _refused(self, reason: str) -> None:
        """Tell of a failed attempt, once for each reason."""
        if reason != self._refusal:
            self._refusal = reason
            self._put(Disconnected(reason))

    def _on_subscribe(
        self, _client: paho.Client, _user: Any, _mid: int, reasons: list[ReasonCode], _props: Any
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.warning("the broker does not let us read a topic; does it know this client's name?")
        self._ready()

    def _ready(self) -> None:
        """Tell of the connection only now: answers must not come before the subscriptions."""
        self.connected = True
        self._put(Connected())

    def _on_message(self, _client: paho.Client, _user: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            self._put(Oversized(topic, len(message.payload)))
        else:
            self._put(Received(topic, bytes(message.payload)))

    def _on_publish(
        self, _client: paho.Client, _user: Any, _mid: int, reason: ReasonCode, _props: Any
    ) -> None:
        self._unsent = max(self._unsent - 1, 0)
        if reason.is_failure:
            log.warning("the broker did not accept a message: %s (check the ACL)", reason)


def tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    """Return TLS that checks the broker's certificate and host name, or None without `tls_ca`.

    Raises `ConfigError` naming the file that is missing or unusable.
    """
    own = [(n, getattr(settings, n)) for n in ("tls_certificate", "tls_key")]
    own = [(name, path) for name, path in own if path is not None]
    if settings.tls_ca is None:
        if own:
            raise ConfigError(f"[broker] {own[0][0]} needs tls_ca beside it, or there is no TLS")
        return None
    for name, path in [("tls_ca", settings.tls_ca), *own]:
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise ConfigError(f"[broker] {name}: cannot read {path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    used = settings.tls_ca
    try:
        context.load_verify_locations(settings.tls_ca)
        if settings.tls_certificate is not None:
            used = f"{settings.tls_certificate} with {settings.tls_key or 'the key in it'}"
            # An empty password makes an encrypted key an error instead of a question.
            context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(f"[broker] {used} cannot be used for TLS: {error}") from error
    return context


def read_secret(path: Path) -> str:
    """Return the first line of a password file; raises `ConfigError` naming the file."""
    try:
        return path.read_text().splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read a password from {path}: {error}") from error
