"""Only what pyproject.toml cannot say: an installed package carries the dbt project inside it, a checkout has it beside."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

LEFT_OUT = shutil.ignore_patterns("target", "logs", ".user.yml", "*.pyc")


class BuildWithDbtProject(build_py):
    """`tokentra_dagster/dbt_project` in the wheel; an editable install reads the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "tokentra_dagster" / "dbt_project"
            shutil.copytree(Path(__file__).parent / "dbt_project", target, ignore=LEFT_OUT, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithDbtProject})
