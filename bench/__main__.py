"""Run the benchmarks: all but the long one, or those named (`python -m bench load rollup memory`)."""

from __future__ import annotations

import sys


def main(names: list[str]) -> None:
    from bench import analytics, analytics_quality, events, export_memory, exports, functions, load, memory, quotas, rollup

    known = {
        "analytics": analytics.run, "events": events.run, "export_memory": export_memory.run, "exports": exports.run, "functions": functions.run, "load": load.run,
        "memory": memory.run, "quality": analytics_quality.run, "quotas": quotas.run, "rollup": rollup.run,
    }  # fmt: skip
    long = {"export_memory"}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"No benchmark is named {', '.join(unknown)}; there are {', '.join(known)}.")
    for name in names or [name for name in known if name not in long]:
        known[name]()


main(sys.argv[1:])
