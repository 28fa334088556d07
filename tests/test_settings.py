"""Settings say what is wrong and what is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokentra_dagster import dbt_manifest
from tokentra_dagster.errors import SettingsError
from tokentra_dagster.settings import KNOWN, Settings


def test_an_unknown_setting_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({"TOKENTRA_DATBASE_URL": "x"})
    assert "TOKENTRA_DATBASE_URL" in str(raised.value)
    assert all(name in str(raised.value) for name in KNOWN)


@pytest.mark.parametrize("value", ["0", "65536", "http", "-1", "٣"])
def test_a_port_must_be_a_port(value: str) -> None:
    with pytest.raises(SettingsError, match="1 to 65535"):
        Settings.from_environment({"TOKENTRA_UI_PORT": value})


def test_a_database_url_of_another_kind_is_refused_and_secrets_may_be_named() -> None:
    with pytest.raises(SettingsError, match="postgresql://"):
        Settings.from_environment({"TOKENTRA_DATABASE_URL": "mysql://x"})
    assert Settings.from_environment({"TOKENTRA_SECRET_OPENAI": "k"}).database_url is None


def test_a_manifest_that_was_made_beforehand_is_used_while_no_file_of_the_project_is_newer(tmp_path, monkeypatch) -> None:
    project = tmp_path / "dbt_project"
    (project / "models").mkdir(parents=True)
    (project / "models" / "one.sql").write_text("select 1")
    monkeypatch.setattr(dbt_manifest, "project_folder", lambda: project)
    parsed: list[Path] = []
    monkeypatch.setattr(dbt_manifest, "_parse_into", parsed.append)
    made = tmp_path / "manifest.json"
    made.write_text("{}")
    chosen = Settings.from_environment({"TOKENTRA_DBT_MANIFEST": str(made), "TOKENTRA_HOME": str(tmp_path / "home")})
    assert dbt_manifest.ensure_manifest(chosen) == made and parsed == []
    later = made.stat().st_mtime + 60
    os.utime(project / "models", (later, later))  # as when a file in it was removed
    assert dbt_manifest.ensure_manifest(chosen) == tmp_path / "home" / "dbt" / "target" / "manifest.json" and len(parsed) == 1


def test_deliveries_are_safe_unless_the_operator_says_yes() -> None:
    chosen = Settings.from_environment({"TOKENTRA_DELIVERY_PRIVATE_TARGETS": "yes"})
    assert (chosen.delivery_plain_text, chosen.delivery_private_targets) == (False, True)
    with pytest.raises(SettingsError, match="'1'; it must be yes or no"):
        Settings.from_environment({"TOKENTRA_DELIVERY_PLAIN_TEXT": "1"})


def test_the_collector_has_the_port_that_exporters_expect_unless_another_or_none_is_chosen():
    chosen = [Settings.from_environment({"TOKENTRA_COLLECTOR_PORT": value}).collector_port for value in ("", "5000", "0")]
    assert chosen == [4318, 5000, None] and Settings.from_environment({}).collector_port == 4318
    with pytest.raises(SettingsError, match="TOKENTRA_COLLECTOR_PORT is '-1'"):
        Settings.from_environment({"TOKENTRA_COLLECTOR_PORT": "-1"})
