"""Settings: every `TIMEMACHINE_*` variable, its meaning, unit and default.

Read once per program, at its entry point. The connection to Temporal is not here: it comes from
Temporal's own `TEMPORAL_*` variables or profile file, through `temporalio.envconfig`.
"""

import ipaddress
import logging
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from timemachine.domain.address_guard import AddressGuard, Network, networks
from timemachine.domain.errors import ForbiddenNameError, SettingsError
from timemachine.domain.jobs import check_name
from timemachine.telemetry import LogLevel

log = logging.getLogger(__name__)

PREFIX = "TIMEMACHINE_"

SECRET = frozenset({"egress_proxy", "postgres_dsn", "secret_keys"})
"""Settings that hold a password or a key, and are never shown."""

LONGEST_TIMEOUT = 30.0
"""Most seconds that one request to a receiver may be given, by the settings or by a route."""

BESIDE_THE_REQUEST = 15.0
"""Most seconds that an attempt takes besides its request: for its turn, its route, and to note how it ended."""

MAX_NAMED_ROUTES = 100

_AT_SETTING = re.compile(r"^(?P<reason>.*) - at `\$\.(?P<setting>\w+)`\Z", re.DOTALL)

_SOCKET_ADDRESS = re.compile(r"((?P<v4>[\d.]+)|\[(?P<v6>[\da-fA-F:.]+)\]):(?P<port>\d{1,5})", re.ASCII)

_TRUE_OR_FALSE = "it must be `true` or `false`"
_EXPECTED = {
    "auth": "it must be `keys`, `none` or `none-on-any-address`",
    "log_level": "it must be `debug`, `info`, `warning` or `error`",
    "default_scheme": "it must be `https` or `http`",
    "postgres_transaction_pooling": _TRUE_OR_FALSE,
    "allow_private_targets": _TRUE_OR_FALSE,
    "task_queue": "it must have 1 to 240 characters, and not begin with `/_sys/`",
    "egress_proxy": "it must be `http://[user:password@]host[:port]`",
    "metrics_address": "it must be `address:port`, such as `0.0.0.0:9464` or `[::]:9464`",
    "health_address": "it must be `address:port`, such as `0.0.0.0:9465` or `[::]:9465`",
    "metrics_routes": "it must be up to 100 routes as `db/route`, separated by commas",
}
"""What settings take of which the decoder says too little."""

