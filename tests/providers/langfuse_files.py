"""Langfuse's export to blob storage as it lies in a bucket: a file of observations and a manifest for each run.

Names, fields and the manifest as in langfuse/langfuse, worker/src/features/blobstorage/. Both ends of a run's window are in its file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.providers.langfuse_server import Generated

PROJECT = "clk1project"
PROMPT = "the prompt that nobody may keep"
KINDS = ("jsonl", "jsonl.gz", "csv", "csv.gz", "json", "json.gz", "parquet")


def stem(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H-%M-%S}"


def row(one: Generated) -> dict[str, Any]:
    """A row of `observations_v2/`; large numbers are text, as ClickHouse may quote them."""
    said = one.as_json()
    return {
        "id": one.id, "trace_id": "t", "project_id": PROJECT, "environment": said["environment"], "type": one.type, "parent_observation_id": "",
        "start_time": f"{one.at:%Y-%m-%d %H:%M:%S.%f}", "end_time": f"{one.at + timedelta(milliseconds=1250):%Y-%m-%d %H:%M:%S.%f}",
        "completion_start_time": f"{one.at + timedelta(milliseconds=300):%Y-%m-%d %H:%M:%S.%f}", "level": said["level"],
        "input": PROMPT, "output": "a\nb, \"c\"", "user_id": one.user or "", "provided_model_name": one.model,
        "usage_details": {name: str(count) for name, count in said["usageDetails"].items()}, "latency": 1250,
    }  # fmt: skip


def content(rows: Sequence[dict[str, Any]], kind: str) -> bytes:
    """The file of these rows."""
    if kind == "parquet":
        return _parquet(rows)
    if kind.startswith("jsonl"):
        data = "".join(json.dumps(one) + "\n" for one in rows)
    elif kind.startswith("json"):
        data = "[" + ",\n".join(json.dumps(one) for one in rows) + "]"
    else:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(rows[0] if rows else ["id"])
        writer.writerows([json.dumps(cell) if isinstance(cell, dict) else cell for cell in one.values()] for one in rows)
        data = text.getvalue()
    return gzip.compress(data.encode(), 1) if kind.endswith(".gz") else data.encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.binary() if name == "user_id" else pa.string()) for name in ("id", "type", "level", "environment", "user_id", "project_id")]
        + [("provided_model_name", pa.string()), ("usage_details", pa.map_(pa.string(), pa.uint64())), ("input", pa.string())]
        + [(name, pa.timestamp("us")) for name in ("start_time", "end_time", "completion_start_time")]
    )  # fmt: skip
    plain = [
        {
            **{name: one[name] for name in schema.names},
            "usage_details": [(name, int(count)) for name, count in one["usage_details"].items()],
            "user_id": one["user_id"].encode(),
            **{name: datetime.fromisoformat(one[name]) for name in ("start_time", "end_time", "completion_start_time")},
        }
        for one in rows
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain, schema), sink)
    return sink.getvalue()


def run(
    made: Iterable[Generated], start: datetime, end: datetime, kind: str = "jsonl", written: datetime | None = None
) -> dict[str, bytes]:
    """The files of one run below the project's folder, by name."""
    inside = [row(one) for one in made if start <= one.at <= end]
    name = f"observations_v2/{stem(end)}.{kind}"
    manifest = {
        "version": 1, "projectId": PROJECT, "window": {"minTimestamp": start.isoformat(), "maxTimestamp": end.isoformat()},
        "createdAt": (written or end + timedelta(minutes=5)).isoformat(), "tables": ["scores", "observations_v2"],
        "files": [
            {"key": f"langfuse/{PROJECT}/scores/{stem(end)}.{kind}", "table": "scores", "rowCount": 0},
            {"key": f"langfuse/{PROJECT}/{name}", "table": "observations_v2", "rowCount": len(inside)},
        ],
    }  # fmt: skip
    return {name: content(inside, kind), f"manifests/{stem(end)}.json": json.dumps(manifest).encode()}


def write(folder: Path, files: dict[str, bytes], project: str = PROJECT) -> None:
    for name, data in files.items():
        path = folder / project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
