"""S3 against moto's server over HTTP: multipart, checksums, the manifest last, a link that downloads."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.exports.delivery_data import ROWS, delivery_of
from tokentra_dagster.errors import PermanentError, TransientError, UsageError
from tokentra_dagster.exports.destinations.base import Allowances
from tokentra_dagster.exports.destinations.opening import open_destination
from tokentra_dagster.exports.destinations.s3 import SMALLEST_PART, S3Bucket

HERE = Allowances(plain_text=True)


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://127.0.0.1:{1}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def store(endpoint, monkeypatch):
    monkeypatch.setenv("EXPORT_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("EXPORT_KEY", "a-very-secret-key")
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="y"
    )
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    client.create_bucket(Bucket="exports", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return client


def settings(endpoint: str, /, **changes: object) -> dict[str, object]:
    return {
        "bucket": "exports",
        "prefix": "usage",
        "region": "eu-central-1",
        "endpoint": endpoint,
        "accessKeyId": "env:EXPORT_KEY_ID",
        "secretAccessKey": "env:EXPORT_KEY",
        "attempts": 1,
        **changes,
    }


def keys(store) -> list[str]:
    return [item["Key"] for item in store.list_objects_v2(Bucket="exports").get("Contents", [])]


def test_the_files_arrive_with_their_facts_and_the_link_downloads_them(store, endpoint, tmp_path):
    delivery = delivery_of(tmp_path, folder="acme/daily")
    before = datetime.now(UTC).replace(microsecond=0)
    delivered = S3Bucket.parse(settings(endpoint, link_seconds="3600"), HERE).deliver(delivery)
    assert delivered.where == "s3://exports/usage/acme/daily/usage_2026-01-01.csv"
    assert keys(store) == [f"usage/acme/daily/{path.name}" for path in delivery.all_files]
    head = store.head_object(Bucket="exports", Key=keys(store)[0])
    assert (head["ContentType"], head["Metadata"]) == (
        "text/csv; charset=utf-8",
        {"message-id": delivery.message_id, "export-sha256": delivery.facts.sha256},
    )
    assert before + timedelta(hours=1) <= delivered.link.expires_at <= datetime.now(UTC) + timedelta(hours=1)
    assert urllib.request.urlopen(delivered.link.url).read() == ROWS
    assert json.loads(urllib.request.urlopen(delivered.link.manifest_url).read())["sha256"] == delivery.facts.sha256
    assert "X-Amz-Expires=3600" in delivered.link.url
    assert "a-very-secret-key" not in delivered.link.url


def test_a_file_above_the_part_size_goes_up_in_parts_and_comes_back_the_same(store, endpoint, tmp_path):
    content = bytes(range(256)) * (2 * SMALLEST_PART // 256) + b"the last part"
    delivered = S3Bucket.parse(settings(endpoint, part_bytes=SMALLEST_PART), HERE).deliver(delivery_of(tmp_path, content))
    body = urllib.request.urlopen(delivered.link.url).read()
    assert hashlib.sha256(body).digest() == hashlib.sha256(content).digest()
    # The tag of an object that came in parts ends with how many there were.
    assert store.head_object(Bucket="exports", Key="usage/usage_2026-01-01.csv")["ETag"].strip('"').endswith("-3")
    assert store.list_multipart_uploads(Bucket="exports").get("Uploads", []) == []


@pytest.mark.parametrize("checksum", ["SHA256", "CRC32", "none"])
def test_the_checksum_that_was_asked_for_is_stored(store, endpoint, tmp_path, checksum):
    S3Bucket.parse(settings(endpoint, checksum=checksum), HERE).deliver(delivery_of(tmp_path))
    head = store.head_object(Bucket="exports", Key="usage/usage_2026-01-01.csv", ChecksumMode="ENABLED")
    found = {name for name in head if name.startswith("Checksum") and name != "ChecksumType"}
    assert found == ({f"Checksum{checksum}"} if checksum != "none" else set())


CRASH = """
import json, os, sys
from pathlib import Path
from tests.exports.delivery_data import delivery_of
from tokentra_dagster.exports.destinations.base import Allowances
from tokentra_dagster.exports.destinations.s3 import S3Bucket
real = S3Bucket._upload
def upload(self, client, path, delivery):
    if path == delivery.manifest:
        os._exit(9)
    real(self, client, path, delivery)
S3Bucket._upload = upload
S3Bucket.parse(json.loads(sys.argv[2]), Allowances(plain_text=True)).deliver(delivery_of(Path(sys.argv[1])))
"""


def test_a_process_killed_between_upload_and_manifest_leaves_no_manifest_and_a_retry_completes(store, endpoint, tmp_path):
    given = settings(endpoint)
    command = [sys.executable, "-c", CRASH, str(tmp_path), json.dumps(given)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], timeout=60).returncode == 9
    assert keys(store) == ["usage/usage_2026-01-01.csv"]

    S3Bucket.parse(given, HERE).deliver(delivery_of(tmp_path))
    assert keys(store) == ["usage/usage_2026-01-01.csv", "usage/usage_2026-01-01.csv.manifest.json"]


def test_a_repeat_leaves_the_same_objects(store, endpoint, tmp_path):
    bucket, delivery = S3Bucket.parse(settings(endpoint), HERE), delivery_of(tmp_path)
    first = bucket.deliver(delivery)
    assert bucket.deliver(delivery).where == first.where
    assert keys(store) == ["usage/usage_2026-01-01.csv", "usage/usage_2026-01-01.csv.manifest.json"]


def failing(monkeypatch, event: str, call: int) -> None:
    """The network fails under that call of boto3's client, counted from 1."""
    real, calls = S3Bucket._client, []

    def fail(**_: object) -> None:
        calls.append(event)
        if len(calls) >= call:
            raise ConnectionResetError("cable pulled")

    def client(self):
        found = real(self)
        found.meta.events.register(f"before-call.s3.{event}", fail)
        return found

    monkeypatch.setattr(S3Bucket, "_client", client)


