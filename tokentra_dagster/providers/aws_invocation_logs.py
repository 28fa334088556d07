"""Amazon Bedrock's model invocation log in S3: who asked what, request by request, summed into buckets.

The log of each account and region lies in folders by hour (`.../BedrockModelInvocationLogs/REGION/YYYY/MM/DD/HH/*.json.gz`), so a
window reads the folders that can hold its requests: from one hour before it to `delivery_lag_hours` after it. Objects below
`data/` are offloaded bodies and are not read. A request that is delivered twice counts once.

What CloudWatch cannot say is here: the caller (IAM identity or the request's own metadata), each prompt's length, every latency.
What is not: batch jobs, bedrock-mantle, and accounts and regions that do not log. So this counts as a gateway does: beside
the `aws` integration it explains totals and is not added to them.

Sources: docs.aws.amazon.com/bedrock/latest/userguide/model-invocation-logging.html. Tested with moto's S3, not live.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import aws_client
from tokentra_dagster.providers.aws_catalogue import Catalogue, Reference, named_models, principal_of
from tokentra_dagster.providers.aws_client import Aws
from tokentra_dagster.providers.aws_log_items import Invocation, invocation, read, without_bodies
from tokentra_dagster.providers.aws_metrics import request_type
from tokentra_dagster.providers.aws_s3 import Location, Object
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import BadItem
from tokentra_dagster.providers.request_groups import Buckets, Group, prompt_length
from tokentra_dagster.records import EntityName, Item, RejectedItem, floor

OPTIONS = (
    "location", "bucket_region", "accounts", "regions", "models", "delivery_lag_hours", "attribution", "keep_metadata",
    *aws_client.OPTIONS,
)  # fmt: skip
HOUR = timedelta(hours=1)
LONGEST_LINE = 32 << 20
LENGTHS, LONGEST = (100_000, 272_000), 10_000_000
"""The lengths of prompt at which Bedrock's listed prices step."""
_LOG = "BedrockModelInvocationLogs"
_HOUR_IN_KEY = re.compile(r"/(\d{4})/(\d{2})/(\d{2})/(\d{2})/[^/]+\.json(?:\.gz)?$")


class _Late(BadItem):
    """A request outside the folders in which it is looked for."""

    def __init__(self, text: str, at: datetime) -> None:
        super().__init__(text)
        self.at = at


