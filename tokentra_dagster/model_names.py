"""Model names as providers spell them, reduced to a family that stays the same over versions, dates and resellers.

The family is what a chart over a year should show as one line. For Claude and Gemini it is the product line without the
version (`claude-opus-4-5-20251101` -> `claude-opus`, `gemini-2.5-flash-lite-001` -> `gemini-flash-lite`); for every other
model it is the name without snapshot, region, vendor prefix and `-latest` or `-preview` (`gpt-4o-2024-08-06` -> `gpt-4o`,
`us.meta.llama3-1-70b-instruct-v1:0` -> `llama3-1-70b-instruct`). A fine-tune belongs to the family of its base model.
"""

from __future__ import annotations

import re
from functools import lru_cache

_FINE_TUNE = re.compile(r"^ft:([^:]+)(?::.*)?$")
_BEDROCK_REGION = re.compile(r"^(?:us|us-gov|eu|apac|ap|au|ca|in|jp|sa|me|af|global)\.(?=[a-z0-9-]+\.)")
_BEDROCK_VENDOR = re.compile(
    r"^(?:ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|moonshot|moonshotai|nvidia|openai|qwen|stability|twelvelabs|writer|zai)\."
)
_BEDROCK_VERSION = re.compile(r"(?:-v\d+)?:\d+(?::[0-9a-z]+)?$|-v\d+$")
_PREVIEW = re.compile(r"-(?:preview|exp|experimental)(?:-\d{2}-\d{2,4})?(?=-|$)")
_SNAPSHOT = re.compile(r"-(?:20\d{2}-\d{2}-\d{2}|20\d{6}|\d{4}|00\d|latest)$")
_VERSION = re.compile(r"v?\d+(?:\.\d+)*$")
_WITHOUT_VERSION = ("claude", "gemini")
_NAMES_A_MODEL = (":foundation-model", ":inference-profile")


def name_in_arn(model: str) -> str | None:
    """The model that a Bedrock ARN names, its regional prefix kept; `None` where it names something of the customer's own, which
    has another price: provisioned throughput, a custom or imported model, an application inference profile. No ARN: as it is.

    `arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0` -> `us.amazon.nova-lite-v1:0`
    """
    if not model.lower().startswith("arn:"):
        return model
    kind, _, name = model.rpartition("/")
    return name if kind.lower().endswith(_NAMES_A_MODEL) else None


@lru_cache(maxsize=16_384)
def model_family(provider: str, model: str | None) -> str | None:
    """The family of `model` as `provider` spells it, lower case; `None` where the name says nothing about the model
    (blank, or a Bedrock ARN of provisioned throughput or an application profile)."""
    named = name_in_arn((model or "").strip().lower())
    if named is None:
        return None
    name = named.rsplit("/", 1)[-1]
    name = _FINE_TUNE.sub(r"\1", name).partition("@")[0]
    name = _BEDROCK_VENDOR.sub("", _BEDROCK_REGION.sub("", name))
    if provider == "azure":
        name = name.replace("gpt-35", "gpt-3.5")
    name = _BEDROCK_VERSION.sub("", name)
    while (shorter := _SNAPSHOT.sub("", _PREVIEW.sub("", name))) != name:
        name = shorter
    words = name.split("-")
    if words[0] in _WITHOUT_VERSION:
        name = "-".join(word for word in words if not _VERSION.match(word))
    return name or None
