"""Money keeps its currency; in the organisation's own it is a rate's work, or unknown."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from tests.warehouse_data import DAY, connection, load, record, rows

ONE_DAY = timedelta(days=1)


def test_cost_in_the_organisations_currency_uses_the_rate_of_the_day_or_the_newest_before_and_is_unknown_without(database, build):
    row = connection(database)
    with database.connect() as db:
        db.execute("UPDATE app.organizations SET currency = 'EUR'")
        db.cursor().executemany(
            "INSERT INTO app.exchange_rates (from_currency, to_currency, rate_date, rate, source) VALUES (%s, %s, %s, %s, 'ECB')",
            [
                ("USD", "EUR", DAY, Decimal("0.9")),
                ("USD", "EUR", DAY + 2 * ONE_DAY, Decimal("0.8")),
                ("USD", "EUR", DAY + 9 * ONE_DAY, Decimal("0.1")),
                ("EUR", "USD", DAY - ONE_DAY, Decimal("5")),
                ("GBP", "EUR", DAY + ONE_DAY, Decimal("1.2")),
            ],
        )

    def cost(day: int, currency: str, amount: str | None, **fields):
        reported = None if amount is None else Decimal(amount)
        return record(DAY + day * ONE_DAY, currency=currency, reported_cost=reported, **fields)

    items = [
        cost(0, "USD", "10"),
        cost(1, "USD", "10", user_id="ann"),
        cost(1, "USD", "20", request_type="batch"),
        cost(3, "USD", "10"),
        cost(0, "EUR", "7"),
        cost(0, "GBP", "10"),
        cost(1, "GBP", "10"),
        cost(-1, "USD", "10"),
        cost(2, "EUR", None, model="orion-preview-1"),
    ]
    load(database, row, items, DAY - ONE_DAY, DAY + 4 * ONE_DAY)
    build()
    found = rows(
        database,
        "SELECT (date - %s::date) AS day, currency, estimated_cost, exchange_rate, (rate_date - %s::date) AS rate_day, "
        "cost_in_org_currency, missing_rate FROM daily_cost_in_org_currency ORDER BY date, currency",
        DAY,
        DAY,
    )
    assert [tuple(r.values()) for r in found] == [
        (-1, "USD", 10, None, None, None, True),
        (0, "EUR", 7, 1, 0, 7, False),
        (0, "GBP", 10, None, None, None, True),
        (0, "USD", 10, Decimal("0.9"), 0, 9, False),
        (1, "GBP", 10, Decimal("1.2"), 1, 12, False),
        (1, "USD", 30, Decimal("0.9"), 0, 27, False),
        (2, "EUR", None, 1, 2, None, False),
        (3, "USD", 10, Decimal("0.8"), 2, 8, False),
    ]
