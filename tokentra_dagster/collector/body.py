"""Bodies of requests, read within limits of time, size and memory, and decompressed: `body_of(request, ...)`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from fastapi import Request

from tokentra_dagster.collector.limits import Limits, Refused

Result = TypeVar("Result")
_SMALL = 16 * 2**10
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Bodies:
    """Reads bodies, and holds no more of them at one time than `limits.held_bytes`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0
        # One thread: a parsed body is many times its size, and parsing holds the interpreter anyway.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="tokentra parse")

    def close(self) -> None:
        self._threads.shutdown()

    @asynccontextmanager
    async def body_of(self, request: Request, media_types: tuple[str, ...]) -> AsyncIterator[tuple[str, bytes]]:
        """The request's media type and its body without compression. Raises `Refused`: 408, 413, 415, 429, or 400 for what cannot be decompressed."""
        media_type = _media_type(request, media_types)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", *_WINDOW):
            raise Refused(415, f"Content-Encoding is {encoding[:50]!r}; send {', '.join(_WINDOW)} or nothing.")
        taken = 0
        try:
            chunks: list[bytes] = []
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    async for chunk in self._chunks(request):
                        self._take(len(chunk))
                        taken += len(chunk)
                        chunks.append(chunk)
            except TimeoutError:
                raise Refused(408, f"The body did not come within {self._limits.body_seconds:g} seconds.") from None
            request.state.body_is_read = True
            body = b"".join(chunks)
            chunks.clear()
            if encoding != "identity":
                most = self._limits.decompressed_bytes
                body = await self.in_thread(len(body), lambda: decompressed(body, encoding, most))
                self._take(len(body))
                taken += len(body)
            yield media_type, body
        finally:
            self._held -= taken

    async def in_thread(self, size: int, work: Callable[[], Result]) -> Result:
        """`work()`, beside the event loop unless it is about few bytes."""
        if size <= _SMALL:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _take(self, size: int) -> None:
        if self._held + size > self._limits.held_bytes:
            raise Refused(429, "Too many large requests at one time; send this one again in a second.", retry_after=1)
        self._held += size

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        most = self._limits.body_bytes
        too_much = Refused(413, f"The body is larger than {most:,} bytes; send fewer events at a time.")
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > most):
            raise too_much
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise too_much
            yield chunk


def decompressed(body: bytes, encoding: str, most: int) -> bytes:
    """The content of gzip or deflate, at most so many bytes. Raises `Refused`: 413 for more, 400 for what is not whole."""
    parts: list[bytes] = []
    size = 0
    while body:
        member = zlib.decompressobj(_WINDOW[encoding])
        try:
            part = member.decompress(body, most - size + 1)
        except zlib.error as error:
            raise Refused(400, f"Content-Encoding is {encoding}, but the body cannot be decompressed ({error}).") from None
        size += len(part)
        if size > most:
            raise Refused(413, f"The body is larger than {most:,} bytes when decompressed; send fewer events at a time.")
        if not member.eof:
            raise Refused(400, f"Content-Encoding is {encoding}, but the body ends before it is whole.")
        parts.append(part)
        body = member.unused_data
    if not parts:
        raise Refused(400, f"Content-Encoding is {encoding}, but the body is empty.")
    return b"".join(parts)


async def drain(request: Request, limits: Limits) -> None:
    """Read for a second what a refused request still sends, so that its sender comes to read the answer instead of a reset."""
    size = 0
    with suppress(Exception):
        async with asyncio.timeout(1):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body_bytes:
                    return


def _media_type(request: Request, allowed: tuple[str, ...]) -> str:
    said = request.headers.get("content-type", "")
    media_type, _, parameters = said.partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.replace(" ", "").lower().removeprefix("charset=").strip('"')
    if media_type not in allowed or charset not in ("", "utf-8"):
        raise Refused(415, f"Content-Type is {said[:100]!r}; send {' or '.join(allowed)} in UTF-8.")
    return media_type
