"""Amazon Bedrock: CloudWatch and the invocation log, answered by the simulator."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import ClassVar

import pytest

from tests.providers.cases.simulated import ORG, SimulatedCase
from tests.providers.conformance import DAY, NOW, Totals
from tokentra_dagster.providers import aws_cloudwatch
from tokentra_dagster.providers.aws import AwsSource
from tokentra_dagster.providers.aws_invocation_logs import AwsInvocationLogSource
from tokentra_dagster.providers.base import ConnectionConfig, Source, Window

_BACKS_OFF = "botocore backs off by its own measure and does not read Retry-After"
SECRET = "aws-secret-access-key"


class _Bedrock(SimulatedCase):
    provider = "aws"
    secret = SECRET

    def truth(self, start: datetime, end: datetime) -> Totals:
        used = self.simulator.simulation.totals(ORG, "aws", "bedrock", start, end)
        read, written = used.get("cache_read", 0), used.get("cache_write", 0)
        return +Totals(
            requests=used.get("requests", 0), input=used.get("uncached", 0) + read + written, output=used.get("output", 0),
            cached=read, written=written,
        )  # fmt: skip


class AwsCase(_Bedrock):
    name = "aws"
    path = "GetMetricData"
    not_applicable: ClassVar = {
        "bad_record": "each figure of CloudWatch stands alone: none contradicts another",
        "patience": _BACKS_OFF,
    }

    def short_pages(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(aws_cloudwatch, "MOST_POINTS", 75)

    def source(self, **options: str) -> Source:
        given = {"regions": "us-east-1,eu-central-1", "max_retries": "1", "timeout_seconds": "2"} | options
        config = ConnectionConfig("aws", f"AKIASIM{ORG}:{self.secret}", self.simulator.aws_url, given)
        return AwsSource(config, now=lambda: NOW)


class AwsInvocationLogsCase(_Bedrock):
    name = "aws_invocation_logs"
    path = ".json"
    not_applicable: ClassVar = {
        "bad_record": "the simulator's log is honest; bad lines are in test_aws_invocation_logs.py", "patience": _BACKS_OFF,
    }  # fmt: skip
    # A log has a line for every request.
    largest_day = timedelta(hours=3)
    long_windows = (timedelta(days=2), timedelta(days=3))

    def crowd(self, times: int) -> tuple[Window, int | None]:
        """Of more hours: the simulator's log is as busy as it is."""
        window = Window(DAY, DAY + timedelta(hours=times), "1h")
        return window, self.truth(window.start, window.end)["requests"]

    def source(self, **options: str) -> Source:
        given = {"location": f"s3://{ORG}-bedrock/logs", "max_retries": "1", "timeout_seconds": "2"} | options
        config = ConnectionConfig("aws", f"AKIASIM{ORG}:{self.secret}", self.simulator.aws_url, given, "aws_invocation_logs")
        return AwsInvocationLogSource(config)
