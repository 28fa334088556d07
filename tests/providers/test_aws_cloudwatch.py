"""Bedrock by CloudWatch: every quirk of its metrics, through boto3 against a local server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.providers.aws_server import AwsServer, profile
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import INTEGRATIONS, open_source
from tokentra_dagster.providers.aws import AwsSource
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import RejectedItem, split

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = datetime(2026, 11, 20, tzinfo=UTC)
SECRET = "AKIAEXAMPLE0000:very/secret+key"
SONNET = {"ModelId": "us.anthropic.claude-sonnet-4-5-20250929-v1:0"}
NOVA = {"ModelId": "amazon.nova-lite-v1:0"}


@pytest.fixture
def server():
    running = AwsServer()
    yield running
    running.stop()


@pytest.fixture
def source(server):
    def open_it(secret=SECRET, now=NOW, **options):
        given = {"regions": "us-east-1", "max_retries": "1", "timeout_seconds": "5"} | options
        return AwsSource(ConnectionConfig("aws", secret, server.url, given), now=lambda: now)

    return open_it


def day(width="1h", days=1, start=DAY):
    return Window(start, start + timedelta(days=days), width)


def used(server, dimensions, at, requests=1, tokens=10, **metrics):
    server.put("Invocations", dimensions, at, requests)
    server.put("InputTokenCount", dimensions, at, tokens)
    server.put("OutputTokenCount", dimensions, at, 1)
    for name, value in metrics.items():
        server.put(name, dimensions, at, value)


# ---- What a bucket means --------------------------------------------------------------------------------------------


def test_input_is_what_no_cache_held_plus_reads_and_writes(server, source):
    used(server, SONNET, DAY, tokens=2, CacheReadInputTokens=95_500, CacheWriteInputTokens=40)
    (record,), _, _ = split(source().usage(day()))
    assert (record.input_tokens, record.cached_input_tokens, record.cache_creation_tokens) == (95_542, 95_500, 40)
    assert (record.model, record.request_type, record.output_tokens) == (SONNET["ModelId"], "chat", 1)
    assert (record.bucket_start, record.bucket_end) == (DAY, DAY + timedelta(hours=1))
    assert record.metadata == {"region": "us-east-1", "endpoint": "bedrock-runtime"}


def test_either_spelling_of_the_cache_metrics_counts_and_never_both(server, source):
    used(server, SONNET, DAY, CacheReadInputTokenCount=7, CacheWriteInputTokenCount=3)
    both = dict.fromkeys(("CacheReadInputTokens", "CacheReadInputTokenCount"), 5)
    used(server, SONNET, DAY + timedelta(hours=1), **both)
    first, second = split(source().usage(day()))[0]
    assert (first.cached_input_tokens, first.cache_creation_tokens, first.input_tokens) == (7, 3, 20)
    assert (second.cached_input_tokens, second.cache_creation_tokens, second.input_tokens) == (5, None, 15)


def test_what_is_published_at_several_levels_is_counted_at_one(server, source):
    used(server, SONNET, DAY)
    used(server, {}, DAY)
    used(server, SONNET | {"ServiceTier": "default"}, DAY)
    used(server, {"ModelId": "Across all model IDs"}, DAY)
    mantle = {"namespace": "AWS/BedrockMantle"}
    for dimensions in (
        {},
        {"Project": "alpha"},
        {"Model": "openai.gpt-oss-120b-1:0"},
        {"Project": "alpha", "Model": "openai.gpt-oss-120b-1:0"},
    ):
        server.put("Inferences", dimensions, DAY, 4, **mantle)
        server.put("TotalInputTokens", dimensions, DAY, 100, **mantle)
    usage, _, _ = split(source().usage(day()))
    assert [(r.model, r.provider_project_id, r.request_count, r.input_tokens) for r in usage] == [
        (SONNET["ModelId"], None, 1, 10),
        ("openai.gpt-oss-120b-1:0", "alpha", 4, 100),
    ]
    assert [r.metadata["endpoint"] for r in usage] == ["bedrock-runtime", "bedrock-mantle"]
    assert [r.provider_project_id for r in split(source(mantle="model").usage(day()))[0]] == [None, None]
    assert len(split(source(mantle="off").usage(day()))[0]) == 1


def test_a_level_that_is_not_there_is_said_and_not_taken_for_no_usage(server, source):
    server.put("Inferences", {"Deployment": "x"}, DAY, 4, namespace="AWS/BedrockMantle")
    opened = source()
    assert list(opened.usage(day())) == []
    assert opened.remarks() == [
        "AWS/BedrockMantle in us-east-1 has metrics, but none at the level that is read; their dimensions: Deployment."
    ]


def test_failed_requests_are_inside_invocations_and_throttled_ones_outside(server, source):
    used(server, NOVA, DAY, requests=10, InvocationClientErrors=2, InvocationServerErrors=1, InvocationThrottles=5)
    (record,), _, _ = split(source().usage(day()))
    assert (record.request_count, record.success_count, record.error_count) == (10, 7, 3)
    assert record.metadata["throttled_requests"] == 5
    (record,), _, _ = split(source(invocations="successful").usage(day()))
    assert (record.request_count, record.success_count, record.error_count) == (13, 10, 3)


def test_more_failures_than_requests_leave_successes_unknown(server, source):
    used(server, NOVA, DAY, requests=1, InvocationClientErrors=2)
    (record,), _, _ = split(source().usage(day()))
    assert (record.request_count, record.success_count, record.error_count) == (1, None, 2)


def test_what_has_no_tokens_is_unknown_and_not_free(server, source):
    server.put("Invocations", {"ModelId": "cohere.rerank-v3-5:0"}, DAY, 3)
    server.put("Invocations", {"ModelId": "amazon.nova-canvas-v1:0"}, DAY, 3)
    server.put("OutputImageCount", {"ModelId": "amazon.nova-canvas-v1:0"}, DAY, 6)
    images, rerank = split(source().usage(day()))[0]
    assert (images.quantity, images.quantity_unit, images.request_type) == (6, "images", "image")
    assert rerank.metadata["tokens_unknown"] == ["input_tokens", "output_tokens"]
    assert "tokens_unknown" not in images.metadata


def test_latency_is_what_cloudwatch_says_of_the_bucket(server, source):
    used(server, NOVA, DAY, requests=3)
    server.put("InvocationLatency", NOVA, DAY, 100, 250, 900)
    used(server, NOVA, DAY + timedelta(hours=1))
    known, unknown = split(source().usage(day()))[0]
    assert (known.total_latency_ms, known.min_latency_ms, known.max_latency_ms) == (1250, 100, 900)
    assert (known.p50_latency_ms, known.p95_latency_ms, known.p99_latency_ms) == (250, 900, 900)
    assert (unknown.total_latency_ms, unknown.p50_latency_ms, unknown.latency_histogram) == (None, None, None)
    known, _ = split(source(latency_percentiles="off").usage(day()))[0]
    assert (known.total_latency_ms, known.p50_latency_ms) == (1250, None)


def test_buckets_are_of_the_width_that_was_asked_for(server, source):
    for minute in (0, 1, 61):
        used(server, NOVA, DAY + timedelta(minutes=minute), tokens=10)
    by_width = {width: [r.input_tokens for r in split(source().usage(day(width)))[0]] for width in ("1m", "1h", "1d")}
    assert by_width == {"1m": [10, 10, 10], "1h": [20, 10], "1d": [30]}


def test_a_count_that_cannot_be_is_rejected_with_what_was_measured(server, source):
    used(server, NOVA, DAY, tokens=-4)
    _, _, (item,) = split(source().usage(day()))
    assert isinstance(item, RejectedItem)
    assert "InputTokenCount is -4" in item.reason and item.payload["InputTokenCount Sum"] == "-4"


# ---- Names ----------------------------------------------------------------------------------------------------------


def test_an_application_profile_is_a_project_and_pays_what_its_model_pays(server, source):
    server.profiles = [
        profile("abc123", "checkout", "anthropic.claude-haiku-4-5-20251001-v1:0"), profile("def456", "search", "amazon.nova-lite-v1:0"),
    ]  # fmt: skip
    used(server, {"ModelId": "def456"}, DAY)
    arn = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/xyz"
    used(server, {"ModelId": arn}, DAY)
    provisioned, profiled = split(source().usage(day()))[0]
    assert (profiled.model, profiled.provider_project_id, profiled.metadata["model_id"]) == (
        "amazon.nova-lite-v1:0",
        "def456",
        "def456",
    )
    assert (provisioned.model, provisioned.provider_project_id) == (arn, None)
    assert [(n.kind, n.id, n.name) for n in source().names()] == [
        ("project", "abc123", "checkout"),
        ("project", "def456", "search"),
    ]


def test_a_profile_for_global_inference_pays_the_global_price(server, source):
    found = profile("abc123", "checkout", "anthropic.claude-haiku-4-5-20251001-v1:0")
    found["models"].append({"modelArn": "arn:aws:bedrock:::foundation-model/anthropic.claude-haiku-4-5-20251001-v1:0"})
    server.profiles = [found]
    used(server, {"ModelId": "abc123"}, DAY)
    assert [r.model for r in source().usage(day())] == ["global.anthropic.claude-haiku-4-5-20251001-v1:0"]


def test_without_the_right_to_list_profiles_the_option_models_names_them(server, source):
    used(server, {"ModelId": "def456"}, DAY)
    server.fail("ListInferenceProfiles", "403", times=9)
    opened = source()
    (record,), _, _ = split(opened.usage(day()))
    assert (record.model, record.provider_project_id) == ("def456", None)
    assert opened.remarks() == [
        "The key may not use bedrock:ListInferenceProfiles in us-east-1; application inference profiles stay without names."
    ]
    (record,), _, _ = split(source(models="def456=amazon.nova-lite-v1:0").usage(day()))
    assert (record.model, record.provider_project_id) == ("amazon.nova-lite-v1:0", "def456")


# ---- All of it, once -------------------------------------------------------------------------------------------------


def test_every_page_and_every_part_arrives_once(server, source):
    for number in range(40):
        for hour in range(0, 24, 3):
            used(server, {"ModelId": f"vendor.model-{number:02}"}, DAY + timedelta(hours=hour), tokens=number)
    server.page_points, server.page_metrics = 370, 11
    usage, _, _ = split(source(latency_percentiles="off").usage(day()))
    assert len({(r.model, r.bucket_start) for r in usage}) == len(usage) == 40 * 8
    assert sum(r.input_tokens for r in usage) == sum(range(40)) * 8
    assert len(server.asked("GetMetricData")) >= 3


def test_a_long_window_stays_below_the_limits_of_a_call(server, source):
    for number in range(60):
        for days in range(31):
            used(server, {"ModelId": f"vendor.model-{number:02}"}, DAY - timedelta(days=days), tokens=1)
    window = day(days=31, start=DAY - timedelta(days=30))
    assert sum(r.input_tokens for r in split(source(models="vendor.model-00").usage(window))[0]) == 60 * 31  # the server asserts


@pytest.mark.parametrize("kind", ["PartialData", "InternalError", "truncated", "500", "429"])
def test_what_is_not_whole_is_asked_for_again(server, source, kind):
    for hour in range(3):
        used(server, NOVA, DAY + timedelta(hours=hour))
    server.fail("GetMetricData", kind)
    assert sum(r.input_tokens for r in split(source().usage(day()))[0]) == 30


def test_a_list_of_metrics_that_is_cut_off_is_not_an_empty_one(server, source):
    """botocore reads half of a JSON page as an answer without metrics, which would delete what was loaded."""
    used(server, NOVA, DAY)
    server.fail("ListMetrics", "truncated")
    assert len(split(source().usage(day()))[0]) == 1
    server.fail("ListMetrics", "truncated", times=9)
    with pytest.raises(TransientError, match="has no list Metrics"):
        list(source().usage(day()))


@pytest.mark.parametrize("kind", ["PartialData", "InternalError", "truncated", "500", "429"])
def test_what_stays_incomplete_is_an_error_and_never_a_part(server, source, kind):
    used(server, NOVA, DAY)
    used(server, NOVA, DAY + timedelta(hours=1))
    server.fail("GetMetricData", kind, times=99)
    with pytest.raises(TransientError, match=r"^aws: .*try again later$") as failure:
        list(source().usage(day()))
    assert "secret" not in repr(failure.value)


def test_a_refused_page_token_starts_the_call_again(server, source):
    for hour in range(24):
        used(server, NOVA, DAY + timedelta(hours=hour))
    server.page_points = 50
    server.fail("GetMetricData", "400", skip=1)
    assert sum(r.input_tokens for r in split(source().usage(day()))[0]) == 240


# ---- Age ------------------------------------------------------------------------------------------------------------


def test_what_cloudwatch_forgot_replaces_nothing(server, source):
    with pytest.raises(PermanentError, match=r"keeps buckets of 1m for 15 days.*granularity 1h"):
        list(source().usage(day("1m", start=NOW - timedelta(days=16))))
    with pytest.raises(PermanentError, match="keeps buckets of 1h for 455 days"):
        list(source().usage(day(start=NOW - timedelta(days=456))))
    assert server.requests == []


def test_models_that_rest_are_found_by_bedrocks_own_lists(server, source):
    """ListMetrics tells only what reported in the last two weeks."""
    server.listed_since = NOW - timedelta(days=14)
    old = DAY - timedelta(days=60)
    server.models, server.profiles = ["amazon.nova-lite-v1:0"], [profile("us.anthropic.x", "X", "anthropic.x", "SYSTEM_DEFINED")]
    used(server, NOVA, old)
    used(server, {"ModelId": "us.anthropic.x"}, old)
    assert [r.model for r in split(source().usage(day(start=old)))[0]] == ["amazon.nova-lite-v1:0", "us.anthropic.x"]
    server.fail("ListFoundationModels", "403", times=9)
    with pytest.raises(PermanentError, match=r"bedrock:ListFoundationModels.*Nothing was changed"):
        list(source().usage(day(start=old)))
    assert [r.model for r in split(source(models="us.anthropic.x").usage(day(start=old)))[0]] == ["us.anthropic.x"]


# ---- Keys and errors --------------------------------------------------------------------------------------------------


def test_the_secret_is_two_parts_and_in_no_error(server, source):
    with pytest.raises(PermanentError, match="ACCESS_KEY_ID:SECRET_ACCESS_KEY") as failure:
        list(source(secret="only-one-part").usage(day()))
    assert "only-one-part" not in str(failure.value)
    server.fail("ListMetrics", "403", times=9, code="InvalidClientTokenId")
    with pytest.raises(PermanentError, match="the key was not accepted") as failure:
        source().check()
    assert failure.value.__cause__ is None and failure.value.__context__ is None
    assert "secret+key" not in repr(source()) + repr(source()._aws) + str(failure.value)


def test_a_key_that_may_not_read_says_what_it_needs(server, source):
    server.fail("ListMetrics", "403", times=9)
    with pytest.raises(PermanentError, match="allow it cloudwatch:ListMetrics and cloudwatch:GetMetricData"):
        list(source().usage(day()))


def test_a_role_is_assumed_and_its_key_used(server, source):
    used(server, NOVA, DAY)
    opened = source(role_arn="arn:aws:iam::123456789012:role/reader", external_id="tenant-7")
    assert opened.check() == "aws: key accepted; CloudWatch lists Bedrock usage of 1 models in us-east-1"
    (asked,) = server.asked("AssumeRole")
    assert "ExternalId=tenant-7" in asked["query"] and "role%2Freader" in asked["query"]
    assert "Credential=ASIAASSUMED/" in server.headers[-1]["authorization"]


def test_without_a_secret_the_machines_own_login_is_used(server, source, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEMACHINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    source(secret="").check()
    assert "Credential=AKIAOFTHEMACHINE/" in server.headers[-1]["authorization"]
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    source().check()
    assert "Credential=AKIAEXAMPLE0000/" in server.headers[-1]["authorization"]


def test_each_region_is_read_and_none_is_a_default(server, source):
    used(server, NOVA, DAY)
    usage, _, _ = split(source(regions="us-east-1,eu-central-1").usage(day()))
    assert [r.metadata["region"] for r in usage] == ["us-east-1", "eu-central-1"]
    assert {h["authorization"].split("/")[2] for h in server.headers} == {"us-east-1", "eu-central-1"}
    with pytest.raises(PermanentError, match="name the regions"):
        open_source(ConnectionConfig("aws", SECRET))


@pytest.mark.parametrize(
    "option", ["regions", "mantle", "invocations", "latency_percentiles", "role_arn", "timeout_seconds", "max_retries"]
)
def test_a_wrong_option_says_what_is_allowed(source, option):
    assert option in INTEGRATIONS["aws"].options
    with pytest.raises(PermanentError, match=f"option {option} has the value"):
        source(**{option: "?"})


# ---- A second opinion -----------------------------------------------------------------------------------------------


def test_moto_gives_the_same_answer(monkeypatch):
    """Somebody else's idea of CloudWatch, filled by `PutMetricData`."""
    import boto3
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.session.Session("AKIAMOTO", "x").client("cloudwatch", endpoint_url=url, region_name="us-east-1")
        for hour in range(3):
            for metric, value in (
                ("Invocations", 2),
                ("InputTokenCount", 10),
                ("CacheReadInputTokens", 5),
                ("OutputTokenCount", 3),
            ):
                dimensions = [{"Name": "ModelId", "Value": SONNET["ModelId"]}]
                datum = {"MetricName": metric, "Dimensions": dimensions, "Timestamp": DAY + timedelta(hours=hour), "Value": value}
                client.put_metric_data(Namespace="AWS/Bedrock", MetricData=[datum])
        options = {"regions": "us-east-1", "latency_percentiles": "off"}
        opened = AwsSource(ConnectionConfig("aws", "AKIAMOTO:x", url, options), now=lambda: NOW)
        usage, _, _ = split(opened.usage(day()))
        assert [(r.request_count, r.input_tokens, r.cached_input_tokens, r.output_tokens) for r in usage] == [(2, 15, 5, 3)] * 3
        assert "of 1 models" in opened.check()
    finally:
        moto.stop()
