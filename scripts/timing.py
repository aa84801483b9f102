"""What benchmarks of speed share: sides that take turns, what they ran on, and how that is printed and written."""

import contextlib
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from tqdm import tqdm

from . import runs
from .machine import origin

NOT_INSTALLED = "not installed"
"""In the place of a package's version."""


class Absent(Exception):
    """A side that cannot be measured here; the message says why."""


class Runner(Protocol):
    """What can be timed."""

    def run(self, count: int, /) -> Any:
        """Do something so many times; it is done when this returns."""


S = TypeVar("S", bound=Runner)


@dataclass(frozen=True)
class Timed(Generic[S]):
    """One side and its turns.

    :param name: of the side
    :param rows: that it runs at once
    :param side: it
    :param count: how often it does what it does, in a turn
    :param laps: by round, what :meth:`Runner.run` returned, and the seconds that it took
    """

    name: str
    rows: int
    side: S
    count: int
    laps: list[tuple[Any, float]] = field(default_factory=list)


def need_cuda() -> None:
    """See that there is a GPU.

    :raises Absent: there is none
    """
    if not torch.cuda.is_available():
        raise Absent("torch finds no CUDA device")


def finish(device: torch.device | str) -> None:
    """Wait for what was asked of a GPU; a CPU is never behind."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


# -- Turns -----------------------------------------------------------------------------------------------------------


def take_turns(
    what: str,
    planned: Sequence[tuple[str, int]],
    make: Callable[[str, int], S],
    rounds: int,
    seconds: float,
    *,
    warm_up: int = 0,
    least: int = 1,
) -> tuple[list[Timed[S]], list[tuple[str, int, str]]]:
    """Time several sides in one process, in turn: A B A B …, so that a slow minute hits all.

    :param what: is timed, for the progress bar
    :param planned: names of sides and their numbers of rows, in the order of their turns
    :param make: makes a side ready, from its name and rows; :class:`Absent` leaves it out
    :param rounds: in each of which every side has its turn
    :param seconds: length of a turn, about: it is a fixed count, found beforehand
    :param warm_up: count before anything is timed
    :param least: count of a turn, at least
    :return: the sides that there are; and name, rows and reason of those that are absent
    """
    timed: list[Timed[S]] = []
    absent: list[tuple[str, int, str]] = []
    with _progress(what, len(planned) * (1 + rounds)) as bar:
        for name, rows in planned:
            _say(bar, f"preparing {name}, {rows}")
            try:
                side = make(name, rows)
            except Absent as reason:
                absent.append((name, rows, str(reason)))
                bar.total = (bar.total or 0) - rounds
            else:
                side.run(warm_up)
                timed.append(Timed(name, rows, side, _count_in(seconds, side, least)))
            bar.update()
        for _ in range(rounds):
            for each in timed:
                _say(bar, f"{each.name}, {each.rows}")
                each.laps.append(_lap(each.side, each.count))
                bar.update()
    return timed, absent


def _lap(side: Runner, count: int) -> tuple[Any, float]:
    """:return: what it returned, and the seconds that it took."""
    start = time.perf_counter()
    done = side.run(count)
    return done, time.perf_counter() - start


def _count_in(seconds: float, side: Runner, least: int) -> int:
    """:return: how often a side does what it does in so many seconds; at least ``least``."""
    count = least
    while True:
        _, elapsed = _lap(side, count)
        if elapsed > 0.25 * seconds:
            return max(least, round(count * seconds / elapsed))
        count *= 2


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator["tqdm[Any]"]:
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=what,
        bar_format="{desc}: {percentage:3.0f}% |{bar:20}| {remaining} left{postfix}",
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        mininterval=0.2 if terminal else 10.0,
        leave=False,
    ) as bar:
        yield bar


def _say(bar: "tqdm[Any]", text: str) -> None:
    bar.set_postfix_str(text, refresh=sys.stderr.isatty())


# -- Parts -------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Adds up the time spent in methods, each without what is in another that is watched."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time each call from now on.

        :param owner: an object
        :param method: its
        :param name: that its time is added under
        """
        plain = getattr(owner, method)
        self.seconds.setdefault(name, 0.0)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                self.seconds[name] += whole - self._inner.pop()
                self._inner[-1] += whole

        setattr(owner, method, timed)


# -- Conditions ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def noted(threads: int, packages: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Note what something is timed under; meanwhile, what others print goes to stderr.

    :param threads: of torch, until the end of the block; 0 leaves torch's own choice
    :param packages: whose versions are noted besides those that agents are saved with
    :return: "command", "machine", "versions", "torch_threads", "load_before" and, after the block, "load_after"
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        found = {**origin(), "torch_threads": torch.get_num_threads(), "load_before": os.getloadavg()[0]}
        found["versions"] |= {name: _version(name) for name in packages}
        with contextlib.redirect_stdout(sys.stderr):
            yield found
    finally:
        torch.set_num_threads(before)
    found["load_after"] = os.getloadavg()[0]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def place(conditions: dict[str, Any]) -> str:
    """:return: processor, cores and GPU, for people."""
    on = conditions["machine"]
    return f"{on['processor']}, {on['cores']} cores{', ' + on['gpu'] if on['gpu'] else ''}"


def print_conditions(title: str, conditions: dict[str, Any]) -> None:
    """Print what something was timed under.

    :param title: what was timed
    :param conditions: see :func:`noted`
    """
    load = (conditions["load_before"], conditions["load_after"])
    print(f"{title}\n{conditions['command']}")
    print(f"{place(conditions)}; torch threads {conditions['torch_threads']}; load {load[0]:.2f}, then {load[1]:.2f}")
    installed = {name: version for name, version in conditions["versions"].items() if version != NOT_INSTALLED}
    print(", ".join(f"{name} {version}" for name, version in installed.items()))


# -- Figures and files -----------------------------------------------------------------------------------------------


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """:return: "median [least, greatest]", each in a format such as ``,.0f``."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def in_json(measurements: Sequence[Any]) -> list[dict[str, Any]]:
    """:return: dataclasses with a ``median``, as they are written."""
    return [asdict(m) | {"median": m.median} for m in measurements]


def write_json(path: Path | None, conditions: dict[str, Any], options: Any, content: dict[str, Any]) -> None:
    """Write what was measured, and say so.

    :param path: the file; None: nothing is written
    :param conditions: see :func:`noted`
    :param options: a dataclass of flags
    :param content: what was measured
    """
    if path is None:
        return
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    runs.write_json(path, conditions | {"options": settings} | content)
    print(f"measurements: {path}")
