"""Any S3-compatible store, over boto3 (its own retries and credential chain).

https://boto3.amazonaws.com/v1/documentation/api/latest/reference/customizations/s3.html describes the multipart upload: parts
are read from the file as they are sent, so memory is bounded by part size times concurrency. An upload that fails is aborted;
one whose process was killed leaves parts behind, which a lifecycle rule of the bucket should expire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.exports.destinations.base import SAFE, Allowances, Delivered, Delivery, Link, check_folder, clean_text
from tokentra_dagster.exports.destinations.content import content_type
from tokentra_dagster.exports.destinations.fields import Fields
from tokentra_dagster.secret_references import resolve_secret

Found = TypeVar("Found")
KNOWN = (
    "bucket",
    "prefix",
    "region",
    "endpoint",
    "path_style",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "link_seconds",
    "part_bytes",
    "checksum",
    "attempts",
    "timeout_seconds",
    "ca_file",
)
_MIB = 1 << 20
SMALLEST_PART = 5 * _MIB
LONGEST_LINK = 7 * 24 * 3600
"""Seconds; Signature Version 4 allows no more."""
_CONCURRENCY = 2
_TRANSIENT_CODES = frozenset(
    (
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
    )
)
_LONGEST_QUOTE = 300


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """Objects `prefix/folder/name`. The three credentials are references; without them boto3's own chain finds a login."""

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint: str | None = None
    path_style: bool = False
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    link_seconds: int = 24 * 3600
    """How long a presigned link works; a login that ends earlier ends it earlier."""
    part_bytes: int = 16 * _MIB
    checksum: str = "SHA256"
    """Sent with each part and verified by the store: SHA256, CRC32, or none for a store that knows neither."""
    attempts: int = 5
    timeout_seconds: float = 60.0
    ca_file: Path | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any], allowances: Allowances = SAFE) -> S3Bucket:
        fields = Fields("s3", given, KNOWN)
        endpoint = fields.text("endpoint", "").rstrip("/") or None
        if endpoint is not None:
            schemes = ("https://", "http://") if allowances.plain_text else ("https://",)
            if not endpoint.startswith(schemes) or "@" in endpoint:
                raise fields.wrong("endpoint", f"must start with {' or '.join(schemes)} and hold no login")
        keys = [fields.reference(name) for name in ("access_key_id", "secret_access_key", "session_token")]
        if (keys[0] is None) != (keys[1] is None) or (keys[2] and not keys[0]):
            raise fields.wrong("access_key_id", "and secret_access_key belong together; give both references or neither")
        prefix = fields.text("prefix", "").strip("/")
        check_folder(prefix)
        return cls(
            bucket=fields.text("bucket", example="acme-usage-exports"),
            prefix=prefix,
            region=fields.text("region", "") or None,
            endpoint=endpoint,
            path_style=fields.flag("path_style", endpoint is not None),
            access_key_id=keys[0],
            secret_access_key=keys[1],
            session_token=keys[2],
            link_seconds=fields.whole("link_seconds", 24 * 3600, 60, LONGEST_LINK),
            part_bytes=fields.whole("part_bytes", 16 * _MIB, SMALLEST_PART, 5 * 1024 * _MIB),
            checksum=fields.one_of("checksum", "SHA256", ("SHA256", "CRC32", "none")),
            attempts=fields.whole("attempts", 5, 1, 10),
            timeout_seconds=fields.number("timeout_seconds", 60.0, 1, 600),
            ca_file=fields.file("ca_file"),
        )

    def needs_link(self, delivery: Delivery) -> bool:
        return False

    def deliver(self, delivery: Delivery) -> Delivered:
        delivery.check_files()
        client = self._ask("opened", self._client)
        self._ask("asked for an older manifest", lambda: self._forget_old_manifest(client, delivery))
        for path in delivery.all_files:
            self._upload(client, path, delivery)
        key = self._key(delivery, delivery.files[0])
        # Before signing: the link must not be promised longer than it works.
        expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=self.link_seconds)
        url, manifest_url = self._ask(
            "asked for a link",
            lambda: (self._presigned(client, key), self._presigned(client, self._key(delivery, delivery.manifest))),
        )
        return Delivered(f"s3://{self.bucket}/{key}", delivery.message_id, Link(url, expires_at, manifest_url))

    def _key(self, delivery: Delivery, path: Path) -> str:
        return "/".join(part for part in (self.prefix, delivery.folder, path.name) if part)

    def _upload(self, client: Any, path: Path, delivery: Delivery) -> None:
        from boto3.s3.transfer import TransferConfig

        key = self._key(delivery, path)
        config = TransferConfig(
            multipart_threshold=self.part_bytes, multipart_chunksize=self.part_bytes, max_concurrency=_CONCURRENCY
        )
        extra: dict[str, Any] = {
            "ContentType": content_type(path.name),
            "Metadata": {"message-id": delivery.message_id, "export-sha256": delivery.facts.sha256},
        }
        if self.checksum != "none":
            extra["ChecksumAlgorithm"] = self.checksum
        doing = f"given {key}"
        self._ask(doing, lambda: client.upload_file(str(path), self.bucket, key, ExtraArgs=extra, Config=config))
        stored = self._ask(doing, lambda: client.head_object(Bucket=self.bucket, Key=key))["ContentLength"]
        if stored != path.stat().st_size:
            raise TransientError(
                f"s3://{self.bucket}/{key} holds {stored} bytes after the upload of {path.stat().st_size}; it is tried again."
            )

    def _forget_old_manifest(self, client: Any, delivery: Delivery) -> None:
        """While the objects of a restated export replace the old ones, no manifest must vouch for the mixture.

        A login that may only put cannot do this; then the old manifest's hash is what tells the receiver.
        """
        from botocore.exceptions import ClientError

        key = self._key(delivery, delivery.manifest)
        try:
            old = client.head_object(Bucket=self.bucket, Key=key)["Metadata"].get("export-sha256")
            if old != delivery.facts.sha256:
                client.delete_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            # To HEAD, a store answers 403 for what is not there, too, unless the login may list.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (403, 404):
                raise

    def _presigned(self, client: Any, key: str) -> str:
        parameters = {"Bucket": self.bucket, "Key": key}
        return str(client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=self.link_seconds))

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        login = {
            argument: resolve_secret(reference)
            for argument, reference in (
                ("aws_access_key_id", self.access_key_id),
                ("aws_secret_access_key", self.secret_access_key),
                ("aws_session_token", self.session_token),
            )
            if reference is not None
        }
        when = "when_required" if self.checksum == "none" else "when_supported"
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path" if self.path_style else "auto"},
            retries={"mode": "standard", "total_max_attempts": self.attempts},
            connect_timeout=min(self.timeout_seconds, 10.0),
            read_timeout=self.timeout_seconds,
            max_pool_connections=_CONCURRENCY + 1,
            request_checksum_calculation=when,
            response_checksum_validation=when,
        )
        verify = {"verify": str(self.ca_file)} if self.ca_file else {}
        return boto3.session.Session(region_name=self.region, **login).client(
            "s3", endpoint_url=self.endpoint, config=config, **verify
        )

    def _ask(self, doing: str, ask: Callable[[], Found]) -> Found:
        failure: Exception | None = None
        try:
            return ask()
        except (PermanentError, TransientError):
            raise
        except Exception as error:
            failure = self._translate(doing, error)
        # Outside the handler: botocore's errors hold the request, which must not travel along into a log.
        raise failure

    def _translate(self, doing: str, error: Exception) -> Exception:
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions

        if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, exceptions.ClientError):
            error = error.__context__
        said = f"The bucket {self.bucket} could not be {doing}"
        if isinstance(error, exceptions.ClientError):
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = str(error.response.get("Error", {}).get("Code", ""))
            quote = clean_text(f"{code} {error.response.get('Error', {}).get('Message', '')}")[:_LONGEST_QUOTE]
            if code in _TRANSIENT_CODES or status in (408, 429) or status >= 500:
                return TransientError(f"{said} (HTTP {status}, {quote}); try again later.")
            return PermanentError(
                f"{said} (HTTP {status}, {quote}); check bucket, region, credentials and the rights to put and get."
            )
        kind = type(error).__name__
        if isinstance(error, exceptions.SSLError):
            return PermanentError(f"{said}: its certificate was not accepted; check endpoint and ca_file.")
        if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError, OSError)):
            return TransientError(f"{said} ({kind}); check endpoint and network, it is tried again.")
        if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
            return PermanentError(f"{said}: no credentials were found; give access_key_id and secret_access_key as references.")
        return PermanentError(f"{said} ({kind}); check bucket, region, endpoint and credentials.")
