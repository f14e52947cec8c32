"""Where the API is put together: the only place that knows all of its parts."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Tag
from litestar.types import ASGIApp, Receive, Scope, Send
from temporalio.runtime import Runtime

from activities.readiness import Readiness
from api.attempts import AttemptController, Attempts
from api.audit import AuditController
from api.authentication import COMPONENTS, SECURITY, Authentication, KeyMiddleware
from api.batch import MAX_JOB_BYTES, BatchController, Batches
from api.concurrency_limit import ConcurrencyLimit
from api.errors import ERROR_RESPONSES, answer_error, answer_http, refuse
from api.events import EventController
from api.failed import FailedController, FailedJobs
from api.health import HealthController
from api.http_protocol import HeadAndOptions, UnambiguousRequests
from api.job_filters import job_filter
from api.job_lists import CountController, JobListController, JobLists
from api.jobs import JobController, Jobs
from api.key_cache import KeyCache
from api.keys import KeyController, Keys
from api.litestar_json import RawSchema, StructSchema, WholeRequest
from api.observed_requests import ObservedRequests, noting_route
from api.operations import CancelController, OperationController, Operations
from api.redelivery import Redeliveries, RedeliveryController
from api.reference import Document, ReferencePage, reference_router
from api.routes import RouteController, Routes
from api.secrets import SecretController
from timemachine import VERSION, metrics
from timemachine.domain.errors import ForbiddenNameError
from timemachine.postgres.attempt_log import AttemptLog
from timemachine.postgres.audit_log import AuditLog
from timemachine.postgres.delivery_ledger import DeliveryLedger
from timemachine.postgres.dsn import read_dsn
from timemachine.postgres.event_store import EventStore
from timemachine.postgres.key_store import KeyStore
from timemachine.postgres.pool import open_pool
from timemachine.postgres.route_store import RouteStore
from timemachine.settings import Auth, Settings
from timemachine.temporal.client import connect, connection_settings
from timemachine.vault import Vault

log = logging.getLogger(__name__)


def create_app(settings: Settings, runtime: Runtime | None = None) -> Litestar:
    """Return the API. It connects to Postgres and Temporal when it starts, and closes the connections when it stops.

    It starts while they are away, too, and answers 503 until they come.

    Args:
        runtime: As for `connect`.

    Raises:
        SettingsError: No encryption keys, or not ones that can be read; no way to connect to Temporal or to Postgres;
            or everybody would be served, on any address.
    """
    settings.check_auth()
    vault = Vault(settings)
    # What is wrong with these is told now, not by each request.
    connection_settings()
    read_dsn(settings)
    _start_counters()

    @asynccontextmanager
    async def clients(app: Litestar) -> AsyncIterator[None]:
        async with open_pool(settings) as pool:
            client = await connect(lazy=True, fail_fast=True, runtime=runtime)
            store, audit_log, key_store = RouteStore(pool, vault), AuditLog(pool), KeyStore(pool)
            ledger = DeliveryLedger(pool, store, attempt_time=settings.delivery_timeout)
            app.state.jobs = Jobs(client, store, ledger, settings)
            app.state.routes = Routes(store, AttemptLog(pool), client, settings)
            app.state.store = store
            app.state.attempts = Attempts(AttemptLog(pool), store, client, settings)
            app.state.failed = FailedJobs(client, AttemptLog(pool), ledger, vault, settings)
            app.state.job_lists = JobLists(client, ledger, vault, settings)
            app.state.redeliveries = Redeliveries(client, store, ledger, audit_log, settings)
            app.state.operations = Operations(client, vault, audit_log, settings)
            app.state.event_store = EventStore(pool)
            app.state.api_keys = Keys(key_store)
            app.state.audit_log = audit_log
            app.state.readiness = Readiness(client, pool, settings)
            cache = KeyCache(key_store)
            app.state.authentication = Authentication(cache, settings)
            app.state.batches = Batches(app.state.jobs, app.state.authentication)
            if settings.auth is not Auth.KEYS:
                log.warning("no keys are needed: whoever reaches the API may do everything")
            yield
            await cache.close()

    app = Litestar(
        route_handlers=[
            JobListController,
            JobController,
            BatchController,
            RouteController,
            SecretController,
            AttemptController,
            FailedController,
            CountController,
            RedeliveryController,
            CancelController,
            OperationController,
            EventController,
            KeyController,
            AuditController,
            HealthController,
        ],
        middleware=[DefineMiddleware(KeyMiddleware)],
        lifespan=[clients],
        dependencies={
            **{name: Provide(_from_state(name), sync_to_thread=False) for name in _PARTS},
            "wanted": Provide(job_filter, sync_to_thread=False),
        },
        exception_handlers={HTTPException: answer_http, Exception: answer_error},
        plugins=[RawSchema(), StructSchema()],
        openapi_config=_openapi(),
        logging_config=None,
        request_class=WholeRequest,
        request_max_body_size=MAX_JOB_BYTES,
    )
    app.asgi_handler = _refuse_odd_slashes(noting_route(app.asgi_handler))
    admitted = ConcurrencyLimit(app.asgi_handler, settings.max_requests_in_flight)
    app.asgi_handler = ObservedRequests(UnambiguousRequests(HeadAndOptions(admitted)))
    return app


def _start_counters() -> None:
    metrics.JOBS_CREATED.start()
    metrics.JOBS_ENDED.start(metrics.OUTCOMES)
    metrics.POSTGRES_UNANSWERED.start()
    metrics.WRITE_FAILURES.start(("api_keys",))
    metrics.REFUSED.start(sorted({answer.code for answer in ERROR_RESPONSES.values()}))


_PARTS = (
    *("jobs", "batches", "job_lists", "attempts", "failed", "redeliveries", "operations"),
    *("routes", "store", "event_store", "api_keys", "audit_log", "readiness", "authentication"),
)
"""What `clients` opens, and handlers ask for by name."""


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="timemachine",
        version=VERSION,
        description="Calls that must happen once, at a time. Every refused request is answered with `{error, code}`.",
        components=COMPONENTS,
        security=SECURITY,
        openapi_router=reference_router(),
        use_handler_docstrings=True,
        tags=[
            Tag("Jobs", description="Calls to make, each once and at a time."),
            Tag("Routes", description="Where the jobs of a db go, and how they are tried again."),
            Tag("Operations", description="What is done with many jobs at a time, in the background."),
            Tag("Events", description="What has happened, sent to a route of its db."),
            Tag("Keys", description="Who may use the API, and who changed what."),
            Tag("Health", description="For load balancers and orchestrators."),
        ],
        render_plugins=[ReferencePage(), Document()],
    )


def _from_state(name: str) -> Callable[[State], Any]:
    """Return a dependency that hands out what `clients` opened."""

    def provide(state: State) -> Any:
        return state[name]

    return provide


def _refuse_odd_slashes(app: ASGIApp) -> ASGIApp:
    """Answer `%2F` and `//` in a path with E002 before routing, which would take one name for two, and two for one."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("raw_path", b"").lower()
        if scope["type"] == ScopeType.HTTP and (b"%2f" in path or b"//" in path):
            await refuse(ForbiddenNameError("a name must not be empty or hold a slash"), scope, receive, send)
            return
        await app(scope, receive, send)

    return handle
