"""Objects in S3: listed in the order of their keys, and read whole or not at all."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from tokentra_dagster.providers.aws_client import Aws
from tokentra_dagster.providers.failures import DamagedPage
from tokentra_dagster.providers.options import Options

_PIECE = 1 << 20
_IN_MEMORY = 8 << 20
_URL = re.compile(r"^s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^\s]*))?$")


@dataclass(frozen=True, slots=True)
class Object:
    key: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket and a prefix in it, `""` or with a slash at its end."""

    aws: Aws
    bucket: str
    prefix: str
    region: str

    @classmethod
    def of(cls, aws: Aws, options: Options, name: str) -> Location:
        """The option `name`, e.g. `s3://acme-logs/bedrock`, in the region of the option `bucket_region`."""
        text = options.text(name) or ""
        found = _URL.match(text)
        if not found:
            raise options.wrong(name, text, "it must be a place in S3, e.g. s3://acme-logs/bedrock")
        prefix = (found["prefix"] or "").strip("/")
        return cls(aws, found["bucket"], prefix + "/" if prefix else "", options.text("bucket_region") or "us-east-1")

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def _todo(self) -> str:
        return f"the key may not read {self.url}, allow it s3:ListBucket and s3:GetObject there"

    def folders(self, under: str) -> list[str]:
        """The names of the folders directly below `under` (which ends with a slash), without slashes."""
        start = self.prefix + under
        return [
            found["Prefix"].removeprefix(start).strip("/")
            for page in self._pages(Prefix=start, Delimiter="/")
            for found in page.get("CommonPrefixes", [])
        ]

    def objects(self, under: str, after: str = "") -> Iterator[Object]:
        """Objects below `under` in the order of their keys, from `after` on; keys without this location's prefix."""
        start = self.prefix + under
        more = {"StartAfter": self.prefix + after} if after else {}
        for page in self._pages(Prefix=start, **more):
            for found in page.get("Contents", []):
                yield Object(found["Key"].removeprefix(self.prefix), found["Size"], found["LastModified"])

    def _pages(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        client = self.aws.client("s3", self.region)
        token: str | None = None
        while True:
            more = arguments | ({"ContinuationToken": token} if token else {})

            def fetch(more: dict[str, Any] = more) -> dict[str, Any]:
                page: dict[str, Any] = client.list_objects_v2(Bucket=self.bucket, **more)
                if "KeyCount" not in page or (page.get("IsTruncated") and not page.get("NextContinuationToken")):
                    raise DamagedPage("it is no whole list of objects")
                return page

            page = self.aws.ask(f"listing {self.url}", fetch, self._todo)
            yield page
            token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            if token is None:
                return

    @contextmanager
    def opened(self, key: str) -> Iterator[IO[bytes]]:
        """The whole object as a file: in memory while it is small, else on disk. Raises `Refused` where it is not there."""
        client = self.aws.client("s3", self.region)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:

            def fetch() -> None:
                file.seek(0)
                file.truncate()
                answer = client.get_object(Bucket=self.bucket, Key=self.prefix + key)
                for piece in answer["Body"].iter_chunks(_PIECE):
                    file.write(piece)
                if file.tell() != answer["ContentLength"]:
                    raise DamagedPage(f"{file.tell()} of {answer['ContentLength']} bytes arrived")

            self.aws.ask(f"reading s3://{self.bucket}/{self.prefix}{key}", fetch, self._todo)
            file.seek(0)
            yield file
