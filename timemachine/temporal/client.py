"""The door to Temporal: connection, payloads, search attributes."""

import asyncio
import ipaddress
import os
import re
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeWorkflowExecutionRequest
from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import LoggingConfig, LoggingFormat, PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import GrpcCompression, RPCError, RPCStatusCode, TLSConfig

from timemachine import metrics
from timemachine.domain.errors import BusyError, SettingsError, SetupError, UnavailableError
from timemachine.outages import OutageLog
from timemachine.settings import Settings, variables
from timemachine.temporal.fail_fast import FailFastServiceClient
from timemachine.temporal.payloads import DATA_CONVERTER

# What the client reports when the server is away, restarting, lets us not in, or does not answer in time.
_AWAY = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.ABORTED,
        RPCStatusCode.FAILED_PRECONDITION,  # an update whose workflow task failed, and is run again without it
        RPCStatusCode.INTERNAL,
        RPCStatusCode.UNKNOWN,
        RPCStatusCode.OUT_OF_RANGE,
        RPCStatusCode.DATA_LOSS,
        RPCStatusCode.UNIMPLEMENTED,  # a proxy that has no server to pass it on to
        RPCStatusCode.PERMISSION_DENIED,
        RPCStatusCode.UNAUTHENTICATED,
    }
)

_OUTAGES = OutageLog("Temporal does not answer")

_ADDRESS = re.compile(r"(https?://)?((?P<host>[\w.-]+)|\[(?P<v6>[\da-fA-F:.]+)\]):(?P<port>\d{1,5})", re.ASCII)

_LIKE_IPV4 = re.compile(r"([\w.-]*\.)?(\d+|0[xX][\da-fA-F]*)\.?", re.ASCII)
"""A host whose last part is a number is read as an address of IPv4, and refused if it is none."""

_METADATA_NAME = re.compile(r"[a-z0-9_.-]+(?<!-bin)")

_SHOWN_VALUE = re.compile(r"(invalid (?:type|value): .*?)(?:\".*\"|`.*`)", re.DOTALL)

_SHOWN_LINE = re.compile(r"^ *\d* *\|.*\n", re.MULTILINE)

MAX_NAMESPACE = 1000
"""Most bytes that Temporal's server takes for a name, unless it is configured otherwise."""

_ON_THIS_MACHINE = ("localhost:", "127.0.0.1:", "[::1]:")
"""How the addresses of servers begin that what is sent to need not be compressed."""


def on_one_thread(environment: MutableMapping[str, str]) -> None:
    """Let the SDK work on one thread, where the process's environment does not say on how many.

    All that its threads bring has to take its turn with Python: to hand over among several of them costs more than it
    gains, 6 % of a worker's CPU. To be called before the first connect.
    """
    environment.setdefault("TOKIO_WORKER_THREADS", "1")


def connection_settings() -> ClientConnectConfig:
    """Return how to connect to Temporal, as its own `TEMPORAL_*` variables or profile file say.

    Raises:
        SettingsError: They cannot be read, do not go together, or are what Temporal never takes.
    """
    # Its loader ends the program, and shows the value, for any variable that is not UTF-8, whosever it is.
    own = variables(os.environ, "TEMPORAL_")
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=own)
    except (RuntimeError, ValueError, OSError) as error:
        raise _wrong_settings(error) from error
    address = config.setdefault("target_host", "localhost:7233")
    if not _is_address(address):
        raise _wrong_settings(f"the address must be host:port, not `{address}`")
    if not 0 < len(config.setdefault("namespace", "default").encode()) <= MAX_NAMESPACE:
        raise _wrong_settings(f"the namespace must have 1 to {MAX_NAMESPACE} bytes")
    _check_headers(config)
    tls = config.get("tls")
    if isinstance(tls, TLSConfig) and bool(tls.client_cert) != bool(tls.client_private_key):
        raise _wrong_settings("a client certificate and its private key need each other")
    return config


def _is_address(text: str) -> bool:
    """Return whether a text is an address that the SDK will not refuse when it first connects."""
    found = _ADDRESS.fullmatch(text)
    if not found or not 0 < int(found["port"]) < 65_536:
        return False
    try:
        if found["v6"]:
            ipaddress.IPv6Address(found["v6"])
        elif _LIKE_IPV4.fullmatch(found["host"]):
            ipaddress.IPv4Address(found["host"])
    except ValueError:
        return False
    return True


def _check_headers(config: ClientConnectConfig) -> None:
    """Refuse what cannot be sent with each call. A key is often read from a file, with the line break at its end."""
    if not _is_header(config.get("api_key") or ""):
        raise _wrong_settings("the API key must be printable ASCII, without a line break")
    for name, value in config.get("rpc_metadata", {}).items():
        if not _METADATA_NAME.fullmatch(name):
            raise _wrong_settings("a name of gRPC metadata must have letters, digits, - _ . only, not end with -bin")
        if not _is_header(value):
            raise _wrong_settings(f"the gRPC metadata `{name}` must be printable ASCII, without a line break")


def _is_header(value: str) -> bool:
    return value.isascii() and value.isprintable()


