"""`tokentra collect` as a process of its own, as people run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
    """Starts when it is made; `url` answers from then on."""

    def __init__(self, database_url: str, home: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        env = {
            **os.environ,
            "TOKENTRA_DATABASE_URL": database_url,
            "TOKENTRA_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokentra_dagster.cli", "collect", "--port", str(port)],
            env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == f"Collector: {self.url}/v1/events\n", said + self.process.stdout.read()
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/ready", timeout=5) as answer:
                assert answer.status == 200
                return

    def end(self, number: int) -> str:
        """Send the signal and wait; returns what the process said meanwhile."""
        self.process.send_signal(number)
        try:
            said, _ = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            raise AssertionError(f"it did not end: {said}") from None
        return said

    def kill(self) -> None:
        self.end(signal.SIGKILL)
