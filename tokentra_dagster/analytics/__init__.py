"""Analytics over small frames: pure functions, one module per concern (specification 4, 5, 6, 7, 9, 11).

Nothing here knows a database or Dagster. What is read comes through `sources.UsageSource`; results are frozen dataclasses with
the specification's field names in snake_case, and `results.as_json` gives them its own camelCase names.
"""
