"""The dbt project: where it is, and its manifest as it is on disk now. Imports neither Dagster nor dbt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tokentra_dagster.runtime import TELEMETRY_OFF
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.retention import Rollup

PLACEHOLDERS = {f"TOKENTRA_PG_{part}": "1" for part in ("HOST", "PORT", "USER", "PASSWORD", "DBNAME")}


def project_folder() -> Path:
    """The dbt project: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "dbt_project"
    return inside if inside.exists() else Path(__file__).parent.parent / "dbt_project"


def target_folder(settings: Settings) -> Path:
    return settings.home / "dbt" / "target"


def ensure_manifest(settings: Settings) -> Path:
    """The manifest of the project as it is on disk now; `dbt parse` runs only when a file is newer. Needs no database.

    Several processes may ask at once: one parses, beside what the others read, and its manifest takes the old one's place whole.
    """
    import fasteners

    target = target_folder(settings)
    manifest = target / "manifest.json"
    for made in (settings.dbt_manifest, manifest):
        if made is not None and _is_current(made):
            return made
    target.mkdir(parents=True, exist_ok=True)
    with fasteners.InterProcessLock(target.parent / ".parse.lock"):
        if not _is_current(manifest):
            _parse_into(target)
    return manifest


def _is_current(manifest: Path) -> bool:
    project = project_folder()
    # Folders, too: a file that was removed shows in nothing else.
    sources = [
        path
        for path in project.rglob("*")
        if (path.suffix in (".sql", ".yml", ".csv") or path.is_dir())
        and not {"target", "logs"} & set(path.relative_to(project).parts)
    ]
    return manifest.exists() and max(path.stat().st_mtime for path in sources) <= manifest.stat().st_mtime


def _parse_into(target: Path) -> None:
    project, fresh = str(project_folder()), target.parent / "parsed"
    command = [
        dbt_executable(), "--quiet", "parse", "--project-dir", project, "--profiles-dir", project,
        "--target-path", str(fresh), "--log-path", str(target.parent / "logs"),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**PLACEHOLDERS, **os.environ, **TELEMETRY_OFF}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"dbt parse failed:\n{done.stdout}\n{done.stderr}")
    (fresh / "manifest.json").touch()
    (fresh / "manifest.json").replace(target / "manifest.json")


def rollups(settings: Settings) -> list[Rollup]:
    """Every model that follows the changes of usage, as the project says: retention waits for all of them, and expires those
    with a `window_column` (`meta: kept_longer_days` where a later day looks back at them)."""
    nodes = json.loads(ensure_manifest(settings).read_text())["nodes"].values()
    return [
        Rollup(
            node["alias"], node["schema"], node["config"].get("window_column"),
            int(node["config"].get("meta", {}).get("kept_longer_days", 0)),
        )
        for node in nodes
        if node["resource_type"] == "model" and any("end_changes" in hook["sql"] for hook in node["config"]["post-hook"])
    ]  # fmt: skip


def dbt_executable() -> str:
    """The dbt of this environment, whatever PATH says."""
    return str(Path(sys.executable).parent / "dbt")
