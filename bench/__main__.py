"""Run the benchmarks: all of them, or those named (`python -m bench load rollup memory`)."""

from __future__ import annotations

import sys


def main(names: list[str]) -> None:
    from bench import analytics, analytics_quality, events, exports, functions, live, load, memory, quotas, rollup

    known = {
        "analytics": analytics.run, "events": events.run, "exports": exports.run, "functions": functions.run, "live": live.run,
        "load": load.run, "memory": memory.run, "quality": analytics_quality.run, "quotas": quotas.run, "rollup": rollup.run,
    }  # fmt: skip
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"No benchmark is named {', '.join(unknown)}; there are {', '.join(known)}.")
    for name in names or known:
        known[name]()


main(sys.argv[1:])
