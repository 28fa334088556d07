"""Attribution: which team, project, cost center, feature and environment a usage record belongs to.

A rule matches one field of the record (the provider's project or workspace, the API key, the user or the model; by id
or by the provider's name for it; exact or with `*`) and names what it fills. For each thing to fill, the matching rule
with the lowest priority number that names it wins; what the source itself said is never overwritten.
Pure: rules in, Arrow columns out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from uuid import UUID

import numpy as np
import pyarrow as pa

MATCH_COLUMNS = {
    "project": "provider_project_id",
    "workspace": "provider_project_id",
    "api_key": "api_key_id",
    "user": "user_id",
    "model": "model",
}
FILLED = ("team_id", "project_id", "cost_center_id", "feature", "environment")
KEY_COLUMNS = ("provider_project_id", "api_key_id", "user_id", "model")


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of `app.attribution_rules`."""

    priority: int
    match_field: str
    match_value: str
    team_id: UUID | None = None
    project_id: UUID | None = None
    cost_center_id: UUID | None = None
    feature: str | None = None
    environment: str | None = None

    def matches(self, value: str | None, name: str | None) -> bool:
        """`value` is the provider's id, `name` what the provider calls it."""
        return any(candidate is not None and fnmatchcase(candidate, self.match_value) for candidate in (value, name))


@dataclass(frozen=True, slots=True)
class Attribution:
    """The rules of one organisation and provider, in order, and the provider's names for its ids: (column, id) -> name."""

    rules: Sequence[Rule] = ()
    names: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def fill(self, key: Mapping[str, str | None]) -> dict[str, str | None]:
        """What the rules say for one combination of `KEY_COLUMNS`."""
        found: dict[str, str | None] = dict.fromkeys(FILLED)
        for rule in self.rules:
            column = MATCH_COLUMNS[rule.match_field]
            value = key[column]
            name = self.names.get((column, value)) if value is not None else None
            if rule.matches(value, name):
                for target in FILLED:
                    if found[target] is None and getattr(rule, target) is not None:
                        found[target] = str(getattr(rule, target))
        return found

    def columns(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """`FILLED` for every row of a batch of `USAGE_SCHEMA`, as text columns. Each combination of keys is decided once."""
        if not self.rules or batch.num_rows == 0:
            return {target: pa.nulls(batch.num_rows, pa.string()) for target in FILLED}
        rows, positions = distinct_rows([batch.column(name) for name in KEY_COLUMNS])
        decided = [self.fill(dict(zip(KEY_COLUMNS, row, strict=True))) for row in rows]
        return {target: pa.array([fill[target] for fill in decided], pa.string()).take(positions) for target in FILLED}


def distinct_rows(columns: Sequence[pa.Array]) -> tuple[list[tuple[str | None, ...]], pa.Array]:
    """The distinct combinations over text columns, and for every row which one it is."""
    encoded = [column.dictionary_encode(null_encoding="encode") for column in columns]
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for part in encoded:
        code = code * len(part.dictionary) + part.indices.to_numpy(zero_copy_only=False)
        _, code = np.unique(code, return_inverse=True)
    _, first, position = np.unique(code, return_index=True, return_inverse=True)
    rows = [tuple(column[int(index)].as_py() for column in columns) for index in first]
    return rows, pa.array(position)
