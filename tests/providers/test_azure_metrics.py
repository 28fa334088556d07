"""Azure Monitor read through its SDK: every series, what no series holds, and what cannot be true."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.providers import azure_server
from tests.providers.azure_server import ACCOUNT, SUBSCRIPTION, TOKEN
from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import open_source
from tokentra_dagster.providers.azure import AzureSource
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.records import split

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = Window(DAY, DAY + timedelta(hours=1), "1h")
GPT = {"ModelDeploymentName": "chat", "ModelName": "gpt-4o", "ModelVersion": "2024-08-06"}


@pytest.fixture
def azure():
    with azure_server.running() as server:
        yield server


def source(azure, secret=TOKEN, **options):
    given = {"subscriptions": SUBSCRIPTION, "max_retries": "0", "timeout_seconds": "5"} | options
    return AzureSource(ConnectionConfig("azure", secret, azure.url, given), now=lambda: NOW)


def read(azure, window=HOUR, **options):
    opened = source(azure, **options)
    usage, _, rejected = split(opened.usage(window))
    return usage, rejected, opened.remarks()


def test_a_deployment_becomes_its_model_and_its_counts(azure):
    azure.deploy("chat", "gpt-4o", "2024-08-06", "DataZoneStandard")
    azure.put("InputTokens", DAY, 1200, **GPT)
    azure.put("OutputTokens", DAY, 300, **GPT)
    azure.put("ModelRequests", DAY, 7, **GPT, StatusCode="200")
    azure.put("ModelRequests", DAY, 2, **GPT, StatusCode="429")
    azure.put("TimeToLastByte", DAY, 850.4, **GPT)
    (record,), rejected, remarks = read(azure)
    assert (record.model, record.provider_project_id, record.request_type) == ("gpt-4o-2024-08-06", "acme-ai/chat", "chat")
    assert (record.input_tokens, record.output_tokens, record.cached_input_tokens) == (1200, 300, None)
    assert (record.request_count, record.success_count, record.error_count) == (9, 7, 2)
    assert (record.min_latency_ms, record.max_latency_ms, record.total_latency_ms) == (850, 850, None)
    assert record.metadata == {
        "account": "acme-ai", "region": "eastus", "subscription": SUBSCRIPTION, "deployment": "chat", "model_version": "2024-08-06",
        "deployment_type": "DataZoneStandard", "failed_requests": {"429": 2}, "average_latency_ms": 850,
    }  # fmt: skip
    assert (rejected, remarks) == ([], [])


def test_more_than_ten_series_are_all_read(azure):
    for number in range(37):
        azure.put("InputTokens", DAY, 100 + number, ModelDeploymentName=f"d{number}", ModelName="gpt-4o", ModelVersion="1")
    usage, _, remarks = read(azure)
    assert len(usage) == 37 and sum(r.input_tokens for r in usage) == sum(100 + n for n in range(37))
    assert remarks == []


def test_what_is_in_no_series_is_loaded_as_unattributed_with_a_remark(azure):
    azure.put("InputTokens", DAY, 1000, **GPT)
    azure.put("InputTokens", DAY, 40)
    azure.put("ModelRequests", DAY, 5, **GPT, StatusCode="200")
    azure.put("ModelRequests", DAY, 3, Region="eastus")
    usage, _, remarks = read(azure)
    by_model = {r.model: (r.input_tokens, r.request_count, r.error_count) for r in usage}
    assert by_model == {"gpt-4o-2024-08-06": (1000, 5, 0), "unattributed": (40, 3, None)}
    assert remarks == [
        "Some usage of acme-ai is in its total and in the series of no deployment; it is loaded with the model unattributed."
    ]


def test_series_that_exceed_their_total_are_an_error_unless_they_may_still_grow(azure):
    azure.put("InputTokens", DAY, 1000, **GPT)

    def less(path, answer):
        for resource in answer.get("values", []):
            for series in resource["value"][0]["timeseries"]:
                if not series["metadatavalues"]:
                    series["data"][0]["total"] = 900.0

    azure.change = less
    with pytest.raises(TransientError, match=r"acme-ai add up to more than their totals \(InputTokens by 100\), 3 times"):
        read(azure)
    opened = AzureSource(
        ConnectionConfig("azure", TOKEN, azure.url, {"subscriptions": SUBSCRIPTION}), now=lambda: DAY + timedelta(minutes=50)
    )
    assert [r.input_tokens for r in split(opened.usage(HOUR))[0]] == [1000]


def test_tokens_of_anthropic_models_have_their_caches_beside_or_in_the_input(azure):
    claude = {"ModelDeploymentName": "writer", "ModelName": "claude-sonnet-4-5", "ModelVersion": "1"}
    for metric, value in (
        ("InputTokens", 900),
        ("cacheReadInputTokens", 400),
        ("ephemeral5mInputTokens", 70),
        ("ephemeral1hInputTokens", 30),
    ):
        azure.put(metric, DAY, value, **claude)
    for option, sent in (("uncached", 1400), ("total", 900)):
        (record,), _, _ = read(azure, anthropic_input=option)
        assert (record.input_tokens, record.cached_input_tokens, record.cache_creation_tokens) == (sent, 400, 100)
        assert record.token_details == {"cache_write_5m": 70, "cache_write_1h": 30}
        assert record.model == "claude-sonnet-4-5"


def test_the_older_family_is_read_instead_and_never_beside_the_newer(azure):
    azure.put("InputTokens", DAY, 1000, **GPT)
    azure.put("ProcessedPromptTokens", DAY, 1000, ModelDeploymentName="chat", FeatureName="gpt-4o", ModelVersion="2024-08-06")
    azure.put("AudioPromptTokens", DAY, 60, **GPT)
    (record,), _, _ = read(azure, metrics="azure_openai")
    assert (record.model, record.input_tokens, record.token_details) == ("gpt-4o-2024-08-06", 1000, {"input_audio": 60})
    asked = Counter(name for _, query, _ in azure.asked for name in query.get("metricnames", "").split(","))
    assert "InputTokens" not in asked and asked["ProcessedPromptTokens"] == 2


def test_a_name_comes_from_the_option_the_metric_or_the_deployment(azure):
    azure.deploy("byname", "gpt-4.1", "2025-04-14", "ProvisionedManaged")
    azure.put("InputTokens", DAY, 1, ModelDeploymentName="byname", ModelName="", ModelVersion="")
    azure.put("InputTokens", DAY, 2, ModelDeploymentName="Mine", ModelName="custom", ModelVersion="")
    azure.put("InputTokens", DAY, 4, ModelDeploymentName="gone", ModelName="unknown", ModelVersion="")
    usage, _, _ = read(azure, deployments="mine=gpt-5-mini")
    assert {r.input_tokens: (r.model, r.metadata.get("model_named_by"), r.service_tier) for r in usage} == {
        1: ("gpt-4.1-2025-04-14", "deployment", "provisioned"), 2: ("gpt-5-mini", "option", None), 4: ("gone", "deployment_name", None),
    }  # fmt: skip


def test_words_for_a_status_are_understood_and_an_unknown_one_is_no_guess(azure):
    for status, number in (("successful", 5), ("clienterrors", 2), ("server errors", 1)):
        azure.put("ModelRequests", DAY, number, **GPT, StatusCode=status)
    azure.put("ModelRequests", DAY + timedelta(hours=1), 4, **GPT, StatusCode="teapot")
    usage, _, _ = read(azure, Window(DAY, DAY + timedelta(hours=2), "1h"))
    assert [(r.request_count, r.success_count, r.error_count) for r in usage] == [(8, 5, 3), (4, None, None)]
    assert usage[0].metadata["tokens_unknown"] == ["input_tokens", "output_tokens"]


def test_days_are_summed_from_hours_and_begin_at_midnight_utc(azure):
    for hour in (-1, 0, 23, 24):
        azure.put("InputTokens", DAY + timedelta(hours=hour), 10 ** (hour % 5), **GPT)
    (record,), _, _ = read(azure, Window(DAY, DAY + timedelta(days=1), "1d"))
    assert (record.bucket_start, record.bucket_end, record.input_tokens) == (DAY, DAY + timedelta(days=1), 1 + 1000)
    assert {query.get("interval") for path, query, _ in azure.asked if path.endswith("getBatch")} == {"PT1H"}


def test_accounts_go_fifty_at_a_time_and_others_than_models_are_left_out(azure):
    azure.accounts = [
        {"id": f"{ACCOUNT}{n}", "name": f"acme-ai{n}", "location": "eastus" if n < 55 else "westus", "kind": "AIServices"}
        for n in range(60)
    ] + [{"id": f"{ACCOUNT}-tts", "name": "acme-tts", "location": "eastus", "kind": "SpeechServices"}]
    sizes: list[int] = []
    azure.change = lambda path, answer: sizes.append(len(answer["values"])) if "values" in answer else None
    azure.put("InputTokens", DAY, 5, **GPT)
    usage, _, _ = read(azure)
    assert Counter(sizes) == {50: 4, 5: 8}
    assert len(usage) == 60
    azure.change = None
    assert len(read(azure, accounts="acme-ai3,acme-ai57")[0]) == 2
    with pytest.raises(PermanentError, match=r"no account acme-tts in the subscriptions"):
        read(azure, accounts="acme-tts")


def test_a_metric_that_is_refused_is_an_error_where_it_counts_and_a_remark_where_it_does_not(azure):
    azure.put("InputTokens", DAY, 5, **GPT)
    azure.errors = {"GeneratedImages": ("BadRequest", "not in this region")}
    usage, _, remarks = read(azure)
    assert [r.input_tokens for r in usage] == [5]
    assert remarks == ["GeneratedImages of acme-ai answered BadRequest: not in this region. Its counts are missing."]
    assert read(azure, details="none")[2] == []
    azure.errors = {"InputTokens": ("InternalServerError", "later")}
    with pytest.raises(TransientError, match="InputTokens of acme-ai answered InternalServerError: later"):
        read(azure)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda answer: answer["values"].clear(), "holds nothing of"),
        (lambda answer: answer["values"][0]["value"].pop(), "holds nothing of"),
        (lambda answer: answer["values"].append(answer["values"][0]), "twice or unasked"),
        (lambda answer: answer["values"][0].update(resourceid="/other"), "not asked for"),
        (lambda answer: answer["values"][0]["value"][0]["timeseries"][0]["data"][0].update(timeStamp="2026-11-20T00:30:00Z"), "a point at"),
        (lambda answer: answer["values"][0]["value"][0]["timeseries"][0]["data"][0].update(total="many"), "is 'many'"),
        (lambda answer: answer.pop("values"), "no list values"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_what_was_asked_is_never_a_smaller_total(azure, damage, said):
    azure.put("ModelRequests", DAY, 5, **GPT, StatusCode="200")
    azure.put("InputTokens", DAY, 5, **GPT)

    def change(path, answer):
        if path.endswith("getBatch"):
            damage(answer)

    azure.change = change
    with pytest.raises(TransientError, match=said):
        read(azure)


def test_a_count_that_cannot_be_is_rejected_and_the_others_stay(azure):
    azure.put("InputTokens", DAY, -4, **GPT)
    azure.put("OutputTokens", DAY, 2.5, **GPT)
    azure.put("ModelRequests", DAY, 3, **GPT, StatusCode="200")
    usage, rejected, _ = read(azure)
    assert [r.request_count for r in usage] == [3]
    assert {r.reason.split(" at ")[0] for r in rejected} == {"azure: InputTokens", "azure: OutputTokens"}


def test_deployments_that_may_not_be_listed_are_a_remark(azure):
    azure.put("InputTokens", DAY, 5, **GPT)
    azure.change = lambda path, answer: (403, {"error": {"code": "No", "message": "x"}}) if path.endswith("deployments") else None
    usage, _, remarks = read(azure)
    assert usage[0].service_type is None
    assert len(remarks) == 1 and "cannot be listed (HTTP 403)" in remarks[0]


def test_a_window_that_azure_has_forgotten_is_refused(azure):
    with pytest.raises(PermanentError, match="keeps metrics for 93 days"):
        read(azure, Window(NOW - timedelta(days=94), DAY, "1h"))
    assert azure.asked == []


def test_the_next_page_of_a_list_is_not_followed_to_another_host(azure):
    azure.change = lambda path, answer: answer.update(nextLink="http://evil.example/steal") if path.endswith("accounts") else None
    with pytest.raises(TransientError, match=r"its next page is at evil\.example"):
        read(azure)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"subscriptions": "mine"}, "option subscriptions has the value 'mine'"),
        ({"metrics": "both"}, "valid values are models, azure_openai"),
        ({"deployments": "chat"}, "give NAME=MODEL"),
        ({"details": "cash"}, "valid values, separated by commas, are cache, audio, images, latency"),
        ({"regions": "eastus"}, "unknown option 'regions'"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong_says_what_is_allowed(azure, options, said):
    with pytest.raises(PermanentError, match=said):
        source(azure, **options)


def test_a_token_goes_by_plain_http_to_loopback_only():
    with pytest.raises(PermanentError, match="must begin with https://"):
        AzureSource(ConnectionConfig("azure", TOKEN, "http://10.0.0.7:80", {"subscriptions": SUBSCRIPTION}))


@pytest.mark.parametrize("secret", ["tenant:client", "::", "tenant::S3CRET"])
def test_a_secret_of_another_shape_is_refused_without_being_shown(azure, secret):
    with pytest.raises(PermanentError, match=r"the secret is not the secret TENANT:CLIENT:SECRET") as raised:
        read(azure, secret=secret)
    assert "S3CRET" not in str(raised.value)


def test_an_app_registration_is_a_client_secret_credential_and_no_secret_the_machines_own(azure):
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    for secret, kind in ((f"{SUBSCRIPTION}:app:S3:CRET", ClientSecretCredential), ("", DefaultAzureCredential)):
        opened = source(azure, secret=secret)
        assert isinstance(opened._azure._credential(), kind)
        assert "CRET" not in repr(opened) + repr(opened._azure)


def test_check_says_which_accounts_it_sees(azure):
    assert source(azure).check() == "azure: login accepted; 1 accounts can hold models: acme-ai"
    assert {headers["authorization"] for _, _, headers in azure.asked} == {f"Bearer {TOKEN}"}


def test_without_the_extra_one_sentence_names_it(azure):
    """In a process of its own, in which the packages cannot be imported."""
    code = (
        "import sys; sys.modules['azure'] = None\n"
        "from tokentra_dagster.providers import open_source\n"
        "from tokentra_dagster.providers.base import ConnectionConfig\n"
        f"source = open_source(ConnectionConfig('azure', 'token', {azure.url!r}, {{'subscriptions': {SUBSCRIPTION!r}}}))\n"
        "try: source.check()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert said == (
        "PermanentError azure: Azure needs the packages of the extra azure; install them: pip install 'tokentra-usage[azure]'\n"
    )


def test_the_registry_opens_it_without_a_secret():
    config = ConnectionConfig("azure", "", None, {"subscriptions": SUBSCRIPTION})
    assert isinstance(open_source(config), AzureSource)
