"""Logging: metrics stay tensors until a line is written; CSV and TensorBoard can be continued at any step."""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from ...envs.schema import array, by_name, group, whole
from .files.replacing import replacing

log = logging.getLogger("headway")


class Metrics:
    """Running means of named scalar tensors, read only when a line is logged: an update never waits for a number.

    :param device: where the scalars are
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take up one update's scalars.

        :param values: name to scalar tensor
        """
        known = [name for name in values if name in self._sums]
        if known:  # in one call: a scalar's own addition takes longer than its sum
            with torch.no_grad():
                torch._foreach_add_([self._sums[name] for name in known], [values[name] for name in known])
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name], self._counts[name] = value.detach().clone(), 0
            self._counts[name] += 1

    def flush(self) -> dict[str, float]:
        """:return: the means since the last flush."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """:return: sums and counts, so that a resumed run logs the same means."""
        return {"sums": {k: v.clone() for k, v in self._sums.items()}, "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""
        group({"sums": by_name(array((), finite=False)), "counts": by_name(whole(1))})(state, "the metrics")
        if state["sums"].keys() != state["counts"].keys():
            raise ValueError("the metrics must hold a count for each sum")
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file that may still be written to.

    :param path: the file
    :return: its rows; not a last one without the end of its line, torn by a kill or being written
    """
    whole = path.read_bytes().rpartition(b"\n")[0].decode()
    return list(csv.DictReader(io.StringIO(whole)))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, all of it or nothing.

    :param path: the file
    :param columns: their names
    :param rows: their values
    """
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


class CSVFile(KVWriter):
    """A CSV log that keeps its earlier rows when it is opened again and grows columns as keys appear.

    Rows later than ``keep_until`` are dropped: they belong to steps that a resumed run will do again.

    :param path: the file
    :param key: the column that holds the step
    :param keep_until: last step whose rows stay
    """

    def __init__(self, path: Path, key: str = "time/total_timesteps", keep_until: int = 0) -> None:
        self.path, self.key = path, key
        self.rows: list[dict[str, str]] = []
        self.columns: list[str] = []
        if path.exists():
            self.rows = [row for row in read_csv(path) if int(row[key]) <= keep_until]
            self.columns = list(self.rows[0]) if self.rows else []
        self._rewrite()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row and write it out.

        :param row: column to value
        """
        new = [column for column in row if column not in self.columns]
        self.columns += new
        self.rows.append({column: str(value) for column, value in row.items()})
        if new:
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(self.rows[-1])

    def _rewrite(self) -> None:
        write_csv(self.path, self.columns, ([row.get(name, "") for name in self.columns] for row in self.rows))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one line of Stable-Baselines3's logger."""
        self.append({k: v for k, v in sorted(key_values.items()) if "csv" not in (key_excluded.get(k) or ())})

    def close(self) -> None:
        """Nothing is held open."""


class TensorBoardFile(TensorBoardOutputFormat):
    """TensorBoard events that hide what an earlier, interrupted process wrote beyond the step it is resumed from.

    :param folder: where the events go
    :param keep_until: last step that stays visible
    """

    def __init__(self, folder: str, keep_until: int) -> None:
        self.writer = SummaryWriter(log_dir=folder, purge_step=keep_until + 1)
        self._is_closed = False


def run_logger(folder: Path, *, keep_until: int = 0, table: bool = False) -> Logger:
    """Build the logger of a run folder: TensorBoard events and ``progress.csv``.

    :param folder: the run's folder
    :param keep_until: last environment step whose rows stay; 0 for a new run
    :param table: also print Stable-Baselines3's table to the terminal
    :return: the logger, for ``agent.set_logger``
    """
    import sys

    formats: list[KVWriter] = [
        TensorBoardFile(str(folder), keep_until),
        CSVFile(folder / "progress.csv", keep_until=keep_until),
    ]
    if table:
        formats.append(HumanOutputFormat(sys.stdout))
    return Logger(str(folder), formats)
