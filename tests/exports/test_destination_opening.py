"""From a row to a destination; a message with a link to files that are in the bucket first; secret references; retries."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.exports.delivery_data import ROWS, Authority, delivery_of
from tests.exports.https_receiver import SECRET, receiving, status
from tokentra_dagster.errors import PermanentError, TransientError, UsageError
from tokentra_dagster.exports.destinations import local, s3, smtp, webhook
from tokentra_dagster.exports.destinations.base import Allowances, Retries
from tokentra_dagster.exports.destinations.local import LocalFolder
from tokentra_dagster.exports.destinations.opening import open_destination
from tokentra_dagster.secret_references import resolve_secret

HERE = Allowances(plain_text=True, private_targets=True)


@pytest.fixture
def store(monkeypatch):
    """The settings of a bucket that is there."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
    monkeypatch.setenv("EXPORT_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("EXPORT_KEY", "a-very-secret-key")
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")
    client.create_bucket(Bucket="exports")
    yield {
        "bucket": "exports",
        "region": "us-east-1",
        "endpoint": endpoint,
        "access_key_id": "env:EXPORT_KEY_ID",
        "secret_access_key": "env:EXPORT_KEY",
        "attempts": 1,
    }
    server.stop()


def test_a_webhook_with_a_store_announces_a_link_under_which_the_whole_export_is(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    authority = Authority.made_in(tmp_path)
    delivery = delivery_of(tmp_path / "made")
    with receiving(authority.server_side("localhost")) as receiver:
        receiver.script = [status(503)]
        given = {
            "webhookUrl": receiver.url(),
            "secret": "env:HOOK_SECRET",
            "ca_file": str(authority.file),
            "first_pause_seconds": 0.01,
            "store": store,
        }
        delivered = open_destination("webhook", given, HERE).deliver(delivery)
        [event] = receiver.accepted
    assert (delivered.attempts, delivered.message_id) == (2, delivery.message_id)
    assert urllib.request.urlopen(event["downloadUrl"]).read() == ROWS
    assert urllib.request.urlopen(event["manifestUrl"]).read() == delivery.manifest.read_bytes()
    assert delivered.link.url == event["downloadUrl"]


def test_nothing_is_announced_when_the_files_cannot_be_stored(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    authority = Authority.made_in(tmp_path)
    with receiving(authority.server_side("localhost")) as receiver:
        given = {"webhook_url": receiver.url(), "secret": "env:HOOK_SECRET", "ca_file": str(authority.file)}
        broken = {**store, "bucket": "nowhere"}
        with pytest.raises(PermanentError, match="nowhere"):
            open_destination("webhook", {**given, "store": broken}, HERE).deliver(delivery_of(tmp_path / "made"))
        assert receiver.requests == []


def test_download_is_the_local_folder(tmp_path):
    assert open_destination("download", {"folder": str(tmp_path)}) == LocalFolder(tmp_path)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("ftp", {}, "'ftp' is not known; it must be one of download, email, s3, webhook"),
        ("webhook", {"webhook_url": "https://x.example/", "secret": "env:S"}, "store is missing"),
        ("webhook", {"webhook_url": "https://x.example/", "secret": "env:S", "store": "exports"}, "settings of a bucket"),
        ("webhook", {"webhook_url": "https://x.example/", "webhookUrl": "https://y.example/"}, "webhook_url is given twice"),
        (
            "email",
            {"email": "a@x.example", "sender": "b@x.example", "host": "h", "store": {"bukket": "x"}},
            "unknown setting 'bukket'",
        ),
    ],
)
def test_a_wrong_row_is_refused_in_one_sentence(method, given, said):
    with pytest.raises(UsageError) as refused:
        open_destination(method, given)
    assert said in str(refused.value)


def test_what_is_no_reference_may_be_the_secret_and_is_not_shown():
    for text in ("sk-live-123", "env:", "file:", "https://user:sk-live-123@x"):
        with pytest.raises(PermanentError, match="env:NAME or file:PATH") as refused:
            resolve_secret(text)
        assert "sk-live-123" not in str(refused.value)


def test_a_reference_is_read_from_the_environment_or_a_file_and_named_when_it_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET", " s1\n")
    (tmp_path / "key").write_text("s2\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert (resolve_secret("env:A_SECRET"), resolve_secret(f"file:{tmp_path}/key")) == ("s1", "s2")
    for name in ("empty", "missing", "binary"):
        with pytest.raises(PermanentError, match=f"{name} cannot be read"):
            resolve_secret(f"file:{tmp_path}/{name}")


def fails(times: int, retry_after: float | None = None):
    def attempt(number: int) -> int:
        if number <= times:
            raise TransientError(f"attempt {number}", retry_after)
        return number

    return attempt


def test_pauses_double_with_half_of_each_at_random_and_are_bounded():
    pauses: list[float] = []
    assert Retries(attempts=6, first_pause=1, longest_pause=5).run(fails(5), pauses.append) == 6
    for pause, most in zip(pauses, [1, 2, 4, 5, 5], strict=True):
        assert most / 2 <= pause <= most


def test_a_receivers_wish_is_a_lower_bound_of_the_pause_and_the_last_failure_is_raised():
    pauses: list[float] = []
    with pytest.raises(TransientError, match="attempt 3"):
        Retries(attempts=3, first_pause=1, longest_pause=60).run(fails(9, retry_after=7), pauses.append)
    assert pauses == [7, 7]


def test_a_permanent_failure_is_not_tried_again():
    def attempt(number: int) -> None:
        raise PermanentError(f"attempt {number}")

    with pytest.raises(PermanentError, match="attempt 1"):
        Retries().run(attempt, lambda _: pytest.fail("it paused"))


def test_every_setting_and_every_field_of_the_event_is_documented(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "exports-destinations.md").read_text()
    for known in (local.KNOWN, s3.KNOWN, smtp.KNOWN, webhook.KNOWN, webhook.event_of(delivery_of(tmp_path))):
        assert [name for name in known if f"`{name}`" not in page] == []
