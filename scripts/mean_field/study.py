"""What ``headway mfg learn`` does to games and seeds, and what it writes, prints and draws of them."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from stable_baselines3.common.logger import configure

from ...agents.core.config import Config
from ...agents.core.logging import read_csv, write_csv
from ...agents.mean_field import DeepSolution, Iteration, log_iterations
from ...envs.mean_field import MFGame, solve
from .draw_curves import Curve, learning_curves, median_curve
from .files import as_folder, save_tensors
from .learners import ALGORITHMS

POLICY = "policy.safetensors"
"""Written when a run is finished."""


class Row(NamedTuple):
    """A line of ``exploitability.csv``."""

    game: str
    algorithm: str
    seed: int | None
    """None: of the exact algorithm"""
    iteration: int
    steps: int | None
    """Environment steps since the beginning"""
    seconds: float
    """Since the beginning"""
    exploitability: float


READ = {"seed": int, "iteration": int, "steps": int, "seconds": float, "exploitability": float}
"""How numbers in a line are read; the other columns are texts."""


def read_rows(file: Path) -> list[Row]:
    """Read ``exploitability.csv``.

    :param file: the file; a last line that was just being written is left out
    :return: its lines
    :raises ValueError: it was edited
    """
    try:
        return [Row(**{name: _value(name, text) for name, text in line.items()}) for line in read_csv(file)]
    except (ValueError, TypeError) as cause:
        raise ValueError(f"{file} is broken ({cause}): restore it, or start anew with another --out") from cause


def _value(name: str, text: str) -> Any:
    return None if text == "" and name in ("seed", "steps") else READ.get(name, str)(text)


@dataclass(frozen=True)
class Plan:
    """What to run.

    :param algorithm: a key of ``ALGORITHMS``
    :param config: its settings
    :param games: by name
    :param seeds: one run each, of each game
    :param iterations: of each run
    :param exact: whether to run the exact algorithm as well
    :param progress: show progress bars
    """

    algorithm: str
    config: Config
    games: Mapping[str, MFGame]
    seeds: Sequence[int]
    iterations: int
    exact: bool
    progress: bool


def _is_whole(file: Path) -> bool:
    try:
        return {"policy", "flow"} <= load_file(file).keys()
    except (OSError, SafetensorError):
        return False


class Study:
    """Runs of a deep solver, and the folder that they are written to.

    :param folder: the folder; what is finished in it is kept
    :param plan: what to run
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.algorithm = ALGORITHMS[plan.algorithm]
        self.exact, self.exact_parameters = self.algorithm.exact(plan.config)
        self.file = folder / "exploitability.csv"
        self.rows: list[Row] = []
        self._keep(read_rows(self.file) if self.file.exists() else [])
        self.failed = 0

    def place(self, game: str, seed: int) -> Path:
        """:return: the folder of a run."""
        return self.folder / as_folder(game) / f"seed-{seed}"

    def finished(self, game: str, seed: int | None) -> bool:
        """:return: whether a run is; None: the exact algorithm's."""
        last = (game, seed, self.plan.iterations)
        recorded = any((row.game, row.seed, row.iteration) == last for row in self.rows)
        return recorded and (seed is None or _is_whole(self.place(game, seed) / POLICY))

    def _keep(self, rows: list[Row]) -> None:
        """Write the file anew, with these lines."""
        write_csv(self.file, Row._fields, map(_cells, rows))
        self.rows = rows

    def add(self, row: Row) -> None:
        """Write a line; it is on disk when this returns."""
        with self.file.open("a", newline="") as file:
            csv.writer(file).writerow(_cells(row))
        self.rows.append(row)

    def run(self) -> None:
        """Do what is not finished.

        :raises KeyboardInterrupt: the user has had enough; what is finished is written
        """
        for name, game in self.plan.games.items():
            for seed in (*[None] * self.plan.exact, *self.plan.seeds):
                if self.finished(name, seed):
                    print(f"{name}, {_which(seed)}: finished before")
                    continue
                self._keep([row for row in self.rows if (row.game, row.seed) != (name, seed)])  # what was cut off
                if seed is None:
                    self._run_exact(name, game)
                else:
                    self._run_seed(name, game, seed)

    def _run_exact(self, name: str, game: MFGame) -> None:
        iterations, progress = self.plan.iterations, self.plan.progress
        found = solve(game, self.exact, iterations, progress=progress, interruptible=True, **self.exact_parameters)
        history = found.history
        for k, seconds, value in zip(history.iterations, history.seconds, history.exploitability.tolist(), strict=True):
            self.add(Row(name, self.exact, None, k, None, seconds, value))
        if found.interrupted:
            raise KeyboardInterrupt

    def _run_seed(self, name: str, game: MFGame, seed: int) -> None:
        place = self.place(name, seed)
        for old in place.glob("events.out.tfevents.*"):  # of a run that was cut off
            old.unlink()
        try:
            solution = self._learn(name, game, seed, place)
        except ValueError as error:
            self.failed += 1
            print(f"{name}, {_which(seed)}: failed: {error}")
            return
        if solution.interrupted:
            raise KeyboardInterrupt
        for p, learner in enumerate(solution.learners):
            learner.save(place / f"learner-{p}.zip")
        save_tensors(place / POLICY, {"policy": solution.policy, "flow": solution.flow})
        history = solution.history
        print(f"{name}, {_which(seed)}: NashConv {float(solution.exploitability):.6g}", end="")
        print(f" after {history.iterations[-1]} iterations, {history.steps[-1]:,} steps, {history.seconds[-1]:.3g} s")

    def _learn(self, name: str, game: MFGame, seed: int, place: Path) -> DeepSolution:
        logger = configure(str(place), ["tensorboard"])
        log = log_iterations(logger)

        def seen(iteration: Iteration) -> None:
            number, value, seconds, steps, _ = iteration
            self.add(Row(name, self.plan.algorithm, seed, number, steps, seconds, value))
            log(iteration)

        try:
            before = self.algorithm.solve(game, self.plan.config, iterations=0, seed=seed)
            seen(Iteration(0, float(before.exploitability), 0.0, 0, before.policy))
            options = {"iterations": self.plan.iterations, "progress": self.plan.progress}
            return self.algorithm.solve(game, self.plan.config, seed=seed, on_iteration=seen, **options)
        finally:
            logger.close()


