"""Azure OpenAI and the other models of Foundry: usage by account, deployment and model as Azure Monitor counts it, and the bill.

Every account of the named subscriptions that can hold models is read, through azure-monitor-querymetrics. One family of metrics,
all series, and their sum against the unsplit total: what is in no series is loaded as unattributed, with a remark. Cached tokens of
OpenAI models are inside the input and not told; there is no user and no key; latency is minimum, average and maximum.

Azure keeps metrics for 93 days: an older window is refused, because it would replace usage by nothing.
Tested against local servers, not live. Sources are named in `azure_metrics`, `azure_catalogue` and `azure_cost_export`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers import azure_cost_export
from tokentra_dagster.providers.azure_catalogue import Account, Catalogue, model_name
from tokentra_dagster.providers.azure_client import Azure
from tokentra_dagster.providers.azure_cost_export import CostExports
from tokentra_dagster.providers.azure_metrics import (
    DETAILS,
    FAMILIES,
    INTERVALS,
    KEPT,
    MOST_RESOURCES,
    SPANS,
    Point,
    points,
    questions,
)
from tokentra_dagster.providers.azure_usage import Key, joined, records
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import spans as cut
from tokentra_dagster.records import EntityName, Item

# ---- What it can be asked ------------------------------------------------------------------------------------------

OPTIONS = ("subscriptions", "accounts", "metrics", "details", "deployments", "anthropic_input", *azure_cost_export.OPTIONS)
_SUBSCRIPTION = re.compile(r"^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")
_GROWING = timedelta(hours=1)
"""A bucket as young as this may have grown between the two questions."""
_TRIES = 3


class AzureSource:
    """The model usage of some Azure subscriptions."""

    def __init__(self, config: ConnectionConfig, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        options = Options(config, OPTIONS)
        self._now = now
        subscriptions = tuple(name.lower() for name in options.texts("subscriptions"))
        if not subscriptions or not all(_SUBSCRIPTION.match(name) for name in subscriptions):
            raise options.wrong(
                "subscriptions",
                ",".join(subscriptions),
                "name the subscriptions by id, e.g. 00000000-0000-0000-0000-000000000000",
            )
        self._family = FAMILIES[options.one_of("metrics", tuple(FAMILIES), "models")]
        self._details = () if options.text("details") == "none" else options.some_of("details", DETAILS, DETAILS)
        self._input_is_total = options.one_of("anthropic_input", ("uncached", "total"), "uncached") == "total"
        self._names = _named_deployments(options)
        self._azure = Azure.of(config, options)
        self._catalogue = Catalogue(self._azure, subscriptions, options.texts("accounts"))
        self._exports = CostExports.of(options)
        self._remarks: list[str] = []

    def usage(self, window: Window) -> Iterator[Item]:
        """A record for each account, deployment, model and bucket in which Azure counted anything."""
        if window.start < self._now() - KEPT:
            raise PermanentError(
                f"azure: Azure Monitor keeps metrics for {KEPT.days} days, and the window starts at {window.start:%Y-%m-%d %H:%M} UTC; "
                "start later. Nothing was changed."
            )
        accounts = sorted(self._catalogue.accounts(), key=lambda one: (one.subscription, one.region, one.name))
        if not accounts:
            self._remark("The subscriptions hold no account that can hold models (kind OpenAI or AIServices).")
        for _, group in groupby(accounts, key=lambda one: (one.subscription, one.region)):
            batch = list(group)
            for first in range(0, len(batch), MOST_RESOURCES):
                for start, end in cut(window.start, window.end, SPANS[window.granularity]):
                    yield from self._read(batch[first : first + MOST_RESOURCES], Window(start, end, window.granularity))

    def costs(self, window: Window) -> Iterator[Item]:
        """What the exports of the option `cost_export` say was billed; nothing without it, because metrics know no prices."""
        if self._exports is not None:
            yield from self._exports.costs(window.start, window.end)

    def names(self) -> Iterator[EntityName]:
        """Accounts and deployments: what Azure has for projects."""
        for account in self._catalogue.accounts():
            about = {"region": account.region, "subscription": account.subscription}
            yield EntityName(kind="project", id=account.name, name=account.name, metadata=about)
            for one in self._catalogue.deployments(account).values():
                model = model_name(one.model, one.version) if one.model else None
                yield EntityName(
                    kind="project",
                    id=f"{account.name}/{one.name}",
                    name=one.name,
                    metadata=about | {"account": account.name, "model": model, "deployment_type": one.type},
                )

    def remarks(self) -> list[str]:
        return [*self._remarks, *self._catalogue.remarks, *(self._exports.remarks if self._exports else ())]

    def check(self) -> str:
        """Lists the accounts and asks the first one for an hour."""
        accounts = self._catalogue.accounts()
        if accounts:
            now = self._now().replace(minute=0, second=0, microsecond=0)
            _, whole = questions(self._family, ())
            points(self._azure, accounts[:1], whole, now - timedelta(hours=1), now, timedelta(hours=1), self._family.required)
        names = ", ".join(one.name for one in accounts) or "none"
        return f"azure: login accepted; {len(accounts)} accounts can hold models: {names}"

    # ---- How an answer becomes records ---------------------------------------------------------------------------------

    def _read(self, accounts: Sequence[Account], window: Window) -> Iterator[Item]:
        for _ in range(_TRIES):
            whole, split = self._asked(accounts, window)
            found = joined(split, whole, self._family, window.granularity)
            if not found.surplus or window.end > self._now() - _GROWING:
                break
        else:
            excess = ", ".join(f"{metric} by {value:,}" for metric, value in sorted(found.surplus.items()))
            raise TransientError(
                f"azure: from {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC the series of "
                f"{', '.join(one.name for one in accounts)} add up to more than their totals ({excess}), {_TRIES} times; nothing was "
                "used, try again later, or the other value of the option metrics"
            )
        for account in accounts:
            if any(account.id.lower() == id and key == Key() for id, _, key in found.buckets):
                self._remark(
                    f"Some usage of {account.name} is in its total and in the series of no deployment; it is loaded with the model unattributed."
                )
        of = {one.id.lower(): (one, self._catalogue.deployments(one)) for one in accounts}
        yield from found.rejected
        yield from records(found.buckets, of, self._names, self._family, window.granularity, self._input_is_total)

    def _asked(self, accounts: Sequence[Account], window: Window) -> tuple[list[Point], list[Point]]:
        """The totals first: what is used meanwhile is then in the split only, and not lost."""
        split, whole = questions(self._family, self._details)
        interval = INTERVALS[window.granularity]
        found: list[list[Point]] = []
        for question in (whole, *split):
            answer, refused = points(self._azure, accounts, question, window.start, window.end, interval, self._family.required)
            found.append(answer)
            for said in refused:
                self._remark(f"{said}. Its counts are missing.")
        return found[0], [point for one in found[1:] for point in one]

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)


def _named_deployments(options: Options) -> dict[str, str]:
    """The option `deployments`: what a deployment's name stands for where neither metric nor catalogue tells."""
    found: dict[str, str] = {}
    for pair in options.texts("deployments"):
        name, equals, model = (part.strip() for part in pair.partition("="))
        if not name or not equals or not model:
            raise options.wrong("deployments", pair, "give NAME=MODEL in a comma list, e.g. chat-prod=gpt-4o-2024-08-06")
        found[name.lower()] = model
    return found
