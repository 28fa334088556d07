"""Quotas before a request (specification 8, correction 31): check, reserve, settle, release, and counters that usage corrects."""

from tokentra_dagster.quotas.reservations import (
    Decision,
    QuotaRefused,
    QuotaViolation,
    QuotaWarning,
    Request,
    Reservation,
    Settlement,
    check,
    release,
    reserve,
    reserved,
    settle,
)

__all__ = [
    "Decision",
    "QuotaRefused",
    "QuotaViolation",
    "QuotaWarning",
    "Request",
    "Reservation",
    "Settlement",
    "check",
    "release",
    "reserve",
    "reserved",
    "settle",
]
