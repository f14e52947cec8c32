"""Settings: every `TIMEMACHINE_*` variable, its meaning, unit and default.

Read once per program, at its entry point. The connection to Temporal is not here: it comes from
Temporal's own `TEMPORAL_*` variables or profile file, through `temporalio.envconfig`.
"""

import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from timemachine.domain.address_guard import AddressGuard, Network, networks
from timemachine.domain.errors import SettingsError

log = logging.getLogger(__name__)

PREFIX = "TIMEMACHINE_"

SECRET = frozenset({"egress_proxy", "postgres_dsn", "secret_keys"})
"""Settings that hold a password or a key, and are never shown."""

LONGEST_TIMEOUT = 30.0
"""Most seconds that one request to a receiver may be given, by the settings or by a route."""

BESIDE_THE_REQUEST = 15.0
"""Most seconds that an attempt takes besides its request: for its turn, its route, and to note how it ended."""

_AT_SETTING = re.compile(r"^(?P<reason>.*) - at `\$\.(?P<setting>\w+)`\Z", re.DOTALL)

Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
ProxyUrl = Annotated[str, Meta(pattern=r"^http://([^/?#@\s]+@)?([\w.-]+|\[[\da-fA-F:.]+\])(:[1-9]\d{0,4})?/?\Z")]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an operator can set, other than the connection to Temporal."""

    http_host: str = "127.0.0.1"
    """Address that the API listens on."""

    http_port: Port = 8080
    """Port that the API listens on."""

    http_keep_alive: Annotated[int, Meta(ge=1)] = 75
    """Seconds that the API keeps an idle connection. Longer than a load balancer in front keeps it (60 by most), which
    else may send a request in the very moment in which the connection is closed, and answer 502."""

    postgres_dsn: str | None = None
    """Where the routes live. Needed by the API and the worker; `make run` starts a Postgres of its own without it."""

    postgres_pool_size: Count = 10
    """Most connections to Postgres that one process opens."""

    postgres_transaction_pooling: bool = False
    """Postgres is behind PgBouncer, or another pooler, in transaction mode: no statement is kept prepared, and no
    setting is asked for when a connection is opened. The role then has to have a `statement_timeout`."""

    secret_keys: str | None = None
    """Keys that secrets are encrypted with, separated by commas; the first encrypts, all decrypt. `python -m
    timemachine.vault` makes one. Needed by the API and the worker; `make run` makes one of its own."""

    task_queue: Annotated[str, Meta(min_length=1)] = "timemachine"
    """Temporal task queue that the API starts jobs on and the worker serves."""

    request_timeout: Seconds = 4.0
    """Seconds that the API waits for Temporal and Postgres before it answers 503 (E015)."""

    max_requests_in_flight: Count = 128
    """Requests that one API process works on at a time. Any other is answered 429 (E014) at once; health is not
    counted."""

    default_scheme: Literal["https", "http"] = "https"
    """Scheme put before a `webhook_url` that has none: `https` or `http`."""

    delivery_timeout: Annotated[float, Meta(gt=0, le=LONGEST_TIMEOUT)] = 15.0
    """Seconds that one delivery attempt may take in all, from look-up and connect to the answer; at most 30."""

    allow_private_targets: bool = False
    """Let deliveries go to loopback and private addresses. For development and closed networks only."""

    allowed_targets: str | None = None
    """Networks that deliveries may go to although they are private, such as `10.1.0.0/16, fd12::/48`."""

    denied_targets: str | None = None
    """Networks that deliveries may not go to, whatever else is allowed. An IPv6-only network that reaches IPv4 by a
    NAT64 prefix of its own names the prefix here: what is behind an address of it cannot be told."""

    egress_proxy: ProxyUrl | None = None
    """`http://[user:password@]host[:port]` that all deliveries go through. It looks names up itself, so it is the proxy
    that must keep them from private addresses; the settings on targets then hold for addresses in URLs only."""

    max_deliveries: Count = 1000
    """Delivery attempts that one worker makes at a time: so many first ones, and so many others. Each costs some
    kilobytes while it waits for its receiver."""

    max_workflow_tasks: Count = 100
    """Workflow tasks that one worker handles at a time, each with the first attempt of its job."""

    max_in_flight_per_route: Count = 50
    """Attempts that one worker makes at a time for one route, so that a slow receiver does not take every slot."""

    disable_after_hours: Seconds = 120.0
    """Hours after which a route that failed everything is disabled."""

    attempts_kept_days: Seconds = 30.0
    """Days that the log of attempts is kept."""

    bulk_per_second: Annotated[float, Meta(ge=1)] = 20.0
    """Jobs a second that one worker starts again in redeliveries of many, or lets go when routes are resumed: all of
    these together."""

    max_cached_workflows: Count = 1000
    """Workflows that one worker keeps in memory between their tasks. Keep it above `max_workflow_tasks`."""

    metrics_address: str | None = None
    """`address:port` where the worker serves metrics for Prometheus; none by default."""

    shutdown_grace: Seconds = 60.0
    """Seconds that attempts in flight get to finish after SIGTERM. Not shorter than 45: a route may give its receiver
    30, and an attempt takes some time besides. What stops the worker must wait for longer before it kills."""

    data_dir: str = ".timemachine"
    """Folder where `make run` keeps its data between runs."""

    temporal_port: Port = 7233
    """Port of the Temporal server that `make run` starts."""

    temporal_ui_port: Port = 8233
    """Port of the Temporal Web UI that `make run` starts."""

    temporal_cli: str | None = None
    """Path of the `temporal` program for `make run`; else it is looked for, downloaded or built."""

    def __post_init__(self) -> None:
        """Refuse networks that are none."""
        _ = self.address_guard

    @property
    def address_guard(self) -> AddressGuard:
        """Where deliveries may go."""
        return AddressGuard(
            allowed=_networks("allowed_targets", self.allowed_targets),
            denied=_networks("denied_targets", self.denied_targets),
            allow_private=self.allow_private_targets,
        )

    def __repr__(self) -> str:
        """Return the settings, for logs and tracebacks: without what is secret."""
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the settings for a reader that knows `rich`: without what is secret."""
        given = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, "***" if value and name in SECRET else value) for name, value in given]

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the settings from environment variables.

        A `TIMEMACHINE_*` name that is no setting is logged and ignored, not refused: Kubernetes adds names such as
        `TIMEMACHINE_SERVICE_HOST` for a service called `timemachine`.

        Raises:
            SettingsError: A value is malformed, or does not fit another; the message names the variable.
        """
        given = {name.removeprefix(PREFIX).lower(): value for name, value in env.items() if name.startswith(PREFIX)}
        for name in sorted(given.keys() - set(cls.__struct_fields__)):
            log.warning("unknown setting ignored", extra={"setting": _variable(name)})
        try:
            settings = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(_with_variable(str(error))) from error
        if settings.shutdown_grace < LONGEST_TIMEOUT + BESIDE_THE_REQUEST:
            raise SettingsError(
                f"{_variable('shutdown_grace')} must not be shorter than {LONGEST_TIMEOUT + BESIDE_THE_REQUEST:g} "
                "seconds: a stop would cut attempts in flight, which are then made twice"
            )
        return settings


def _networks(name: str, text: str | None) -> tuple[Network, ...]:
    try:
        return networks(text or "")
    except ValueError as error:
        raise ValueError(f"{_variable(name)}: {error}") from error


def _variable(setting: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + setting.upper()


def _with_variable(reason: str) -> str:
    """Return why a value is malformed, with the variable that it stands in at the front."""
    at = _AT_SETTING.match(reason)
    return f"{_variable(at['setting'])}: {at['reason']}" if at else reason
