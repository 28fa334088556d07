"""Whether an answer is what the vendors' SDKs declare; they themselves take anything."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def undeclared(*models: BaseModel) -> list[str]:
    """Fields that a declared type does not have, anywhere below. Raises pydantic's error where a field is missing or of another type."""
    found: list[str] = []
    for model in models:
        type(model).model_validate(model.to_dict(mode="json"))  # type: ignore[attr-defined]
        _walk(type(model).__name__, model, found)
    return found


def _walk(where: str, value: Any, found: list[str]) -> None:
    if isinstance(value, BaseModel):
        found += [f"{where}.{name}" for name in value.model_extra or {}]
        for name in type(value).model_fields:
            _walk(f"{where}.{name}", getattr(value, name), found)
    elif isinstance(value, list):
        for one in value:
            _walk(where, one, found)