class AwsInvocationLogSource:
    """The invocation log of one bucket."""

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, OPTIONS)
        self._aws = Aws.of(config, options)
        self._location = Location.of(self._aws, options, "location")
        self._accounts = options.texts("accounts")
        self._regions = options.texts("regions")
        self._lag = options.whole("delivery_lag_hours", 2, 0, 48)
        self._keep = options.texts("keep_metadata")
        self._keys = options.attribution()
        self._catalogue = Catalogue(self._aws, named_models(options))
        self._remarks: list[str] = []

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of each account and region, oldest bucket first."""
        for account, region in self._places():
            folder = f"AWSLogs/{account}/{_LOG}/{region}/"
            buckets = Buckets(window.granularity, self._lag)
            last_hour = _hour(window.end - timedelta(microseconds=1)) + self._lag * HOUR
            for hour, found in self._objects(folder, _hour(window.start) - HOUR, last_hour):
                yield from buckets.closed(hour)
                yield from self._read(found, hour, region, window, buckets)
            yield from buckets.closed(None)

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: the log knows no prices."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        """Application inference profiles of the regions that log."""
        for region in dict.fromkeys(region for _, region in self._places()):
            for profile in self._catalogue.profiles(region).values():
                yield EntityName(
                    kind="project", id=profile.id, name=profile.name, metadata={"region": region, "model": profile.model}
                )

    def remarks(self) -> list[str]:
        return [*self._remarks, *self._catalogue.remarks]

    def check(self) -> str:
        """Lists the folders of accounts and regions."""
        places = [f"{account} in {region}" for account, region in self._places()]
        return f"aws_invocation_logs: key accepted; {self._location.url} holds the log of {', '.join(places)}"

    # ---- Which objects there are ------------------------------------------------------------------------------------

    def _places(self) -> list[tuple[str, str]]:
        """Accounts and regions with a log. None at all is a wrong place, not an account without usage."""
        accounts = [name for name in self._location.folders("AWSLogs/") if not self._accounts or name in self._accounts]
        places = [
            (account, region)
            for account in accounts
            for region in self._location.folders(f"AWSLogs/{account}/{_LOG}/")
            if not self._regions or region in self._regions
        ]
        if not places:
            raise PermanentError(
                f"aws_invocation_logs: {self._location.url} holds no AWSLogs/ACCOUNT/{_LOG}/REGION/ of the accounts and regions that "
                "are read; check the options location, accounts and regions, and that model invocation logging to S3 is on"
            )
        return places

    def _objects(self, folder: str, first: datetime, last: datetime) -> Iterator[tuple[datetime, Object]]:
        """The log objects in the folders of the hours `first` to `last`, in the order of time."""
        for found in self._location.objects(folder, after=f"{folder}{first:%Y/%m/%d/%H}"):
            inside = found.key.removeprefix(folder)
            if inside > f"{last:%Y/%m/%d/%H}/\uffff":
                return
            match = _HOUR_IN_KEY.search(f"/{inside}")
            if match:
                yield datetime(*map(int, match.groups()), tzinfo=UTC), found  # type: ignore[misc, arg-type]

    # ---- How a line becomes part of a record -------------------------------------------------------------------------

    def _read(self, found: Object, folder: datetime, region: str, window: Window, buckets: Buckets) -> Iterator[Item]:
        with self._location.opened(found.key) as file:
            lines = gzip.GzipFile(fileobj=file, mode="rb") if found.key.endswith(".gz") else file
            number = 0
            try:
                while line := lines.readline(LONGEST_LINE):
                    number += 1
                    if line.isspace():
                        continue
                    item: object = None
                    try:
                        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                            raise BadItem(f"the line is longer than {LONGEST_LINE} bytes")
                        item = read(line)
                        self._count(invocation(item), folder, region, window, buckets)
                    except BadItem as bad:
                        # Whose time is not known belongs to the window of its folder, which is read for others, too.
                        at = bad.at if isinstance(bad, _Late) else folder
                        if _hour(window.start) <= at < window.end:
                            kept = {"object": found.key, "line": number} | (
                                {} if item is None else {"item": without_bodies(item)}
                            )
                            yield RejectedItem(reason=f"aws_invocation_logs: {bad}", payload=kept, bucket_start=at)
            except (EOFError, OSError, zlib.error) as error:
                if _hour(window.start) <= folder < window.end:
                    yield RejectedItem(
                        reason=f"aws_invocation_logs: the object is no whole gzip file ({type(error).__name__} after line {number})",
                        payload={"object": found.key, "size": found.size},
                        bucket_start=folder,
                    )

    def _count(self, one: Invocation, folder: datetime, region: str, window: Window, buckets: Buckets) -> None:
        """Add the request to its bucket if it is of the window and new. Raises `BadItem` where it came too late to be sure of that."""
        if not window.start <= one.at < window.end:
            return
        hour = _hour(one.at)
        late = (folder - hour) // HOUR
        if not -1 <= late <= self._lag:
            raise _Late(
                f"the request of {one.at:%Y-%m-%d %H:%M} UTC lies in the folder of {folder:%Y-%m-%d %H}:00, {late} hours from it; "
                f"raise the option delivery_lag_hours ({self._lag})",
                one.at,
            )
        if not buckets.is_new(hour, hashlib.blake2b(one.request_id.encode(), digest_size=16).digest()):
            return
        group = self._group(one, floor(one.at, window.granularity), region)
        buckets.sums(group).add(
            one.input_tokens, one.output_tokens, one.cached, one.written, one.written_1h, one.latency_ms, one.error_code
        )

    def _group(self, one: Invocation, start: datetime, region: str) -> Group:
        reference: Reference = self._catalogue.reference(one.model_id, region)
        said = {name: one.metadata[key] for name, key in self._keys.items() if one.metadata.get(key)}
        user = said.pop("user", None)
        metadata = {key: one.metadata.get(key) for key in self._keep} | {
            "region": one.region, "account_id": one.account, "endpoint": "bedrock-runtime", "operation": one.operation,
            "inference_region": one.inference_region, "model_id": one.model_id if one.model_id != reference.model else None,
        }  # fmt: skip
        return Group(
            bucket_start=start,
            model=reference.model,
            request_type=request_type(reference.model),
            provider_project_id=reference.profile_id,
            user_id=user or one.identity,
            api_key_id=principal_of(one.identity),
            service_tier=one.service_tier,
            context_window=prompt_length(one.input_tokens, LENGTHS, LONGEST),
            names=tuple(sorted(said.items())),
            metadata=tuple(sorted((name, value) for name, value in metadata.items() if value is not None)),
            knows_latency=one.latency_ms is not None,
            knows_tokens=one.input_tokens is not None and one.output_tokens is not None,
        )


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