Port = Annotated[int, Meta(ge=0, le=65_535)]
# With what the queue of bulk work has behind it, this fits the 1,000 bytes that Temporal takes, and the 255 characters
# that its visibility has room for in SQL. Names with the prefix are the server's own.
TaskQueueName = Annotated[str, Meta(min_length=1, max_length=240, pattern=r"^(?!/_sys/)")]
# More can be neither added to a date nor waited for, whether they are seconds, hours or days.
Duration = Annotated[float, Meta(gt=0, le=100_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
ProxyUrl = Annotated[str, Meta(pattern=r"^http://([^/?#@\s]+@)?([\w.-]+|\[[\da-fA-F:.]+\])(:[1-9]\d{0,4})?/?\Z")]


class Auth(StrEnum):
    """Whether requests need a key."""

    KEYS = "keys"
    NONE = "none"
    """Nobody does, on a loopback address."""
    NONE_ON_ANY_ADDRESS = "none-on-any-address"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an operator can set, other than the connection to Temporal."""

    http_host: str = "127.0.0.1"
    """Address that the API listens on."""

    http_port: Port = 8080
    """Port that the API listens on."""

    http_keep_alive: Count = 75
    """Seconds that the API keeps an idle connection open. Set it longer than the idle timeout of the load balancer in
    front (60 on most). Otherwise the balancer may reuse a connection that is just being closed, and answer 502."""

    auth: Auth = Auth.KEYS
    """Who may use the API: with `keys`, whoever sends a valid key. With `none`, everybody who reaches it, which is
    refused unless `TIMEMACHINE_HTTP_HOST` is a loopback address; `none-on-any-address` lifts that. `make run` sets
    `none` on a loopback address."""

    requests_per_second_per_key: Annotated[float, Meta(ge=1, le=1_000_000)] | None = None
    """Requests per second that one API process takes with one key; as many may come at once. It answers any further
    request with 429 (E014). The limit of a key itself takes precedence. No limit by default."""

    postgres_dsn: str | None = None
    """The service's own PostgreSQL database. The API and the worker require it. Without it, `make run` starts its own
    PostgreSQL."""

    postgres_pool_size: Count = 10
    """Maximum number of connections that one process opens to PostgreSQL."""

    postgres_transaction_pooling: bool = False
    """Set to `true` when PostgreSQL is behind PgBouncer, or another pooler, in transaction mode. No statement is then
    kept prepared, and no session setting is sent on connect, so the role must have a `statement_timeout`."""

    log_level: LogLevel = "info"
    """The least important messages that the API and the worker log: `debug`, `info`, `warning` or `error`. With `info`
    each job that is created, changed, cancelled or delivered is a line."""

    secret_keys: str | None = None
    """Keys that encrypt the routes' secrets, separated by commas. The first key encrypts; all keys decrypt. `python -m
    timemachine.vault` generates one. The API and the worker require it; `make run` generates its own."""

    task_queue: TaskQueueName = "timemachine"
    """Temporal task queue that the API starts jobs on and that the worker polls; at most 240 characters."""

    request_timeout: Duration = 4.0
    """Seconds that the API waits for Temporal and PostgreSQL before it answers 503 (E015)."""

    http_drain: Annotated[float, Meta(ge=0, le=600)] = 5.0
    """Seconds that the API goes on serving after SIGTERM while `/readyz` answers 503, so that load balancers send it
    nothing more. The supervisor must wait longer than this and `TIMEMACHINE_REQUEST_TIMEOUT` before it kills the
    process."""

    max_requests_in_flight: Count = 128
    """Maximum number of requests that one API process handles at a time. It answers any further request with 429 (E014)
    at once. Health checks do not count."""

    default_scheme: Literal["https", "http"] = "https"
    """Scheme for a `webhook_url` that has none: `https` or `http`."""

    delivery_timeout: Annotated[float, Meta(gt=0, le=LONGEST_TIMEOUT)] = 15.0
    """Seconds that one delivery attempt may take in all, from DNS lookup to the answer; at most 30. The `timeout` of a
    route takes precedence."""

    allow_private_targets: bool = False
    """Allow deliveries to loopback and private addresses. For development and closed networks only."""

    allowed_targets: str | None = None
    """Private networks that deliveries may go to, such as `10.1.0.0/16, fd12::/48`."""

    denied_targets: str | None = None
    """Networks that deliveries may never go to; takes precedence over the two settings above. On an IPv6-only network
    whose NAT64 gateway has its own prefix, list that prefix: the IPv4 address behind such an address cannot be
    recognized."""

    egress_proxy: ProxyUrl | None = None
    """HTTP proxy for all deliveries: `http://[user:password@]host[:port]`. The proxy resolves host names, so the proxy
    itself must block private addresses. The target settings then apply only to addresses that are written in a URL."""

    max_deliveries: Count = 1000
    """Maximum number of delivery attempts that one worker makes at a time. Each takes a few kilobytes of memory while
    it waits for its receiver."""

    max_workflow_tasks: Count = 100
    """Maximum number of workflow tasks that one worker handles at a time. Each includes the first attempt of its
    job."""

    max_in_flight_per_route: Count = 50
    """Maximum number of attempts that one worker makes at a time for one route, so that a slow receiver cannot take
    every slot."""

    disable_after_hours: Duration = 120.0
    """Hours of failures without a success after which a route is disabled."""

    attempts_kept_days: Duration = 30.0
    """Days that the log of attempts, and the ledger of decided jobs, are kept; the ledger for at least 2."""

    audit_kept_days: Duration = 365.0
    """Days that the audit log is kept."""

    bulk_per_second: Annotated[float, Meta(ge=1, le=1_000_000)] = 20.0
    """Jobs per second that one worker redelivers, releases and cancels in operations on many, all of them together."""

    max_cached_workflows: Count = 1000
    """Maximum number of workflows that one worker keeps in memory between their tasks. Keep it above
    `TIMEMACHINE_MAX_WORKFLOW_TASKS`."""

    metrics_address: str | None = None
    """`address:port` where the API and the worker serve metrics for Prometheus, with an IP address, such as
    `0.0.0.0:9464`. Programs on one machine need ports of their own. Off by default."""

    metrics_routes: str | None = None
    """Routes that the label `webhook_route` of metrics names, such as `shop/orders, shop/refunds`; up to 100. All
    others are `other`."""

    health_address: str | None = None
    """`address:port` where the worker answers `/livez` and `/readyz`, with an IP address, such as `0.0.0.0:9465`. Off
    by default. The API answers them on its own port."""

    shutdown_grace: Duration = 60.0
    """Seconds that attempts in flight get to finish after SIGTERM; at least 45. The supervisor must wait longer than
    this before it kills the process."""

    data_dir: str = ".timemachine"
    """Folder where `make run` keeps its data, and `make cluster` in its folder `cluster`."""

    temporal_port: Port = 7233
    """Port of the Temporal server that `make run` or `make cluster` starts."""

    temporal_ui_port: Port = 8233
    """Port of the Temporal Web UI that `make run` or `make cluster` starts."""

    temporal_cli: str | None = None
    """Path of the `temporal` program for `make run`; else it is looked for, downloaded or built."""

    def __post_init__(self) -> None:
        """Refuse networks and addresses that are none."""
        _ = self.address_guard
        if self.egress_proxy is not None and not _is_address_of_proxy(self.egress_proxy):
            raise ValueError(f"{_variable('egress_proxy')}: {_EXPECTED['egress_proxy']}")
        for name in ("metrics_address", "health_address"):
            address = getattr(self, name)
            if address and not _is_socket_address(address):
                raise ValueError(f"{_variable(name)}: {_EXPECTED[name]}")
        _ = self.named_routes

    def check_auth(self) -> None:
        """Refuse to serve whoever comes where others than this machine can come.

        Raises:
            SettingsError: No key is needed, and the address is not a loopback one.
        """
        if self.auth is Auth.NONE and not is_loopback(self.http_host):
            raise SettingsError(
                f"{_variable('auth')}=none lets everybody who reaches {self.http_host} read and change everything; use "
                f"keys, or listen on 127.0.0.1, or set {_variable('auth')}={Auth.NONE_ON_ANY_ADDRESS} if that is meant"
            )

    @property
    def address_guard(self) -> AddressGuard:
        """Where deliveries may go."""
        return AddressGuard(
            allowed=_networks("allowed_targets", self.allowed_targets),
            denied=_networks("denied_targets", self.denied_targets),
            allow_private=self.allow_private_targets,
        )

    @property
    def named_routes(self) -> frozenset[str]:
        """The routes that metrics tell apart, as `db/route`."""
        routes = frozenset(part.strip() for part in (self.metrics_routes or "").split(",") if part.strip())
        if len(routes) > MAX_NAMED_ROUTES or not all(map(_is_route, routes)):
            raise ValueError(f"{_variable('metrics_routes')}: {_EXPECTED['metrics_routes']}")
        return routes

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
        given = {name.removeprefix(PREFIX).lower(): value for name, value in variables(env, PREFIX).items()}
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


def variables(env: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the environment variables whose names begin with a prefix.

    Raises:
        SettingsError: One of them is not UTF-8; the message names it, and holds nothing of its value.
    """
    found = {name: value for name, value in env.items() if name.startswith(prefix)}
    for name, value in found.items():
        try:
            (name + value).encode()
        except UnicodeEncodeError:
            raise SettingsError(f"{name.encode(errors='backslashreplace').decode()}: it is not UTF-8") from None
    return found


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens on a host: a name counts as one that others reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_route(key: str) -> bool:
    """Return whether a text is a route's name across databases."""
    db, _, route = key.partition("/")
    try:
        check_name("db", db)
        check_name("route", route)
    except ForbiddenNameError:
        return False
    return True


def _is_address_of_proxy(url: str) -> bool:
    """Return whether a URL that is one names a host and a port that there may be."""
    try:
        parts = urlsplit(url)
        return parts.port != 0 and bool((parts.hostname or "").encode("idna"))
    except ValueError:
        return False


def _is_socket_address(text: str) -> bool:
    """Return whether a text is the address and port of a socket: no name, for which Temporal's SDK has no use."""
    given = _SOCKET_ADDRESS.fullmatch(text)
    try:
        return (
            given is not None and bool(ipaddress.ip_address(given["v4"] or given["v6"])) and int(given["port"]) < 65_536
        )
    except ValueError:
        return False


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
    return f"{_variable(at['setting'])}: {_EXPECTED.get(at['setting'], at['reason'])}" if at else reason
