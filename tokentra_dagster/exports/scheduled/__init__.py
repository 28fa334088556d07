"""Exports that are due by a schedule: which, when, of which period, and delivered once (docs/exports-scheduled.md)."""
