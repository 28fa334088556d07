"""What a simulated provider does to the connection itself."""

from __future__ import annotations

from starlette.types import Send


async def drop(status: int, body: bytes, send: Send) -> None:
    """Announce the whole body, send half, and leave: uvicorn closes the connection."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
