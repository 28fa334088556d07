"""Prices are those of the list on the day, exactly; what is not known is unpriced and never zero."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices import Usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokentra_dagster.batch import batch_of
from tokentra_dagster.price_list import Terms
from tokentra_dagster.pricing import price_batch
from tokentra_dagster.records import UsageRecord

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def record(model: str = "gpt-4o-2024-08-06", *, at: datetime = NOW, **values: Any) -> UsageRecord:
    given: dict[str, Any] = {"input_tokens": 1_000_000, "output_tokens": 100_000} | values
    return UsageRecord(bucket_start=at, bucket_end=at + timedelta(hours=1), granularity="1h", model=model, **given)


def priced(provider: str, *records: UsageRecord) -> list[tuple[Decimal | None, str, str | None]]:
    columns = price_batch(batch_of(records), provider)
    return list(zip(columns.cost.to_pylist(), columns.basis.to_pylist(), columns.source.to_pylist(), strict=True))


def one(provider: str, *args: Any, **values: Any) -> tuple[Decimal | None, str, str | None]:
    return priced(provider, record(*args, **values))[0]


UNPRICED = (None, "unpriced", None)


def test_a_reported_cost_is_actual_whatever_the_list_says() -> None:
    assert one("openai", reported_cost=Decimal("0.123456789012")) == (Decimal("0.123456789012"), "actual", "reported")
    assert one("openai", model="no-such-model", reported_cost=Decimal(0))[1:] == ("actual", "reported")
    assert one("openai", reported_cost=Decimal(7), currency="EUR")[0] == 7


def test_a_known_model_is_an_estimate_with_its_provenance() -> None:
    cost, basis, source = one("openai")
    assert (cost, basis) == (Decimal("3.5"), "estimate")
    assert source == f"genai-prices {genai_prices.__version__} openai/gpt-4o"


def test_an_unknown_model_is_unpriced_and_not_free() -> None:
    assert one("openai", model="m-large") == UNPRICED


def test_a_bedrock_arn_pays_what_its_model_pays_and_a_model_of_ones_own_has_no_list_price() -> None:
    name = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
    arn = "arn:aws:bedrock:us-east-1:123456789012"
    assert one("aws", f"{arn}:inference-profile/{name}") == one("aws", name) != UNPRICED
    assert one("aws", "arn:aws:bedrock:eu-west-1::foundation-model/amazon.nova-pro-v1:0") == one("aws", "amazon.nova-pro-v1:0")
    assert one("aws", f"{arn}:custom-model/anthropic.claude-3-haiku-20240307-v1:0:48k/abc123") == UNPRICED
    assert one("aws", f"{arn}:application-inference-profile/anthropic.claude-3-haiku-20240307-v1") == UNPRICED


def test_rows_of_one_batch_keep_their_own_answers() -> None:
    answers = priced("openai", record(), record("m-large"), record(reported_cost=Decimal(1)), record("gpt-4o-mini"))
    assert [(cost, basis) for cost, basis, _ in answers] == [
        (Decimal("3.5"), "estimate"),
        (None, "unpriced"),
        (Decimal(1), "actual"),
        (Decimal("0.21"), "estimate"),
    ]


def test_the_price_of_the_day_is_used_and_named() -> None:
    old = one("openai", model="o3", at=datetime(2025, 6, 9, 23, 59, tzinfo=UTC))
    new = one("openai", model="o3", at=datetime(2025, 6, 10, tzinfo=UTC))
    assert (old[0], new[0]) == (Decimal(14), Decimal("2.8"))
    assert new[2] == f"genai-prices {genai_prices.__version__} openai/o3 from 2025-06-10"


def test_cache_reads_and_writes_have_their_own_prices() -> None:
    cost, _, _ = one(
        "anthropic",
        model="claude-opus-4-5-20251101",
        input_tokens=1_000_000,
        output_tokens=0,
        cached_input_tokens=600_000,
        cache_creation_tokens=300_000,
        token_details={"cache_write_5m": 200_000, "cache_write_1h": 100_000},
    )
    expected = Decimal("0.1") * 5 + Decimal("0.6") * Decimal("0.5") + Decimal("0.2") * Decimal("6.25") + Decimal("0.1") * 10
    assert cost == expected


def test_batch_costs_what_the_list_says_for_batch() -> None:
    half = one("openai", service_type="batch")
    assert half[0] == Decimal("1.75")
    assert half[2] == f"genai-prices {genai_prices.__version__} openai/gpt-4o batch from 2026-10-14"
    assert one("anthropic", model="claude-opus-4-5", service_tier="batch")[0] == Decimal("3.75")


def test_batch_before_the_list_knows_its_price_is_unpriced_not_full_price() -> None:
    assert one("openai", service_type="batch", at=datetime(2026, 10, 13, 23, tzinfo=UTC)) == UNPRICED


def test_batch_of_a_model_without_a_batch_price_is_unpriced() -> None:
    assert one("openai", model="text-embedding-3-small", service_type="batch", output_tokens=0) == UNPRICED


def test_service_tiers_are_priced_where_known_and_else_unpriced() -> None:
    assert one("openai", service_tier="default")[0] == Decimal("3.5")
    assert one("openai", service_tier="priority")[0] == Decimal("5.95")
    assert one("openai", service_tier="scale") == UNPRICED
    assert one("openai", service_tier="flex") == UNPRICED, "gpt-4o has no flex price"
    assert one("anthropic", model="claude-opus-4-5", service_tier="standard")[0] == Decimal("7.5")
    assert one("anthropic", model="claude-opus-4-5", service_tier="priority") == UNPRICED
    assert one("openai", service_tier="flex", service_type="batch", model="gpt-5") == UNPRICED


def test_a_reseller_without_tier_prices_of_its_own_never_gets_the_standard_price_for_batch() -> None:
    assert one("azure", model="gpt-4o")[0] == Decimal("3.5")
    assert one("azure", model="gpt-4o", service_type="batch") == UNPRICED


def test_fast_mode_and_a_surcharged_region_are_not_sold_at_the_standard_price() -> None:
    standard = one("anthropic", model="claude-opus-5-5")[0]
    fast = one("anthropic", model="claude-opus-5-5", metadata={"speed": "fast"})
    assert standard is not None and fast[0] == Decimal("8") + Decimal("4")
    assert fast[0] > standard
    assert one("anthropic", model="claude-opus-5-5", metadata={"speed": "standard"})[0] == standard
    assert one("anthropic", model="claude-opus-5-5", metadata={"inference_geo": "us"}) == UNPRICED
    assert one("anthropic", model="claude-opus-5-5", metadata={"inference_geo": "global"})[0] == standard


def test_a_bucket_of_many_requests_pays_the_base_tier() -> None:
    for requests in (None, 0, 2, 500):
        assert one("google", model="gemini-2.5-pro", request_count=requests)[0] == Decimal("2.25")


def test_a_single_long_request_pays_the_long_tier() -> None:
    cost, _, source = one("google", model="gemini-2.5-pro", request_count=1)
    assert cost == Decimal("4")
    assert source is not None and source.endswith("google/gemini-2.5-pro above 200000 input tokens")
    assert one("google", model="gemini-2.5-pro", request_count=1, input_tokens=200_000, output_tokens=0)[0] == Decimal("0.25")
    assert one("google", model="gemini-2.5-pro", request_count=1, input_tokens=200_001, output_tokens=0)[0] == Decimal(
        "0.5000025"
    )


def test_the_provider_s_own_context_window_decides_for_buckets() -> None:
    assert one("anthropic", model="claude-sonnet-4-5", context_window="0-200k")[0] == Decimal("4.5")
    assert one("anthropic", model="claude-sonnet-4-5", context_window="200k-1M")[0] == Decimal("8.25")
    assert one("anthropic", model="claude-sonnet-4-5", context_window="something new")[0] == Decimal("4.5")


def test_audio_is_priced_as_audio() -> None:
    details = {"input_audio": 400_000, "cached_audio": 0}
    plain = one("openai", model="gpt-realtime", output_tokens=0)[0]
    audio = one("openai", model="gpt-realtime", output_tokens=0, token_details=details)[0]
    reference = genai_prices.calc_price(
        Usage(input_tokens=1_000_000, input_audio_tokens=400_000, cache_audio_read_tokens=0),
        "gpt-realtime",
        provider_id="openai",
        genai_request_timestamp=NOW,
    )
    assert audio == reference.total_price
    assert plain is not None and audio > plain


def test_audio_and_cached_tokens_without_their_overlap_are_unpriced() -> None:
    assert one("openai", model="gpt-realtime", cached_input_tokens=10, token_details={"input_audio": 20}) == UNPRICED
    known = one("openai", model="gpt-realtime", cached_input_tokens=10, token_details={"input_audio": 20, "cached_audio": 5})
    assert known[1] == "estimate"


def test_details_that_exceed_their_total_are_unpriced() -> None:
    broken = {"cached_input_tokens": 0, "cache_creation_tokens": 5, "token_details": {"cache_write_1h": 6}}
    assert one("anthropic", model="claude-opus-4-5", **broken) == UNPRICED


def test_web_searches_are_part_of_the_estimate() -> None:
    without = one("anthropic", model="claude-opus-4-5")[0]
    searched = one("anthropic", model="claude-opus-4-5", metadata={"web_search_requests": 3, "product": "api"})[0]
    assert without is not None and searched is not None
    assert searched - without == Decimal("0.03")


def test_zero_tokens_cost_nothing_at_a_known_price_and_are_unpriced_where_something_else_was_used() -> None:
    assert one("openai", input_tokens=0, output_tokens=0)[:2] == (Decimal(0), "estimate")
    sessions = {"input_tokens": 0, "output_tokens": 0, "quantity": Decimal(12), "quantity_unit": "images"}
    assert one("openai", model="gpt-image-1", **sessions) == UNPRICED
    assert one("openai", model="no-such-model", input_tokens=0, output_tokens=0) == UNPRICED


def test_tokens_that_a_file_did_not_give_are_not_free() -> None:
    unknown = {"tokens_unknown": ["input_tokens", "output_tokens"]}
    assert one("openai", input_tokens=0, output_tokens=0, request_count=9, metadata=unknown) == UNPRICED


def test_tokens_of_a_model_sold_by_the_hour_are_unpriced_not_free() -> None:
    assert one("openai", model="whisper-1") == UNPRICED


def test_moderation_is_free_because_the_list_says_so() -> None:
    cost, basis, source = one("openai", model="omni-moderation-latest", output_tokens=0)
    assert (cost, basis) == (Decimal(0), "estimate")
    assert source is not None and "openai/moderation" in source


def test_a_price_by_time_of_day_is_not_applied_to_a_bucket() -> None:
    assert one("azure", model="deepseek-reasoner") == UNPRICED


def test_another_currency_needs_a_reported_cost() -> None:
    assert one("openai", currency="EUR") == UNPRICED
    assert one("openai", currency="usd")[1] == "estimate"


def test_ten_trillion_tokens_are_exact_and_absurd_counts_are_unpriced() -> None:
    ten_trillion = 10**13 + 1
    assert one("openai", input_tokens=ten_trillion, output_tokens=ten_trillion)[0] == Decimal(ten_trillion) * Decimal(
        "12.5"
    ) / Decimal(10**6)
    assert one("openai", model="o1-pro", input_tokens=2**63 - 1, output_tokens=2**63 - 1) == UNPRICED


def test_an_empty_batch_is_priced() -> None:
    assert priced("openai") == []


def test_prices_never_come_from_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pricing opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    assert one("openai", model="gpt-5.4-mini")[1] == "estimate"


MODELS = {
    "openai": [
        "gpt-4o", "gpt-5.4", "gpt-6-astra", "o3", "gpt-realtime", "gpt-image-1", "gpt-4o-mini-transcribe", "text-embedding-3-large",
        "ft:gpt-4o-mini-2024-07-18:a::b", "whisper-1", "moderation", "nothing",
    ],
    "anthropic": ["claude-opus-4-5-20251101", "claude-sonnet-4-5", "claude-opus-4-6", "claude-haiku-5-5", "claude-3-5-haiku-latest"],
    "google": ["gemini-2.5-pro", "gemini-2.5-flash", "gemini-3.8-flash", "gemini-2.5-flash-native-audio", "claude-sonnet-4@20250514"],
    "azure": ["gpt-4o", "gpt-5.4", "phi-4", "claude-sonnet-4-5"],
    "aws": ["us.anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon.nova-pro-v1:0", "openai.gpt-5.4", "amazon.nova-2-sonic-v1:0"],
}  # fmt: skip
COUNT = st.integers(0, 20) | st.integers(0, 600_000) | st.integers(0, 10**13)


@st.composite
def rows(draw: st.DrawFn, provider: str) -> UsageRecord:
    cached = draw(st.none() | COUNT)
    written = draw(st.none() | COUNT)
    details = {}
    for name, limit in (("cache_write_1h", written or 0), ("input_audio", None), ("cached_audio", None), ("output_audio", None),
                        ("input_image", None), ("cached_image", None), ("output_image", None)):  # fmt: skip
        if draw(st.sampled_from((False, False, False, True))):
            details[name] = draw(st.integers(0, 100) if limit is None else st.integers(0, limit + 1))
    return record(
        draw(st.sampled_from(MODELS[provider])),
        at=draw(st.datetimes(datetime(2023, 1, 1), datetime(2027, 3, 1)).map(lambda t: t.replace(tzinfo=UTC))),
        input_tokens=(cached or 0) + (written or 0) + draw(COUNT),
        output_tokens=draw(COUNT),
        cached_input_tokens=cached,
        cache_creation_tokens=written,
        token_details=details,
        request_count=draw(st.sampled_from((None, 1, 1, 7))),
        service_type=draw(st.sampled_from((None, "sync", "batch"))),
        service_tier=draw(st.sampled_from((None, "default", "flex", "priority"))),
    )


USAGE_KEYS = {
    "cache_write_1h": "cache_write_1h_tokens", "input_audio": "input_audio_tokens", "cached_audio": "cache_audio_read_tokens",
    "output_audio": "output_audio_tokens", "input_image": "input_image_tokens", "cached_image": "cache_image_read_tokens",
    "output_image": "output_image_tokens",
}  # fmt: skip


def by_calc_price(provider: str, row: UsageRecord) -> Decimal | None:
    """The same row by `genai_prices.calc_price`, with the base tier forced where the row is not one request."""
    usage = {"input_tokens": row.input_tokens, "output_tokens": row.output_tokens}
    usage |= {"cache_read_tokens": row.cached_input_tokens or 0, "cache_write_tokens": row.cache_creation_tokens or 0}
    usage |= {USAGE_KEYS[name]: value for name, value in row.token_details.items()}
    parts = {"cache_write_1h_tokens": ["cache_write_tokens"], "input_audio_tokens": ["input_tokens"], "output_audio_tokens": ["output_tokens"],
             "input_image_tokens": ["input_tokens"], "output_image_tokens": ["output_tokens"],
             "cache_audio_read_tokens": ["input_audio_tokens", "cache_read_tokens"],
             "cache_image_read_tokens": ["input_image_tokens", "cache_read_tokens"]}  # fmt: skip
    if any(usage[part] > usage.get(whole, 0) for part, wholes in parts.items() if part in usage for whole in wholes):
        return None
    context = Terms(row.service_type, row.service_tier).context(provider)
    if context is None:
        return None
    try:
        answer = genai_prices.calc_price(
            Usage(**usage), row.model, provider_id=provider, genai_request_timestamp=row.bucket_start, price_context=context
        )
    except (LookupError, ValueError):
        return None
    prices = answer.model_price
    own = any(answer.model is model for model in answer.provider.models)
    known = [v for v in answer.model.price_variants or [] if v.when.items() <= context.items()
             and (v.constraint is None or v.constraint.active(row.bucket_start))]  # fmt: skip
    listed = {key for key, value in prices.__dict__.items() if value is not None}
    if listed and context and not (own and known):
        return None
    if listed and ((row.input_tokens and "input_mtok" not in listed) or (row.output_tokens and "output_mtok" not in listed)):
        return None
    if row.request_count != 1:
        flat = type(prices)(**{key: getattr(value, "base", value) for key, value in prices.__dict__.items()})
        return flat.calc_price(Usage(**usage))["total_price"]
    return answer.total_price


@pytest.mark.parametrize("provider", sorted(MODELS))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_batch_costs_exactly_what_calc_price_says_row_by_row(provider: str, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(rows(provider), min_size=1, max_size=12))
    expected = [by_calc_price(provider, row) for row in drawn]
    pico = Decimal("1e-12")
    rounded = [None if cost is None else cost.quantize(pico, ROUND_HALF_EVEN) for cost in expected]
    assert [cost for cost, _, _ in priced(provider, *drawn)] == rounded


def test_splitting_a_batch_changes_nothing() -> None:
    many = [record(model, at=NOW - timedelta(days=n)) for n, model in enumerate(MODELS["openai"] * 4)]
    assert priced("openai", *many) == [priced("openai", replace(row))[0] for row in many]
