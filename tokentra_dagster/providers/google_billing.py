"""What Google billed for models: Cloud Billing's export to BigQuery, read from its table or from rows of it that lie as files in a folder.

Rows come late for days, and corrections are rows of their own: every sync of costs reads the days of its window again, all their rows.
A table is read by its own columns, because older ones have fewer, and in the partitions that can hold the days.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.bill_lines import BillLines
from tokentra_dagster.providers.google_client import Google
from tokentra_dagster.providers.google_cost_lines import Charge, Sums, charge, columns_of, cost, is_of_models, measured
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import day_ceiling, day_floor
from tokentra_dagster.providers.table_rows import header, rows
from tokentra_dagster.records import Item

OPTIONS = ("billing_table", "billing_files", "billing_words", "billing_currency")
WORDS = ("Vertex AI", "Gemini", "Claude")
PAGE_SIZE = 5_000
_TABLE = re.compile(r"^[a-z][a-z0-9.:-]*\.\w+\.[\w-]+$")
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
_ROLE = (
    "name the table as PROJECT.DATASET.TABLE in the option billing_table, and give the login the roles BigQuery Data Viewer on its dataset "
    "and BigQuery Job User on its project"
)


@dataclass(slots=True)
class Billing:
    """The export of one billing account."""

    google: Google = field(repr=False)
    table: str | None
    folder: Path | None
    words: tuple[str, ...]
    in_dollars: bool
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, google: Google, options: Options) -> Billing | None:
        """None without the options `billing_table` and `billing_files`."""
        table, folder = options.text("billing_table"), options.text("billing_files")
        words = tuple(word.lower() for word in options.texts("billing_words") or WORDS)
        in_dollars = options.one_of("billing_currency", ("billed", "usd"), "billed") == "usd"
        if table is not None and not _TABLE.match(table):
            raise options.wrong(
                "billing_table", table, "give PROJECT.DATASET.TABLE, e.g. acme-billing.export.gcp_billing_export_v1_0123AB"
            )
        if table is not None and folder is not None:
            raise options.wrong(
                "billing_files", folder, "billing_table is given, too, and would bill the same twice; give one of them"
            )
        return cls(google, table, Path(folder) if folder else None, words, in_dollars) if table or folder else None

    def costs(self, start: datetime, end: datetime) -> Iterator[Item]:
        """The charges of the UTC days that `[start, end)` touches, each day's summed by what it was for."""
        first, last = day_floor(start), day_ceiling(end)
        if self.folder is not None:
            lines = self._from_files(self.folder, first, last)
        else:
            # A query that breaks off is asked again from the start, so what it told is summed anew.
            lines = self.google.ask(f"reading the bill in {self.table}", lambda: self._from_table(first, last), _ROLE)
        yield from lines.items()

    def check(self) -> str:
        if self.folder is not None:
            return f"the bill is in {len(self._files(self.folder))} files of {self.folder}"
        self.google.ask(f"looking at {self.table}", self._table, _ROLE)
        return f"the bill is in {self.table}"

    # ---- The table ----------------------------------------------------------------------------------------------------

    def _table(self) -> tuple[list[str], bool]:
        """The columns to read, and whether it is partitioned by the time at which rows arrive."""
        found = self.google.table(str(self.table))
        read, missing = columns_of(column.name for column in found.schema)
        if missing:
            raise PermanentError(f"google: {self.table} has no column {', '.join(missing)}; name a table of the billing export")
        partitioning = found.time_partitioning
        return read, partitioning is not None and partitioning.field is None

    def _from_table(self, first: datetime, last: datetime) -> BillLines[Charge, Sums]:
        columns, by_arrival = self._table()
        parameters = {"first": first, "last": last, "words": list(self.words)}
        found = self.google.rows(str(self.table), query(str(self.table), columns, by_arrival), parameters, PAGE_SIZE)
        # Of models they all are: the query says so, and a row that says nothing of itself must not vanish.
        lines = _lines(first, last)
        self._add(lines, map(plain, found), str(self.table))
        return lines

    # ---- Files --------------------------------------------------------------------------------------------------------

    def _files(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            raise PermanentError(f"google: there is no folder {folder}; correct the option billing_files")
        found = [
            path for path in sorted(folder.rglob("*")) if path.is_file() and path.name.removesuffix(".gz").endswith(_SUFFIXES)
        ]
        if not found:
            raise PermanentError(f"google: {folder} holds no {', '.join(_SUFFIXES)} file; export the billing table's rows there")
        return found

    def _from_files(self, folder: Path, first: datetime, last: datetime) -> BillLines[Charge, Sums]:
        lines = _lines(first, last)
        known: dict[bytes, Path] = {}
        for path in self._files(folder):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
                if digest in known:
                    raise PermanentError(
                        f"google: {path} and {known[digest]} are the same file, which would bill twice; delete one of them. Nothing was changed."
                    )
                known[digest] = path
                file.seek(0)
                read, missing = columns_of(header(file, path.name))
                if missing:
                    raise PermanentError(
                        f"google: {path} has no column {', '.join(missing)}; export it, too (in CSV: TO_JSON_STRING(credits) AS credits)"
                    )
                file.seek(0)
                of_models = (row for row in rows(file, path.name, (), read, None) if is_of_models(row, self.words))
                self._add(lines, of_models, path.name)
        return lines

    # ---- Rows ---------------------------------------------------------------------------------------------------------

    def _add(self, lines: BillLines[Charge, Sums], found: Iterable[Mapping[str, Any]], place: str) -> None:
        measure = partial(measured, in_dollars=self.in_dollars)
        lines.add(found, partial(charge, in_dollars=self.in_dollars), measure, {"from": place})


def _lines(first: datetime, last: datetime) -> BillLines[Charge, Sums]:
    return BillLines("google billing export", first, last, Sums, cost)


def query(table: str, columns: list[str], by_arrival: bool) -> str:
    """The rows of some days, of models only. Rows arrive after their usage, those of the last minutes without a partition."""
    arrived = " AND (_PARTITIONTIME IS NULL OR _PARTITIONTIME >= TIMESTAMP_SUB(TIMESTAMP_TRUNC(@first, DAY), INTERVAL 1 DAY))"
    return (
        f"SELECT {', '.join(columns)} FROM `{table}` WHERE usage_start_time >= @first AND usage_start_time < @last"
        f"{arrived if by_arrival else ''} AND EXISTS (SELECT 1 FROM UNNEST(@words) AS word WHERE STRPOS(LOWER(CONCAT("
        "IFNULL(service.id, ''), ' ', IFNULL(service.description, ''), ' ', IFNULL(sku.description, ''))), word) > 0)"
    )


def plain(value: Any) -> Any:
    """A value of BigQuery's with its fractions as Decimal: the digits that were sent, not those of a binary fraction."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
