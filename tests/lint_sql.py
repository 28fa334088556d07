"""`make lint`, its SQL part: sqlfluff over the dbt project with dbt's own templater, on an empty migrated database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tokentra_dagster.dbt_manifest import project_folder
from tokentra_dagster.runtime import environment
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database
from tokentra_dagster.warehouse.embedded import EmbeddedServer
from tokentra_dagster.warehouse.migrate import migrate


def main() -> int:
    """The exit status of sqlfluff. The templater compiles each model as dbt does, which asks the database about it."""
    folder = Path(tempfile.mkdtemp(prefix="tokentra-lint-"))
    folder.chmod(0o755)
    settings = Settings.from_environment({"TOKENTRA_HOME": str(folder / "var")})
    server = EmbeddedServer(settings.home)
    try:
        database = Database(server.start())
        migrate(database)
        env = {
            **os.environ,
            **environment(settings, database),
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "logs"),
        }
        command = [
            str(Path(sys.executable).parent / "sqlfluff"),
            "lint",
            "--disable-progress-bar",
            *sys.argv[1:],
            "models",
            "tests",
            "macros",
        ]
        return subprocess.run(command, cwd=project_folder(), env=env, check=False).returncode
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
