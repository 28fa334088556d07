"""Which Azure accounts there are and what their deployments are, from Azure Resource Manager.

A deployment has a name of the customer's own; its model, version and type (standard, batch, provisioned) are here. One that was
deleted is in the metrics only. https://learn.microsoft.com/rest/api/aiservices/accountmanagement (api-version 2024-10-01).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.azure_client import Azure
from tokentra_dagster.providers.failures import DamagedPage, Refused

API_VERSION = "2024-10-01"
KINDS = ("OpenAI", "AIServices")
"""Accounts that can hold models; the others are speech, vision and the like."""
_DATED = re.compile(r"^\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    name: str
    region: str
    subscription: str


@dataclass(frozen=True, slots=True)
class Deployment:
    name: str
    model: str | None
    version: str | None
    type: str | None
    """Azure's SKU, e.g. GlobalStandard, DataZoneBatch, ProvisionedManaged."""

    @property
    def service_type(self) -> str:
        return "batch" if self.type and "batch" in self.type.lower() else "sync"

    @property
    def service_tier(self) -> str | None:
        """Provisioned throughput is paid by the hour and not by the token."""
        return "provisioned" if self.type and "provisioned" in self.type.lower() else None


def model_name(model: str, version: str | None) -> str:
    """`gpt-4o` of version `2024-08-06` is `gpt-4o-2024-08-06`; any other version says nothing about the price."""
    return f"{model}-{version}" if version and _DATED.match(version) and not model.endswith(version) else model


@dataclass(slots=True)
class Catalogue:
    """Asked once for each sync."""

    azure: Azure
    subscriptions: tuple[str, ...]
    only: tuple[str, ...]
    """Names of accounts; empty for all."""
    remarks: list[str] = field(default_factory=list)
    _accounts: list[Account] | None = None
    _deployments: dict[str, dict[str, Deployment]] = field(default_factory=dict)

    def accounts(self) -> list[Account]:
        if self._accounts is None:
            found = [one for subscription in self.subscriptions for one in self._listed(subscription)]
            names = {one.name.lower() for one in found}
            missing = [name for name in self.only if name.lower() not in names]
            if missing:
                known = ", ".join(sorted(one.name for one in found)) or "none"
                raise PermanentError(
                    f"{self.azure.integration}: there is no account {', '.join(missing)} in the subscriptions; there are {known}. "
                    "Correct the option accounts"
                )
            wanted = {name.lower() for name in self.only}
            self._accounts = [one for one in found if not wanted or one.name.lower() in wanted]
        return self._accounts

    def deployments(self, account: Account) -> Mapping[str, Deployment]:
        """By name in lower case. Empty, with a remark, where the login may not list them."""
        if account.id not in self._deployments:
            path = f"{account.id}/deployments?api-version={API_VERSION}"
            try:
                items = list(self._pages(path, f"listing the deployments of {account.name}"))
            except Refused as refusal:
                if refusal.status not in (403, 404):
                    raise
                items = []
                self.remarks.append(
                    f"The deployments of {account.name} cannot be listed (HTTP {refusal.status}): which are batch or provisioned is not known, "
                    "and their usage is priced as standard; give the login the role Reader there."
                )
            self._deployments[account.id] = {one.name.lower(): one for one in map(_deployment, items)}
        return self._deployments[account.id]

    def _listed(self, subscription: str) -> Iterator[Account]:
        path = f"/subscriptions/{subscription}/providers/Microsoft.CognitiveServices/accounts?api-version={API_VERSION}"
        for item in self._pages(path, f"listing the accounts of subscription {subscription}"):
            if item.get("kind") in KINDS:
                region = str(item.get("location", "")).replace(" ", "").lower()
                yield Account(str(item["id"]), str(item["name"]), region, subscription)

    def _pages(self, path: str, asking: str) -> Iterator[Mapping[str, Any]]:
        url: str | None = path
        asked: set[str] = set()
        while url:
            if url in asked:
                raise TransientError(f"{self.azure.integration}: {asking} keeps repeating the same page; try again later")
            asked.add(url)
            page = self.azure.ask(asking, lambda url=url: _whole(self.azure.resource(url)))  # type: ignore[misc]
            yield from page["value"]
            url = page.get("nextLink") or None


def _whole(page: Mapping[str, Any]) -> Mapping[str, Any]:
    items = page.get("value")
    if not isinstance(items, list) or not all(isinstance(one, dict) and one.get("id") and one.get("name") for one in items):
        raise DamagedPage("it holds no list of things with id and name")
    return page


def _deployment(item: Mapping[str, Any]) -> Deployment:
    model = (item.get("properties") or {}).get("model") or {}
    return Deployment(
        str(item["name"]), model.get("name") or None, model.get("version") or None, (item.get("sku") or {}).get("name") or None
    )
