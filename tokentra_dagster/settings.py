"""The environment as one frozen, typed `Settings`. An unknown `TOKENTRA_*` name or a bad value raises and lists what is known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tokentra_dagster.errors import SettingsError

PREFIX = "TOKENTRA_"
KNOWN = {
    "TOKENTRA_DATABASE_URL": "postgresql:// address of your own server (15 or newer); unset: an embedded PostgreSQL 18 is used",
    "TOKENTRA_HOME": "folder for the embedded database, Dagster's files and logs (default: var in the current folder)",
    "TOKENTRA_DATABASE_PORT": "port of the embedded database on 127.0.0.1 (default: one that is free, then kept)",
    "TOKENTRA_UI_PORT": "port of the Dagster UI on 127.0.0.1 (default: 3000)",
    "TOKENTRA_COLLECTOR_PORT": "port of the collector of events on 127.0.0.1, or 0: `tokentra up` starts none (default: 4318)",
    "TOKENTRA_DBT_MANIFEST": "manifest.json that `dbt parse` made beforehand, as for an image; used while no file of the project is newer",
    "TOKENTRA_RETENTION_MINUTE_DAYS": "days that records of minutes are kept, or forever (default: 90)",
    "TOKENTRA_RETENTION_RAW_DAYS": "days that records of any width are kept, then by whole months, or forever (default: 400)",
    "TOKENTRA_RETENTION_HOURLY_DAYS": "days that hourly rollups are kept, or forever (default: 90)",
    "TOKENTRA_RETENTION_DAILY_DAYS": "days that daily rollups are kept, or forever (default: 731, two years)",
    "TOKENTRA_RETENTION_ALERTS_DAYS": "days that alerts which no longer hold are kept, or forever (default: 400)",
    "TOKENTRA_RETENTION_QUOTA_EVENTS_DAYS": "days that single refusals and corrections of quotas are kept, or forever (default: 90)",
    "TOKENTRA_RETENTION_EXPORTS_DAYS": "days that the history of scheduled exports is kept, or forever (default: 400)",
    "TOKENTRA_DELIVERY_PLAIN_TEXT": "yes: exports and alerts may go to http:// addresses and to SMTP without TLS (default: no)",
    "TOKENTRA_DELIVERY_PRIVATE_TARGETS": "yes: webhooks may go to private and loopback addresses (default: no)",
}
FEWEST_DAYS = 8
# Set by our own commands for dbt and Dagster; a person never needs them.
INTERNAL = {f"TOKENTRA_PG_{part}" for part in ("HOST", "PORT", "USER", "PASSWORD", "DBNAME")} | {
    "TOKENTRA_DAGSTER_URL",
    "TOKENTRA_VERSION",
}
# Names a person may choose for secrets that connections point at (env:NAME).
SECRET_PREFIX = "TOKENTRA_SECRET_"  # noqa: S105 - a name, not a secret


@dataclass(frozen=True, slots=True)
class RetentionDays:
    """How many days each kind of usage, and the histories of alerts, quotas and scheduled exports are kept; None is for ever. `raw` is
    about all records, minutes' included."""

    minute: int | None = 90
    raw: int | None = 400
    hourly: int | None = 90
    daily: int | None = 731
    alerts: int | None = 400
    quota_events: int | None = 90
    exports: int | None = 400


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are, and how long. `database_url` None means the embedded server under `home`."""

    home: Path
    database_url: str | None
    database_port: int | None
    ui_port: int
    collector_port: int | None = 4318
    """None: `tokentra up` starts no collector."""
    retention: RetentionDays = RetentionDays()
    delivery_plain_text: bool = False
    delivery_private_targets: bool = False
    dbt_manifest: Path | None = None
    """A manifest that was made beforehand."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read and check the environment. Raises `SettingsError` naming the offending name, its value and what is known."""
        env = os.environ if environ is None else environ
        for name in sorted(env):
            if name.startswith(PREFIX) and name not in KNOWN and name not in INTERNAL and not name.startswith(SECRET_PREFIX):
                known = ", ".join(sorted(KNOWN))
                raise SettingsError(f"{name} is not a setting. Known: {known}. Secrets may be named {SECRET_PREFIX}...")
        url = env.get("TOKENTRA_DATABASE_URL") or None
        if url is not None and not url.startswith(("postgresql://", "postgres://")):
            raise SettingsError(
                "TOKENTRA_DATABASE_URL must start with postgresql://, e.g. postgresql://user:password@host:5432/tokentra"
            )
        return cls(
            home=Path(env.get("TOKENTRA_HOME") or "var").absolute(),
            database_url=url,
            database_port=_port(env, "TOKENTRA_DATABASE_PORT"),
            ui_port=_port(env, "TOKENTRA_UI_PORT") or 3000,
            collector_port=None if env.get("TOKENTRA_COLLECTOR_PORT") == "0" else _port(env, "TOKENTRA_COLLECTOR_PORT") or 4318,
            retention=_retention(env),
            delivery_plain_text=_yes(env, "TOKENTRA_DELIVERY_PLAIN_TEXT"),
            delivery_private_targets=_yes(env, "TOKENTRA_DELIVERY_PRIVATE_TARGETS"),
            dbt_manifest=Path(made).absolute() if (made := env.get("TOKENTRA_DBT_MANIFEST")) else None,
        )


def _port(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise SettingsError(f"{name} is {text!r}; it must be a port number from 1 to 65535")
    return int(text)


def _yes(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name) or "no"
    if text not in ("yes", "no"):
        raise SettingsError(f"{name} is {text!r}; it must be yes or no")
    return text == "yes"


def _retention(env: Mapping[str, str]) -> RetentionDays:
    kept = RetentionDays()
    chosen = {name: _days(env, f"{PREFIX}RETENTION_{name.upper()}_DAYS", days) for name, days in asdict(kept).items()}
    for shorter, longer in (("minute", "raw"), ("hourly", "daily")):
        few, many = chosen[shorter], chosen[longer]
        if many is not None and (few is None or few > many):
            raise SettingsError(
                f"{PREFIX}RETENTION_{shorter.upper()}_DAYS is {few or 'forever'} and "
                f"{PREFIX}RETENTION_{longer.upper()}_DAYS {many}; the first must not be the longer."
            )
    return RetentionDays(**chosen)


def _days(env: Mapping[str, str], name: str, default: int | None) -> int | None:
    text = env.get(name)
    if not text:
        return default
    if text == "forever":
        return None
    if not text.isascii() or not text.isdigit() or not FEWEST_DAYS <= int(text) <= 36500:
        raise SettingsError(f"{name} is {text!r}; it must be a number of days from {FEWEST_DAYS} to 36500, or forever.")
    return int(text)
