"""Whose request it is: `organization_of_key`, a FastAPI dependency for every route that belongs to an organisation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tokentra_dagster.collector.keys import KEY_START, hash_of
from tokentra_dagster.collector.limits import Limits, Refused
from tokentra_dagster.collector.session import Session
from tokentra_dagster.warehouse.directory import Connection

log = logging.getLogger("tokentra.collector")
_MOST_KNOWN = 10_000
_FIND = """
WITH used AS (
  UPDATE app.organization_keys SET last_used_at = date_trunc('minute', now())
  WHERE key_hash = ANY(%(hashes)s) AND revoked_at IS NULL AND (last_used_at IS NULL OR last_used_at < now() - INTERVAL '1 minute')
)
SELECT key_hash, org_id FROM app.organization_keys WHERE key_hash = ANY(%(hashes)s) AND revoked_at IS NULL
"""


class Keys:
    """Organisations by key. What was found is kept for `limits.key_seconds`; questions that come meanwhile are asked in one statement,
    so that wrong keys, however many, keep the database no busier than one question at a time."""

    def __init__(self, session: Session, limits: Limits) -> None:
        self._session, self._limits = session, limits
        self._known: dict[bytes, tuple[UUID, float]] = {}
        self._asked: dict[bytes, asyncio.Future[UUID | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def organization(self, key: str) -> UUID | None:
        """The key's organisation; None for a key that is unknown or revoked. Raises `Refused` while the database cannot be asked."""
        if not key.startswith(KEY_START) or len(key) > 200:
            return None
        digest = hash_of(key)
        found = self._known.get(digest)
        if found and time.monotonic() < found[1]:
            return found[0]
        if digest not in self._asked:
            if len(self._asked) >= _MOST_KNOWN:
                raise Refused(429, "Too many requests with unknown keys are waiting; try again in a second.", retry_after=1)
            self._asked[digest] = asyncio.get_running_loop().create_future()
        answer = self._asked[digest]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        # Shielded: the answer is also others'.
        try:
            return await asyncio.wait_for(asyncio.shield(answer), self._limits.store_seconds)
        except TimeoutError:
            raise Refused(503, "The database does not answer now; send the same request again later.", retry_after=2) from None

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            until = time.monotonic() + self._limits.key_seconds
            hashes = list(asked)
            found: dict[bytes, UUID] = {}
            error: Refused | None = None
            try:
                found = await self._session.run(lambda db, hashes=hashes: _find(db, hashes))  # type: ignore[misc]
            except Refused as refused:
                error = refused
            except Exception:
                log.exception("keys could not be looked up")
                error = Refused(503, "Keys cannot be looked up now; send the same request again later.", retry_after=5)
            if len(self._known) + len(found) > _MOST_KNOWN:
                self._known.clear()
            for digest, answer in asked.items():
                self._known.pop(digest, None)
                if digest in found:
                    self._known[digest] = (found[digest], until)
                if answer.done():
                    continue
                if error is None:
                    answer.set_result(found.get(digest))
                else:
                    answer.set_exception(error)
                    answer.exception()  # nobody may be waiting any more


def _find(db: Connection, hashes: Sequence[bytes]) -> dict[bytes, UUID]:
    return {bytes(row["key_hash"]): row["org_id"] for row in db.execute(_FIND, {"hashes": list(hashes)})}


_BEARER = HTTPBearer(auto_error=False, description="A key of `tokentra keys add`.", scheme_name="key")


async def organization_of_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> UUID:
    """Id of the organisation whose key the request has. Raises `Refused` (401) without a valid one."""
    if credentials is None:
        raise Refused(
            401, "The request has no key; send the header `Authorization: Bearer KEY` with a key of `tokentra keys add`."
        )
    keys: Keys = request.app.state.keys
    org_id = await keys.organization(credentials.credentials)
    if org_id is None:
        raise Refused(401, "The key is not known or has been revoked; `tokentra keys list` shows which are valid.")
    return org_id


Organization = Annotated[UUID, Depends(organization_of_key)]
