"""Alerts: what is raised, once per subject, level and period, and to which channels it goes (specification section 8, docs/alerts.md)."""
