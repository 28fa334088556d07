"""The embedded server: survives the command that started it, refuses strangers, stops on request."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tokentra_dagster.warehouse.embedded import EmbeddedServer


@pytest.fixture
def home() -> Iterator[Path]:
    """Not pytest's own folder: another pytest that starts meanwhile makes that one private again."""
    folder = Path(tempfile.mkdtemp(prefix="tokentra-test-"))
    folder.chmod(0o755)
    yield folder / "var"
    shutil.rmtree(folder, ignore_errors=True)


def test_it_survives_the_process_that_started_it_and_stops_on_request(home: Path) -> None:
    code = f"from pathlib import Path; from tokentra_dagster.warehouse.embedded import EmbeddedServer; print(EmbeddedServer(Path({str(home)!r})).start())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    server = EmbeddedServer(home)
    try:
        assert server.url() == started.stdout.strip()
        with psycopg.connect(started.stdout.strip()) as connection:
            version = connection.execute("SHOW server_version_num").fetchone()
        assert version is not None and int(version[0]) >= 180000
    finally:
        assert server.stop() is True
    assert server.url() is None
    assert server.stop() is False


def test_two_commands_at_once_start_one_server_and_a_wrong_password_is_refused(home: Path) -> None:
    server = EmbeddedServer(home)
    try:
        with ThreadPoolExecutor(4) as pool:
            urls = set(pool.map(lambda _: EmbeddedServer(home).start(), range(4)))
        assert len(urls) == 1
        url = urls.pop()
        password = url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url.replace(password, "guess"))
        assert oct(server.address_file.stat().st_mode & 0o777) == "0o600"
    finally:
        server.stop()


def test_a_server_that_died_is_started_again_whatever_its_file_says(home: Path) -> None:
    """A pid that is somebody else's by now, a file that was half written: neither is a running server."""
    server = EmbeddedServer(home)
    url = server.start()
    try:
        pid_file = server.data / "postmaster.pid"
        said = pid_file.read_text()
        assert server.stop()
        lines = said.splitlines()
        lines[0] = str(os.getpid())
        for left in ("", "12", "\n".join(lines)):
            pid_file.write_text(left)
            assert server.url() is None
        ended = subprocess.Popen(["true"])
        ended.wait()
        pid_file.write_text("\n".join([str(ended.pid), *lines[1:]]))
        assert server.start() == url and server.url() == url
    finally:
        server.stop()


def test_asking_whether_it_runs_starts_no_program(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedServer(home)
    url = server.start()
    try:
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a program was started"))
        assert server.url() == url == server.start()
        monkeypatch.undo()
    finally:
        server.stop()
