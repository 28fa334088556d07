"""What AWS billed for Bedrock, from a CUR 2.0 export (AWS Data Exports) in S3: CSV or Parquet, a partition for each month.

A month is read as its manifest says: the manifest is written after the last file, so files that are just being written are not
read, and where the manifest has changed while they were read, the month is read again at the next sync. A window of days reads
the months that it touches. https://docs.aws.amazon.com/cur/latest/userguide/dataexports-export-delivery.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.aws_cost_lines import (
    COSTS,
    DECIDING,
    OPTIONAL,
    REQUIRED,
    WORD,
    Charge,
    charge,
    cost,
    measured,
)
from tokentra_dagster.providers.aws_s3 import Location
from tokentra_dagster.providers.bill_lines import Amounts, BillLines
from tokentra_dagster.providers.failures import DamagedPage, Refused, read_json
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import DAY, day_ceiling, day_floor
from tokentra_dagster.providers.table_rows import Filter, rows
from tokentra_dagster.records import Item

OPTIONS = ("cost_export", "cost_column", "cost_products", "bucket_region")


@dataclass(frozen=True, slots=True)
class _Manifest:
    execution: str
    keys: tuple[str, ...]


@dataclass(slots=True)
class CostExport:
    """One export; the location ends with its name: `s3://acme-billing/exports/bedrock`."""

    location: Location
    column: str
    products: frozenset[str]
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, aws: Any, options: Options) -> CostExport | None:
        """None without the option `cost_export`."""
        column = COSTS[options.one_of("cost_column", tuple(COSTS), "unblended")]
        products = frozenset(options.texts("cost_products"))
        if options.text("cost_export") is None:
            return None
        return cls(Location.of(aws, options, "cost_export"), column, products)

    def costs(self, start: datetime, end: datetime) -> Iterator[Item]:
        """The charges of the UTC days that `[start, end)` touches, each day's summed by what it was for."""
        first, last = day_floor(start), day_ceiling(end)
        known = self.location.folders("metadata/")
        if not known:
            raise PermanentError(
                f"aws: {self.location.url} holds no metadata/BILLING_PERIOD=.../ of a CUR 2.0 export; the option cost_export must end "
                "with the export's name"
            )
        month = first.replace(day=1)
        while month < last:
            period = f"BILLING_PERIOD={month:%Y-%m}"
            manifest = self._manifest(period) if period in known else None
            if manifest is None:
                self.remarks.append(
                    f"The export {self.location.url} holds no {period}: nothing is known of what was billed then."
                )
            else:
                yield from self._month(period, manifest, first, last)
            month = (month + 31 * DAY).replace(day=1)

    def _month(self, period: str, manifest: _Manifest, first: datetime, last: datetime) -> Iterator[Item]:
        lines: BillLines[Charge, Amounts] = BillLines("aws cost export", first, last, Amounts, cost)
        for key in manifest.keys:
            try:
                self._read(key, lines)
            except Refused as refusal:
                if refusal.status != 404:
                    raise
                raise self._changing(period) from None
        again = self._manifest(period)
        if again is None or again.execution != manifest.execution:
            raise self._changing(period)
        yield from lines.items()

    def _read(self, key: str, lines: BillLines[Charge, Amounts]) -> None:
        only = Filter(DECIDING, WORD, self.products)
        with self.location.opened(key) as file:
            found = rows(file, key, (*REQUIRED, self.column), OPTIONAL, only)
            lines.add(found, charge, partial(measured, column=self.column), {"file": key})

    def _manifest(self, period: str) -> _Manifest | None:
        """The newest manifest of a month; one that each refresh overwrites lies in the month's own folder."""
        folder = f"metadata/{period}/"
        found = [one for one in self.location.objects(folder) if one.key.endswith("Manifest.json")]
        if not found:
            return None
        key = max(found, key=lambda one: (one.key.count("/") == folder.count("/"), one.modified)).key
        with self.location.opened(key) as file:
            try:
                text = read_json(file.read())
                files = text["dataFiles"]
                execution = str(text.get("executionId"))
                keys = tuple(self._key(str(name)) for name in files)
            except (DamagedPage, KeyError, TypeError) as error:
                raise PermanentError(f"aws: {self.location.url}{key} is no manifest of an export ({error})") from None
        return _Manifest(execution, keys)

    def _key(self, url: str) -> str:
        """A file of the manifest as a key below the location."""
        if not url.startswith(self.location.url):
            raise DamagedPage(f"it names {url}, which is not below {self.location.url}")
        return url.removeprefix(self.location.url)

    def _changing(self, period: str) -> TransientError:
        return TransientError(f"aws: the export {self.location.url} was rewritten while {period} was read; try again later")
