"""Cloud Monitoring read through its SDK at a real gRPC server: every point once, distributions whole, and what cannot be true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest

from tests.providers import google_server
from tests.providers.google_server import CLAUDE, GEMINI, distribution
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.google import GoogleSource
from tokentra_dagster.providers.google_client import SCOPES
from tokentra_dagster.records import split

NOW = datetime(2026, 11, 24, 12, 34, 56, tzinfo=UTC)
DAY = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = Window(DAY, DAY + timedelta(hours=1), "1h")
TOKEN = "TOPSECRET-access-token"
LATENCIES, FIRST = "model_invocation_latencies", "first_token_latencies"


@pytest.fixture
def google():
    with google_server.running() as server:
        yield server


def source(google, secret=TOKEN, **options):
    given = {"projects": "acme", "max_retries": "0", "timeout_seconds": "5", "endpoint": google.address} | options
    return GoogleSource(ConnectionConfig("google", secret, None, given), now=lambda: NOW)


def read(google, window=HOUR, **options):
    opened = source(google, **options)
    usage, _, rejected = split(opened.usage(window))
    return usage, rejected, opened.remarks()


def test_a_model_becomes_a_record_whichever_way_its_name_is_spelled(google):
    google.put("token_count", DAY, 1000, type="input", modality="TEXT", source="global")
    google.put("token_count", DAY, 200, type="input", modality="AUDIO", source="global")
    path = GEMINI | {"model_user_id": "publishers/google/models/gemini-2.5-flash"}
    google.put("token_count", DAY, 300, path, type="output", modality="TEXT", source="regional")
    google.put("model_invocation_count", DAY, 7, response_code="200", input_token_size="<1K")
    google.put("model_invocation_count", DAY, 1, response_code="200", input_token_size=">1K")
    google.put("model_invocation_count", DAY, 2, response_code="429", error_category="user_error")
    (record,), rejected, remarks = read(google)
    assert (record.model, record.provider_project_id, record.request_type) == ("gemini-2.5-flash", "acme", "chat")
    assert (record.service_type, record.service_tier) == ("sync", None)
    assert (record.input_tokens, record.output_tokens, record.token_details) == (1200, 300, {"input_audio": 200})
    assert (record.cached_input_tokens, record.cache_creation_tokens) == (None, None)
    assert (record.request_count, record.success_count, record.error_count) == (10, 8, 2)
    assert record.metadata == {
        "publisher": "google", "location": "global", "vertex_request_type": "shared", "sources": ["global", "regional"],
        "failed_requests": {"429": 2}, "error_categories": {"user_error": 2},
    }  # fmt: skip
    assert (rejected, remarks, set(google.tokens)) == ([], [], {f"Bearer {TOKEN}"})


def test_claudes_caches_are_beside_or_in_its_input_and_no_other_type_is_ever_input(google):
    kinds = {"input": 900, "output": 50, "cache_read_input": 400, "cache_write_input": 70, "cache_write_1h_input": 30}
    for kind, value in kinds.items():
        google.put("token_count", DAY, value, CLAUDE, type=kind)
    for kind in ("telepathy", "", "cache_read_input"):
        google.put("token_count", DAY, 5, GEMINI, type=kind)
    for option, sent in (("uncached", 1400), ("total", 900)):
        (record,), rejected, _ = read(google, anthropic_input=option)
        assert (record.model, record.metadata["model_version"]) == ("claude-sonnet-4-5", "20250929")
        assert (record.input_tokens, record.output_tokens) == (sent, 50)
        assert (record.cached_input_tokens, record.cache_creation_tokens) == (400, 100)
        assert record.token_details == {"cache_write_5m": 70, "cache_write_1h": 30}
        assert [r.reason.partition(" have the type ")[2].split(";")[0] for r in rejected] == [
            "'telepathy'",
            "''",
            "'cache_read_input'",
        ]
        assert rejected[0].bucket_start == DAY and rejected[0].payload["resource.model_user_id"] == "gemini-2.5-flash"


def test_batch_and_provisioned_throughput_are_records_of_their_own(google):
    lite, pro = GEMINI | {"model_user_id": "gemini-2.5-flash-lite"}, GEMINI | {"model_user_id": "gemini-2.5-pro"}
    google.put("token_count", DAY, 100, lite, type="input", source="batch_global")
    google.put("model_invocation_count", DAY, 4, lite, response_code="200")
    google.put("token_count", DAY, 10, GEMINI, type="input", source="batch_us-central1")
    google.put("token_count", DAY, 20, GEMINI, type="input", source="global")
    google.put("model_invocation_count", DAY, 3, GEMINI, response_code="200")
    google.put("token_count", DAY, 30, pro, type="input", source="global", request_type="dedicated")
    google.put("model_invocation_count", DAY, 5, pro, response_code="200", request_type="dedicated")
    google.put("token_count", DAY, 40, pro, type="input", source="global", request_type="shared", shared_request_type="priority")
    usage, _, _ = read(google)
    assert {(r.model, r.service_type, r.service_tier, r.input_tokens, r.request_count) for r in usage} == {
        ("gemini-2.5-flash-lite", "batch", None, 100, 4), ("gemini-2.5-flash", "batch", None, 10, None),
        ("gemini-2.5-flash", "sync", None, 20, 3), ("gemini-2.5-pro", "sync", "provisioned", 30, 5),
        ("gemini-2.5-pro", "sync", "priority", 40, None),
    }  # fmt: skip


def test_requests_without_tokens_say_that_tokens_are_unknown_and_an_unknown_code_is_no_guess(google):
    google.put("model_invocation_count", DAY, 4, GEMINI | {"model_user_id": "imagen-4.0-generate-001"}, response_code="200")
    google.put("model_invocation_count", DAY, 3, response_code="")
    google.put("model_invocation_count", DAY, 2, GEMINI | {"location": "europe-west4"}, response_code="429")
    usage, _, _ = read(google)
    assert {(r.request_type, r.request_count, r.success_count, "tokens_unknown" in r.metadata) for r in usage} == {
        ("image", 4, 4, True), ("chat", 3, None, True), ("chat", 2, 0, False),
    }  # fmt: skip


# ---- Distributions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "median", "above"),
    [
        (distribution("linear", [0, 0, 100, 0], 150.0, num_finite_buckets=2, width=100.0, offset=0.0), 150, {}),
        (distribution("exponential", [0, 0, 0, 100], 600.0, num_finite_buckets=3, growth_factor=2.0, scale=100.0), 600, {}),
        (distribution("explicit", [0, 100, 0], 75.0, bounds=[50.0, 100.0]), 75, {}),
        (distribution("explicit", [100], 5.0, bounds=[10.0]), 5, {}),  # fewer counts than buckets: the rest are none
        (distribution("explicit", [0, 100], 9e3, bounds=[400.0]), 400, {"400": 100}),
        (distribution("explicit", [0, 100], 9e3, bounds=[400.0], limits=(500.0, 9500.0)), 5000, {}),
    ],
)  # fmt: skip
def test_each_kind_of_bucket_becomes_our_histogram_with_every_request_in_it(google, told, median, above):
    google.put("model_invocation_count", DAY, 100, response_code="200")
    google.put(LATENCIES, DAY, told, latency_type="total")
    (record,), rejected, remarks = read(google)
    assert sum(record.latency_histogram.values()) == 100 and record.p50_latency_ms == pytest.approx(median, rel=0.02)
    assert record.total_latency_ms == round(told.mean * 100) and record.request_count == 100
    assert record.metadata.get("latency_requests_above_ms", {}) == above
    limits = (500, 9500) if told.HasField("range") else (None, None)
    assert (record.min_latency_ms, record.max_latency_ms, rejected, remarks) == (*limits, [], [])


def test_distributions_merge_and_their_counts_are_never_requests(google):
    one = distribution("explicit", [10, 30, 0], 80.0, bounds=[50.0, 100.0])
    other = distribution("exponential", [0, 5, 0], 150.0, num_finite_buckets=1, growth_factor=2.0, scale=100.0)
    google.put("model_invocation_count", DAY, 50, response_code="200")
    google.put(LATENCIES, DAY, one, latency_type="total", input_token_size="small")
    google.put(LATENCIES, DAY, other, latency_type="total", input_token_size="large")
    google.put(LATENCIES, DAY, distribution("explicit", [45, 0], 10.0, bounds=[50.0]), latency_type="overhead")
    google.put(FIRST, DAY, distribution("explicit", [0, 20], 30.0, bounds=[10.0], limits=(20.0, 40.0)))
    (record,), _, remarks = read(google)
    assert (record.request_count, sum(record.latency_histogram.values()), record.total_latency_ms) == (50, 45, None)
    assert (record.metadata["latency_requests"], record.metadata["average_latency_ms"]) == (45, 88)
    first = record.metadata["first_token_latency"]
    assert (first["requests"], first["average_ms"], sum(first["histogram"].values())) == (20, 30, 20)
    assert first["p50_ms"] == pytest.approx(30, rel=0.05) and remarks == []
    (record,), _, remarks = read(google, latency_type="model")
    assert record.latency_histogram is None and "told by overhead, total and not by model" in remarks[0]
    google.points = [point for point in google.points if point[2].get("latency_type") != "total"]
    assert sum(read(google)[0][0].latency_histogram.values()) == 45  # the only type there is


def test_a_mean_without_buckets_is_no_histogram(google):
    google.put("model_invocation_count", DAY, 4, response_code="200")
    google.put(LATENCIES, DAY, distribution("", [], 250.0, count=4))
    (record,), rejected, _ = read(google)
    assert (record.latency_histogram, record.p50_latency_ms, record.total_latency_ms, rejected) == (None, None, 1000, [])


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (distribution("explicit", [1, 2], 1.0, count=4, bounds=[5.0]), "its buckets hold 3 values and it says 4"),
        (distribution("explicit", [1, 2, 3], 1.0, bounds=[5.0]), "3 counts for 2 buckets"),
        (distribution("explicit", [1, 0, 0], 1.0, bounds=[5.0, 5.0]), "do not ascend"),
        (distribution("explicit", [-1, 2], 1.0, bounds=[5.0]), "a negative count"),
        (distribution("exponential", [1], 1.0, num_finite_buckets=3, growth_factor=1.0, scale=1.0), "grow by 1.0"),
        (distribution("linear", [1], 1.0, num_finite_buckets=0, width=1.0), "0 finite buckets"),
        (distribution("linear", [1], 1.0, num_finite_buckets=2, width=0.0), "do not ascend"),
        (distribution("", [1], 1.0), "without the bounds"),
        (distribution("explicit", [1], float("nan"), bounds=[5.0]), "its mean is nan"),
    ],
)  # fmt: skip
def test_a_distribution_that_contradicts_itself_is_rejected_and_the_counts_stay(google, told, said):
    google.put("token_count", DAY, 9, type="input")
    google.put(LATENCIES, DAY, told)
    (record,), (rejected,), _ = read(google)
    assert record.input_tokens == 9 and record.latency_histogram is None and said in rejected.reason


# ---- Windows and pages -------------------------------------------------------------------------------------------------


def test_intervals_end_at_whole_periods_and_never_in_the_future(google):
    """What a period is aligned to is the end of the interval; the hour that goes on is asked in minutes."""
    hour = NOW.replace(minute=0, second=0)
    for at in (hour - timedelta(hours=1), hour, hour + timedelta(minutes=33), hour + timedelta(minutes=34)):
        google.put("token_count", at, 10, type="input")
    window = Window(hour - timedelta(hours=2), hour + timedelta(hours=12), "1h")
    usage, _, _ = read(google, window, details="none")
    assert [(r.bucket_start, r.bucket_end - r.bucket_start, r.input_tokens) for r in usage] == [
        (hour - timedelta(hours=1), timedelta(hours=1), 10), (hour, timedelta(hours=1), 20),
    ]  # fmt: skip
    spans = {
        (
            one.interval.start_time.ToDatetime(tzinfo=UTC),
            one.interval.end_time.ToDatetime(tzinfo=UTC),
            one.aggregation.alignment_period.seconds,
        )
        for one in google.asked
    }
    assert spans == {(window.start, hour, 3600), (hour, hour + timedelta(minutes=34), 60)}
    assert {one.aggregation.per_series_aligner for one in google.asked} == {14}  # ALIGN_SUM
    assert all("resource_container" not in one.filter and "project_id" not in one.filter for one in google.asked)


def test_days_begin_at_midnight_utc_and_points_at_the_edges_are_in_one_day(google):
    for hour in (-1, 0, 23, 24):
        google.put("token_count", DAY + timedelta(hours=hour), 10 ** (hour % 5), type="input")
    (record,), _, _ = read(google, Window(DAY, DAY + timedelta(days=1), "1d"))
    assert (record.bucket_start, record.bucket_end, record.input_tokens) == (DAY, DAY + timedelta(days=1), 1 + 1000)


def test_pages_are_followed_in_any_order_of_points_and_a_token_that_ran_out_starts_again(google):
    hours = 30
    for n in range(hours):
        google.put("token_count", DAY + timedelta(hours=n), 2**n, type="input" if n % 2 else "output")
    google.page_size = 4
    window = Window(DAY, DAY + timedelta(hours=hours), "1h")

    def reverse(asked, answer):
        for series in answer.time_series:
            points = list(reversed(series.points))
            del series.points[:]
            series.points.extend(points)

    google.change = reverse
    usage, _, _ = read(google, window, details="none")
    assert sum(r.input_tokens + r.output_tokens for r in usage) == 2**hours - 1
    assert [r.bucket_start for r in usage] == sorted(r.bucket_start for r in usage)
    ran_out = [True]

    def refuse(asked, answer):
        if asked.page_token == "8" and ran_out:
            ran_out.clear()
            google.failures.append((grpc.StatusCode.INVALID_ARGUMENT, "The page token is not valid.", None))

    google.change = refuse
    assert sum(r.input_tokens + r.output_tokens for r in read(google, window, details="none")[0]) == 2**hours - 1
    assert not ran_out and not google.failures


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda a: setattr(a, "next_page_token", "0"), "pages come round in a circle|twice"),
        (lambda a: a.time_series.add().CopyFrom(a.time_series[0]), "the same point of token_count at .* twice"),
        (lambda a: a.time_series[0].points[0].interval.end_time.FromDatetime(DAY + timedelta(minutes=30)), "not asked for in steps"),
        (lambda a: a.time_series[0].points[0].interval.end_time.FromDatetime(DAY + timedelta(hours=2)), "not asked for in steps"),
        (lambda a: setattr(a.time_series[0].points[0].value, "double_value", 2.5), "a point of token_count is a double_value"),
        (lambda a: setattr(a.time_series[0].metric, "type", "other"), "holds 'other'"),
        (lambda a: a.execution_errors.add(message="a cell was down"), "it is incomplete: a cell was down"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_what_was_asked_is_never_a_smaller_total(google, damage, said):
    google.put("token_count", DAY, 5, type="input")
    google.change = lambda asked, answer: damage(answer) if "token_count" in asked.filter else None
    with pytest.raises(TransientError, match=said):
        read(google)


def test_a_point_of_the_period_before_is_left_to_its_own_window_and_a_negative_count_is_rejected(google):
    google.put("token_count", DAY, 5, type="input")
    google.put("token_count", DAY, -4, type="output")

    def before(asked, answer):
        if "token_count" in asked.filter:
            answer.time_series[0].points.add().CopyFrom(answer.time_series[0].points[0])
            answer.time_series[0].points[1].interval.end_time.FromDatetime(DAY)

    google.change = before
    (record,), (rejected,), _ = read(google)
    assert record.input_tokens == 5 and "token_count is -4; a count cannot be negative" in rejected.reason


def test_a_window_that_google_has_forgotten_is_refused(google):
    for options, days in (({}, 42), ({"retention_days": "100"}, 100)):
        with pytest.raises(PermanentError, match=f"keeps these metrics for {days} days, and the window starts at"):
            read(google, Window(NOW - timedelta(days=days + 1), DAY, "1h"), **options)
    assert google.asked == []


# ---- Projects ----------------------------------------------------------------------------------------------------------


def test_a_series_in_the_scopes_of_two_projects_is_counted_once(google):
    for asked in ("acme", "acme-two"):
        google.put("token_count", DAY, 100, project="acme-two", asked=asked, type="input")
    google.put("token_count", DAY, 7, project="", asked="acme", type="input")  # without a project's label: of whom it was asked
    google.put("token_count", DAY, 8, project="", asked="acme-two", type="input")
    usage, _, remarks = read(google, projects="acme,acme-two")
    assert {r.provider_project_id: r.input_tokens for r in usage} == {"acme": 7, "acme-two": 108}
    assert remarks == ["Usage of acme-two is in the metrics scope of acme, too; it is counted once."]


def test_a_project_without_the_metric_is_a_remark_and_one_that_is_not_there_an_error(google):
    absent = (grpc.StatusCode.NOT_FOUND, 'Cannot find metric(s) that match type = "aiplatform..."', None)
    google.failures = [absent, absent]
    usage, _, remarks = read(google, details="none")
    assert usage == [] and [text[:39] for text in remarks] == [
        "Project acme has no metric token_count:",
        "Project acme has no metric model_invoca",
    ]
    google.failures = [(grpc.StatusCode.NOT_FOUND, "Project acme was not found", None)]
    with pytest.raises(PermanentError, match="name the project by its id in the option projects"):
        read(google)


def test_latencies_that_are_refused_are_a_remark_and_counts_that_are_refused_an_error(google):
    google.put("token_count", DAY, 5, type="input")
    google.change = lambda asked, answer: (
        google.failures.append((grpc.StatusCode.INVALID_ARGUMENT, "no such aligner", None))
        if "invocation_count" in asked.filter
        else None
    )
    usage, _, remarks = read(google, details="latency")
    assert (
        usage[0].input_tokens == 5
        and "no such aligner" in remarks[0]
        and remarks[0].endswith("latencies are missing.".replace("latencies", f"Latencies of {LATENCIES}"))
    )
    google.change, google.failures = None, [(grpc.StatusCode.INVALID_ARGUMENT, "no such aligner", None)]
    with pytest.raises(PermanentError, match="no such aligner"):
        read(google)


# ---- Failures ----------------------------------------------------------------------------------------------------------

PASSING = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED", "UNKNOWN", "DEADLINE_EXCEEDED", "DATA_LOSS")


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("UNAUTHENTICATED", PermanentError, "the login was not accepted, give the connection the JSON key of a service account"),
        ("PERMISSION_DENIED", PermanentError, r"give the login the role Monitoring Viewer \(roles/monitoring.viewer\) on project acme"),
        ("UNIMPLEMENTED", PermanentError, "answered UNIMPLEMENTED"),
        ("DEADLINE_EXCEEDED", TransientError, "timed out .*raise the option timeout_seconds"),
        *((code, TransientError, "try again later") for code in PASSING),
    ],
)  # fmt: skip
def test_a_failure_says_what_to_do_and_what_passes_is_tried_again(google, code, error, said):
    google.put("token_count", DAY, 5, type="input")
    failure = (getattr(grpc.StatusCode, code), f"it broke, {TOKEN}", None)
    google.failures = [failure]
    with pytest.raises(error, match=said) as raised:
        read(google)
    assert TOKEN not in str(raised.value) and "\n" not in str(raised.value)
    assert len(google.asked) == 1
    google.failures = [failure]
    if error is TransientError:
        assert read(google, max_retries="1")[0][0].input_tokens == 5


def test_google_is_left_alone_for_as_long_as_it_asks(google):
    google.put("token_count", DAY, 5, type="input")
    exhausted = (grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", 0.05)
    google.failures = [exhausted, exhausted]
    with pytest.raises(TransientError, match=r"wait 0\.05 s before trying again") as raised:
        read(google, max_retries="1")
    assert raised.value.retry_after == 0.05 and len(google.asked) == 2


def test_a_server_that_is_not_there_or_never_answers_is_transient(google):
    closed = google.address
    google.stop()
    with pytest.raises(TransientError, match="answered UNAVAILABLE"):
        read(google, endpoint=closed)


# ---- Who asks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"projects": ""}, "name the projects by id in a comma list"),
        ({"projects": "Acme Inc"}, "name the projects by id in a comma list"),
        ({"details": "cash"}, "valid values, separated by commas, are latency, first_token"),
        ({"anthropic_input": "some"}, "valid values are uncached, total"),
        ({"retention_days": "0"}, "a whole number from 1 to 3660"),
        ({"endpoint": "http://10.0.0.7:80"}, "give HOST:PORT of a server with TLS"),
        ({"endpoint": "grpc://127.0.0.1:80"}, "give HOST:PORT of a server with TLS"),
        ({"bigquery_endpoint": "http://10.0.0.7"}, "must begin with https://"),
        ({"regions": "us"}, "unknown option 'regions'"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong_says_what_is_allowed(google, options, said):
    with pytest.raises(PermanentError, match=said):
        source(google, **options)


def test_plain_text_is_for_this_machine_and_tls_for_every_other():
    for text, address, plain in (
        ("http://127.0.0.1:9", "127.0.0.1:9", True), ("localhost:9", "localhost:9", True), ("https://localhost:9", "localhost:9", False),
        ("monitoring.example:443", "monitoring.example:443", False), ("https://monitoring.example", "monitoring.example", False),
    ):  # fmt: skip
        at = source_at(text)._google.monitoring_at
        assert (at.address, at.plain) == (address, plain)
    opened = GoogleSource(ConnectionConfig("google", "", None, {"projects": "acme"}))
    assert (opened._google.monitoring_at.address, opened._google.monitoring_at.plain) == ("monitoring.googleapis.com", False)


def source_at(base_url):
    return GoogleSource(ConnectionConfig("google", "", base_url, {"projects": "acme"}))


@pytest.mark.parametrize(
    "secret", ['{"type": "S3CRET"}', "{S3CRET", "S3CRET two words", '{"type": "service_account", "private_key": "S3CRET"}']
)
def test_a_secret_of_another_shape_is_refused_without_being_shown(google, secret):
    with pytest.raises(PermanentError, match=r"the secret is not the JSON key of a service account") as raised:
        read(google, secret=secret)
    assert "S3CRET" not in str(raised.value) + repr(raised.value.__context__)


def test_a_service_account_gets_a_token_for_what_it_reads_and_a_revoked_key_says_so(google):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    answers = [
        (200, {"access_token": "minted", "expires_in": 3600}),
        (400, {"error": "invalid_grant", "error_description": "no account"}),
    ]
    claims = []

    class Tokens(BaseHTTPRequestHandler):
        def do_POST(self):
            claims.append(self.rfile.read(int(self.headers["content-length"])).decode())
            status, answer = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Tokens)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    info = {
        "type": "service_account", "client_email": "reader@acme.iam.gserviceaccount.com", "private_key": key.decode(), "private_key_id": "1",
        "token_uri": f"http://127.0.0.1:{server.server_port}/token",
    }  # fmt: skip
    try:
        assert source(google, secret=json.dumps(info)).check().startswith("google: login accepted; 1 projects can be read: acme")
        assert set(google.tokens) == {"Bearer minted"} and len(claims) == 1 and len(SCOPES) == 2
        with pytest.raises(PermanentError, match=r"got no token .*invalid_grant.*give the connection the JSON key"):
            source(google, secret=json.dumps(info)).check()
    finally:
        server.shutdown()
        server.server_close()


def test_over_tls_the_token_goes_with_each_call(tmp_path):
    """In a process of its own: gRPC reads the roots that it trusts once."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(tmp_path / "roots.pem")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    with google_server.running((issued.private_key_pem.bytes(), chain)) as server:
        code = (
            "from tokentra_dagster.providers import open_source\n"
            "from tokentra_dagster.providers.base import ConnectionConfig\n"
            f"options = {{'projects': 'acme', 'max_retries': '0', 'endpoint': 'https://{server.address}'}}\n"
            f"print(open_source(ConnectionConfig('google', {TOKEN!r}, None, options)).check())\n"
        )
        env = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "roots.pem")}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("google: login accepted; 1 projects can be read: acme"), done.stderr
    assert server.tokens == [f"Bearer {TOKEN}"]


def test_check_asks_every_project(google):
    assert source(google, projects="acme,acme-two").check() == (
        "google: login accepted; 2 projects can be read: acme, acme-two; no bill is read"
    )
    assert Counter(one.name for one in google.asked) == {"projects/acme": 1, "projects/acme-two": 1}


def test_without_the_extra_one_sentence_names_it(google):
    """In a process of its own, in which the packages cannot be imported."""
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "from tokentra_dagster.providers import open_source\n"
        "from tokentra_dagster.providers.base import ConnectionConfig\n"
        f"source = open_source(ConnectionConfig('google', 'token', {google.url!r}, {{'projects': 'acme'}}))\n"
        "assert not [name for name in sys.modules if name.startswith('google.')]\n"
        "try: source.check()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == (
        "PermanentError google: Google needs the packages of the extra google; install them: pip install 'tokentra-usage[google]'\n"
    ), done.stderr


def test_the_registry_opens_it_without_a_secret():
    assert isinstance(open_source(ConnectionConfig("google", "", None, {"projects": "acme"})), GoogleSource)
