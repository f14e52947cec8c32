"""The audit log: who changed what in a db."""

from litestar import Controller, get
from litestar.di import NamedDependency
from msgspec import UNSET

from api.authentication import AuthenticatedRequest, requires
from api.errors import refusals
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, Since, Until, check_window, decode_cursor, encode_cursor
from api.parameters import Db
from api.schemas import AuditEntryOut, AuditOut
from timemachine.domain.audit import AuditEntry
from timemachine.domain.errors import ForbiddenNameError, MalformedError
from timemachine.domain.jobs import check_name, from_ms, to_ms
from timemachine.domain.keys import Role
from timemachine.postgres.audit_log import AuditLog, AuditPosition


def _show(entry: AuditEntry) -> AuditEntryOut:
    return AuditEntryOut(
        at=to_ms(entry.at),
        key=entry.key_id or UNSET,
        action=entry.action,
        db=entry.db,
        target=entry.target,
        address=entry.address,
        request_id=entry.request_id or UNSET,
    )


class AuditController(Controller):
    """The audit log."""

    path = "/audit/{db:str}"
    tags = ("Keys",)

    @get(
        guards=[requires(Role.ADMIN)],
        operation_id="ListAudit",
        summary="List who changed what in a db",
        responses=refusals(MalformedError, ForbiddenNameError),
    )
    async def list_audit(
        self,
        db: Db,
        audit_log: NamedDependency[AuditLog],
        request: AuthenticatedRequest,
        since: Since = None,
        until: Until = None,
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> AuditOut:
        """List the changes to a db's routes, secrets and keys, the redeliveries and the operations, the latest first.

        To a key that opens all dbs, it also lists the changes to keys that do. Reads, and what is done to single jobs
        otherwise, are not listed: a job tells itself who created it.
        """
        check_name("db", db)
        check_window(since, until)
        page = await audit_log.page(
            db,
            with_all_dbs=request.user.dbs is None,
            limit=limit,
            after=None if cursor is None else decode_cursor(cursor, AuditPosition),
            since=None if since is None else from_ms(since),
            until=None if until is None else from_ms(until),
        )
        return AuditOut(
            entries=[_show(entry) for entry in page.entries], next=encode_cursor(page.next) if page.next else UNSET
        )
