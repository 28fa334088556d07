"""OpenAI's eleven usage endpoints: how finely each divides, and what its results measure."""

from __future__ import annotations

from dataclasses import dataclass

_WHO = ("project_id", "user_id", "api_key_id")
_MODEL = (*_WHO, "model")
_TOKENS = (*_MODEL, "batch", "service_tier", "api_source")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One usage endpoint: what its results are called, how finely they divide, and what they measure."""

    result: str
    request_type: str
    group_by: tuple[str, ...]
    tokens_in: bool = False
    tokens_out: bool = False
    quantity: str | None = None
    unit: str | None = None
    requests: str | None = "num_model_requests"
    level: bool = False
    """`quantity` is what is stored, not what was used: it counts for as long as the bucket lasts."""


ENDPOINTS: dict[str, Endpoint] = {
    "completions": Endpoint("completions", "chat", _TOKENS, tokens_in=True, tokens_out=True),
    "decisions": Endpoint("decisions", "decision", _TOKENS, tokens_in=True, tokens_out=True),
    "embeddings": Endpoint("embeddings", "embedding", _MODEL, tokens_in=True),
    "moderations": Endpoint("moderations", "moderation", _MODEL, tokens_in=True),
    "images": Endpoint("images", "image", (*_MODEL, "size", "source"), quantity="images", unit="images"),
    "audio_speeches": Endpoint("audio_speeches", "audio", _MODEL, quantity="characters", unit="characters"),
    "audio_transcriptions": Endpoint("audio_transcriptions", "audio", _MODEL, quantity="seconds", unit="seconds"),
    "vector_stores": Endpoint(
        "vector_stores", "vector_store", ("project_id",), quantity="usage_bytes", unit="byte_hours", requests=None, level=True,
    ),
    "code_interpreter_sessions": Endpoint(
        "code_interpreter_sessions", "code_interpreter", ("project_id",),
        quantity="num_sessions", unit="sessions", requests=None,
    ),
    "file_search_calls": Endpoint(
        "file_searches", "file_search", (*_WHO, "vector_store_id"),
        quantity="num_requests", unit="requests", requests=None,
    ),
    "web_search_calls": Endpoint(
        "web_searches", "web_search", (*_MODEL, "context_level", "api_source"),
        quantity="num_requests", unit="requests", requests=None,
    ),
}  # fmt: skip

TOKEN_DETAILS = {
    "input_cache_write_30m_tokens": "cache_write_30m",
    "input_cache_write_12h_tokens": "cache_write_12h",
    "input_text_tokens": "input_text",
    "input_cached_text_tokens": "cached_text",
    "output_text_tokens": "output_text",
    "input_audio_tokens": "input_audio",
    "input_cached_audio_tokens": "cached_audio",
    "output_audio_tokens": "output_audio",
    "input_image_tokens": "input_image",
    "input_cached_image_tokens": "cached_image",
    "output_image_tokens": "output_image",
}
MEASURES = frozenset(
    (
        *TOKEN_DETAILS, "input_tokens", "output_tokens", "input_cached_tokens", "input_uncached_tokens",
        "input_cache_write_tokens", "num_model_requests", "num_requests", "num_sessions", "usage_bytes", "images",
        "characters", "seconds",
    )
)  # fmt: skip
