"""Bedrock's own lists of models and inference profiles in a region, and what a reference to one of them means.

A caller names a model by its id (`anthropic.claude-...`), by a cross-region profile (`us.anthropic.claude-...`), by an application
inference profile, whose id says nothing, or by the ARN of any of these. A cross-region prefix stays: it decides the price.
The lists need `bedrock:ListInferenceProfiles` and `bedrock:ListFoundationModels`; without them, names come from the option `models`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokentra_dagster.model_names import name_in_arn
from tokentra_dagster.providers.aws_client import Aws
from tokentra_dagster.providers.aws_cloudwatch import whole
from tokentra_dagster.providers.failures import Refused
from tokentra_dagster.providers.options import Options

APPLICATION = "application-inference-profile"
_ASSUMED_ROLE = re.compile(r"^arn:([^:]+):sts::(\d+):assumed-role/([^/]+)/")


@dataclass(frozen=True, slots=True)
class Profile:
    """An application inference profile: an application's own name for a model."""

    id: str
    name: str | None
    model: str | None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a caller's reference means. `model` is the reference itself where nobody knows more."""

    model: str
    profile_id: str | None = None


@dataclass(slots=True)
class Catalogue:
    """The lists of one login, each read once and only when something needs it."""

    aws: Aws
    named: Mapping[str, str] = field(default_factory=dict)
    """The option `models` (`named_models`)."""
    remarks: list[str] = field(default_factory=list)
    _profiles: dict[str, dict[str, Profile]] = field(default_factory=dict)

    def reference(self, text: str, region: str) -> Reference:
        """The model behind `text` as CloudWatch or a log spells it."""
        last = text.rsplit("/", 1)[-1]
        application = APPLICATION in text
        model = self.named.get(text) or self.named.get(last)
        if model:
            return Reference(model, last if application or "." not in last else None)
        listed = name_in_arn(text)
        if listed is not None and "." in listed:
            return Reference(listed)
        if listed is None and not application:
            return Reference(text)
        # An id without a vendor is that of an application profile.
        profile = self.profiles(region).get(last)
        if profile is None:
            return Reference(text, last if application else None)
        return Reference(profile.model or text, profile.id)

    def profiles(self, region: str) -> dict[str, Profile]:
        """The application inference profiles of a region by id."""
        if region not in self._profiles:
            client = self.aws.client("bedrock", region)
            found = self._pages(
                region,
                "ListInferenceProfiles",
                client.list_inference_profiles,
                "inferenceProfileSummaries",
                typeEquals="APPLICATION",
            )
            self._profiles[region] = {
                item["inferenceProfileId"]: Profile(
                    item["inferenceProfileId"], item.get("inferenceProfileName"), _model_of(item.get("models", []))
                )
                for item in found or ()
            }
        return self._profiles[region]

    def model_ids(self, region: str) -> list[str] | None:
        """Every id by which a model can be called in a region; None where the key may not list them."""
        client = self.aws.client("bedrock", region)
        models = self._pages(region, "ListFoundationModels", client.list_foundation_models, "modelSummaries")
        cross = self._pages(
            region,
            "ListInferenceProfiles",
            client.list_inference_profiles,
            "inferenceProfileSummaries",
            typeEquals="SYSTEM_DEFINED",
        )
        if models is None or cross is None:
            return None
        ids = [item["modelId"] for item in models] + [item["inferenceProfileId"] for item in cross] + list(self.profiles(region))
        return list(dict.fromkeys(ids))

    def _pages(self, region: str, asking: str, ask: Any, name: str, **arguments: str) -> list[Any] | None:
        """All pages of a list; None, with a remark, where the key may not read it."""
        found: list[Any] = []
        token: str | None = None
        while True:
            more = arguments | ({"nextToken": token} if token else {})
            try:
                page = self.aws.ask(f"{asking} in {region}", lambda more=more: whole(ask(**more), name))  # type: ignore[misc]
            except Refused as refusal:
                if refusal.status == 401 or "the key was not accepted" in str(refusal):
                    raise
                self._remark(
                    f"The key may not use bedrock:{asking} in {region}; application inference profiles stay without names."
                )
                return None
            found += page[name]
            following = page.get("nextToken")
            if not following or following == token:
                return found
            token = following

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)


def named_models(options: Options) -> dict[str, str]:
    """The option `models`, `id` or `id=model` in a comma list: each id, and the model it stands for or ""."""
    pairs = (text.partition("=") for text in options.texts("models"))
    return {name.strip(): model.strip() for name, _, model in pairs}


def principal_of(identity: str | None) -> str | None:
    """The IAM role or user behind an identity's ARN: a role's sessions are many, the role is one."""
    if identity is None:
        return None
    role = _ASSUMED_ROLE.match(identity)
    return f"arn:{role[1]}:iam::{role[2]}:role/{role[3]}" if role else identity


def _model_of(models: list[dict[str, str]]) -> str | None:
    """The one model of a profile; in several regions it is the same. An ARN without a region is of global inference, whose price
    differs."""
    arns = [model.get("modelArn", "") for model in models]
    names = {name_in_arn(arn) for arn in arns}
    name = names.pop() if len(names) == 1 else None
    everywhere = any(arn.split(":")[3:4] == [""] for arn in arns)
    return f"global.{name}" if name and everywhere and not name.startswith("global.") else name
