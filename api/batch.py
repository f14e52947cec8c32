"""Many jobs in one request: each is created as a single create would, and has a result of its own."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar import Controller, Response, post
from litestar.di import NamedDependency
from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Reference,
    RequestBody,
    Schema,
)
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from msgspec import Meta, Raw

from api.authentication import Authentication, requires
from api.concurrency_limit import BODY_LIMIT
from api.errors import refusals, response_to
from api.explanations import explain_body
from api.jobs import Jobs, job_from_request
from api.litestar_json import ExactDecoder, WholeRequest, body_type, is_json
from api.ndjson import read_lines
from api.parameters import CollectionOfClients, Db
from api.schemas import BatchOut, BatchResult, BatchStatus, JobIn
from timemachine.domain.audit import Caller
from timemachine.domain.errors import (
    BusyError,
    ContentTypeError,
    ForbiddenNameError,
    MalformedError,
    RefusedError,
    TooLargeError,
    UnavailableError,
)
from timemachine.domain.jobs import MAX_JOB_ID, MAX_META_BYTES, Job, check_name, check_not_reserved
from timemachine.domain.keys import Role

MAX_JOBS = 1000
"""Jobs of a batch."""

MAX_ARRAY_BYTES = 2 * 1024 * 1024
"""Bytes of a batch that is an array, which is there as a whole before it is begun."""

MAX_JOB_BYTES = MAX_META_BYTES + 16 * 1024
"""Bytes of one job: as many as the body of a single create may have."""

IN_FLIGHT = 32
"""Jobs that a process creates for all its batches at a time."""

TIME_LIMIT = 300.0
"""Seconds after which no other job of a batch is begun."""

KEY_CHECKED_EVERY = 1.0
"""Seconds after which a batch looks at its key again. That takes up to two more where Postgres hangs."""

NDJSON = "application/x-ndjson"


Entries = AsyncGenerator[bytes | None, None]
"""The jobs of a batch, each as JSON; None for one that is too long."""

Begun = BatchResult | asyncio.Task[BatchResult]
"""The result of a job, or the task that will have it."""


class BatchForm(NamedTuple):
    """How the results of a batch are written."""

    media_type: str
    opening: bytes
    separator: bytes
    closing: bytes


ARRAY_FORM = BatchForm("application/json", b'{"results":[', b",", b"]}")
LINES_FORM = BatchForm(NDJSON, b"", b"\n", b"\n")


class Batches:
    """What the batches of a process share: the jobs, the keys, and how many creates are in flight."""

    def __init__(self, jobs: Jobs, authentication: Authentication) -> None:
        """Take the jobs and the keys."""
        self.jobs = jobs
        self.authentication = authentication
        self.slots = asyncio.Semaphore(IN_FLIGHT)


class Batch:
    """The jobs of one request. Each is created after those before it that have the same id, and beside all others."""

    def __init__(self, batches: Batches, db: str, collection: str, caller: Caller) -> None:
        """Take where the jobs go, and who asks for them."""
        self._jobs = batches.jobs
        self._slots = batches.slots
        self._db = db
        self._collection = collection
        self._authentication = batches.authentication
        self._caller = caller
        self._key_checked_at = asyncio.get_running_loop().time()
        self._latest: dict[str, asyncio.Task[BatchResult]] = {}
        """The last job of each id."""

    async def begin(self, entry: bytes | None, tasks: asyncio.TaskGroup) -> Begun:
        """Begin with a job once there is room, and return its result, or the task that will have it.

        Args:
            entry: The job's JSON; None for one that is too long.
            tasks: Where it goes on.

        Raises:
            UnauthorizedError, UnavailableError: The key is valid no more, or that cannot be told.
        """
        await self._check_key()
        try:
            if entry is None or len(entry) > MAX_JOB_BYTES:
                raise TooLargeError(f"at most {MAX_JOB_BYTES} bytes are allowed for a job")
            data = _DECODER.decode(entry)
            check_name("id", data.id, limit=MAX_JOB_ID)  # it is kept until the end
        except RefusedError as error:
            return result_of(error, _id_in(entry))
        await self._slots.acquire()
        before = self._latest.get(data.id)
        job = job_from_request(self._db, self._collection, data.id, data, self._caller)
        task = tasks.create_task(self._create(job, before))
        task.add_done_callback(lambda _: self._slots.release())
        self._latest[data.id] = task
        return task

    async def _check_key(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._key_checked_at >= KEY_CHECKED_EVERY:
            await self._authentication.check_again(self._caller)
            self._key_checked_at = asyncio.get_running_loop().time()

    async def _create(self, job: Job, before: asyncio.Task[BatchResult] | None) -> BatchResult:
        if before:
            await asyncio.wait([before])
        try:
            written = await self._jobs.create(job, key_id=self._caller.key_id)
        except Exception as error:
            return result_of(error, job.id)
        return BatchResult(id=job.id, status=BatchStatus(written))


_DECODER = ExactDecoder(JobIn)
_ARRAY = msgspec.json.Decoder(
    # What comes after its fields is read, but not made: a list would have a million objects before they are counted.
    msgspec.defstruct("_Array", [(f"job_{number}", Raw, Raw()) for number in range(MAX_JOBS + 1)], array_like=True)
)


class _Named(msgspec.Struct):
    id: Annotated[str, Meta(max_length=MAX_JOB_ID)]


def _id_in(entry: bytes | None) -> str | None:
    """Return the id of a job that is wrong otherwise, if it can be read."""
    try:
        return msgspec.json.decode(entry or b"", type=_Named).id
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None


def result_of(error: Exception, job_id: str | None) -> BatchResult:
    """Return the result of a job that could not be created, as far as is known."""
    row, reason = response_to(error)
    status = BatchStatus.REFUSED if row.status < 500 else BatchStatus.UNKNOWN
    return BatchResult(id=job_id, status=status, code=row.code, error=reason)


class BatchResponse(Response[BatchOut]):
    """The results of a batch, each sent when those before it are known."""

    def __init__(self, batch: Batch, entries: Entries, form: BatchForm) -> None:
        """Take the batch, its jobs as they come, and how the results are written."""
        super().__init__(BatchOut(results=[]), media_type=form.media_type)
        self._answer = BatchAnswer(batch, entries, form)

    def to_asgi_response(self, *_: Any, **__: Any) -> "BatchAnswer":
        """Return what works on the batch while it answers."""
        return self._answer


class BatchAnswer(ASGIResponse):
    """Creates the jobs of a batch as they come, and sends the results as they are known.

    Neither waits for the other: most clients send everything before they read anything. What they do not read waits
    here, some hundred kilobytes at the most.
    """

    _should_set_content_length = False

    def __init__(self, batch: Batch, entries: Entries, form: BatchForm) -> None:
        """Take the batch, its jobs as they come, and how the results are written."""
        super().__init__(media_type=form.media_type)
        self._batch = batch
        self._entries = entries
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200, whatever the results are."""
        begun: asyncio.Queue[Begun | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._begin_all(tasks, begun))
            await self._send_all(begun, send)

    async def _begin_all(self, tasks: asyncio.TaskGroup, begun: asyncio.Queue[Begun | None]) -> None:
        """Begin with each job, and say at the end if there is more that was not begun."""
        number = 0
        try:
            async with aclosing(self._entries), asyncio.timeout(TIME_LIMIT):
                async for entry in self._entries:
                    number += 1
                    if number > MAX_JOBS:
                        raise TooLargeError(f"{_TOO_MANY}; what comes after them was not read")
                    begun.put_nowait(await self._batch.begin(entry, tasks))
                    await _give_way()
        except TimeoutError:
            begun.put_nowait(result_of(BusyError("the batch takes too long; repeat what has no result"), None))
        except (RefusedError, UnavailableError) as error:
            begun.put_nowait(result_of(error, None))
        finally:
            begun.put_nowait(None)

    async def _send_all(self, begun: asyncio.Queue[Begun | None], send: Send) -> None:
        """Send the results in the order of the jobs."""
        await self.start_response(send)
        before = self._form.opening
        while (entry := await begun.get()) is not None:
            result = entry if isinstance(entry, BatchResult) else await entry
            await _send_piece(send, before + msgspec.json.encode(result))
            before = self._form.separator
            await _give_way()
        opening = self._form.opening if before == self._form.opening else b""
        await _send_piece(send, opening + self._form.closing, more_body=False)


