"""What a query gives, in Arrow batches through COPY: memory holds a few batches, whatever the number of rows (correction 38).

COPY is read with psycopg2 in a thread of its own: a row costs it a fifth of what psycopg 3 spends on it
(docs/decisions/0014), and the server, this thread and the writer work at the same time.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ
from pyarrow import csv

from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.exports.columns import TYPES, Column
from tokentra_dagster.warehouse.database import Database

SESSION = "-c timezone=UTC -c datestyle=ISO -c client_encoding=UTF8 -c extra_float_digits=1"
"""What text COPY writes hangs on these, and a database or a role may have its own."""
BATCH_BYTES = 2 * 1024 * 1024
WAITING_BLOCKS = 2


class Blocks:
    """Takes rows one by one, as COPY gives them, and passes them on in lists of some `size` bytes of rows.

    The server sends one message per row (PostgreSQL manual, 54.2.6), and psycopg2 writes one message at a time.
    """

    def __init__(self, size: int = BATCH_BYTES) -> None:
        self.queue: queue.Queue[list[bytes] | BaseException | None] = queue.Queue(WAITING_BLOCKS)
        self.is_abandoned = False
        self._size, self._rows, self._length = size, list[bytes](), 0

    def write(self, row: bytes) -> None:
        self._rows.append(row)
        self._length += len(row)
        if self._length >= self._size:
            self._pass_on()

    def end(self, error: BaseException | None) -> None:
        """Nothing more comes; the reader meets the error where there is one."""
        if self._rows and error is None:
            self._pass_on()
        self._put(error)

    def __iter__(self) -> Iterator[list[bytes]]:
        while (block := self.queue.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block

    def _pass_on(self) -> None:
        self._put(self._rows)
        self._rows, self._length = [], 0

    def _put(self, block: list[bytes] | BaseException | None) -> None:
        while not self.is_abandoned:
            try:
                return self.queue.put(block, timeout=0.1)
            except queue.Full:
                continue


def stream(
    database: Database, statement: str, columns: Sequence[Column], snapshot: str | None = None, size: int | None = None
) -> Iterator[Any]:
    """Record batches of some `size` bytes of text, as the server makes them. Snapshot and errors as of `stream_rows`."""
    for rows in stream_rows(database, statement, snapshot, size):
        yield parse(b"".join(rows), columns)


def stream_rows(
    database: Database, statement: str, snapshot: str | None = None, size: int | None = None
) -> Iterator[list[bytes]]:
    """Rows as COPY writes them in csv, each with its line feed, in lists of some `size` bytes. With the `snapshot` that another
    transaction exported, of what that one sees. Raises `TokenTraError` when the server breaks off."""
    blocks = Blocks(size or BATCH_BYTES)
    with closing(psycopg2.connect(database.url, options=SESSION, application_name="tokentra export")) as connection:
        connection.set_session(isolation_level=ISOLATION_LEVEL_REPEATABLE_READ, readonly=True)
        thread = threading.Thread(target=_copy, args=(connection, statement, snapshot, blocks), daemon=True)
        thread.start()
        try:
            yield from blocks
        except psycopg2.Error as error:
            raise TokenTraError(f"The export broke off: {str(error).strip().splitlines()[0]}. Try again.") from error
        finally:
            blocks.is_abandoned = True
            if thread.is_alive():
                connection.cancel()
            thread.join()


def _copy(connection: Any, statement: str, snapshot: str | None, blocks: Blocks) -> None:
    failure: BaseException | None = None
    try:
        with connection.cursor() as cursor:
            if snapshot is not None:
                cursor.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            cursor.copy_expert(f"COPY ({statement}) TO STDOUT (FORMAT csv)", blocks, size=0)
    except BaseException as error:
        failure = error
    blocks.end(failure)


def parse(block: bytes, columns: Sequence[Column], wanted: Sequence[Column] | None = None) -> Any:
    """One record batch of the `wanted` ones of the block's columns. An empty field is NULL, an empty text is quoted."""
    names = [column.name for column in columns]
    wanted = columns if wanted is None else wanted
    table = csv.read_csv(
        io.BytesIO(block),
        csv.ReadOptions(column_names=names, block_size=len(block) + 1),
        csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        csv.ConvertOptions(
            column_types={column.name: TYPES[column.kind] for column in wanted}, null_values=[""],
            include_columns=[column.name for column in wanted], strings_can_be_null=True, quoted_strings_can_be_null=False,
        ),
    )  # fmt: skip
    (batch,) = table.combine_chunks().to_batches()
    return batch
