"""Model families stay one line over versions, dates, regions and resellers."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from tokentra_dagster.model_names import model_family

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.mark.parametrize(
    ("provider", "model", "family"),
    [
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "gpt-4o", "gpt-4o"),
        ("openai", "gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::AbC123", "gpt-4o-mini"),
        ("openai", "gpt-5.2-20251211", "gpt-5.2"),
        ("openai", "gpt-4-0613", "gpt-4"),
        ("openai", "gpt-4-1106-preview", "gpt-4"),
        ("openai", "gpt-4o-audio-preview-2024-10-01", "gpt-4o-audio"),
        ("openai", "chatgpt-4o-latest", "chatgpt-4o"),
        ("openai", "text-embedding-3-small", "text-embedding-3-small"),
        ("openai", "vector_stores", "vector_stores"),
        ("openai", "m-large", "m-large"),
        ("anthropic", "claude-opus-4-5-20251101", "claude-opus"),
        ("anthropic", "claude-3-5-sonnet-20241022", "claude-sonnet"),
        ("anthropic", "claude-3-7-sonnet-latest", "claude-sonnet"),
        ("anthropic", "claude-instant-1.2", "claude-instant"),
        ("anthropic", "claude-2.1", "claude"),
        ("google", "claude-sonnet-4@20250514", "claude-sonnet"),
        ("google", "gemini-2.5-pro-preview-05-06", "gemini-pro"),
        ("google", "gemini-2.0-flash-lite-001", "gemini-flash-lite"),
        ("google", "publishers/google/models/gemini-2.5-flash", "gemini-flash"),
        ("google", "gemini-embedding-001", "gemini-embedding"),
        ("azure", "gpt-35-turbo-0125", "gpt-3.5-turbo"),
        ("azure", "GPT-4o", "gpt-4o"),
        ("aws", "anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet"),
        ("aws", "us.anthropic.claude-opus-4-6-v1", "claude-opus"),
        ("aws", "global.anthropic.claude-haiku-4-5-20251001-v1:0", "claude-haiku"),
        ("aws", "anthropic.claude-3-sonnet-20240229-v1:0:200k", "claude-sonnet"),
        ("aws", "amazon.nova-pro-v1:0", "nova-pro"),
        ("aws", "us.meta.llama3-1-70b-instruct-v1:0", "llama3-1-70b-instruct"),
        ("aws", "mistral.mistral-large-2402-v1:0", "mistral-large"),
        (
            "aws",
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-20250514-v1:0",
            "claude-sonnet",
        ),
        ("aws", "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0", "nova-lite"),
        ("aws", "in.anthropic.claude-sonnet-5", "claude-sonnet"),
    ],
)
def test_versions_dates_and_resellers_share_a_family(provider: str, model: str, family: str) -> None:
    assert model_family(provider, model) == family


@pytest.mark.parametrize("model", [None, "", "  ", "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abcd1234"])
def test_a_name_that_says_nothing_has_no_family(model: str | None) -> None:
    assert model_family("aws", model) is None


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the worked examples are not beside this checkout (../shared/golden)")
@pytest.mark.parametrize("case", ["agents", "cluster"])
def test_the_worked_examples_have_the_families_we_give(case: str) -> None:
    with gzip.open(GOLDEN / case / "rows.csv.gz", "rt") as rows:
        families = {(row["provider"], row["model"], row["model_family"]) for row in csv.DictReader(rows)}
    assert families
    assert {(provider, model, model_family(provider, model)) for provider, model, _ in families} == families
