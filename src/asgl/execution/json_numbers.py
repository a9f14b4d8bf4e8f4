"""Regular expressions of the JSON numbers within bounds, exact to the last digit.

A number is compared as its readers will: an integer as it stands, everything else as the double
nearest to it. Zero is never written with a minus.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import TypeVar

from asgl.errors import GrammarError
from asgl.execution.rules import Terminal

_DIGITS = 18
"""So many digits has an integer, or the part before the point, where no bound asks for more."""
_PLACES = 15
"""So many digits follow the point, where no bound asks for more."""
_LONGEST = 400
"""Bounds with more digits are refused. The largest double has 309, the smallest 324 places."""
_MOST_DIGITS = 100
_MOST_PLACES = 40
"""No number has more digits before and after the point than this: bounds beyond are moved in."""
_EXACT = 2**53
"""Below it, a double says which integer is meant."""
_EXACT_DIGITS = 15
"""Decimal numbers of so many digits survive the way through a double."""
_STATES = 20_000
_LARGEST = Decimal(10**_MOST_DIGITS - 1)
_WIDE = Context(prec=3 * _LONGEST, Emax=10_000, Emin=-10_000)

Number = int | float
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NumberRange:
    """What a number must be. A bound that is None bounds nothing."""

    integer: bool = False
    low: Number | None = None
    above: Number | None = None
    """As `low`, itself excluded."""
    high: Number | None = None
    below: Number | None = None
    """As `high`, itself excluded."""
    multiple_of: tuple[Number, ...] = ()
    digits: int | None = None
    """At most so many digits, before and after the point together."""
    places: int | None = None
    """At most so many digits after the point."""

    def __and__(self, other: NumberRange) -> NumberRange:
        return NumberRange(
            self.integer or other.integer,
            _either(max, self.low, other.low),
            _either(max, self.above, other.above),
            _either(min, self.high, other.high),
            _either(min, self.below, other.below),
            tuple(dict.fromkeys(self.multiple_of + other.multiple_of)),
            _either(min, self.digits, other.digits),
            _either(min, self.places, other.places),
        )

    def fits(self, value: Number) -> bool:
        """Whether the value is one of these numbers."""
        return (
            not (self.integer and isinstance(value, float) and not value.is_integer())
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
            and all(
                _WIDE.remainder(_decimal(value), _decimal(divisor)) == 0
                for divisor in self.multiple_of
            )
        )

    def terminals(self, terminal: Callable[[str], Terminal]) -> list[Terminal]:
        """Terminals that these numbers fit, each of them one. None if there are no such numbers.

        `terminal` makes one of a regular expression in Lark's notation. GrammarError for bounds
        that are too long, and for multiples that doubles cannot tell from others.
        """
        for bound in (self.low, self.above, self.high, self.below, *self.multiple_of):
            if bound is not None and abs(_decimal(bound).adjusted()) > _LONGEST:
                raise GrammarError(f"a bound of more than {_LONGEST} digits")
        places = self._places()
        low, high = self._low(places), self._high(places)
        low, high = low and max(low, _LARGEST.copy_negate()), high and min(high, _LARGEST)
        if (low or 0) > _LARGEST or (high or 0) < _LARGEST.copy_negate():
            raise GrammarError(f"a bound that asks for more than {_MOST_DIGITS} digits")
        if self.multiple_of:
            return _multiples(self._divisor(), low, high, terminal)
        if low is None and high is None and self.digits is None and self.places is None:
            whole = f"(0|-?[1-9][0-9]{{0,{_DIGITS - 1}}})"
            if self.integer:
                return [terminal(f"/{whole}/")]
            return [
                terminal(
                    rf"/-?(0|[1-9][0-9]{{0,{_EXACT_DIGITS - 1}}})"
                    rf"(\.[0-9]{{1,{_PLACES}}})?([eE][+-]?[0-9]{{1,2}})?/"
                )
            ]
        smallest = Decimal(1).scaleb(-places)
        found: list[Terminal] = []
        for sign, least, most in (
            ("", low, high),
            ("-", high and high.copy_negate(), None if low is None else low.copy_negate()),
        ):
            least = max(least or Decimal(0), smallest if sign else Decimal(0))
            if most is None or least <= most:
                found.append(self._unsigned(sign, least, most, places, terminal))
        return found

    def _places(self) -> int:
        """The digits after the point that tell the bounds apart."""
        if self.integer:
            return 0
        if self.places is not None or self.digits is not None:
            return min(_either(min, self.places, self.digits) or 0, _LONGEST)
        # what is next to an excluded bound differs from it in the 17th significant digit
        places = _PLACES
        for bound in (self.low, self.high):
            if bound is not None:
                places = max(places, -_exponent(_decimal(bound)))
        for bound in (self.above, self.below):
            if bound is not None and bound != 0:
                places = max(places, 17 - _decimal(bound).adjusted())
        least, most = _either(max, self.low, self.above), _either(min, self.high, self.below)
        if least is not None and most is not None and least < most:
            # there is a number between bounds that are close to each other
            distance = _WIDE.subtract(_decimal(most), _decimal(least))
            places = max(places, 2 - distance.adjusted())
        return min(places, _MOST_PLACES)

    def _low(self, places: int) -> Decimal | None:
        """The least decimal number of so many places, None without a bound."""
        bounds: list[Decimal] = []
        if self.low is not None:
            bounds.append(_bound(self.low))
        if self.above is not None:
            bounds.append(_next(self.above, math.inf, places, self.integer))
        return _rounded(max(bounds), places, ROUND_CEILING) if bounds else None

    def _high(self, places: int) -> Decimal | None:
        """The greatest decimal number of so many places, None without a bound."""
        bounds: list[Decimal] = []
        if self.high is not None:
            bounds.append(_bound(self.high))
        if self.below is not None:
            bounds.append(_next(self.below, -math.inf, places, self.integer))
        return _rounded(min(bounds), places, ROUND_FLOOR) if bounds else None

    def _divisor(self) -> Decimal:
        """What all these numbers are multiples of."""
        divisors = [_decimal(divisor) for divisor in self.multiple_of]
        if self.integer:
            divisors.append(Decimal(1))
        scale = max(0, *(-_exponent(divisor) for divisor in divisors))
        for divisor in self.multiple_of:
            if Decimal(divisor) != _decimal(divisor):
                raise GrammarError(
                    f"multipleOf {divisor!r}: a double cannot tell its multiples from other "
                    "numbers. Use integers, or a fraction like 0.5 or 0.25"
                )
        scaled = math.lcm(*(int(divisor.scaleb(scale, _WIDE)) for divisor in divisors))
        return Decimal(scaled).scaleb(-scale, _WIDE)

    def _unsigned(
        self,
        sign: str,
        least: Decimal,
        most: Decimal | None,
        places: int,
        terminal: Callable[[str], Terminal],
    ) -> Terminal:
        """The sign, and a number from `least` to `most`, both of them 0 or more."""
        length = max(_DIGITS, len(_whole(least)))
        if most is not None:
            length = len(_whole(most))
        fits = [_at_least(least, length, places)]
        if most is not None:
            fits.append(_at_most(most, places))
        if self.digits is not None:
            fits.append(
                "|".join(
                    rf"[0-9]{{1,{whole}}}" + _fraction(min(places, self.digits - whole))
                    for whole in range(1, self.digits + 1)
                    if self.places is None or whole <= max(1, self.digits - self.places)
                )
            )
        names = " & ".join(terminal(f"/{expression}/").name for expression in fits)
        return terminal(f'"{sign}" ({names})')


def integer_limits(bits: int, signed: bool) -> NumberRange:
    """The integers of so many bits."""
    low = -(2 ** (bits - 1)) if signed else 0
    return NumberRange(True, low=low, high=2 ** (bits - signed) - 1)


def _either(choose: Callable[[T, T], T], one: T | None, other: T | None) -> T | None:
    if one is None or other is None:
        return other if one is None else one
    return choose(one, other)


def _decimal(value: Number) -> Decimal:
    """The value as it is written."""
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))


def _exponent(value: Decimal) -> int:
    exponent = value.normalize(_WIDE).as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


def _whole(value: Decimal) -> str:
    """The digits before the point."""
    return str(int(value))


def _rounded(value: Decimal, places: int, rounding: str) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-places, _WIDE), rounding, _WIDE)


def _bound(bound: Number) -> Decimal:
    """The decimal number that others are compared with.

    A fraction becomes a double, so that the digits of the bound as it is written will do. An
    integer is compared with what the bound's double really is, which differs from what is written
    where doubles are more than 1 apart.
    """
    return _decimal(bound) if abs(bound) < _EXACT else Decimal(bound)


def _next(bound: Number, towards: float, places: int, integer: bool) -> Decimal:
    """The first decimal number beyond the bound that a reader tells from it."""
    step = Decimal(1).scaleb(-places, _WIDE)
    rounding = ROUND_FLOOR if towards > 0 else ROUND_CEILING
    exact = _rounded(Decimal(bound), places, rounding)
    beyond = _WIDE.add(exact, step if towards > 0 else step.copy_negate())
    if integer:
        return beyond
    try:
        double = Decimal(math.nextafter(float(bound), towards))
    except OverflowError:
        return beyond
    if not double.is_finite():
        raise GrammarError(f"no number is beyond {bound!r}")
    return max(beyond, double) if towards > 0 else min(beyond, double)


def _fraction(places: int) -> str:
    """A point and digits, or nothing."""
    return rf"(\.[0-9]{{1,{places}}})?" if places > 0 else ""


def _digits(count: int, least: int = 0) -> str:
    """At least and at most so many digits."""
    return f"[0-9]{{{least},{count}}}" if count else ""


def _upwards(digits: str) -> list[str]:
    """Expressions of as many digits, together greater than these."""
    return [
        f"{digits[:at]}[{int(digit) + 1}-9][0-9]{{{len(digits) - at - 1}}}"
        for at, digit in enumerate(digits)
        if digit != "9"
    ]


def _downwards(digits: str, first: str) -> list[str]:
    """Expressions of as many digits, together less than these, the first digit from `first`."""
    return [
        f"{digits[:at]}[{lowest}-{int(digit) - 1}][0-9]{{{len(digits) - at - 1}}}"
        for at, digit in enumerate(digits)
        if digit > (lowest := "0" if at else first)
    ]


def _at_least(value: Decimal, length: int, places: int) -> str:
    """Decimal numbers from the value up, with at most `length` digits before the point."""
    whole, part = _parts(value, places)
    above = _upwards(whole)
    if len(whole) < length:
        above.append(f"[1-9][0-9]{{{len(whole)},{length - 1}}}")
    found = [f"({'|'.join(above)}){_fraction(places)}"] if above else []
    stem = part.rstrip("0")
    if not stem:
        found.append(whole + _fraction(places))
    else:
        tails = [
            f"{stem[:at]}[{int(digit) + 1}-9]{_digits(places - at - 1)}"
            for at, digit in enumerate(stem)
            if digit != "9"
        ]
        tails.append(stem + _digits(places - len(stem)))
        found.append(rf"{whole}\.({'|'.join(tails)})")
    return "|".join(found)


def _at_most(value: Decimal, places: int) -> str:
    """Decimal numbers from 0 up to the value."""
    whole, part = _parts(value, places)
    below = _downwards(whole, "1" if len(whole) > 1 else "0")
    if len(whole) > 1:
        below.append("0")
    if len(whole) > 2:
        below.append(f"[1-9][0-9]{{0,{len(whole) - 2}}}")
    elif len(whole) == 2:
        below.append("[1-9]")
    found = [f"({'|'.join(below)}){_fraction(places)}"] if below else []
    found.append(whole)
    tails = [
        f"{part[:at]}[0-{int(digit) - 1}]{_digits(places - at - 1)}"
        for at, digit in enumerate(part)
        if digit != "0"
    ]
    tails += (part[: at + 1] for at in range(places))
    if tails:
        found.append(rf"{whole}\.({'|'.join(tails)})")
    return "|".join(found)


def _parts(value: Decimal, places: int) -> tuple[str, str]:
    """The digits before the point, and so many after it."""
    whole, _, part = f"{value:f}".partition(".")
    return whole.lstrip("0") or "0", part.ljust(places, "0")[:places]


def _multiples(
    divisor: Decimal,
    low: Decimal | None,
    high: Decimal | None,
    terminal: Callable[[str], Terminal],
) -> list[Terminal]:
    """Terminals of the multiples from `low` to `high`, which have as many places as the divisor."""
    places = max(0, -_exponent(divisor))
    step = int(divisor.scaleb(places, _WIDE))
    most = 10 ** (_EXACT_DIGITS if places else _DIGITS) - 1
    least = -most if low is None else int(_rounded(low.scaleb(places, _WIDE), 0, ROUND_CEILING))
    last = most if high is None else int(_rounded(high.scaleb(places, _WIDE), 0, ROUND_FLOOR))
    if low is None and high is not None:
        least = min(least, last - most)
    if high is None and low is not None:
        last = max(last, least + most)
    multiples = _Multiples(step, places, terminal)
    found = [multiples.between(max(least, 0), last, "")] if last >= 0 else []
    if least < 0:
        found.append(multiples.between(max(-last, 1), -least, "-"))
    return [one for one in found if one is not None]


class _Multiples:
    """Terminals of the multiples of an integer, a point before the last `places` digits.

    A terminal speaks of the digits that are left, and of what they must add up to: a state of the
    automaton that divides digit by digit.
    """

    def __init__(self, step: int, places: int, terminal: Callable[[str], Terminal]) -> None:
        self._step = step
        self._places = places
        self._terminal = terminal
        self._known: dict[tuple[int, int, str | None, str | None], str | None] = {}

    def between(self, least: int, last: int, sign: str) -> Terminal | None:
        """The sign, and a multiple from `least` to `last`, both 0 or more."""
        options: list[str] = []
        shortest = self._places + 1
        for length in range(shortest, max(len(str(last)), shortest) + 1):
            first = 10 ** (length - 1) if length > shortest else 0
            low, high = max(least, first), min(last, 10**length - 1)
            if low <= high:
                name = self._tail(length, 0, str(low).zfill(length), str(high).zfill(length))
                if name is not None:
                    options.append(name)
        if not options:
            return None
        return self._terminal(f'"{sign}" ({" | ".join(options)})')

    def _tail(self, left: int, sum_: int, low: str | None, high: str | None) -> str | None:
        """The name of a terminal of `left` digits, which with `sum_` before them are a multiple.

        They are `low` or more and `high` or less, None: whatever they are. None if there are none.
        """
        if left == 0:
            return '""' if sum_ == 0 else None
        key = (left, sum_ * pow(10, left) % self._step, low, high)
        if key in self._known:
            return self._known[key]
        if len(self._known) > _STATES:
            raise GrammarError(f"multipleOf {self._step}: too many cases to tell apart")
        point = '"." ' if left == self._places else ""
        options: list[str] = []
        start, stop = int(low[0]) if low else 0, int(high[0]) if high else 9
        for digit in range(start, stop + 1):
            tail = self._tail(
                left - 1,
                (sum_ * 10 + digit) % self._step,
                low[1:] if low and digit == start else None,
                high[1:] if high and digit == stop else None,
            )
            if tail is not None:
                options.append(f'{point}"{digit}" {tail}')
        name = self._terminal(" | ".join(options)).name if options else None
        self._known[key] = name
        return name