def test_an_upload_that_fails_half_way_leaves_no_object_no_manifest_and_no_parts(store, endpoint, tmp_path, monkeypatch):
    failing(monkeypatch, "UploadPart", 2)
    content = b"0123456789abcdef" * (3 * SMALLEST_PART // 16)
    with pytest.raises(TransientError, match="tried again"):
        S3Bucket.parse(settings(endpoint, part_bytes=SMALLEST_PART), HERE).deliver(delivery_of(tmp_path, content))
    assert keys(store) == []
    assert store.list_multipart_uploads(Bucket="exports").get("Uploads", []) == []


def test_no_manifest_vouches_for_a_half_replaced_restatement(store, endpoint, tmp_path, monkeypatch):
    bucket = S3Bucket.parse(settings(endpoint), HERE)
    bucket.deliver(delivery_of(tmp_path / "first"))
    restated = delivery_of(tmp_path / "second", ROWS + b"2026-01-01,o3,5\n")
    with monkeypatch.context() as broken:
        failing(broken, "PutObject", 2)
        with pytest.raises(TransientError):
            bucket.deliver(restated)
    assert keys(store) == ["usage/usage_2026-01-01.csv"]
    bucket.deliver(restated)
    manifest = store.get_object(Bucket="exports", Key="usage/usage_2026-01-01.csv.manifest.json")["Body"].read()
    assert json.loads(manifest)["sha256"] == restated.facts.sha256


def chain(error: BaseException) -> str:
    """Every error that a log would show with this one."""
    return "" if error is None else f"{error!r} {chain(error.__cause__)} {chain(error.__context__)}"


@pytest.mark.parametrize("content", [ROWS, ROWS * 100_000], ids=["one piece", "in parts"])
def test_a_bucket_that_is_not_there_is_permanent_and_names_it_without_a_secret(store, endpoint, tmp_path, content):
    bucket = S3Bucket.parse(settings(endpoint, bucket="nowhere", part_bytes=SMALLEST_PART), HERE)
    with pytest.raises(PermanentError, match=r"nowhere could not be given .* \(HTTP 404, NoSuchBucket") as failure:
        bucket.deliver(delivery_of(tmp_path, content))
    assert "a-very-secret-key" not in chain(failure.value)
    assert failure.value.__context__ is None


def test_a_store_that_cannot_be_reached_is_transient(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPORT_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("EXPORT_KEY", "a-very-secret-key")
    with pytest.raises(TransientError, match="check endpoint and network"):
        S3Bucket.parse(settings("http://127.0.0.1:9"), HERE).deliver(delivery_of(tmp_path))


def test_a_reference_to_nothing_is_named(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPORT_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.delenv("EXPORT_KEY", raising=False)
    with pytest.raises(PermanentError, match="env:EXPORT_KEY cannot be read"):
        S3Bucket.parse(settings(endpoint), HERE).deliver(delivery_of(tmp_path))


def test_correction_41_the_specifications_row_with_the_secret_in_it_is_refused_without_showing_it():
    specifications = {
        "bucket": "exports",
        "prefix": "usage/",
        "region": "eu-central-1",
        "accessKeyId": "AKIAEXAMPLE",
        "secretAccessKey": "wJalrXUtnFEMI",
    }
    with pytest.raises(UsageError, match="env:NAME or file:PATH; the secret itself is never stored") as refused:
        open_destination("s3", specifications)
    assert "AKIAEXAMPLE" not in str(refused.value) and "wJalrXUtnFEMI" not in str(refused.value)
    assert "wJalrXUtnFEMI" not in repr(open_destination("s3", {**specifications, "accessKeyId": None, "secretAccessKey": None}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"link_seconds": 8 * 24 * 3600}, "from 60 to 604800"),
        ({"part_bytes": 1024}, "from 5242880 to"),
        ({"endpoint": "http://minio.example"}, "must start with https://"),
        ({"endpoint": "https://u:p@minio.example"}, "hold no login"),
        ({"secretAccessKey": None}, "belong together"),
        ({"checksum": "MD5"}, "SHA256, CRC32, none"),
        ({"acl": "public-read"}, "unknown setting 'acl'; known settings are bucket, prefix"),
        ({"bucket": None}, "bucket is missing; give e.g."),
        ({"path_style": "yes"}, "true or false"),
        ({"link_seconds": "nan"}, "must be a number"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(wrong, said):
    with pytest.raises(UsageError) as refused:
        S3Bucket.parse(settings("https://minio.example", **wrong))
    assert said in str(refused.value)
