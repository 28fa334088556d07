"""Lines of a bill: those of some days summed by what they were for, and what cannot be read rejected with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, Protocol, TypeVar

from tokentra_dagster.providers.payload import BadItem
from tokentra_dagster.records import CostRecord, Item, RejectedItem

Row = Mapping[str, Any]
MeasuredT = TypeVar("MeasuredT", contravariant=True)
ChargeT = TypeVar("ChargeT", bound="Charge")


class Charge(Protocol):
    """What lines that are summed share."""

    @property
    def day(self) -> datetime: ...

    def __hash__(self) -> int: ...


class Sums(Protocol[MeasuredT]):
    def add(self, measured: MeasuredT, /) -> None: ...


SumsT = TypeVar("SumsT", bound=Sums[Any])


@dataclass(frozen=True, slots=True)
class Measured:
    """What a line charges, at list price, and for how much; None where it does not say."""

    amount: Decimal
    list_amount: Decimal | None
    quantity: Decimal | None


@dataclass(slots=True)
class Amounts:
    """The sums of `Measured`."""

    amount: Decimal = Decimal(0)
    list_amount: Decimal | None = None
    quantity: Decimal | None = None

    def add(self, measured: Measured, /) -> None:
        self.amount += measured.amount
        self.list_amount = plus(self.list_amount, measured.list_amount)
        self.quantity = plus(self.quantity, measured.quantity)


@dataclass(slots=True)
class BillLines(Generic[ChargeT, SumsT]):
    """The lines of the days of `[first, last)`. `name` is the export's, in the reason of what is rejected."""

    name: str
    first: datetime
    last: datetime
    empty: Callable[[], SumsT]
    cost: Callable[[ChargeT, SumsT], CostRecord]
    _sums: dict[ChargeT, SumsT] = field(default_factory=dict)
    _rejected: list[RejectedItem] = field(default_factory=list)

    def add(
        self,
        found: Iterable[Row],
        charge: Callable[[Row], ChargeT],
        measured: Callable[[Row], Any],
        place: Mapping[str, str],
    ) -> None:
        """`charge` and `measured` read a line and raise `BadItem`; `place` says where the lines are, e.g. their file."""
        for row in found:
            try:
                one = charge(row)
                if self.first <= one.day < self.last:
                    said = measured(row)
                    self._sums.setdefault(one, self.empty()).add(said)
            except BadItem as bad:
                payload = {**place} | {name: str(value) for name, value in row.items() if value is not None}
                self._rejected.append(RejectedItem(reason=f"{self.name}: {bad}", payload=payload))

    def items(self) -> Iterator[Item]:
        """What was rejected, then a record for each charge."""
        yield from self._rejected
        for one, summed in self._sums.items():
            yield self.cost(one, summed)


def plus(total: Decimal | None, value: Decimal | None) -> Decimal | None:
    """Their sum; what is not known adds nothing."""
    return total if value is None else (total or Decimal(0)) + value