async def _give_way() -> None:
    """Let others have their turn: neither a job that is refused nor a result that is sent waits for anything."""
    await asyncio.sleep(0)


async def _send_piece(send: Send, piece: bytes, *, more_body: bool = True) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": more_body})


_TOO_MANY = f"a batch has at most {MAX_JOBS} jobs"


async def read_batch(request: WholeRequest) -> tuple[Entries, BatchForm]:
    """Return the jobs of a batch as they come, and the form of its results. At least one, or its error, is there.

    Raises:
        ContentTypeError: It is neither JSON nor lines of it.
        MalformedError: It is no array, or nothing.
        TooLargeError: It is an array that is too long.
    """
    media_type = body_type(request.headers)
    if media_type == NDJSON:
        return await _begun(read_lines(request.pieces(), MAX_JOB_BYTES)), LINES_FORM
    if is_json(media_type):
        return _in_turn(await _read_array(request)), ARRAY_FORM
    raise ContentTypeError(f"send the body with content-type: application/json or {NDJSON}")


async def _begun(entries: Entries) -> Entries:
    """Return the jobs once the first one is there: from then on the answer is 200.

    Raises:
        MalformedError: There is none, or it does not come in time.
    """
    try:
        # Each piece has its time, but there may be any number of them before a line ends that is not blank.
        async with asyncio.timeout(BODY_LIMIT):
            first = await anext(entries)
    except TimeoutError as error:
        raise MalformedError("the body is cut short") from error
    except StopAsyncIteration:
        raise MalformedError("the body is missing") from None

    async def all_entries() -> Entries:
        async with aclosing(entries):
            yield first
            async for entry in entries:
                yield entry

    return all_entries()


