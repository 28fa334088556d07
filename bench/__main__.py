"""Run the benchmarks: all but the long ones, or those named (`python -m bench load rollup memory`)."""

from __future__ import annotations

import sys
from importlib import import_module

MODULES = (
    "analytics", "collector", "events", "export_memory", "exports", "functions", "live", "load", "memory", "analytics_quality", "quotas", "rollup",
)  # fmt: skip
NAMES = {"analytics_quality": "quality"}
LONG = {"export_memory"}


def main(names: list[str]) -> None:
    known = {NAMES.get(module, module): module for module in MODULES}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"No benchmark is named {', '.join(unknown)}; there are {', '.join(known)}.")
    for name in names or [name for name in known if name not in LONG]:
        import_module(f"bench.{known[name]}").run()


main(sys.argv[1:])
