"""Files of Helicone's export tool: rows as its API answers them (Helicone/helicone: valhalla/jawn/src/lib/stores/request/request.ts,
examples/export/typescript/index.ts)."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

NO_REQUEST = "00000000-0000-0000-0000-000000000000"
PROMPT = "the prompt that nobody may keep"
COLUMNS = (
    "response_id", "response_created_at", "response_status", "request_created_at", "request_body", "request_properties", "request_user_id",
    "model", "prompt_tokens", "completion_tokens", "latency", "cost",
)  # fmt: skip
"""Of the tool's CSV."""


@dataclass(frozen=True)
class Asked:
    """One request, in canonical tokens: `sent` holds what was read from and written to the provider's cache."""

    id: str
    at: datetime
    provider: str = "OPENAI"
    model: str = "gpt-4o"
    sent: int = 100
    received: int = 10
    read: int = 0
    written: int = 0
    reasoning: int = 0
    status: int = 200
    is_cached: bool = False
    user: str | None = None
    properties: tuple[tuple[str, str], ...] = ()
    milliseconds: int = 800

    def row(self) -> dict[str, Any]:
        told = not self.is_cached
        return {
            "response_id": f"resp-{self.id}", "response_created_at": f"{self.at:%Y-%m-%d %H:%M:%S}", "response_status": self.status,
            "request_id": self.id, "request_created_at": f"{self.at:%Y-%m-%d %H:%M:%S.%f}", "request_body": {"messages": [PROMPT]},
            "request_user_id": self.user, "request_properties": dict(self.properties), "properties": dict(self.properties),
            "provider": self.provider, "delay_ms": self.milliseconds, "time_to_first_token": 120, "request_model": self.model,
            "prompt_tokens": (self.sent - self.read - self.written) * told, "completion_tokens": (self.received - self.reasoning) * told,
            "reasoning_tokens": self.reasoning * told, "prompt_cache_read_tokens": self.read * told,
            "prompt_cache_write_tokens": self.written * told, "target_url": "https://api.openai.com/v1/chat/completions",
            "cache_reference_id": "6f1c36f0-5b4b-4b43-9b0c-3a58a7c11111" if self.is_cached else NO_REQUEST, "cost": 0.0125,
        }  # fmt: skip


def requests(seed: int, start: datetime, end: datetime, count: int) -> list[Asked]:
    """Requests to two providers, some answered by Helicone, some failed; some at the edges of hours."""
    generator = random.Random(seed)
    found = []
    for n in range(count):
        at = start + timedelta(seconds=generator.randrange(int((end - start).total_seconds())))
        sent = generator.randrange(10, 300_000)
        known = generator.random() < 0.5
        found.append(
            Asked(
                f"h{n}", at.replace(minute=0, second=0) if n % 10 == 0 else at, generator.choice(["OPENAI", "ANTHROPIC"]),
                generator.choice(["gpt-4o", "gpt-4o-mini"]), sent, generator.randrange(2, 4000), sent // 3 if known else 0,
                sent // 7 if known else 0, generator.choice([0, 1]), generator.choice([200, 200, 200, 429]), generator.random() < 0.15,
                generator.choice([None, "ann"]), generator.choice([(), (("Team", "core"), ("feature", "search"))]),
            )
        )  # fmt: skip
    return found


def lines(made: Iterable[Asked]) -> str:
    return "".join(json.dumps(one.row()) + "\n" for one in made)


def array(made: Iterable[Asked]) -> str:
    """As the tool writes it."""
    return "[\n" + ",\n".join(json.dumps(one.row(), indent=2) for one in made) + "\n]\n"


def table(made: Iterable[Asked], **named: str) -> str:
    """As the tool writes it: every cell quoted, an object's quotes doubled twice. It knows neither `model` nor `latency`."""
    text = io.StringIO()
    text.write(",".join(COLUMNS) + "\n")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for one in made:
        cells = one.row() | named
        writer.writerow(
            json.dumps(cell).replace('"', '""') if isinstance(cell := cells.get(name), dict) else cell for name in COLUMNS
        )
    return text.getvalue()
