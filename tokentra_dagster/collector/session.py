"""A connection to the database for the event loop: on a thread of its own, with the least rights, opened anew when it broke."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import psycopg

from tokentra_dagster.collector.limits import Refused
from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.directory import Connection

Result = TypeVar("Result")
log = logging.getLogger("tokentra.collector")

# The role of docs/access.md, where it exists and is ours to take; and what is committed waits for the disk, whatever the default.
_PREPARE = (
    """
    SELECT set_config('role', r.rolname, false) FROM pg_roles AS r
    WHERE r.rolname = app.access_role('collector') AND pg_has_role(session_user, r.oid, 'MEMBER')
    """,
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
    "SELECT set_config('statement_timeout', '15s', false)",
)


class Session:
    """`await session.run(work)` calls `work(connection)` on the session's thread; calls wait for each other. In autocommit mode.

    Work may be done twice where the connection broke in between, so it must be repeatable. Raises `Refused` (503) while the
    database cannot be reached; other errors of the database as they are.
    """

    def __init__(self, database: Database, application: str) -> None:
        self._database, self._application = database, application
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=application)
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()

    def _run(self, work: Callable[[Connection], Result]) -> Result:
        was_open = self._connection is not None
        try:
            try:
                return work(self._open())
            except psycopg.Error:
                if not (was_open and self._connection is not None and self._connection.broken):
                    raise
                self._disconnect()  # it had been closed while nobody used it, as by a restart of the server
                return work(self._open())
        except TokenTraError as error:
            log.error("%s", error)
            raise _unreachable() from None
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if error.sqlstate and error.sqlstate[:2] in EVENTS_FAULT:
                raise
            log.error("the database failed: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
            self._disconnect()
            raise _unreachable() from None

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._database.connect(autocommit=True, application=self._application)
            try:
                for statement in _PREPARE:
                    self._connection.execute(statement)
            except BaseException:
                self._disconnect()  # one without the role would have its login's rights
                raise
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


EVENTS_FAULT = ("22", "23", "54")
"""Classes of SQLSTATE that a value is to blame for: data exception, integrity constraint violation, program limit exceeded."""


def _unreachable() -> Refused:
    return Refused(503, "The database cannot be reached now; send the same events again later.", retry_after=2)
