"""What a person asks of an export, checked before anything is read (specification section 12)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from tokentra_dagster.analytics.periods import Period
from tokentra_dagster.analytics.sources import DIMENSIONS
from tokentra_dagster.errors import UsageError
from tokentra_dagster.exports.columns import (
    BUCKETS,
    DEFAULT_DIMENSIONS,
    DEFAULT_METRICS,
    DIMENSION_COLUMNS,
    METRIC_COLUMNS,
    Column,
    Names,
)
from tokentra_dagster.exports.focus.columns import DEFAULT_VERSION, VERSIONS, focus_columns
from tokentra_dagster.exports.focus.columns import GRANULARITIES as FOCUS_GRANULARITIES

COMPRESSIONS = {
    "csv": ("none", "gzip", "zstd"),
    "json": ("none", "gzip", "zstd"),
    "jsonl": ("none", "gzip", "zstd"),
    "parquet": ("zstd", "gzip", "none"),
    "xlsx": ("none",),
}
"""By format, the usual one first. Parquet compresses inside the file; a workbook is a zip archive already."""
FORMATS = tuple(COMPRESSIONS)
SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
GRANULARITIES = tuple(BUCKETS)
SPECIFICATION_GRANULARITIES = {"hourly": "hour", "daily": "day", "monthly": "month"}
COLUMN_NAMES = ("friendly", "raw")
PROFILES = ("usage", "focus")
USER_IDENTIFIERS = ("kept", "left_out", "pseudonymised")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """One export. Raises `UsageError` that names what cannot be and lists what can.

    `organization` is a name or an id. `filters` keeps usage whose dimension has one of the values (identifiers, or names where
    people gave one; None is usage without a value). `compression` None is the usual one of the format. `user_key` points at the
    key of pseudonyms, `env:NAME` or `file:PATH`. `profile` "focus" is the FinOps Open Cost and Usage Specification, by hours or
    days, in one of `VERSIONS` (None: the usual one); it has columns of its own, so it takes no metrics and no names.
    """

    organization: str
    period: Period
    format: str = "csv"
    granularity: str = "day"
    dimensions: Sequence[str] = DEFAULT_DIMENSIONS
    metrics: Sequence[str] = DEFAULT_METRICS
    filters: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    compression: str | None = None
    names: Names = "friendly"
    include_metadata: bool = False
    users: str = "kept"
    user_key: str | None = None
    profile: str = "usage"
    focus_version: str | None = None

    def __post_init__(self) -> None:
        _one_of("profile", self.profile, PROFILES)
        _one_of("format", self.format, FORMATS)
        object.__setattr__(self, "granularity", SPECIFICATION_GRANULARITIES.get(self.granularity, self.granularity))
        _one_of("granularity", self.granularity, GRANULARITIES)
        self._check_focus()
        allowed = COMPRESSIONS[self.format]
        object.__setattr__(self, "compression", allowed[0] if self.compression is None else self.compression)
        _one_of(f"compression of {self.format}", self.compression, allowed)
        for name, values, known in (
            ("dimensions", self.dimensions, DIMENSIONS),
            ("metrics", self.metrics, tuple(METRIC_COLUMNS)),
        ):
            _known(name, values, known)
            object.__setattr__(self, name, tuple(values))
        if not self.metrics:
            raise UsageError(f"The export has no metrics; give at least one of {', '.join(METRIC_COLUMNS)}.")
        _known("filters", self.filters, DIMENSIONS)
        for dimension, wanted in self.filters.items():
            if isinstance(wanted, str) or not wanted:
                raise UsageError(f"The filter of {dimension} is {wanted!r}; it must be a list of one or more values.")
        object.__setattr__(self, "filters", {name: tuple(values) for name, values in self.filters.items()})
        _one_of("column names", self.names, COLUMN_NAMES)
        _one_of("user identifiers", self.users, USER_IDENTIFIERS)
        if self.users == "pseudonymised" and not self.user_key:
            raise UsageError("Pseudonymised users need a key; give user_key as env:NAME or file:PATH.")
        if self.users != "pseudonymised" and self.user_key:
            raise UsageError(
                f"A user_key is given but user identifiers are {self.users!r}; ask for 'pseudonymised', or give no key."
            )
        if self.user_key and not self.user_key.startswith(("env:", "file:")):
            raise UsageError("The user_key must point at the key, as env:NAME or file:PATH; it is never the key itself.")

    def _check_focus(self) -> None:
        if self.profile != "focus":
            if self.focus_version is not None:
                raise UsageError(
                    f"The focus_version is {self.focus_version!r}, but the profile is {self.profile!r}; ask for 'focus'."
                )
            return
        if self.focus_version is None:
            object.__setattr__(self, "focus_version", DEFAULT_VERSION)
        _one_of("FOCUS version", self.focus_version, VERSIONS)
        _one_of("granularity of a FOCUS export", self.granularity, FOCUS_GRANULARITIES)
        if tuple(self.metrics) != DEFAULT_METRICS:
            raise UsageError("A FOCUS export has the specification's columns; leave the metrics out.")

    @property
    def grouping(self) -> tuple[str, ...]:
        """The dimensions that rows are made of: users that are left out are summed."""
        return tuple(name for name in self.dimensions if not (name == "user" and self.users == "left_out"))

    def columns(self, currency: str) -> list[Column]:
        """In the order of the file: bucket, dimensions, metrics. A pseudonym stands alone, without the user's name."""
        if self.profile == "focus" and self.focus_version:
            return focus_columns(self.focus_version, self.grouping, currency, user_names=self.users == "kept")
        found = [BUCKETS[self.granularity]]
        for dimension in self.grouping:
            columns = DIMENSION_COLUMNS[dimension]
            found += columns[:1] if dimension == "user" and self.users == "pseudonymised" else columns
        for metric in self.metrics:
            column = METRIC_COLUMNS[metric]
            if column.kind == "money":
                column = replace(column, label=f"{column.label} ({currency})", unit=currency)
            found.append(column)
        return found

    @property
    def file_name(self) -> str:
        """`tokentra_usage_<first day>_to_<last day>_<granularity>.<format>`, with the suffix of what compresses the whole file;
        `tokentra_focus-<version>_...` of that profile."""
        last = self.period.end - timedelta(microseconds=1)
        suffix = "" if self.format in ("parquet", "xlsx") else SUFFIXES[self.compression or "none"]
        what = f"focus-{self.focus_version}" if self.profile == "focus" else "usage"
        return f"tokentra_{what}_{self.period.start:%Y-%m-%d}_to_{last:%Y-%m-%d}_{self.granularity}.{self.format}{suffix}"


def _one_of(name: str, value: str | None, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"The {name} is {value!r}; it must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}.")


def _known(name: str, values: Iterable[str], allowed: Sequence[str]) -> None:
    if isinstance(values, str):
        raise UsageError(f"The {name} are {values!r}; they must be a list of names out of {', '.join(allowed)}.")
    given = list(values)
    unknown = [value for value in given if value not in allowed]
    if unknown:
        raise UsageError(f"The {name} have no {', '.join(map(repr, unknown))}; there are {', '.join(allowed)}.")
    twice = sorted({value for value in given if given.count(value) > 1})
    if twice:
        raise UsageError(f"The {name} name {', '.join(twice)} more than once; name each once.")
