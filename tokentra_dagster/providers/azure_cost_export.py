"""What Azure billed for models, from Cost Management exports that lie in folders: CSV, gzipped CSV or Parquet with a manifest.

A run of an export writes its files and a `manifest.json` beside them, and a daily export of the month to date does so every day: of each
month the run that reaches furthest is read, the newest of these, as its manifest says: runs of selected dates lie there, too, and hold a part
only. Azure's blob container is copied to the folder (azcopy sync) or mounted.
https://learn.microsoft.com/azure/cost-management-billing/costs/tutorial-improved-exports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.azure_cost_lines import Charge, Columns, charge, cost, is_of_models, measured
from tokentra_dagster.providers.bill_lines import Amounts, BillLines
from tokentra_dagster.providers.failures import DamagedPage, read_json
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import day_ceiling, day_floor
from tokentra_dagster.providers.table_rows import Filter, header, rows
from tokentra_dagster.records import Item

OPTIONS = ("cost_export", "cost_words")
WORDS = ("OpenAI", "Foundry Models")
_TYPES = ("ActualCost", "Usage")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of an export."""

    export: str
    type: str
    start: datetime
    end: datetime
    submitted: datetime
    files: tuple[Path, ...]
    sizes: tuple[int | None, ...]
    """Bytes of each file where the manifest says them of the file as it lies there."""


@dataclass(slots=True)
class CostExports:
    """Folders, one export in each."""

    folders: tuple[Path, ...]
    words: tuple[str, ...]
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, options: Options) -> CostExports | None:
        """None without the option `cost_export`."""
        words = options.texts("cost_words") or WORDS
        folders = tuple(Path(name) for name in options.texts("cost_export"))
        return cls(folders, tuple(word.lower() for word in words)) if folders else None

    def costs(self, start: datetime, end: datetime) -> Iterator[Item]:
        """The charges of the UTC days that `[start, end)` touches, each day's summed by what it was for."""
        first, last = day_floor(start), day_ceiling(end)
        for folder in self.folders:
            runs = self._runs(folder)
            month = first.replace(day=1)
            while month < last:
                of_month = [one for one in runs if one.start.replace(day=1) == month]
                run = max((one for one in of_month if one.start == month), key=lambda one: (one.end, one.submitted), default=None)
                if run is None and of_month:
                    raise PermanentError(
                        f"azure: {folder} holds of {month:%Y-%m} only runs that begin on a later day ({min(one.start for one in of_month):%Y-%m-%d}); "
                        "export the month from its first day on (month to date, or the month). Nothing was changed."
                    )
                if run is None:
                    self.remarks.append(f"{folder} holds no export of {month:%Y-%m}: nothing is known of what was billed then.")
                else:
                    yield from self._read(run, first, last)
                month = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)

    def _runs(self, folder: Path) -> list[Run]:
        if not folder.is_dir():
            raise PermanentError(f"azure: there is no folder {folder}; correct the option cost_export")
        runs = [_run(path) for path in sorted(folder.rglob("*manifest.json"))]
        usable = [run for run in runs if run.type in _TYPES]
        if len({(run.export, run.type) for run in usable}) > 1:
            raise PermanentError(
                f"azure: {folder} holds several exports ({', '.join(sorted({run.export for run in usable}))}), which may bill the same twice; "
                "name the folder of each in the option cost_export, and one export only of each scope"
            )
        if not usable:
            types = ", ".join(sorted({run.type for run in runs})) or "no manifest.json"
            raise PermanentError(
                f"azure: {folder} holds no export of the type {' or '.join(_TYPES)} (there is {types}); copy one there, with its manifest.json"
            )
        return usable

    def _read(self, run: Run, first: datetime, last: datetime) -> Iterator[Item]:
        lines: BillLines[Charge, Amounts] = BillLines("azure cost export", first, last, Amounts, cost)
        for path, size in zip(run.files, run.sizes, strict=True):
            if not path.exists() or (size is not None and path.stat().st_size != size):
                raise TransientError(
                    f"azure: {path} is not what its manifest says, it is being copied or was only half; try again later or copy it again"
                )
            with path.open("rb") as file:
                columns = Columns.of(path.name, header(file, path.name))
                file.seek(0)
                found = rows(file, path.name, columns.required, columns.optional, Filter(columns.deciding, ""))
                of_models = (row for row in found if is_of_models(row, columns, self.words))
                lines.add(of_models, partial(charge, columns=columns), partial(measured, columns=columns), {"file": path.name})
        yield from lines.items()


def _run(path: Path) -> Run:
    """The run that a manifest describes; its files lie beside it. Raises `PermanentError`."""
    try:
        text = read_json(path.read_bytes())
        about, info, delivery = text["exportConfig"], text["runInfo"], text.get("deliveryConfig") or {}
        plain = delivery.get("compressionMode") in (None, "None") and str(delivery.get("fileFormat", "Csv")).lower() == "csv"
        blobs = [
            (path.parent / str(blob["blobName"]).strip().rsplit("/", 1)[-1], blob.get("byteCount")) for blob in text["blobs"]
        ]
        return Run(
            export=str(about["exportName"]),
            type=str(about["type"]),
            start=day_floor(_moment(info["startDate"])),
            end=day_floor(_moment(info["endDate"])),
            submitted=_moment(info["submittedTime"]),
            files=tuple(file for file, _ in blobs),
            sizes=tuple(int(size) if plain and size is not None else None for _, size in blobs),
        )
    except (DamagedPage, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PermanentError(
            f"azure: {path} is no manifest of a Cost Management export ({type(error).__name__}: {error}); copy it again"
        ) from None


def _moment(text: str) -> datetime:
    """Azure writes seven decimal places, with or without a zone; UTC is meant."""
    whole, dot, fraction = str(text).rstrip("Z").partition(".")
    moment = datetime.fromisoformat(whole + (f".{fraction[:6]}" if dot else ""))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
