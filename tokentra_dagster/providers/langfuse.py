"""Langfuse: the generations of one project, by its Observations API v2 (providers.md 6.3).

What a generation says is in `langfuse_generations`. Prompts and answers (field group `io`) are never asked for.

https://langfuse.com/docs/api-and-data-platform/features/observations-api
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from tokentra_dagster.errors import TransientError
from tokentra_dagster.providers import langfuse_generations
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.http_json import JsonApi
from tokentra_dagster.providers.langfuse_generations import TYPES, Generations
from tokentra_dagster.providers.options import Options
from tokentra_dagster.records import EntityName, Item

PATH = "/api/public/v2/observations"
CLOUD = "https://cloud.langfuse.com"
PAGE = 1000
FIELDS = "core,basic,model,usage,metrics"
_KEY = "the project's keys as PUBLIC_KEY:SECRET_KEY (pk-lf-...:sk-lf-...)"


class LangfuseSource:
    """One project, for one provider."""

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, langfuse_generations.OPTIONS)
        self._generations = Generations(config, options)
        token = base64.b64encode(config.api_key.strip().encode()).decode()
        self._api = JsonApi(
            "langfuse", config.base_url or CLOUD, _KEY, {"Authorization": f"Basic {token}", "Accept": "application/json"},
            (config.api_key, config.api_key.partition(":")[2], token), options.timeout_seconds, options.max_retries,
        )  # fmt: skip

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of the generations that began in the window."""
        return self._generations.records(self._observations(window), window)

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: its costs are estimates."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        """Nothing: an observation names its user itself."""
        yield from ()

    def remarks(self) -> list[str]:
        return self._generations.remarks()

    def check(self) -> str:
        """One observation. Raises as `usage` does."""
        page = self._api.get(PATH, {"limit": "1", "type": TYPES[0]})
        newest = next((str(item.get("startTime")) for item in _data(page)), None)
        return f"langfuse: keys accepted; {f'newest generation {newest}' if newest else 'no generation yet'}"

    def _observations(self, window: Window) -> Iterator[Mapping[str, Any]]:
        """Page by page. A cursor that comes again would never end."""
        for kind in TYPES:
            asked = {
                "fromStartTime": window.start.isoformat().replace("+00:00", "Z"), "toStartTime": window.end.isoformat().replace("+00:00", "Z"),
                "type": kind, "fields": FIELDS, "limit": str(PAGE),
            }  # fmt: skip
            cursors: set[str] = set()
            while True:
                page = self._api.get(PATH, asked)
                yield from _data(page)
                meta = page.get("meta")
                cursor = meta.get("cursor") if isinstance(meta, Mapping) else None
                if not cursor:
                    break
                if str(cursor) in cursors:
                    raise TransientError("langfuse: the same cursor came twice; nothing was used, try again later")
                cursors.add(str(cursor))
                asked["cursor"] = str(cursor)


def _data(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    data = page.get("data")
    if not isinstance(data, list) or not all(isinstance(item, Mapping) for item in data):
        raise TransientError("langfuse: an answer has no list of observations; nothing was used, try again later")
    return data