async def _in_turn(entries: list[Raw]) -> Entries:
    for entry in entries:
        yield bytes(entry)


async def _read_array(request: WholeRequest) -> list[Raw]:
    """Return the jobs of an array, undecoded.

    Raises:
        MalformedError: It is none, or it does not come in time.
        TooLargeError: It has too many bytes or jobs.
    """
    try:
        async with asyncio.timeout(BODY_LIMIT):
            body = await _read_all(request)
    except TimeoutError as error:
        raise MalformedError("the body is cut short") from error
    try:
        entries = [entry for entry in msgspec.structs.astuple(_ARRAY.decode(body)) if entry]
    except RecursionError as error:
        raise MalformedError("the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise MalformedError(explain_body(error, body)) from error
    if len(entries) > MAX_JOBS:
        raise TooLargeError(f"{_TOO_MANY}, this one has more")
    return entries


async def _read_all(request: WholeRequest) -> bytes:
    too_large = TooLargeError(f"at most {MAX_ARRAY_BYTES} bytes are allowed for an array; send {NDJSON} instead")
    if (request.content_length or 0) > MAX_ARRAY_BYTES:
        raise too_large
    body = bytearray()
    async for piece in request.pieces():
        body += piece
        if len(body) > MAX_ARRAY_BYTES:
            raise too_large
    if not body:
        raise MalformedError("the body is missing")
    return bytes(body)


@dataclass
class BatchOperation(Operation):
    """Documents a body that Litestar does not read, and the two forms of body and answer."""

    def __post_init__(self) -> None:
        """Add them."""
        job = Reference(ref="#/components/schemas/JobIn")
        jobs = Schema(type=OpenAPIType.ARRAY, items=job, max_items=MAX_JOBS)
        lines = Schema(type=OpenAPIType.STRING, pattern=r"\S", description="A job a line, each as for `CreateJob`.")
        self.request_body = RequestBody(
            required=True,
            description="An array of jobs, or a job a line.",
            content={"application/json": OpenAPIMediaType(schema=jobs), NDJSON: OpenAPIMediaType(schema=lines)},
        )
        answer = (self.responses or {})["200"]
        if isinstance(answer, OpenAPIResponse) and answer.content:
            results = Schema(type=OpenAPIType.STRING, description="A `BatchResult` a line.")
            answer.content[NDJSON] = OpenAPIMediaType(schema=results)


class BatchController(Controller):
    """Many jobs in one request."""

    path = "/batch/{db:str}/{collection:str}"
    tags = ("Jobs",)

    @post(
        status_code=200,
        guards=[requires(Role.WRITE)],
        operation_id="CreateJobs",
        summary="Create many jobs",
        operation_class=BatchOperation,
        request_max_body_size=None,
        responses=refusals(MalformedError, ForbiddenNameError, TooLargeError, ContentTypeError),
    )
    async def create(
        self,
        db: Db,
        collection: CollectionOfClients,
        request: WholeRequest,
        batches: NamedDependency[Batches],
    ) -> Response[BatchOut]:
        """Create up to 1,000 jobs. The answer is 200 with a result for each, in their order.

        Lines are worked on while they come. A batch whose answer was lost may be repeated.
        """
        check_name("db", db)
        check_name("collection", collection)
        check_not_reserved(collection)
        entries, form = await read_batch(request)
        return BatchResponse(Batch(batches, db, collection, request.user), entries, form)