def _which(seed: int | None) -> str:
    return "exact" if seed is None else f"seed {seed}"


def _cells(row: Row) -> list[Any]:
    numbers = {"seconds": f"{row.seconds:.6f}", "exploitability": repr(row.exploitability)}
    return ["" if value is None else value for value in row._replace(**numbers)]  # type: ignore[arg-type]


def report(study: Study) -> None:
    """Print a table of what there is, and draw it.

    :param study: the runs
    """
    games = {name: _curves(study, name) for name in study.plan.games}
    games = {name: (runs, exact) for name, (runs, exact) in games.items() if runs or exact is not None}
    for name, (runs, exact) in games.items():
        _print_table(study, name, runs, exact)
    if games:
        title = study.algorithm.title
        changes = ", ".join(f"{key}={value}" for key, value in study.plan.config.changes().items())
        learning_curves(
            study.folder / "exploitability.png",
            title + (f" ({changes})" if changes else ""),
            {name: (list(runs.values()), exact) for name, (runs, exact) in games.items()},
            ", ".join([study.exact.replace("_", " "), *(f"{k} {v:g}" for k, v in study.exact_parameters.items())]),
        )


def _curves(study: Study, game: str) -> tuple[dict[int, Curve], Curve | None]:
    """:return: a game's runs by seed, and the exact algorithm's."""
    found: dict[int | None, Curve] = {}
    for seed in dict.fromkeys(row.seed for row in study.rows if row.game == game):
        own = [row for row in study.rows if (row.game, row.seed) == (game, seed)]
        columns = ([getattr(row, name) for row in own] for name in ("iteration", "seconds", "exploitability"))
        found[seed] = Curve(*map(np.asarray, columns))
    exact = found.pop(None, None)
    return {seed: curve for seed, curve in found.items() if seed is not None}, exact


def _print_table(study: Study, game: str, runs: Mapping[int, Curve], exact: Curve | None) -> None:
    at = np.unique(np.linspace(0, study.plan.iterations, 7).round().astype(int))
    lines: dict[str, np.ndarray] = {} if exact is None else {f"exact {study.exact}": exact.exploitability}
    lines |= {_which(seed): run.exploitability for seed, run in runs.items()}
    if len(runs) > 1:
        _, values, count = median_curve(list(runs.values()))
        lines[f"median of {count}"] = values
    width = max(map(len, lines))
    print(f"\n{f'{game}, after iterations':<{width}}" + "".join(f"{k:>10}" for k in at))
    for name, values in lines.items():  # all were evaluated after every iteration
        cells = (f"{values[k]:.4g}" if k < len(values) else "-" for k in at)
        print(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
