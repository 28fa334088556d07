"""The simulated S3: one bucket for each organisation, `ORG-bedrock`, with the invocation log and the bill. Nothing is stored.

    logs/AWSLogs/ACCOUNT/BedrockModelInvocationLogs/REGION/YYYY/MM/DD/HH/....json.gz     60 days of it
    export/bedrock/metadata/BILLING_PERIOD=YYYY-MM/bedrock-Manifest.json                  a CUR 2.0 export
    export/bedrock/data/BILLING_PERIOD=YYYY-MM/bedrock-00001.csv.gz

The log is delivered at least once: some requests of an hour come again in the next hour's object.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from xml.sax.saxutils import escape

from tokentra_dagster.simulator.aws_metrics import bedrock
from tokentra_dagster.simulator.organisation import ORIGIN, Organisation, Stream
from tokentra_dagster.simulator.prices import PICO, plain, token_price
from tokentra_dagster.simulator.query import Ints, Refusal
from tokentra_dagster.simulator.simulation import Simulation
from tokentra_dagster.simulator.truth import Table, minute_of, months, of_unit, request_id, share

LOGS = "logs/"
EXPORT = "export/bedrock/"
KEPT = timedelta(days=60)
PAGE = 1000
_HOUR = timedelta(hours=1)
_LOG_KEY = re.compile(r"^logs/AWSLogs/(\d+)/BedrockModelInvocationLogs/([a-z0-9-]+)/(\d{4})/(\d{2})/(\d{2})/(\d{2})/[^/]+$")
_DATA_KEY = re.compile(r"^export/bedrock/(data|metadata)/BILLING_PERIOD=(\d{4})-(\d{2})/[^/]+$")
_REPEATED = 40
"""Of so many requests one is delivered twice."""
_BILLED = (
    ("uncached", "input", "input-tokens"), ("output", "output", "output-tokens"),
    ("cache_read", "cache_read", "cache-read-input-token-count"), ("cache_write", "cache_write", "cache-write-input-token-count"),
)  # fmt: skip
_LOGGED = ("uncached", "cache_read", "cache_write", "output", "latency_ms")
"""Units of a request's line."""
_PLACES = {"us-east-1": "USE1", "eu-central-1": "EUC1"}


