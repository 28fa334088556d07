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

    def columns(self, keys: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
        """`FILLED` for every row, as text columns; `keys` has the text columns `KEY_COLUMNS`.

        A rule looks at one column, so each distinct value of a column is matched once and a row's answer is the smallest
        rule number among its columns: the cost does not grow with the number of rules times rows.
        """
        rows = len(keys["model"])
        first = {target: np.full(rows, len(self.rules)) for target in FILLED}
        for column in KEY_COLUMNS:
            mine = [(number, rule) for number, rule in enumerate(self.rules) if MATCH_COLUMNS[rule.match_field] == column]
            if not mine:
                continue
            encoded = keys[column].dictionary_encode(null_encoding="encode")
            values = encoded.dictionary.to_pylist()
            positions = encoded.indices.to_numpy(zero_copy_only=False)
            for target in FILLED:
                numbered = [(number, rule) for number, rule in mine if getattr(rule, target) is not None]
                if numbered:
                    ranks = np.array([self._first_match(numbered, column, value) for value in values])
                    np.minimum(first[target], ranks[positions], out=first[target])
        return {target: self._answers(target).take(pa.array(numbers)) for target, numbers in first.items()}

    def _first_match(self, numbered: Sequence[tuple[int, Rule]], column: str, value: str | None) -> int:
        name = self.names.get((column, value)) if value is not None else None
        return next((number for number, rule in numbered if rule.matches(value, name)), len(self.rules))

    def _answers(self, target: str) -> pa.Array:
        """What each rule fills in, and NULL after the last for rows that no rule matches."""
        filled = (getattr(rule, target) for rule in self.rules)
        return pa.array([None if value is None else str(value) for value in filled] + [None], pa.string())
