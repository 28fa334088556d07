"""The analyses over a real warehouse: as Dagster assets, as commands, and as a page that a browser opens."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from tests.analytics.golden import GOLDEN, assert_equal
from tests.dbt.golden_example import Example, built_example
from tests.warehouse_data import one, rows
from tokentra_dagster.analyses import ANALYSES, windows_of
from tokentra_dagster.analytics.dashboard import usage_dashboard
from tokentra_dagster.analytics.results import as_json
from tokentra_dagster.analytics_assets import analytics
from tokentra_dagster.cli import cli
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.usage_source import WarehouseUsage

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the worked examples are not beside this checkout (../shared/golden)")
TABLES = ("metrics", "insights", "recommendations", "documents")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def agents(server_url: str, template_database: str, dbt_target: Path) -> Iterator[Example]:
    with built_example("agents", server_url, template_database, dbt_target) as built:
        with built.database.connect() as db:
            db.execute("INSERT INTO app.organizations (name) VALUES ('newcomer')")
        yield built


@pytest.fixture
def settings_of_agents(agents: Example, monkeypatch, tmp_path: Path) -> Example:
    monkeypatch.setenv("TOKENTRA_DATABASE_URL", agents.database.url)
    monkeypatch.setenv("TOKENTRA_HOME", str(tmp_path / "home"))
    return agents


def _materialize(partition: str, instance: dg.DagsterInstance) -> dict[str, dg.AssetMaterialization]:
    result = dg.materialize([analytics], partition_key=partition, resources={"warehouse": Warehouse()}, instance=instance)
    assert result.success
    found = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    return {materialization.asset_key.path[-1]: materialization for materialization in found}


def test_a_partition_holds_every_analysis_of_the_windows_that_end_with_its_day(settings_of_agents: Example):
    agents, last = settings_of_agents, date(2026, 6, 28)
    with dg.DagsterInstance.ephemeral() as instance:
        shown = _materialize(str(last), instance)
        counts = [one(agents.database, f"SELECT count(*) FROM analytics.{table}") for table in TABLES]
        # The same day again replaces what stood there.
        _materialize(str(last), instance)
        assert [one(agents.database, f"SELECT count(*) FROM analytics.{table}") for table in TABLES] == counts
    assert set(shown) == set(ANALYSES) and all(count > 0 for count in counts)
    for name, materialization in shown.items():
        metadata = materialization.metadata
        (tables,) = [value.md_str for key, value in metadata.items() if key.endswith(": tables")]
        (plot,) = [value.md_str for key, value in metadata.items() if key.endswith(": plot")]
        assert metadata["dagster/row_count"].value > 0, name
        assert tables.count("|") > 8 and "data:image/png;base64,iVBOR" in plot
    stored = rows(agents.database, 'SELECT analysis, "window", period_start, period_end, document FROM analytics.documents')
    assert {(row["analysis"], row["window"]) for row in stored} == {(a.name, w) for a in ANALYSES.values() for w in a.windows}
    windows = windows_of(last)
    assert all(
        (row["period_start"], row["period_end"]) == (windows[row["window"]].start, windows[row["window"]].end) for row in stored
    )
    with agents.database.connect() as db:
        expected = json.loads(
            json.dumps(as_json(usage_dashboard(WarehouseUsage(db, agents.org_id), windows["month"])), default=str)
        )
    (document,) = [row["document"] for row in stored if (row["analysis"], row["window"]) == ("dashboard", "month")]
    assert document == expected


def test_a_figure_has_one_row_and_agrees_with_raw(settings_of_agents: Example):
    agents = settings_of_agents
    with dg.DagsterInstance.ephemeral() as instance:
        _materialize("2026-06-28", instance)
    key = 'org_id, analysis, "window", period_end, dimension, dimension_value, moment, metric'
    assert rows(agents.database, f"SELECT {key} FROM analytics.metrics GROUP BY {key} HAVING count(*) > 1") == []
    totals = rows(
        agents.database,
        "SELECT period_start, period_end, value FROM analytics.metrics "
        "WHERE analysis = 'dashboard' AND metric = 'total_tokens' AND dimension IS NULL AND moment IS NULL",
    )
    assert len(totals) == 4
    for row in totals:
        raw = "SELECT sum(total_tokens) FROM raw.usage_records WHERE timestamp >= %s AND timestamp < %s"
        assert row["value"] == one(agents.database, raw, row["period_start"], row["period_end"])
    for dimension in ("model", "feature", "api_key", "user"):
        parts = one(
            agents.database,
            "SELECT sum(value) FROM analytics.metrics WHERE analysis = 'breakdowns' AND \"window\" = '30d' AND dimension = %s "
            "AND metric = 'total_tokens' AND moment IS NULL",
            dimension,
        )
        assert parts == next(row["value"] for row in totals if (row["period_end"] - row["period_start"]).days == 30)


def test_an_organisation_without_usage_is_left_out_and_one_without_marts_says_what_to_do(settings_of_agents: Example):
    agents = settings_of_agents
    newcomer = one(agents.database, "SELECT id FROM app.organizations WHERE name = 'newcomer'")
    assert one(agents.database, "SELECT count(*) FROM analytics.documents WHERE org_id = %s", newcomer) == 0


GOLDEN_COMMANDS = {
    "summary": ["summary"],
    "summary.previous": ["summary", "--compare", "previous"],
    "trend.day.tokens": ["trend", "--granularity", "day"],
    "trend.hour.requests": ["trend", "--granularity", "hour", "--metric", "requests"],
    "breakdown.model": ["breakdown", "--by", "model"],
    "coverage": ["coverage"],
    "models": ["models"],
    "userReport.cost": ["users", "--order-by", "cost", "--limit", "10"],
}


def _run(agents: Example, *arguments: str, expect: int = 0) -> str:
    period = ["--org", str(agents.org_id), "--from", agents.case["start"][:10], "--to", agents.case["end"][:10]]
    result = CliRunner().invoke(cli, ["analyze", *arguments, *period], catch_exceptions=True)
    assert result.exit_code == expect, (result.output, result.exception)
    return result.output


@pytest.mark.parametrize("key", GOLDEN_COMMANDS)
def test_json_is_what_the_specifications_services_answer(settings_of_agents: Example, key: str):
    found = json.loads(_run(settings_of_agents, *GOLDEN_COMMANDS[key], "--json"))
    expected = settings_of_agents.expected[key]
    if key == "breakdown.model":
        found["items"] = [item for item in found["items"] if not item["isOther"]]
    assert_equal(found, expected)


def test_the_efficiency_and_the_comparison_are_the_specifications(settings_of_agents: Example):
    agents = settings_of_agents
    assert_equal(json.loads(_run(agents, "efficiency", "--json"))["analysis"], agents.expected["efficiency"])
    earlier = ["--previous-from", agents.case["prevStart"][:10], "--previous-to", agents.case["prevEnd"][:10], "--by", "model"]
    found = json.loads(_run(agents, "compare", *earlier, "--json"))
    by_metric = {row["metric"]: row for row in found["metrics"]}
    for row in agents.expected["comparison"]["metrics"]:
        assert_equal(by_metric[row["metric"]], row)


ALL = (
    ("summary",), ("trend", "--metric", "cost"), ("breakdown", "--by", "apiKey"), ("drilldown", "--path", "feature=interactive", "--by", "model"),
    ("efficiency",), ("patterns", "--time-zone", "Europe/Berlin"), ("seasonality",), ("models",), ("compare",), ("anomalies",),
    ("forecast",), ("coverage",), ("users",), ("dashboard",),
)  # fmt: skip


@pytest.mark.parametrize("arguments", ALL, ids=lambda arguments: arguments[0])
def test_every_analysis_prints_tables_and_json(settings_of_agents: Example, arguments: tuple[str, ...]):
    text = _run(settings_of_agents, *arguments)
    assert "──" in text and not re.search(r"\b(nan|NaT|None|inf|Decimal)\b", text)
    assert isinstance(json.loads(_run(settings_of_agents, *arguments, "--json")), dict)


def test_every_analysis_of_the_issue_is_a_command():
    names = "summary trend breakdown drilldown efficiency patterns seasonality models compare anomalies forecast coverage users dashboard"
    assert set(cli.commands["analyze"].commands) == set(names.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("breakdown", "--by", "colour"), "colour"),
        (("summary", "--where", "apiKey=key-1"), "narrowed"),
        (("patterns", "--time-zone", "Europe/Atlantis"), "Europe/Atlantis"),
    ],
)
def test_wrong_arguments_are_one_sentence(settings_of_agents: Example, arguments: tuple[str, ...], says: str):
    period = ["--org", str(settings_of_agents.org_id), "--from", "2026-06-15", "--to", "2026-06-29"]
    result = CliRunner().invoke(cli, ["analyze", *arguments, *period])
    assert result.exit_code != 0 and says in str(result.exception or result.output)


@pytest.fixture
def page(settings_of_agents: Example, tmp_path: Path) -> Path:
    out = tmp_path / "report.html"
    case = settings_of_agents.case
    arguments = [
        "report",
        "--org",
        str(settings_of_agents.org_id),
        "--from",
        case["start"][:10],
        "--to",
        case["end"][:10],
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return out


def test_the_report_needs_no_network_and_says_the_figures(settings_of_agents: Example, page: Path):
    text = page.read_text()
    addresses = set(re.findall(r"https?://[^\"'<> )]+", text)) - {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert addresses == set() and "<script" not in text and "<link" not in text
    summary = settings_of_agents.expected["summary"]
    assert f"USD {summary['estimatedCost']:,.2f}" in text and f"{summary['totalTokens']:,}" in text
    for title in (
        "What to know",
        "What to do",
        "Trends",
        "Where the month will end",
        "By model",
        "Patterns",
        "Anomalies",
        "What could have been saved",
    ):
        assert f"<h2>{title}</h2>" in text
    assert not re.search(r">\s*(nan|NaT|None|inf)\s*<", text)


def test_names_from_outside_are_text_in_the_report(settings_of_agents: Example, tmp_path: Path):
    out, agents = tmp_path / "named.html", settings_of_agents
    arguments = [
        "report",
        "--from",
        agents.case["start"][:10],
        "--to",
        agents.case["end"][:10],
        "--out",
        str(out),
        "--org",
        "a <b>&</b> c",
    ]
    rename = "UPDATE app.organizations SET name = %s WHERE id = %s RETURNING id"
    rows(agents.database, rename, "a <b>&</b> c", agents.org_id)
    result = CliRunner().invoke(cli, arguments)
    rows(agents.database, rename, "acme", agents.org_id)
    assert result.exit_code == 0, result.output
    assert "a &lt;b&gt;&amp;&lt;/b&gt; c" in out.read_text() and "a <b>" not in out.read_text()


PAGE = (Path(__file__).parents[2] / "docs" / "analytics.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"^    tokentra (\S.*)$", PAGE, re.MULTILINE), ids=lambda line: line.split(" --")[0])
def test_every_command_of_the_page_runs(settings_of_agents: Example, monkeypatch, tmp_path: Path, line: str):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, shlex.split(line))
    assert result.exit_code == 0 and result.output, (result.output, result.exception)


def test_the_statement_of_the_page_gives_the_cost_of_each_day(settings_of_agents: Example):
    with dg.DagsterInstance.ephemeral() as instance:
        _materialize("2026-06-28", instance)
    (statement,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    (row,) = rows(settings_of_agents.database, statement)
    assert row["cost"] == one(
        settings_of_agents.database,
        "SELECT sum(estimated_cost) FROM daily_usage_rollup WHERE date >= '2026-05-30' AND date < '2026-06-29'",
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1000, 500])
def test_a_browser_shows_the_whole_report_without_scrolling_sideways(page: Path, tmp_path: Path, width: int):
    measured = tmp_path / "measured.html"
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    script = "<script>document.title = [document.documentElement.scrollWidth, innerWidth, document.querySelectorAll('svg').length].join()</script>"
    measured.write_text(without_policy.replace("</body>", script + "</body>"))
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--dump-dom",
        measured.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    wide, inner, charts = map(int, re.findall(r"<title>(\d+),(\d+),(\d+)</title>", done.stdout)[0])
    assert wide <= inner and charts >= 6


def test_a_report_for_a_folder_that_is_not_there_says_so(settings_of_agents: Example, tmp_path: Path):
    arguments = ["report", "--org", str(settings_of_agents.org_id), "--from", "2026-06-15", "--to", "2026-06-29"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "nowhere" / "r.html")])
    assert result.exit_code == 2 and "does not exist" in result.output


@pytest.mark.parametrize("days", [1, 3])
def test_a_report_of_a_period_before_any_usage_is_a_page_too(settings_of_agents: Example, tmp_path: Path, days: int):
    out = tmp_path / "empty.html"
    end = f"{datetime(2026, 1, 1) + timedelta(days=days):%Y-%m-%d}"
    arguments = ["report", "--org", str(settings_of_agents.org_id), "--from", "2026-01-01", "--to", end, "--out", str(out)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Nothing unusual was found." in out.read_text()
