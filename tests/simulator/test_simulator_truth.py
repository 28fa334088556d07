"""The truth behind the simulated providers: it adds up, it is the same everywhere, and it depends on the clock as it should."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tokentra_dagster.errors import UsageError
from tokentra_dagster.records import SOURCES
from tokentra_dagster.simulator.companies import NAMES, UNKNOWN_MODEL, organisation
from tokentra_dagster.simulator.organisation import ORIGIN
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Table, counts, final_requests, minute_of

NOW = datetime(2026, 11, 24, 13, 37, tzinfo=UTC)
DAY = timedelta(days=1)


def _table(org: str, provider: str) -> Table:
    found = organisation(org)
    return Table.of(found, provider, found.streams(provider))


@pytest.mark.parametrize("org", NAMES)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_minutes_add_up_to_hours_and_hours_to_days_in_the_middle_of_an_hour(org: str, provider: str):
    table, now = _table(org, provider), minute_of(NOW)
    start = minute_of(datetime(2026, 11, 22, tzinfo=UTC))
    end = start + 3 * 1440
    by_minute, by_hour, by_day = (counts(table, range(start, end + 1, width), now) for width in (1, 60, 1440))
    assert np.array_equal(by_minute.reshape(len(table.streams), 72, 60, -1).sum(axis=2), by_hour)
    assert np.array_equal(by_hour.reshape(len(table.streams), 3, 24, -1).sum(axis=2), by_day)
    assert by_day[:, :, 0].sum() > 1000 and (by_minute >= 0).all()
    after = NOW.hour * 60 + NOW.minute + 2 * 1440
    assert by_minute[:, after - 30 : after].any() and not by_minute[:, after:].any()


def test_tokens_are_used_in_minutes_that_have_requests_only():
    table, now = _table("acme", "openai"), minute_of(NOW)
    start = minute_of(NOW) - 1440
    used = counts(table, range(start, start + 1441), now)
    assert not used[used[:, :, 0] == 0].any()


def test_any_cut_of_a_period_has_the_same_total():
    table, now = _table("globex", "anthropic"), minute_of(NOW)
    start, end = minute_of(NOW) - 5000, minute_of(NOW) + 5000
    whole = counts(table, (start, end), now).sum(axis=1)
    odd = counts(table, (start, start + 7, start + 1003, start + 1004, end - 333, end), now).sum(axis=1)
    assert np.array_equal(whole, odd)


def test_nothing_was_used_before_the_origin():
    table = _table("acme", "openai")
    start = minute_of(ORIGIN)
    assert not counts(table, (start - 10_000, start), start + 10_000).any()
    assert counts(table, (start, start + 10_000), start + 10_000).any()


def test_two_processes_compute_the_same_and_the_seed_of_hash_does_not_matter():
    code = (
        "from datetime import datetime, UTC, timedelta\n"
        "from tokentra_dagster.simulator.simulation import Simulation\n"
        "from tokentra_dagster.simulator.answers import answer\n"
        "import hashlib\n"
        "s = Simulation(datetime(2026, 11, 24, 13, 37, tzinfo=UTC))\n"
        "digest = hashlib.sha256()\n"
        "pairs = [('start_time', '1795219200'), ('bucket_width', '1h'), ('group_by', 'model'), ('group_by', 'user_id'), ('limit', '168')]\n"
        "digest.update(answer(s, 'openai', '/organization/usage/completions', pairs, {'authorization': 'Bearer sk-admin-acme'}).body)\n"
        "pairs = [('starting_at', '2026-11-20T00:00:00Z'), ('ending_at', '2026-11-25T00:00:00Z'), ('time_bucket_width', '1h'), "
        "('group_by[]', 'actor'), ('limit', '1000')]\n"
        "headers = {'x-api-key': 'sk-ant-admin01-globex', 'anthropic-version': '2026-10-21', "
        "'anthropic-beta': 'analytics-usage-cost-2026-08-24'}\n"
        "found = answer(s, 'anthropic', '/v1/organizations/analytics/usage', pairs, headers)\n"
        "assert found.status == 200 and len(found.body) > 20000, found.body[:300]\n"
        "digest.update(found.body)\n"
        "print(digest.hexdigest())\n"
    )
    root = Path(__file__).parent.parent.parent
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and len(said.pop()) == 65


def test_a_late_share_arrives_and_a_restated_hour_is_corrected_within_three_days():
    table = _table("acme", "openai")
    start = minute_of(datetime(2026, 11, 12, tzinfo=UTC))  # a week that ends on a working day
    edges = range(start, start + 7 * 1440 + 1, 60)
    end = edges[-1]
    at_once, later, final = (counts(table, edges, end + 60 * hours)[:, :, 0] for hours in (0, 24, 72))
    assert (at_once < final).any(), "no late share"
    assert (at_once > final).any(), "no hour was restated downwards"
    assert np.abs(later - final).sum() < np.abs(at_once - final).sum()
    assert np.array_equal(final, counts(table, edges, end + 60 * 10_000)[:, :, 0])
    old = slice(0, 96)  # what is older than three days has settled
    assert np.array_equal(at_once[:, old], final[:, old])


def test_office_streams_rest_at_night_and_at_the_weekend():
    table = _table("globex", "anthropic")
    rows = [row for row, stream in enumerate(table.streams) if stream.rhythm == "office"]
    hours = np.arange(24 * 7 * 20) + minute_of(datetime(2026, 3, 2, tzinfo=UTC)) // 60  # a Monday
    used = final_requests(table, hours)[rows].sum(axis=0).reshape(20, 7, 24).sum(axis=0)
    assert used[:5].sum() / 5 > 4 * used[5:].sum() / 2
    assert used[1, 9:17].sum() > 5 * used[1, 0:8].sum()


def test_usage_grows_slowly_and_stays_bounded_from_2025_to_2028():
    org = organisation("acme")
    table = Table.of(org, "openai", [s for s in org.streams("openai") if s.endpoint == "embeddings"])
    day = 24 * 28
    totals = [
        final_requests(table, np.arange(day) + minute_of(datetime(y, 3, 1, tzinfo=UTC)) // 60).sum()
        for y in (2025, 2026, 2027, 2028)
    ]
    assert all(low < high < 3 * low for low, high in pairwise(totals))


def test_a_launch_steps_a_project_up_and_an_outage_stops_nearly_everything():
    org = organisation("acme")
    table = Table.of(org, "openai", [s for s in org.streams("openai") if s.name.startswith("acme/openai/embeddings")])
    hour, slug, _ = next(launch for launch in org.launches() if launch[0] > 20_000 and launch[1] == "search")
    rows = [row for row, stream in enumerate(table.streams) if stream.project == slug]
    fortnight = 24 * 14
    before, after = (final_requests(table, np.arange(fortnight) + begin)[rows].sum() for begin in (hour - fortnight, hour))
    assert 1.15 < after / before < 1.4

    first, every, length = org.outages("openai")
    begin = first + 20 * every
    during = final_requests(table, np.arange(begin, begin + length)).sum()
    usual = final_requests(table, np.arange(begin - 168, begin - 168 + length)).sum()
    assert 0 < during < usual / 20


def test_an_adjustment_restates_only_what_it_names_and_withdrawing_removes_a_group():
    simulation = Simulation(NOW)
    start, end = NOW.replace(hour=0, minute=0) - 9 * DAY, NOW.replace(hour=0, minute=0) - 8 * DAY
    honest = simulation.totals("acme", "openai", "completions", start, end)
    other = simulation.totals("globex", "openai", "completions", start, end)
    simulation.restate("acme", "openai", 2.0, start=start, end=end)
    assert simulation.totals("acme", "openai", "completions", start, end)["requests"] == 2 * honest["requests"]
    assert simulation.totals("acme", "openai", "completions", start - DAY, start) == Simulation(NOW).totals(
        "acme", "openai", "completions", start - DAY, start
    )
    assert simulation.totals("globex", "openai", "completions", start, end) == other
    simulation.reset()
    simulation.withdraw("acme", "openai", {"project_id": "proj_acme_assistant"})
    left = simulation.totals("acme", "openai", "completions", start, end)
    assert 0 < left["requests"] < honest["requests"]
    with pytest.raises(UsageError, match="proj_acme_nowhere"):
        simulation.withdraw("acme", "openai", {"project_id": "proj_acme_nowhere"})


def test_scale_multiplies_the_groups_with_users_and_keys_of_their_own():
    one, five = organisation("acme").streams("openai"), organisation("acme", 5).streams("openai")
    keys = [{stream.dimensions["api_key_id"] for stream in streams} for streams in (one, five)]
    assert len(five) > 4 * len(one) and len(keys[1]) == 5 * len(keys[0])
    assert keys[0] < keys[1]
    assert len({stream.name for stream in five}) == len(five)


def test_models_are_ones_that_the_price_list_knows_but_for_one():
    from genai_prices import Usage, calc_price

    unknown = set()
    for name in NAMES:
        for provider in ("openai", "anthropic"):
            for model in {s.dimensions["model"] for s in organisation(name).streams(provider)} - {None}:
                try:
                    calc_price(Usage(), model, provider_id=provider)
                except LookupError:
                    unknown.add(model)
    assert unknown == {UNKNOWN_MODEL}


def test_attribution_rules_leave_one_project_unattributed():
    simulation = Simulation(NOW)
    rules = simulation.attribution("acme")
    matched = {rule["match_value"] for rule in rules}
    projects = {stream.dimensions["project_id"] for stream in organisation("acme").streams("openai")}
    assert projects - matched == {"proj_acme_sandbox"}
    assert len({(rule["priority"], rule["match_field"], rule["match_value"]) for rule in rules}) == len(rules)
    assert all(rule["provider"] not in SOURCES for rule in rules)
    with pytest.raises(UsageError, match="acme, globex"):
        simulation.attribution("initech")
