"""docs/adding-a-source.md is true: its module, its entry and its case, put together, pass what every source passes."""

from __future__ import annotations

import inspect
import json
import re
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest

from tests.providers import conformance, test_conformance
from tests.warehouse_data import connection, one
from tokentra_dagster import providers
from tokentra_dagster.ingest.sync import sync_connection
from tokentra_dagster.providers.base import ConnectionConfig, Window

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-source.md").read_text()
MODULE, ENTRY, CASE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
QUESTIONS = {
    name: ask
    for name, ask in vars(test_conformance).items()
    if name.startswith("test_") and "case" in inspect.signature(ask).parameters
}
FURTHER = {
    "test_a_long_window_is_read_whole": [{"number": 0, "width": "1h"}, {"number": 1, "width": "1d"}],
    "test_a_broken_answer_is_an_error_or_a_rejected_item_and_never_silently_less": [
        {"kind": kind} for kind in conformance.BROKEN
    ],
}
NOT_ASKED = {
    "test_what_only_a_person_can_mend_stops_at_once_with_one_sentence", "test_what_passes_is_tried_again_and_nothing_is_lost",
    "test_what_does_not_pass_is_given_up_after_the_retries_and_is_transient", "test_the_secret_is_in_no_error_no_log_and_no_repr",
    "test_a_rate_limit_that_asks_for_patience_gets_it",
}  # fmt: skip
"""About a network that a folder of files has not."""


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> type[conformance.Case]:
    """The page's code, as if it were where the page says."""
    module = ModuleType("tokentra_dagster.providers.meter")
    exec(MODULE, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(providers, "INTEGRATIONS", dict(providers.INTEGRATIONS))
    exec(ENTRY, {**vars(providers), "timedelta": timedelta})
    names = {**vars(conformance), "contextmanager": contextmanager, "json": json, "timedelta": timedelta,
             "MeterSource": module.MeterSource, "ConnectionConfig": ConnectionConfig}  # fmt: skip
    exec(CASE, names)
    return names["MeterCase"]


@pytest.mark.parametrize("question", sorted(set(QUESTIONS) - NOT_ASKED))
def test_the_pages_source_passes(meter, tmp_path, question):
    for number, further in enumerate(FURTHER.get(question, [{}])):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = meter()
        with case.running(folder):
            QUESTIONS[question](case, **further)


def test_it_is_synced_like_any_other(meter, database, tmp_path):
    case = meter()
    with case.running(tmp_path):
        row = connection(
            database, name="meter", provider="openai", integration="meter", source="gateway", options={"folder": str(tmp_path)}
        )
        window = Window(conformance.DAY, conformance.DAY + conformance.ONE_DAY, "1h")
        assert sync_connection(database, row, window, now=conformance.NOW).loaded == 24
        assert (
            one(database, "SELECT sum(input_tokens)::int FROM raw.usage_records") == case.truth(window.start, window.end)["input"]
        )
