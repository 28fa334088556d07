"""One small delivery, and certificates of an authority that only these tests trust."""

from __future__ import annotations

import hashlib
import json
import ssl
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import trustme

from tokentra_dagster.exports.destinations.base import Delivery, Facts

ROWS = b"date,model,total_tokens\n2026-01-01,gpt-4o,1200\n2026-01-01,claude-opus-4,800\n"


def delivery_of(written_to: Path, content: bytes = ROWS, name: str = "usage_2026-01-01.csv", **changes: object) -> Delivery:
    """The export and its manifest, in the folder `written_to`."""
    written_to.mkdir(parents=True, exist_ok=True)
    export, manifest = written_to / name, written_to / f"{name}.manifest.json"
    digest = hashlib.sha256(content).hexdigest()
    export.write_bytes(content)
    manifest.write_text(json.dumps({"sha256": digest, "rows": 2}))
    facts = Facts(
        organisation="acme",
        export_name="Daily usage",
        period_start=datetime(2026, 1, 1, tzinfo=UTC),
        period_end=datetime(2026, 1, 2, tzinfo=UTC),
        rows=2,
        size_bytes=len(content),
        sha256=digest,
    )
    delivery = Delivery("exp_0190_2026-01-01", (export,), manifest, facts, datetime(2026, 1, 2, 6, tzinfo=UTC))
    return replace(delivery, **changes)


@dataclass(frozen=True)
class Authority:
    ca: trustme.CA
    file: Path

    @classmethod
    def made_in(cls, folder: Path) -> Authority:
        ca = trustme.CA()
        file = folder / "authority.pem"
        ca.cert_pem.write_to_path(str(file))
        return cls(ca, file)

    def server_side(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context
