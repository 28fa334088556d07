"""Sync and import: what sources say, into the raw schema, a window at a time."""
