"""A receiver over HTTPS, a mail server, and a database with two organisations."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.alerts.alert_data import Post, mail_server
from tests.exports.delivery_data import Authority
from tests.exports.https_receiver import SECRET, Receiver, receiving
from tokentra_dagster.warehouse.directory import add_organization


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.made_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def receiver(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving(authority.server_side("localhost")) as receiver:
        monkeypatch.setenv("HOOK_SECRET", SECRET)
        monkeypatch.setenv("SLACK_URL", receiver.url())
        yield receiver


@pytest.fixture
def post() -> Iterator[Post]:
    with mail_server() as post:
        yield post


@pytest.fixture
def acme(database) -> UUID:
    with database.connect() as db:
        return add_organization(db, "acme")[0]


@pytest.fixture
def globex(database) -> UUID:
    with database.connect() as db:
        return add_organization(db, "globex")[0]
