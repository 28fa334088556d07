"""Amazon Bedrock's usage as CloudWatch counts it, by model and region, and what was billed for it.

Two namespaces, which never hold the same traffic: `AWS/Bedrock` (endpoint bedrock-runtime) and `AWS/BedrockMantle` (endpoint
bedrock-mantle: Responses, Chat Completions, Messages). CloudWatch publishes the same usage at several levels of dimensions, so
exactly one level of each is read: `ModelId`, and project and model (option `mantle`).

`InputTokenCount` is what no cache held: cache reads and writes are added to it. Their metrics have two spellings; where both have
a point, one counts. A point that is not there is NULL, except errors: without one there was none. `Invocations` counts accepted
requests, failed ones included (option `invocations`, because AWS's older text says successful ones); throttled requests are
outside it and stay in the metadata. Percentiles are CloudWatch's own for the bucket; they cannot be merged.

CloudWatch keeps minutes for 15 days and hours for 455, and lists only what reported in the last two weeks: an older window asks for
every model that Bedrock lists, too. A window of which that is not possible is refused, because it would replace usage by nothing.

Sources: docs.aws.amazon.com/bedrock/latest/userguide/monitoring-runtime-metrics.html and monitoring-mantle-metrics.html.
Tested against boto3 1.44, local servers and moto, not live.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import aws_client, aws_cost_export, aws_metrics
from tokentra_dagster.providers.aws_catalogue import Catalogue, named_models
from tokentra_dagster.providers.aws_client import Aws
from tokentra_dagster.providers.aws_cloudwatch import MOST_QUERIES, Query, points, series, spans, whole
from tokentra_dagster.providers.aws_cost_export import CostExport
from tokentra_dagster.providers.aws_metrics import MANTLE, RUNTIME, Series, counted, is_level, queries_of
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import day_ceiling, day_floor
from tokentra_dagster.records import GRANULARITY_SECONDS, EntityName, Item

# ---- What it can be asked ------------------------------------------------------------------------------------------

OPTIONS = ("regions", "models", "mantle", "invocations", "latency_percentiles", *aws_cost_export.OPTIONS, *aws_client.OPTIONS)
KEPT = {"1m": timedelta(days=15), "1h": timedelta(days=455), "1d": timedelta(days=455)}
"""For how long CloudWatch can still give points of this width."""
LISTED = timedelta(days=14)
_REGION = re.compile(r"^[a-z]{2,}(?:-[a-z]+)+-\d+$")


class AwsSource:
    """The Bedrock usage of one AWS account."""

    def __init__(self, config: ConnectionConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        options = Options(config, OPTIONS)
        self._now = now
        self._regions = regions(options)
        self._mantle = options.one_of("mantle", ("project", "model", "off"), "project")
        self._successful = options.one_of("invocations", ("accepted", "successful"), "accepted") == "successful"
        self._percentiles = options.one_of("latency_percentiles", ("on", "off"), "on") == "on"
        self._models = named_models(options)
        self._aws = Aws.of(config, options)
        self._catalogue = Catalogue(self._aws, self._models)
        self._cost_export = CostExport.of(self._aws, options)
        self._remarks: list[str] = []

    def usage(self, window: Window) -> Iterator[Item]:
        """A record for each region, model, project and bucket in which CloudWatch counted anything."""
        self._refuse_expired(window)
        for region in self._regions:
            asked = list(self._series(region, window))
            per_call = max(MOST_QUERIES // max((len(queries_of(one, self._percentiles)) for one in asked), default=1), 1)
            for first in range(0, len(asked), per_call):
                yield from self._read(region, asked[first : first + per_call], window)

    def costs(self, window: Window) -> Iterator[Item]:
        """What the export of the option `cost_export` says was billed; nothing without it, because CloudWatch knows no prices."""
        if self._cost_export is not None:
            yield from self._cost_export.costs(window.start, window.end)

    def names(self) -> Iterator[EntityName]:
        """Application inference profiles: Bedrock's own way to tell applications apart."""
        for region in self._regions:
            for profile in self._catalogue.profiles(region).values():
                yield EntityName(
                    kind="project", id=profile.id, name=profile.name, metadata={"region": region, "model": profile.model}
                )

    def remarks(self) -> list[str]:
        return [*self._remarks, *self._catalogue.remarks, *(self._cost_export.remarks if self._cost_export else ())]

    def check(self) -> str:
        """Asks for one page of metric names."""
        region = self._regions[0]
        client = self._aws.client("cloudwatch", region)
        page = self._aws.ask(f"ListMetrics in {region}", lambda: whole(client.list_metrics(Namespace=RUNTIME), "Metrics"))
        models = {d["Value"] for m in page["Metrics"] for d in m.get("Dimensions", []) if d["Name"] == "ModelId"}
        return f"aws: key accepted; CloudWatch lists Bedrock usage of {len(models)} models in {region}"

    # ---- Which series there are -------------------------------------------------------------------------------------

    def _refuse_expired(self, window: Window) -> None:
        """What CloudWatch has forgotten must not replace what was loaded while it knew."""
        kept = KEPT[window.granularity]
        if window.start < self._now() - kept:
            finer = "; ask for hours or days (granularity 1h or 1d)" if window.granularity == "1m" else ""
            raise PermanentError(
                f"aws: CloudWatch keeps buckets of {window.granularity} for {kept.days} days, and the window starts at "
                f"{window.start:%Y-%m-%d %H:%M} UTC; start later{finer}. Nothing was changed."
            )

    def _series(self, region: str, window: Window) -> Iterator[Series]:
        """Each series of usage once."""
        found: set[Series] = set()
        for namespace in (RUNTIME, *([MANTLE] if self._mantle != "off" else [])):
            listed = [one for one in series(self._aws, region, namespace) if one[0] in aws_metrics.READ[namespace]]
            level = {Series(namespace, tuple(sorted(at.items()))) for _, at in listed if is_level(namespace, at, self._mantle)}
            if listed and not level:
                seen = sorted({" and ".join(sorted(at)) or "none" for _, at in listed})
                self._remark(
                    f"{namespace} in {region} has metrics, but none at the level that is read; their dimensions: {', '.join(seen)}."
                )
            found |= level
        ids = set(self._models)
        if window.start < self._now() - LISTED:
            callable_ids = self._catalogue.model_ids(region)
            if callable_ids is None and not self._models:
                raise PermanentError(
                    f"aws: CloudWatch lists only metrics of the last two weeks, the window starts at {window.start:%Y-%m-%d} and the key "
                    f"may not list Bedrock's models in {region}; allow it bedrock:ListFoundationModels and "
                    "bedrock:ListInferenceProfiles, or name the models with the option models. Nothing was changed."
                )
            ids |= set(callable_ids or ())
            if self._mantle != "off":
                self._remark(
                    "Usage of bedrock-mantle more than two weeks old is read only where it goes on: CloudWatch lists no other."
                )
        known = {one.model for one in found if one.namespace == RUNTIME}
        found |= set(self._used(region, sorted(ids - known), window))
        yield from sorted(found, key=lambda one: (one.namespace, one.dimensions))

    def _used(self, region: str, ids: Sequence[str], window: Window) -> Iterator[Series]:
        """Those of the models that anybody called: one question each instead of all of them."""
        start, end = day_floor(window.start), day_ceiling(window.end)
        for first in range(0, len(ids), MOST_QUERIES):
            asked = [Series(RUNTIME, (("ModelId", name),)) for name in ids[first : first + MOST_QUERIES]]
            queries = [Query(RUNTIME, "Invocations", one.dimensions, "Sum") for one in asked]
            called: set[Series] = set()
            for since, until in spans(start, end, 86400, len(queries)):
                counted_days = points(self._aws, region, queries, since, until, 86400)
                called |= {one for one, days in zip(asked, counted_days, strict=True) if days}
            yield from called

    # ---- How points become records ----------------------------------------------------------------------------------

    def _read(self, region: str, asked: Sequence[Series], window: Window) -> Iterator[Item]:
        queries = [(one, query) for one in asked for query in queries_of(one, self._percentiles)]
        period = GRANULARITY_SECONDS[window.granularity]
        for start, end in spans(window.start, window.end, period, len(queries)):
            found = points(self._aws, region, [query for _, query in queries], start, end, period)
            values: dict[Series, dict[datetime, dict[tuple[str, str], float]]] = {}
            for (one, query), measured in zip(queries, found, strict=True):
                for at, value in measured.items():
                    values.setdefault(one, {}).setdefault(at, {})[query.metric, query.statistic] = value
            for one, buckets in values.items():
                reference = self._catalogue.reference(one.model, region)
                for at in sorted(buckets):
                    item = counted(one, reference, region, at, window.granularity, buckets[at], self._successful)
                    if item is not None:
                        yield item

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)


def regions(options: Options) -> tuple[str, ...]:
    """The regions to read; there is no default, because usage in a region that is not named would be missing without a word."""
    named = options.texts("regions")
    if not named or not all(_REGION.match(name) for name in named):
        raise options.wrong(
            "regions", ",".join(named), "name the regions in which Bedrock is called, e.g. us-east-1,eu-central-1"
        )
    return named
