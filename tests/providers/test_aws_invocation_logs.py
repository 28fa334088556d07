"""Bedrock's invocation log: through boto3 against moto's S3 over HTTP."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.providers.aws_bucket import SECRET, running_bucket
from tokentra_dagster.batch import batch_of
from tokentra_dagster.errors import PermanentError
from tokentra_dagster.latency import latency_percentile
from tokentra_dagster.pricing import price_batch
from tokentra_dagster.providers import INTEGRATIONS, open_source
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import split

DAY = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
SONNET = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
PROMPT = "the prompt that nobody may keep"


@pytest.fixture(scope="module")
def moto():
    with running_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(moto):
    for page in moto._client.get_paginator("list_objects_v2").paginate(Bucket="acme-logs"):
        for found in page.get("Contents", []):
            moto.remove(found["Key"])
    return moto


@pytest.fixture
def source(bucket):
    def open_it(**options):
        given = {"location": "s3://acme-logs/bedrock", "max_retries": "1", "models": "none=none"} | options
        return open_source(ConnectionConfig("aws", SECRET, bucket.url, given, "aws_invocation_logs"))

    return open_it


def day(width="1h", start=DAY, end=None):
    return Window(start, end or start + timedelta(days=1), width)


def line(at=DAY, request="r1", model=SONNET, tokens=2, out=7, reads=None, writes=None, latency=None, usage=None, **fields):
    body = {"output": {"message": {"content": [{"text": PROMPT}]}}, "usage": usage or {}}
    given = {"inputTokenCount": tokens, "cacheReadInputTokenCount": reads, "cacheWriteInputTokenCount": writes}
    return {
        "schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": f"{at:%Y-%m-%dT%H:%M:%SZ}", "accountId": "123456789012",
        "identity": {"arn": "arn:aws:sts::123456789012:assumed-role/app/alice@example.com"}, "region": "us-east-1", "requestId": request,
        "operation": "Converse", "modelId": model,
        "input": {"inputContentType": "application/json", "inputBodyJson": {"messages": [PROMPT]}}
        | {name: count for name, count in given.items() if count is not None},
        "output": {"outputContentType": "application/json", "outputBodyJson": body | ({"metrics": {"latencyMs": latency}} if latency else {})}
        | ({} if out is None else {"outputTokenCount": out}),
    } | fields  # fmt: skip


# ---- What a line means ----------------------------------------------------------------------------------------------


def test_input_is_what_no_cache_held_plus_reads_and_writes(bucket, source):
    usage = {"cacheDetails": [{"ttl": "1h", "inputTokens": 30}, {"ttl": "5m", "inputTokens": 10}]}
    bucket.log(DAY, [line(reads=95_500, writes=40, usage=usage)])
    (record,), _, rejected = split(source().usage(day()))
    assert rejected == []
    assert (record.input_tokens, record.cached_input_tokens, record.cache_creation_tokens) == (95_542, 95_500, 40)
    assert (record.output_tokens, record.token_details) == (7, {"cache_write_1h": 30})
    assert (record.model, record.request_type, record.service_type) == (SONNET, "chat", "sync")
    assert record.user_id == "arn:aws:sts::123456789012:assumed-role/app/alice@example.com"
    assert record.api_key_id == "arn:aws:iam::123456789012:role/app"
    assert record.metadata == {
        "region": "us-east-1", "account_id": "123456789012", "endpoint": "bedrock-runtime", "operation": "Converse",
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        {"usage": {"inputTokens": 5, "outputTokens": 6, "cacheReadInputTokens": 3}},
        {"usage": {"input_tokens": 5, "output_tokens": 6, "cache_read_input_tokens": 3}},
        [
            {
                "type": "message_start",
                "message": {"usage": {"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 3}},
            },
            {"type": "message_delta", "usage": {"output_tokens": 6}},
            {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"invocationLatency": 900}},
        ],
    ],
    ids=["converse", "anthropic", "stream"],
)
def test_counts_that_the_line_does_not_give_are_those_of_the_answer(bucket, source, body):
    item = line(tokens=None, out=None)
    item["output"]["outputBodyJson"] = body
    bucket.log(DAY, [item])
    (record,), _, _ = split(source().usage(day()))
    assert (record.input_tokens, record.cached_input_tokens, record.output_tokens) == (8, 3, 6)
    assert record.total_latency_ms == (900 if isinstance(body, list) else None)


def test_tokens_that_nobody_tells_are_unknown_and_unpriced_and_a_failed_request_has_none(bucket, source):
    bucket.log(
        DAY,
        [
            line(request="a", tokens=None, out=None),
            line(request="b", tokens=None, out=None, errorCode="ThrottlingException"),
            line(request="c"),
        ],
    )
    usage, _, _ = split(source().usage(day()))
    by_requests = {(r.request_count, r.error_count, "tokens_unknown" in r.metadata) for r in usage}
    assert by_requests == {(1, 0, True), (2, 1, False)}
    assert [r.metadata["error_codes"] for r in usage if r.error_count] == [{"ThrottlingException": 1}]
    basis = dict(zip([r.request_count for r in usage], price_batch(batch_of(usage), "aws").basis.to_pylist(), strict=True))
    assert basis == {1: "unpriced", 2: "estimate"}


def test_the_requests_own_metadata_say_whose_it_is(bucket, source):
    said = {"team": "search", "squad": "ranking", "user": "bob", "traceId": "1"}
    bucket.log(DAY, [line(request="a", requestMetadata=said), line(request="b", requestMetadata=said | {"traceId": "2"})])
    (record,), _, _ = split(source().usage(day()))
    assert (record.team, record.user_id, record.api_key_id, record.request_count) == (
        "search",
        "bob",
        "arn:aws:iam::123456789012:role/app",
        2,
    )
    (record,), _, _ = split(source(attribution="team=squad,feature=team").usage(day()))
    assert (record.team, record.feature) == ("ranking", "search")
    usage, _, _ = split(source(keep_metadata="traceId").usage(day()))
    assert sorted(r.metadata["traceId"] for r in usage) == ["1", "2"]


def test_arns_and_profiles_become_the_names_that_the_price_list_knows(bucket, source):
    arn = "arn:aws:bedrock:us-east-1:123456789012"
    models = [f"{arn}:inference-profile/{SONNET}", "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0"]
    application = f"{arn}:application-inference-profile/abc123"
    bucket.log(DAY, [line(request=str(n), model=model) for n, model in enumerate([*models, application, SONNET])])
    usage, _, _ = split(source(models=f"abc123={SONNET}").usage(day()))
    assert sorted((r.model, r.provider_project_id or "", r.request_count) for r in usage) == [
        ("amazon.nova-lite-v1:0", "", 1), (SONNET, "", 1), (SONNET, "", 1), (SONNET, "abc123", 1),
    ]  # fmt: skip
    assert set(price_batch(batch_of(usage), "aws").basis.to_pylist()) == {"estimate"}


def test_each_prompt_pays_its_own_length(bucket, source):
    """A tier is per request: the sum of many short prompts is not a long one (reference, 7.1)."""
    model = "us.openai.gpt-6-sol"
    bucket.log(DAY, [line(request=str(n), model=model, tokens=tokens) for n, tokens in enumerate((200_000, 200_000, 300_000))])
    usage, _, _ = split(source().usage(day()))
    assert sorted((r.context_window, r.input_tokens) for r in usage) == [("100k-272k", 400_000), ("272k-10M", 300_000)]
    costs = dict(zip([r.context_window for r in usage], price_batch(batch_of(usage), "aws").source.to_pylist(), strict=True))
    assert "above 272000" in costs["272k-10M"] and "above" not in costs["100k-272k"]


# ---- All of it, once ------------------------------------------------------------------------------------------------


def test_a_busy_day_is_the_truth_token_for_token_and_request_for_request(bucket, source):
    """Repeats, late and early folders, several objects an hour, neighbours of the window, and every latency."""
    rng = random.Random(8)
    truth, latencies, folders = Counter(), [], {}
    for number in range(1000):
        at = DAY - 2 * HOUR + timedelta(seconds=rng.randrange(28 * 3600))
        ms, tokens, reads = rng.randrange(200, 9000), rng.randrange(1000), rng.randrange(500)
        folder = at.replace(minute=0, second=0) + rng.choice((0, 0, 0, 1, 2, -1)) * HOUR
        entry = line(at, f"r{number}", tokens=tokens, reads=reads, latency=ms)
        for copy in range(rng.choice((1, 1, 2))):
            folders.setdefault((folder, (number + copy) % 2), []).append(entry)
        if DAY <= at < DAY + timedelta(days=1):
            truth.update(requests=1, input=tokens + reads, cached=reads, output=7, latency=ms)
            latencies.append(ms)
    for (folder, part), lines in folders.items():
        bucket.log(folder, lines, str(part))
    usage, _, rejected = split(source().usage(day()))
    assert rejected == []
    found = Counter(
        requests=sum(r.request_count for r in usage), input=sum(r.input_tokens for r in usage),
        cached=sum(r.cached_input_tokens for r in usage), output=sum(r.output_tokens for r in usage),
        latency=sum(r.total_latency_ms for r in usage),
    )  # fmt: skip
    assert found == truth
    assert all(DAY <= r.bucket_start < DAY + timedelta(days=1) for r in usage)
    merged = Counter()
    for r in usage:
        merged.update(r.latency_histogram)
    true_median = sorted(latencies)[len(latencies) // 2]
    assert abs(latency_percentile(merged, 0.5) - true_median) <= 0.02 * true_median
    halves = [
        r for half in (day(end=DAY + 12 * HOUR), day(start=DAY + 12 * HOUR, end=DAY + 24 * HOUR)) for r in source().usage(half)
    ]
    assert sum(r.request_count for r in halves) == truth["requests"]
    (whole,) = {r.bucket_start for r in split(source().usage(day("1d")))[0]}
    assert whole == DAY


def test_offloaded_bodies_and_other_objects_are_not_read(bucket, source):
    key = bucket.log(DAY, [line()])
    folder = key.rpartition("/")[0]
    bucket.put(f"{folder}/data/r1_input.json.gz", gzip.compress(json.dumps(line(request="r9")).encode()))
    bucket.put(f"{folder}/readme.txt", b"no log")
    bucket.put("bedrock/AWSLogs/123456789012/BedrockModelInvocationLogs/amazon-bedrock-logs-permission-check", b"")
    assert [r.request_count for r in split(source().usage(day()))[0]] == [1]


def test_a_request_far_from_its_folder_is_kept_as_rejected_and_the_lag_is_an_option(bucket, source):
    bucket.log(DAY + 5 * HOUR, [line(DAY + HOUR)])
    usage, _, (rejected,) = split(source().usage(day()))
    assert usage == [] and "raise the option delivery_lag_hours (2)" in rejected.reason
    usage, _, rejected = split(source(delivery_lag_hours="4").usage(day()))
    assert [r.request_count for r in usage] == [1] and rejected == []


def test_each_account_and_region_is_read_and_can_be_chosen(bucket, source):
    bucket.log(DAY, [line()])
    bucket.log(DAY, [line(accountId="210987654321", region="eu-west-1")], account="210987654321", region="eu-west-1")
    assert len(split(source().usage(day()))[0]) == 2
    (record,), _, _ = split(source(accounts="210987654321").usage(day()))
    assert record.metadata["account_id"] == "210987654321"
    assert source().check().endswith("the log of 123456789012 in us-east-1, 210987654321 in eu-west-1")
    with pytest.raises(PermanentError, match="check the options location, accounts and regions"):
        list(source(regions="us-west-2").usage(day()))


def test_a_window_without_requests_is_empty(bucket, source):
    bucket.log(DAY, [line()])
    assert list(source().usage(day(start=DAY + timedelta(days=9)))) == []


# ---- What cannot be used --------------------------------------------------------------------------------------------


def test_no_word_of_a_prompt_is_kept_even_of_what_cannot_be_used(bucket, source):
    broken = json.dumps(line(request="b"))[:-40]
    bad = [
        broken, json.dumps([PROMPT]), line(request="c") | {"timestamp": "yesterday"}, line(request="d", tokens=-3),
        line(request="e") | {"requestId": None}, {"schemaType": "Other", "text": PROMPT},
    ]  # fmt: skip
    bucket.log(DAY + HOUR, [*bad, line(DAY + HOUR)])
    usage, _, rejected = split(source().usage(day()))
    assert [r.request_count for r in usage] == [1]
    assert len(rejected) == 6
    assert PROMPT not in repr(usage) + repr(rejected)
    assert rejected[0].payload["line"] == 1 and "no JSON" in rejected[0].reason
    assert "inputTokenCount is -3" in rejected[3].reason and rejected[3].payload["item"]["requestId"] == "d"
    assert split(source().usage(day(start=DAY + timedelta(days=1))))[2] == []


def test_half_a_gzip_file_gives_what_it_holds_and_says_so(bucket, source):
    key = bucket.log(DAY, [line(request=str(n), usage={"x": n}) for n in range(2000)])
    whole = gzip.compress("\n".join(json.dumps(line(request=str(n))) for n in range(2000)).encode())
    bucket.put(key, whole[: len(whole) // 2])
    usage, _, (rejected,) = split(source().usage(day()))
    assert 0 < usage[0].request_count < 2000
    assert "no whole gzip file" in rejected.reason and rejected.payload["object"] in "s3://" + key


def test_a_bucket_that_is_not_there_says_what_to_do(source):
    with pytest.raises(PermanentError, match=r"listing s3://nowhere/x/ answered HTTP 404 \(NoSuchBucket") as failure:
        source(location="s3://nowhere/x").check()
    assert "secret+key" not in str(failure.value)


@pytest.mark.parametrize("option", ["location", "attribution", "delivery_lag_hours", "role_arn"])
def test_a_wrong_option_says_what_is_allowed(source, option):
    assert option in INTEGRATIONS["aws_invocation_logs"].options
    with pytest.raises(PermanentError, match=f"option {option} has the value"):
        source(**{option: "?"})
