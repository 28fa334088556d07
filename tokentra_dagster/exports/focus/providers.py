"""How FOCUS names providers and their services."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seller:
    """The entity that sells, hosts and invoices, as its own FOCUS data or its invoices spell it, and its service."""

    name: str
    service: str


SELLERS = {
    "anthropic": Seller("Anthropic", "Claude API"),
    "aws": Seller("AWS", "Amazon Bedrock"),
    "azure": Seller("Microsoft", "Azure OpenAI"),
    "google": Seller("Google Cloud", "Vertex AI"),
    "openai": Seller("OpenAI", "OpenAI API"),
}


def seller_of(provider: str) -> Seller:
    """A provider that is not among them keeps its own name."""
    return SELLERS.get(provider) or Seller(provider, provider)
