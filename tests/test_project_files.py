"""What nothing else runs: the compose file against the settings, the workspace, the constraints, the package a user installs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import click
import pytest
import yaml

from tokentra_dagster.settings import INTERNAL, KNOWN, SECRET_PREFIX, Settings

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def _option(command: click.Command, flag: str) -> click.Parameter:
    return next(parameter for parameter in command.params if flag in parameter.opts)


def test_the_compose_file_sets_only_settings_that_exist_and_they_are_accepted():
    environment = {
        name: re.sub(r"\$\{[A-Z_]+:\?[^}]*\}", "secret", str(value))
        for name, value in COMPOSE["services"]["platform"]["environment"].items()
    }
    ours = {name for name in environment if name.startswith("TOKENTRA_")}
    assert ours <= set(KNOWN)
    chosen = Settings.from_environment(environment)
    assert chosen.database_url is not None and "@postgres:5432/" in chosen.database_url


def test_the_compose_file_joins_the_platform_to_the_database_it_starts():
    postgres, platform = COMPOSE["services"]["postgres"], COMPOSE["services"]["platform"]
    user, name = postgres["environment"]["POSTGRES_USER"], postgres["environment"]["POSTGRES_DB"]
    assert platform["environment"]["TOKENTRA_DATABASE_URL"].startswith(f"postgresql://{user}:")
    assert platform["environment"]["TOKENTRA_DATABASE_URL"].endswith(f"@postgres:5432/{name}")
    assert int(postgres["image"].partition(":")[2]) >= 15
    assert platform["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert set(COMPOSE["volumes"]) == {volume.partition(":")[0] for part in (postgres, platform) for volume in part["volumes"]}
    for name in ("DAGSTER_DISABLE_TELEMETRY", "DBT_SEND_ANONYMOUS_USAGE_STATS", "DO_NOT_TRACK"):
        assert name in platform["environment"]


@pytest.mark.parametrize("service", ["platform", "collector"])
def test_the_compose_file_starts_a_command_that_exists_with_options_that_exist(service: str):
    from tokentra_dagster.cli import cli

    program, command, *arguments = COMPOSE["services"][service]["command"]
    assert program == "tokentra"
    port = arguments[arguments.index("--port") + 1]
    for flag in (argument for argument in arguments if argument.startswith("--")):
        _option(cli.commands[command], flag)
    assert COMPOSE["services"][service]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_image_copies_what_the_build_needs_and_nothing_that_is_missing():
    lines = COMPOSE["services"]["platform"]["build"]["dockerfile_inline"].splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert {"constraints.txt", "pyproject.toml", "setup.py", "tokentra_dagster", "dbt_project"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert (
        "ignored"
        not in subprocess.run(["git", "status", "--short", "--", *copied], cwd=ROOT, capture_output=True, text=True).stdout
    )


def test_the_workspace_names_the_module_with_the_definitions():
    module = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"][0]["python_module"]["module_name"]
    assert (
        module
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dagster"]["module_name"]
        == "tokentra_dagster.definitions"
    )


def test_every_dependency_is_pinned_and_no_host_is_named():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[A-Za-z0-9.+!]+", line), line
            name, _, version = line.partition("==")
            pinned[re.sub(r"[-_.]+", "-", name).lower()] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    for requirement in [*project["dependencies"], *extras]:
        if requirement.startswith(f"{project['name']}["):
            continue
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name and re.sub(r"[-_.]+", "-", name[0]).lower() in pinned, f"{requirement} is not in constraints.txt"
    assert pinned["dbt-core"].startswith("1.11.")


def test_no_committed_file_names_a_path_of_a_developers_machine():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    machine = re.compile(rb"/wor[k]/|/roo[t]/|index-ur[l]")
    guilty = [name for name in names if (ROOT / name).is_file() and machine.search((ROOT / name).read_bytes())]
    assert guilty == []


def test_settings_are_documented_where_people_read():
    operating = (ROOT / "docs" / "operating.md").read_text()
    assert [name for name in KNOWN if name not in operating] == []
    assert SECRET_PREFIX in operating
    assert not set(KNOWN) & INTERNAL


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_an_installed_package_holds_migrations_and_the_dbt_project(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    project = [path.relative_to(ROOT) for path in (ROOT / "dbt_project").rglob("*.sql") if "target" not in path.parts]
    assert project and {f"tokentra_dagster/{path.as_posix()}" for path in project} <= names
    migrations = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tokentra_dagster/warehouse/migrations").glob("*.sql")}
    assert "tokentra_dagster/warehouse/migrations/initial.sql" in migrations and migrations <= names
    for name in ("dbt_project/dbt_project.yml", "dbt_project/profiles.yml", "py.typed"):
        assert f"tokentra_dagster/{name}" in names
    assert not [name for name in names if "/target/" in name or name.startswith(("tests/", "bench/"))]


def test_an_installed_package_finds_its_dbt_project_inside_itself(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import tokentra_dagster.transform as t; print(t.project_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "tokentra_dagster" / "dbt_project"), done.stderr
