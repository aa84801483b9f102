"""Logging: metrics stay tensors until a line is written; CSV and TensorBoard can be continued at any step."""

import csv
import io
import logging
import os
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


def _fields_of(line: bytes) -> list[str] | None:
    """:return: the fields of one line; None if it is none, as of a block that was never written to disk."""
    try:
        text = line.decode().removesuffix("\r")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else next(csv.reader([text]), [])


class CSVFile(KVWriter):
    """A CSV log that keeps its earlier rows when it is opened again and grows columns as keys appear.

    Rows later than ``keep_until`` are dropped: they belong to steps that a resumed run will do again. Its values are
    numbers and words, without line breaks.

    :param path: the file
    :param key: the column that holds the step
    :param keep_until: last step whose rows stay
    """

    def __init__(self, path: Path, key: str = "time/total_timesteps", keep_until: int = 0) -> None:
        self.path, self.key = path, key
        self.rows: list[dict[str, str]] = []
        self.columns: list[str] = []
        if path.exists():
            self.rows = [row for row in self._sound_rows(keep_until) if int(row[key]) <= keep_until]
            self.columns = list(self.rows[0]) if self.rows else []
        self._rewrite()

    def _sound_rows(self, keep_until: int) -> list[dict[str, str]]:
        """Read what a power cut or an editor has left. Rows that are none are told, and kept in a copy beside the file.

        :raises ValueError: not even the names of the columns can be read
        """
        path, data = self.path, self.path.read_bytes()
        lines = data.split(b"\n")[:-1]  # a last line without its end was being written
        columns = _fields_of(lines[0]) if lines else None
        if columns == [] and len(lines) == 1:
            return []  # of a table in which nothing was written yet
        if columns is None or self.key not in columns:
            if not data and keep_until <= 0:
                return []
            raise ValueError(
                f"{path} is damaged: its first line does not name the columns; restore it, or move it away to go on "
                "without its rows"
            )
        parsed = [_fields_of(line) for line in lines[1:]]
        rows = [
            dict(zip(columns, row, strict=True)) if row is not None and len(row) == len(columns) else None
            for row in parsed
        ]
        sound = [row for row in rows if row is not None and row[self.key].isdecimal()]
        if len(sound) < len(rows):
            copy = path.with_name(f"{path.name}.damaged")
            copy.write_bytes(data)
            lost = len(rows) - len(sound)
            log.warning("%s: %d of %d rows are damaged and left out; %s holds them", path, lost, len(rows), copy)
        return sound

    def sync(self) -> None:
        """Wait until all rows are safely on disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

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
