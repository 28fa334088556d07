"""moto's S3 over HTTP, and objects as Bedrock and AWS Data Exports write them."""

from __future__ import annotations

import gzip
import json
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tests.providers.aws_server import log_key

SECRET = "AKIAMOTO:very/secret+key"


class Bucket:
    def __init__(self, url: str) -> None:
        import boto3

        self.url = url
        session = boto3.session.Session("AKIAMOTO", "very/secret+key")
        self._client = session.client("s3", endpoint_url=url, region_name="us-east-1")
        self._client.create_bucket(Bucket="acme-logs")

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="acme-logs", Key=key, Body=content)

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket="acme-logs", Key=key)

    def log(
        self, folder: datetime, lines: Iterable[Any], name: str = "0", account: str = "123456789012", region: str = "us-east-1"
    ) -> str:
        """One log object in the folder of that hour; text stays as it is."""
        key = log_key(folder, name, account, region)
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.put(key, gzip.compress(text.encode()))
        return key


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        url = f"http://{host}:{port}"
        # moto's state is the process's: what another test put there goes.
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
        yield Bucket(url)
    finally:
        moto.stop()
