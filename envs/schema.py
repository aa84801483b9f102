"""What data read from a file must be: checks of presence, type, range and fit, which name the place in their errors.

A check is called with a value and with the words for where it stands, and raises a ``ValueError`` in one line. Small
ones are put together to larger ones::

    check = group({"steps": whole(), "returns": array((4,), "float64"), "law": maybe(text("gamma", "wifi"))})
    check(state, "the collector's state")
"""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
from torch import Tensor

Check: TypeAlias = Callable[[Any, str], None]

LARGEST = 2**63 - 1
"""Of whole numbers, where nothing less is known: what an int64 holds."""


def _refuse(where: str, expected: str, value: Any) -> NoReturn:
    if isinstance(value, (Tensor, np.ndarray)):
        got = f"{_dtype(value)} of shape {tuple(value.shape)}"
    else:
        got = " ".join(reprlib.repr(value).split())
    raise ValueError(f"{where} must be {expected}, got {got}")


def _dtype(value: Tensor | np.ndarray[Any, Any]) -> str:
    return str(value.dtype).removeprefix("torch.")


def whole(low: int = 0, high: int = LARGEST) -> Check:
    """:return: a check for an integer, Python's or NumPy's, from ``low`` to ``high``."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
            _refuse(where, f"a whole number from {low} to {high}", value)

    return check


def real(low: float = -math.inf, high: float = math.inf, *, finite: bool = True, above: bool = False) -> Check:
    """:return: a check for a number, Python's or NumPy's, from ``low`` to ``high``; never NaN.

    :param finite: refuse infinities
    :param above: refuse ``low`` itself
    """

    def check(value: Any, where: str) -> None:
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        sound = number and low <= value <= high and not (above and value == low)
        if not sound or (finite and isinstance(value, (float, np.floating)) and not math.isfinite(value)):
            left = "over" if above else "from"
            _refuse(where, f"a {'finite ' if finite else ''}number {left} {low:g} to {high:g}", value)

    return check


def flag(value: Any, where: str) -> None:
    """Check for a truth value, Python's or NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        _refuse(where, "true or false", value)


def text(*choices: str) -> Check:
    """:return: a check for a text; one of some, where they are given."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or (choices and value not in choices):
            _refuse(where, f"one of {', '.join(choices)}" if choices else "a text", value)

    return check


def maybe(check: Check) -> Check:
    """:return: a check that lets None pass too."""
    return lambda value, where: None if value is None else check(value, where)


def either(*checks: Check) -> Check:
    """:return: a check that lets pass what one of several does; the last one's error is told."""

    def check(value: Any, where: str) -> None:
        for attempt in checks[:-1]:
            try:
                return attempt(value, where)
            except ValueError:
                continue
        checks[-1](value, where)

    return check


def each(check: Check, length: int | None = None) -> Check:
    """:return: a check for a list or a tuple, of a length if one is given, whose items another check takes."""

    def check_all(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
            _refuse(where, "a list" if length is None else f"a list of {length}", value)
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return check_all


def row(*checks: Check) -> Check:
    """:return: a check for a list or a tuple with an item for each of some checks."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or len(value) != len(checks):
            _refuse(where, f"a list of {len(checks)}", value)
        for index, (item, one) in enumerate(zip(value, checks, strict=True)):
            one(item, f"{where}[{index}]")

    return check


def by_name(check: Check) -> Check:
    """:return: a check for a mapping from texts to what another check takes."""

    def check_all(value: Any, where: str) -> None:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            _refuse(where, "names and values", value)
        for name, item in value.items():
            check(item, f"{where}[{name!r}]")

    return check_all


def group(checks: Mapping[str, Check], *, optional: Sequence[str] = (), others: bool = False) -> Check:
    """:return: a check for a mapping with a check for each of its names.

    :param checks: by name
    :param optional: names that may be missing
    :param others: let names pass that have no check
    """

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            _refuse(where, "names and values", value)
        missing = [name for name in checks if name not in value and name not in optional]
        odd = [name for name in value if name not in checks and not others]
        if missing or odd:
            what = f"lacks {missing[0]!r}" if missing else f"has an unknown {reprlib.repr(odd[0])}"
            raise ValueError(f"{where} {what}; it holds {', '.join(checks)}")
        for name, one in checks.items():
            if name in value:
                one(value[name], f"{where}[{name!r}]")

    return check


def array(
    shape: Sequence[int | None] | None,
    *dtypes: str,
    low: float = -math.inf,
    high: float = math.inf,
    finite: bool = True,
) -> Check:
    """:return: a check for a tensor or an array.

    :param shape: that it must have, None for an axis of any length; None: any shape
    :param dtypes: by name, one of which it must have; none: any
    :param low: smallest number
    :param high: largest number
    :param finite: refuse NaN and infinities
    """

    def check(value: Any, where: str) -> None:
        sizes = "any shape" if shape is None else f"shape {tuple('*' if n is None else n for n in shape)}"
        kinds = " or ".join(dtypes) or "numbers"
        if not isinstance(value, (Tensor, np.ndarray)) or (dtypes and _dtype(value) not in dtypes):
            _refuse(where, f"{kinds} of {sizes}", value)
        fits = shape is None or len(shape) == value.ndim
        if not fits or any(n not in (None, m) for n, m in zip(shape or (), value.shape, strict=False)):
            _refuse(where, f"{kinds} of {sizes}", value)
        check_numbers(value, where, low, high, finite=finite)

    return check


def check_numbers(
    value: Tensor | np.ndarray[Any, Any],
    where: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    finite: bool = True,
) -> None:
    """See that all numbers of a tensor or an array lie in a range, without another array of its size.

    :param value: of any shape
    :param where: what errors call it
    :param low: smallest number
    :param high: largest number
    :param finite: refuse NaN and infinities
    :raises ValueError: one does not
    """
    size = value.numel() if isinstance(value, Tensor) else value.size
    floats = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
    if size == 0 or (not (finite and floats) and low == -math.inf and high == math.inf):
        return
    least, most = value.min().item(), value.max().item()  # both are NaN where one number is
    if finite and not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(f"{where} holds NaN or infinity, as after training has diverged: use an earlier file")
    if not low <= least <= most <= high:
        raise ValueError(f"{where} must lie from {low:g} to {high:g}, it reaches from {least:g} to {most:g}")
