"""`python -m tests.exports.killed_delivery URL RUN HOME [STEP]`: delivers one due export, and is killed for good when it reaches STEP."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from uuid import UUID

from tests.exports.scheduled_data import HERE
from tokentra_dagster.exports.scheduled.deliver import deliver_due
from tokentra_dagster.warehouse.database import Database


def main(url: str, run: str, home: str, last_step: str = "") -> None:
    def die(step: str) -> None:
        if step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    deliver_due(Database(url), UUID(run), Path(home), HERE, at_step=die)


if __name__ == "__main__":
    main(*sys.argv[1:])
