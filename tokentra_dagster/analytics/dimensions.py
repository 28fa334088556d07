"""Names of dimensions (table 1.5): the specification's camelCase in results, snake_case in Python and SQL, both accepted."""

from __future__ import annotations

from collections.abc import Mapping

from tokentra_dagster.analytics.results import camel
from tokentra_dagster.analytics.sources import DIMENSIONS
from tokentra_dagster.errors import UsageError

SPELLINGS = {camel(name): name for name in DIMENSIONS} | {
    "teamId": "team", "team_id": "team", "projectId": "project", "project_id": "project", "costCenterId": "cost_center",
    "cost_center_id": "cost_center", "userId": "user", "user_id": "user", "user_identifier": "user", "apiKeyId": "api_key",
    "api_key_id": "api_key",
}  # fmt: skip
"""The spellings that the stored functions accept as well (docs/functions.md)."""

UNKNOWN = "Unknown"
OTHER = "Other"


def dimension_name(name: str) -> str:
    """The name in `DIMENSIONS` for either spelling; raises `UsageError` with what there is (correction 14)."""
    found = name if name in DIMENSIONS else SPELLINGS.get(name)
    if found is None:
        raise UsageError(f"The dimension is {name!r}; it must be one of {', '.join(DIMENSIONS)}.")
    return found


def conditions(where: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """`where` under the names that a source takes, in order. None, or the word Unknown, is usage without a value."""
    return {dimension_name(name): value for name, value in (where or {}).items()}