@dataclass(frozen=True, slots=True)
class Bucket:
    simulation: Simulation
    org: Organisation

    @property
    def name(self) -> str:
        return f"{self.org.name}-bedrock"

    # ---- What there is ---------------------------------------------------------------------------------------------------

    def listing(self, prefix: str, delimiter: str, after: str) -> bytes:
        """The XML of one page of keys."""
        keys: list[str] = []
        folders: dict[str, None] = {}
        for key in self._keys(prefix):
            inside = key.removeprefix(prefix)
            if delimiter and delimiter in inside:
                folders[prefix + inside.partition(delimiter)[0] + delimiter] = None
            elif key > after:
                keys.append(key)
        page = keys[:PAGE]
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(keys) > PAGE else ""
        moment = f"{self.simulation.clock():%Y-%m-%dT%H:%M:%S}.000Z"
        parts = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>{moment}</LastModified><Size>1</Size></Contents>" for key in page
        ] + [f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders]
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{self.name}'
            f"</Name><KeyCount>{len(parts)}</KeyCount><IsTruncated>{'true' if token else 'false'}</IsTruncated>{token}{''.join(parts)}"
            "</ListBucketResult>"
        ).encode()

    def _keys(self, prefix: str) -> Iterator[str]:
        """Every key that begins so, in order."""
        now = self.simulation.clock()
        if prefix.startswith(EXPORT[: len(prefix)]) or EXPORT.startswith(prefix[: len(EXPORT)]):
            for folder, name in (("data", "bedrock-00001.csv.gz"), ("metadata", "bedrock-Manifest.json")):
                for month in months(now - timedelta(days=400), now):
                    key = f"{EXPORT}{folder}/BILLING_PERIOD={month:%Y-%m}/{name}"
                    if key.startswith(prefix):
                        yield key
        first = max(ORIGIN, now.replace(minute=0) - KEPT)
        for account, region in self._places():
            base = f"{LOGS}AWSLogs/{account}/BedrockModelInvocationLogs/{region}/"
            if not base.startswith(prefix[: len(base)]):
                continue
            hour = first
            while hour < now:
                key = f"{base}{hour:%Y/%m/%d/%H}/{hour:%Y%m%dT%H}0000000Z_log.json.gz"
                if key.startswith(prefix):
                    yield key
                hour += _HOUR

    def _places(self) -> list[tuple[str, str]]:
        streams = bedrock(self.simulation, self.org).streams
        return sorted({(s.dimensions["account_id"], s.dimensions["region"]) for s in streams})

    def content(self, key: str) -> bytes:
        """One object. Raises `Refusal` (404)."""
        log = _LOG_KEY.match(key)
        if log and (log[1], log[2]) in self._places():
            hour = datetime(*map(int, log.groups()[2:]), tzinfo=UTC)  # type: ignore[misc, arg-type]
            lines = [*self._requests(hour, log[2]), *list(self._requests(hour - _HOUR, log[2]))[::_REPEATED]]
            return gzip.compress("\n".join(lines).encode(), 1)
        data = _DATA_KEY.match(key)
        if data:
            month = datetime(int(data[2]), int(data[3]), 1, tzinfo=UTC)
            return self._manifest(month) if data[1] == "metadata" else gzip.compress(self._bill(month).encode(), 1)
        raise Refusal(404, "The specified key does not exist.", code="NoSuchKey")

    # ---- The invocation log ----------------------------------------------------------------------------------------------

    def _requests(self, hour: datetime, region: str) -> Iterator[str]:
        """A line for each request of the hour; those of a minute share its units, as far as they can be divided."""
        table = bedrock(self.simulation, self.org)
        first = minute_of(hour)
        counts = self.simulation.counts(table, range(first, first + 61))
        for row, stream in enumerate(table.streams):
            if stream.dimensions["region"] != region:
                continue
            for minute in range(60):
                summed = counts[row, minute]
                requests = int(summed[0])
                failed = int(of_unit(table, summed, "client_errors") + of_unit(table, summed, "server_errors"))
                for number in range(requests):
                    at = hour + timedelta(minutes=minute, seconds=60 * number // requests)
                    shares = {unit: share(int(of_unit(table, summed, unit)), requests, number) for unit in _LOGGED}
                    yield json.dumps(
                        _line(stream, at, request_id(stream, first + minute, number), shares, requests - number <= failed)
                    )

    # ---- The bill --------------------------------------------------------------------------------------------------------

    def _manifest(self, month: datetime) -> bytes:
        data = f"s3://{self.name}/{EXPORT}data/BILLING_PERIOD={month:%Y-%m}/bedrock-00001.csv.gz"
        return json.dumps({"executionId": f"{self.simulation.clock():%Y%m%d%H}", "dataFiles": [data], "columns": []}).encode()

    def _bill(self, month: datetime) -> str:
        """A line for each day, stream and kind of token, for the days that have ended."""
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        table = bedrock(self.simulation, self.org)
        days = self.simulation.days_of_month(table, month)
        writer.writerows(_charge(*charged) for charged in self._charged(table, days))
        return text.getvalue()

    def billed(self, start: datetime, end: datetime) -> Decimal:
        """USD for whole days: what the export says, by its own arithmetic."""
        table = bedrock(self.simulation, self.org)
        total = 0
        for stream, day, kind, _, used in self._charged(table, self.simulation.days(table, start, end)):
            total += used * token_price("aws", str(stream.dimensions["model"]), kind, day.date())
        return Decimal(total) / PICO

    def _charged(self, table: Table, days: list[tuple[datetime, Ints]]) -> Iterator[tuple[Stream, datetime, str, str, int]]:
        """Stream, day, kind of token, words of the usage type, and how many."""
        for row, stream in enumerate(table.streams):
            for day, counted in days:
                for unit, kind, words in _BILLED:
                    if used := int(of_unit(table, counted[row], unit)):
                        yield stream, day, kind, words, used


_COLUMNS = (
    "line_item_product_code", "line_item_usage_start_date", "line_item_line_item_type", "line_item_usage_type", "line_item_currency_code",
    "line_item_unblended_cost", "line_item_net_unblended_cost", "line_item_operation", "line_item_usage_account_id", "line_item_resource_id",
    "line_item_iam_principal", "line_item_usage_amount", "pricing_unit", "pricing_public_on_demand_cost", "product_region_code",
    "product_servicecode", "product",
)  # fmt: skip


def _charge(stream: Stream, day: datetime, kind: str, words: str, used: int) -> dict[str, str]:
    at = stream.dimensions
    model = str(at["model"])
    cost = plain(used * token_price("aws", model, kind, day.date()))
    named = f"{'inference-profile' if model.split('.')[0] in ('us', 'eu', 'global') else 'foundation-model'}/{model}"
    resource = at["log_id"] if at["profile_id"] else f"arn:aws:bedrock:{at['region']}:{at['account_id']}:{named}"
    values = (
        "AmazonBedrock", f"{day:%Y-%m-%dT%H:%M:%S}.000Z", "Usage", f"{_PLACES[at['region']]}-{model.split('.')[-1]}-{words}", "USD",
        cost, cost, "InvokeModelInference", at["account_id"], resource, at["identity"], plain(used, 3), "1K tokens", cost, at["region"],
        "AmazonBedrock", '{"product_name":"Amazon Bedrock"}',
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def _line(stream: Stream, at: datetime, identity: str, shares: dict[str, int], failed: bool) -> dict[str, Any]:
    dimensions = stream.dimensions
    body = {"output": {"message": {"content": [{"text": "(simulated)"}]}}, "metrics": {"latencyMs": shares["latency_ms"]}}
    line: dict[str, Any] = {
        "schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": f"{at:%Y-%m-%dT%H:%M:%SZ}",
        "accountId": dimensions["account_id"], "identity": {"arn": dimensions["identity"]}, "region": dimensions["region"],
        "requestId": identity,
        "operation": "Converse", "modelId": dimensions["log_id"],
        "input": {
            "inputContentType": "application/json", "inputBodyJson": {"messages": "(simulated)"}, "inputTokenCount": shares["uncached"],
            "cacheReadInputTokenCount": shares["cache_read"], "cacheWriteInputTokenCount": shares["cache_write"],
        },
        "output": {"outputContentType": "application/json", "outputBodyJson": body, "outputTokenCount": shares["output"]},
    }  # fmt: skip
    if dimensions["request_metadata"]:
        line["requestMetadata"] = dimensions["request_metadata"]
    if failed:
        line["errorCode"] = "ModelErrorException"
    return line