def program_runtime(settings: Settings) -> Runtime:
    """Return the SDK's runtime for a program, which has one.

    What the SDK itself logs is JSON, on standard output. Where metrics are to be served, it serves the SDK's and ours,
    which are counted from then on.

    Raises:
        SettingsError: The address for metrics is none of this machine's, or taken.
    """
    log_config = LoggingConfig(filter=LoggingConfig.default.filter, format=LoggingFormat.JSON)
    if not settings.metrics_address:
        return Runtime(telemetry=TelemetryConfig(logging=log_config))
    prometheus = PrometheusConfig(
        bind_address=settings.metrics_address, histogram_bucket_overrides=metrics.histogram_buckets()
    )
    try:
        runtime = Runtime(telemetry=TelemetryConfig(logging=log_config, metrics=prometheus))
    except ValueError as error:
        raise SettingsError(f"TIMEMACHINE_METRICS_ADDRESS: {error}") from error
    metrics.export_to(runtime.metric_meter, named_routes=settings.named_routes)
    return runtime


async def connect(*, lazy: bool = False, fail_fast: bool = False, runtime: Runtime | None = None) -> Client:
    """Connect to Temporal as its own `TEMPORAL_*` variables or profile file say (default: localhost:7233).

    Args:
        lazy: Connect at the first call, so that a program can start while Temporal is away.
        fail_fast: That Temporal takes no more is reported at once. Else the call is made again for seconds.
        runtime: The program's own, from `program_runtime`; else the SDK's default one.

    Raises:
        SettingsError: The variables or the file cannot be read, or do not go together.
        UnavailableError: Not lazy, and Temporal does not answer.
    """
    config = connection_settings()
    address = config["target_host"]
    try:
        client = await Client.connect(
            **config,
            data_converter=DATA_CONVERTER,
            lazy=lazy,
            runtime=runtime,
            grpc_compression=GrpcCompression.NONE if address.startswith(_ON_THIS_MACHINE) else GrpcCompression.GZIP,
        )
    except ValueError as error:
        raise _wrong_settings(error) from error
    except RuntimeError as error:
        tls = "with" if config.get("tls") else "without"
        raise UnavailableError(f"Temporal does not answer at {address}, {tls} TLS: {error}") from error
    return _with_fail_fast(client) if fail_fast else client


def _wrong_settings(reason: object) -> SettingsError:
    """Return the error for a reason, without the profile file's line or value that it may show: a key perhaps."""
    shown = _SHOWN_VALUE.sub(r"\1…", _SHOWN_LINE.sub("", str(reason)))
    return SettingsError(f"TEMPORAL_* variables or Temporal's profile file: {shown}")


def _with_fail_fast(client: Client) -> Client:
    config = client.config()
    config["service_client"] = FailFastServiceClient(client.service_client)
    return Client(**config)


async def check_namespace(client: Client, *, retry: bool = True) -> None:
    """Find out whether the client's namespace is there, which is for an operator to make.

    Args:
        retry: Ask again for some seconds while Temporal fails: a program must not end for a moment's trouble.

    Raises:
        SetupError: It is not.
        temporalio.service.RPCError: Temporal does not answer.
    """
    try:
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace), retry=retry
        )
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise SetupError(
                f"Temporal has no namespace {client.namespace}: have TEMPORAL_NAMESPACE name another one, or make it "
                f"with `temporal operator namespace create --namespace {client.namespace} --retention 720h`; "
                "a new one takes some seconds to be known"
            ) from error
        if error.status is not RPCStatusCode.PERMISSION_DENIED:  # who may not ask may yet use it
            raise


async def check_access(client: Client) -> None:
    """Find out whether Temporal answers what requests ask of it, by a question about a workflow that is not there.

    Raises:
        temporalio.service.RPCError: It does not, or does not let us in.
    """
    nothing = DescribeWorkflowExecutionRequest(
        namespace=client.namespace, execution=WorkflowExecution(workflow_id="timemachine-readiness")
    )
    try:
        await client.workflow_service.describe_workflow_execution(nothing, retry=False)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


@asynccontextmanager
async def temporal_timeout(limit: float, *, begun: bool = False) -> AsyncIterator[None]:
    """Give Temporal `limit` seconds for what is done inside, with every way in which it can be away made one error.

    Args:
        begun: A part of what was asked for has been done before, so that it would be wrong to say that nothing was.

    Raises:
        UnavailableError: No answer in time, or none at all; or, where a part is done, what else is a BusyError.
        BusyError: One of the server's own limits was reached, and nothing was done.
        RPCError: Any other answer; `NOT_FOUND` among them.
    """
    try:
        async with asyncio.timeout(limit):
            yield
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
        _OUTAGES.note(error)
        raise UnavailableError("Temporal, a worker that it needs, or Postgres does not answer in time") from error
    except RPCError as error:
        if error.status is RPCStatusCode.RESOURCE_EXHAUSTED:
            busy = "Temporal takes no more requests right now; repeat this one in a moment"
            raise UnavailableError(busy) if begun else BusyError(busy) from error
        if error.status in _AWAY:
            raise _away(error) from error
        raise
    except (SetupError, RuntimeError) as error:
        # Of these, RuntimeError is how a lazy client reports that its first connect failed.
        raise _away(error) from error


def _away(error: Exception) -> UnavailableError:
    """Return what clients are told, which is the same whatever the reason, and log the reason."""
    _OUTAGES.note(error)
    return UnavailableError("Temporal does not answer")


@asynccontextmanager
async def asked_together() -> AsyncIterator[asyncio.TaskGroup]:
    """Ask several things at a time. If one fails, so does the whole, and Temporal is not kept busy with the others.

    Raises:
        Exception: The first one, by itself.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
