"""docs/functions.md is true: its examples run, its signatures and columns are those of the database."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dbt.usage_case import UsageCase
from tests.warehouse_data import rows

PAGE = (Path(__file__).parents[2] / "docs" / "functions.md").read_text()
SECTIONS = {section.split("\n", 1)[0]: section for section in PAGE.split("\n## ")[1:]}
SAME_COLUMNS = {"get_usage_drilldown": "get_usage_breakdown"}


def test_every_public_function_has_its_section(acme: UsageCase) -> None:
    found = rows(acme.database, "SELECT proname FROM pg_proc WHERE pronamespace = 'marts'::regnamespace AND proname ~ '^get_'")
    elsewhere = {"get_live_usage"}  # docs/live.md, whose own test holds it
    assert {row["proname"] for row in found} == set(SECTIONS) | elsewhere


@pytest.mark.parametrize("name", SECTIONS)
def test_the_example_runs_and_gives_rows(acme: UsageCase, name: str) -> None:
    (statement,) = re.findall(r"```sql\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert name in statement and rows(acme.database, statement)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_signature_and_columns_are_those_of_the_database(acme: UsageCase, name: str) -> None:
    (found,) = rows(
        acme.database,
        "SELECT proargnames AS names, proargmodes::text[] AS modes, oidvectortypes(proargtypes) AS types, provolatile AS volatility, "
        "prosecdef AS is_definer FROM pg_proc WHERE proname = %s AND pronamespace = 'marts'::regnamespace",
        name,
    )
    (signature,) = re.findall(rf"^`{name}\((.*)\)`$", SECTIONS[name], re.MULTILINE)
    documented = [argument.split(" ") for argument in signature.split(", ")]
    given = [argument for argument, mode in zip(found["names"], found["modes"], strict=True) if mode == "i"]
    assert [argument for argument, _ in documented] == given
    assert [kind.replace("timestamptz", "timestamp with time zone") for _, kind in documented] == found["types"].split(", ")
    columns = re.findall(r"^\| `(\w+)` \|", SECTIONS[SAME_COLUMNS.get(name, name)], re.MULTILINE)
    assert columns == [column for column, mode in zip(found["names"], found["modes"], strict=True) if mode == "t"]
    assert (found["volatility"], found["is_definer"]) == ("s", False)
