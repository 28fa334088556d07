"""docs/collector.md is true: its commands run, in its order, and its tables are those of the code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.collector.processes import Process
from tests.warehouse_data import one
from tokentra_dagster.collector import genai_spans
from tokentra_dagster.collector.limits import Limits
from tokentra_dagster.realtime.events import FIELDS
from tokentra_dagster.records import PROVIDERS
from tokentra_dagster.warehouse.directory import add_organization
from tokentra_dagster.warehouse.embedded import _free_port

PAGE = (Path(__file__).parents[2] / "docs" / "collector.md").read_text()


def sections(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def tokentra(database, tmp_path):
    def run(line: str, **more: str) -> str:
        env = {**os.environ, "TOKENTRA_DATABASE_URL": database.url, "TOKENTRA_HOME": str(tmp_path), **more,
               "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done.stdout + done.stderr

    return run


def test_every_command_of_the_page_runs(database, tokentra, tmp_path, capsys):
    with database.connect() as db:
        add_organization(db, "acme")
    serve, add, list_, revoke = re.findall(r"^tokentra (?:collect|keys) .*$", PAGE, re.MULTILINE)
    assert serve == "tokentra collect --port 4318"
    port = _free_port()
    process = Process(database.url, tmp_path, port)
    try:
        key = tokentra(add).split()[-1]
        assert "acme/backend" in tokentra(list_)
        said = tokentra(sections("sh")[0].replace(":4318", f":{port}"), KEY=key)
        assert json.loads(said) == json.loads(sections("json")[0])
        exec(sections("python")[0].replace(":4318", f":{port}"), {"KEY": key})
        assert capsys.readouterr().out == "ClientCounts(recorded=1, waiting=0, stored=1, refused=0, dropped=0)\n"
        settings = dict(re.findall(r"^(OTEL_\w+)=(.*)$", PAGE, re.MULTILINE))
        settings = {name: value.replace(":4318", f":{port}").replace("KEY", key) for name, value in settings.items()}
        span = """
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
with provider.get_tracer("x").start_as_current_span("chat", attributes={
    "gen_ai.system": "openai", "gen_ai.request.model": "gpt-4o", "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 1}):
    pass
"""
        tokentra(f"{sys.executable} -c '{span}'", **settings)
        assert one(database, "SELECT count(*) FROM raw.usage_events") == 3
        assert "acme/backend" in tokentra(revoke)
    finally:
        process.end(signal.SIGINT)


def test_the_tables_name_what_there_is():
    http, spans = PAGE.split("## OpenTelemetry")
    fields = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", http, re.MULTILINE)))
    assert sorted(fields) == sorted(FIELDS)
    assert all(f"`{provider}`" in http for provider in PROVIDERS)
    ours = genai_spans
    names = [
        *ours._PROVIDER,
        *ours._INPUT,
        *ours._OUTPUT,
        *(name for names in ours._COUNTS.values() for name in names),
        ours._REASONING[0],
    ]
    names += [name for column in ("user_id", "environment") for name in ours.DIMENSIONS[column]]
    assert [name for name in names if f"`{name}`" not in spans] == []
    assert [name for name in ours.DIMENSIONS if f"`{name}`" not in spans] == []
    limits = Limits()
    assert (limits.body_bytes, limits.decompressed_bytes, limits.events) == (5 * 2**20, 8 * 2**20, 5000)
    assert (limits.containers, limits.depth) == (200_000, 20)
    assert (limits.header_seconds, limits.body_seconds, limits.key_seconds) == (10, 30, 2)
