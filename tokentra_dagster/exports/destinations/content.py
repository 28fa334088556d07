"""Media types of what is delivered, by file name."""

from __future__ import annotations

_BY_ENDING = {
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".parquet": "application/vnd.apache.parquet",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".gz": "application/gzip",
    ".zst": "application/zstd",
}
UNKNOWN = "application/octet-stream"


def content_type(name: str) -> str:
    """Of compressed files the compression's type: what arrives is the compressed file, not to be unpacked on the way."""
    _, dot, ending = name.rpartition(".")
    return _BY_ENDING.get(f"{dot}{ending}".lower(), UNKNOWN)
