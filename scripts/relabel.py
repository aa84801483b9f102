"""``headway relabel``: a data set in, the same with rewards from demonstrations out."""

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr
from torch.nn.functional import adaptive_avg_pool2d

from ..agents.core.config import Range, describe
from ..agents.core.data.dataset import Dataset
from ..agents.core.data.dataset_files import check_new_dataset, load_dataset, size_of, write_dataset
from ..agents.core.files.replacing import replacing
from ..agents.relabelling import EpisodeCosts, Matcher, Problem, RelabelConfig, best, compare, prepare, relabel
from .figures import COLOURS, plain_axes
from .machine import cores
from .options import Flags, check_device, run_flags
from .runs import alone, check_outputs, progress_bar

SAVE_EVERY = 10.0
"""Seconds between the files in which partial results are kept."""

BLOCKS = 100
"""Of a plan that is drawn, along each side at most."""


@dataclass(frozen=True, kw_only=True)
class RelabelOptions(RelabelConfig, Flags):
    """Give the steps of a data set rewards by how near they come to demonstrations, and write a new data set."""

    dataset: tyro.conf.Positional[str]
    """Id of a data set, its folder, or an .npz file of OGBench's. It stays as it is, and its rewards are not looked at,
    but by best:K, by ground-truth, and to say how labels rank episodes beside them."""

    demos: str | None = None
    """Demonstrations: another data set, all its episodes; best:K, the K episodes of this one with the highest return by
    its own rewards; or DATASET,best:K, the same of another one."""

    to: str | None = None
    """Id of the new data set, namespace/name-v0; none is overwritten."""

    data_format: Literal["hdf5", "arrow", "parquet"] = "hdf5"
    """Of the new data set."""

    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Time a few episodes, say how long all would take and what the data set would weigh, and write nothing."""

    workers: Annotated[int, Range(0)] = 0
    """Processes on a CPU, of one thread each; 0: one per core."""

    device: str = "cpu"
    """cpu or cuda."""

    work: Path = Path("runs/relabel")
    """Folder of partial results until the data set is written; after a kill the same command goes on from there."""

    plot: Path | None = None
    """Draw returns, rewards along time, a transport plan and the chosen demonstrations to this file."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Allow --plot to replace a file."""

    @property
    def config(self) -> RelabelConfig:
        """How rewards are labelled."""
        return RelabelConfig(**{name: getattr(self, name) for name in describe(RelabelConfig)})

    def check(self) -> None:
        """Refuse what cannot be done before anything is.

        :raises ValueError: flags that are missing or do not fit each other
        :raises FileExistsError: the new data set or the figure exists
        :raises OSError: one of them cannot be written
        """
        check_device(self.device)
        check_outputs(plot=self.plot, overwrite=self.overwrite)
        if self.needs_demonstrations and self.demos is None:
            raise ValueError(f"--method {self.method} needs --demos DATASET, or --demos best:1 of the same data")
        if not self.needs_demonstrations and self.demos is not None:
            raise ValueError(f"--method {self.method} compares nothing: leave --demos out")
        if self.to is None and not self.dry_run:
            raise ValueError("which id shall the new data set have? pass --to namespace/name-v0, or --dry-run")
        if self.to is not None:
            check_new_dataset(self.to)


def demonstrations(demos: str, dataset: Dataset) -> Dataset:
    """Read what ``--demos`` names.

    :param demos: DATASET, best:K or DATASET,best:K
    :param dataset: what is labelled
    :return: the demonstrations; ``about["episodes"]`` are their numbers where they were chosen
    :raises ValueError: there are not so many, or the data set is broken
    :raises FileNotFoundError: there is none
    """
    chosen = re.fullmatch(r"(?:(.+),)?best:(\d+)", demos)
    if chosen is None:
        return replace(load_dataset(demos), about={})
    return best(load_dataset(chosen[1]) if chosen[1] else dataset, int(chosen[2]))


# -- Partial results -------------------------------------------------------------------------------------------------


class Parts:
    """Costs of episodes in a folder, which outlive a process that is killed.

    :param folder: of one problem only
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[int, EpisodeCosts] = {}
        self._new: dict[int, EpisodeCosts] = {}
        self._saved = time.monotonic()
        for file in sorted(folder.glob("*.npz")):
            try:
                self.done |= _read_part(file)
            except (ValueError, OSError, KeyError, EOFError, BadZipFile):
                file.unlink()  # a disk's fault, not a kill's: it is computed again

    def add(self, episode: int, costs: EpisodeCosts) -> None:
        """Keep one, and save it within some seconds."""
        self._new[episode] = costs
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is new."""
        self._saved = time.monotonic()
        if not self._new:
            return
        file = self.folder / f"{len(self.done):08}.npz"
        with replacing(file, suffix=".npz") as temporary:
            np.savez(
                temporary,
                episodes=np.array([*self._new]),
                lengths=np.array([costs.costs.shape[1] for costs in self._new.values()]),
                costs=np.concatenate([costs.costs.numpy() for costs in self._new.values()], 1),
                errors=np.stack([costs.column_error.numpy() for costs in self._new.values()]),
            )
        self.done |= self._new
        self._new = {}


def _read_part(file: Path) -> dict[int, EpisodeCosts]:
    with file.open("rb") as opened, np.load(opened) as part:
        ends = part["lengths"].cumsum()
        costs = np.split(part["costs"], ends[:-1], 1)
        rows = zip(part["episodes"].tolist(), costs, part["errors"], strict=True)
        return {i: EpisodeCosts(torch.from_numpy(c.copy()), torch.from_numpy(e)) for i, c, e in rows}


@contextmanager
def partial_results(options: RelabelOptions, problem: Problem) -> Iterator[Parts]:
    """Open the folder of a problem's partial results, whose name follows from all that decides them.

    :param options: of the command
    :param problem: what is computed
    :return: what is known, and where more is kept; saved at the end, whatever ends it
    :raises ValueError: another process works there
    """
    folder = options.work / f"{str(options.to).replace('/', '-')}-{problem.fingerprint()}"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, "relabelling"):
        parts = Parts(folder)
        try:
            yield parts
        except KeyboardInterrupt:
            parts.save()
            print(f"{len(parts.done):,} episodes are kept in {folder}: the same command goes on there", file=sys.stderr)
            raise
        finally:
            if folder.exists():
                parts.save()


# -- The command -----------------------------------------------------------------------------------------------------


def relabel_dataset(options: RelabelOptions) -> None:
    """Run ``headway relabel``.

    :param options: its arguments
    :raises ValueError: data sets or flags that do not fit each other; nothing is written
    """
    options.check()
    dataset = load_dataset(options.dataset)
    given = None if options.demos is None else demonstrations(options.demos, dataset)
    problem = prepare(dataset, given, options.config)
    count = 0 if given is None else given.episodes
    print(f"{dataset.name}: {dataset.episodes:,} episodes, {len(dataset):,} steps; {count} demonstrations")
    if options.dry_run:
        _estimate(options, dataset, problem)
        return
    assert options.to is not None
    check_new_dataset(options.to, size_of(dataset, options.data_format))
    with partial_results(options, problem) as parts:
        labelled = _labelled(options, dataset, given, parts)
        place = write_dataset(replace(labelled, name=options.to), data_format=options.data_format)
        shutil.rmtree(parts.folder)
    print(f"{options.to}: {place}")
    _summarise(dataset, labelled)
    if options.plot is not None:
        draw(options.plot, options, dataset, labelled, problem)
        print(f"figure: {options.plot}")


def _labelled(options: RelabelOptions, dataset: Dataset, given: Dataset | None, parts: Parts) -> Dataset:
    known = dict(parts.done)
    before = int(dataset.lengths[sorted(known)].sum()) if known else 0
    if known:
        print(f"going on: {len(known):,} of {dataset.episodes:,} episodes are known from {parts.folder}")
    with progress_bar(len(dataset), before) as bar:

        def keep(episode: int, costs: EpisodeCosts) -> None:
            parts.add(episode, costs)
            bar.update(costs.costs.shape[1])

        workers = options.workers or cores()
        return relabel(
            dataset, given, options.config, workers=workers, device=options.device, done=known, on_episode=keep
        )


def _estimate(options: RelabelOptions, dataset: Dataset, problem: Problem) -> None:
    """Time a few episodes on one process, and say what all of them would take."""
    size = size_of(dataset, options.data_format) / 1e6
    if problem.demonstrations:
        order = problem.lengths.argsort()
        few = sorted({int(order[round(q * (len(order) - 1))]) for q in (0.5, 0.75, 1.0)})
        list(compare(problem, few[:1], device=options.device))  # the first is slower
        start = time.perf_counter()
        list(compare(problem, few, device=options.device))
        steps = int(problem.lengths[few].sum())
        share = 1 if options.device != "cpu" else min(options.workers or cores(), dataset.episodes)
        seconds = (time.perf_counter() - start) / steps * len(dataset) / share
        pairs = dataset.episodes * len(problem.demonstrations)
        print(f"{pairs:,} pairs: about {_duration(seconds)} with {share} at once, from {steps:,} steps timed")
    print(f"about {size:,.1f} MB as {options.data_format}; nothing was written")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _summarise(before: Dataset, after: Dataset) -> None:
    about = after.about["relabelling"]
    returns = after.returns
    print(f"returns {float(returns.min()):,.1f} to {float(returns.max()):,.1f}, mean {float(returns.mean()):,.1f}")
    if about["demonstrations"] is not None:
        chosen = about["episodes"]["demonstration"]
        costs = [cost for cost in about["episodes"]["cost"] if cost is not None]
        print(f"mean cost {np.mean(costs):.4f}; {len(set(chosen))} of the demonstrations are some episode's best")
        errors = [error for error in about["episodes"]["column_error"] if error is not None]
        if errors:
            print(f"column error of the plans: median {np.median(errors):.1e}, greatest {max(errors):.1e}")
    if (rank := rank_correlation(before, after)) is not None:
        print(f"rank correlation of returns with those by the rewards of {before.name}: {rank:.2f}")


def rank_correlation(before: Dataset, after: Dataset) -> float | None:
    """Spearman's correlation of the returns of episodes.

    :param before: with its own rewards
    :param after: with labels
    :return: it; None where one of both has but one return
    """
    pair = before.returns.numpy(), after.returns.numpy()
    if min(len(np.unique(returns)) for returns in pair) < 2:
        return None
    return float(spearmanr(*pair).statistic)


# -- The figure ------------------------------------------------------------------------------------------------------


def draw(path: Path, options: RelabelOptions, before: Dataset, after: Dataset, problem: Problem) -> None:
    """Draw what was labelled.

    :param path: the file
    :param options: of the command
    :param before: the data set
    :param after: the same, labelled
    :param problem: what was compared
    """
    figure = Figure(figsize=(10, 7.5), dpi=130, layout="constrained")
    given = "" if options.demos is None else f" beside {options.demos}"
    figure.suptitle(textwrap.fill(f"{before.name}, labelled by {options.method}{given}", 100))
    grid: Any = figure.subplots(2, 2)
    chosen = after.about["relabelling"]["episodes"]["demonstration"]
    order = after.returns.argsort().tolist()
    shown = dict(zip(("worst", "median", "best"), (order[0], order[len(order) // 2], order[-1]), strict=True))
    _draw_returns(grid[0, 0], before, after, chosen)
    _draw_rewards(grid[0, 1], after, shown)
    if problem.demonstrations:
        _draw_plan(figure, grid[1, 0], options, problem, shown["median"], chosen[shown["median"]])
        _draw_choices(grid[1, 1], after, chosen)
    else:
        for axes in grid[1]:
            axes.set_visible(False)
    with replacing(path, suffix=path.suffix) as temporary:
        figure.savefig(temporary)


def _draw_returns(axes: Axes, before: Dataset, after: Dataset, chosen: Sequence[int | None]) -> None:
    colours = [COLOURS[(number or 0) % len(COLOURS)] for number in chosen]
    axes.scatter(before.returns.numpy(), after.returns.numpy(), c=colours, s=14, alpha=0.7, lw=0)
    rank = rank_correlation(before, after)
    said = "" if rank is None else f" (rank correlation {rank:.2f})"
    axes.set(xlabel="return by the data's own rewards", ylabel="return by labels", title=f"episodes{said}")
    plain_axes(axes)


def _draw_rewards(axes: Axes, after: Dataset, shown: dict[str, int]) -> None:
    rewards = torch.split(after.rewards, after.lengths.tolist())
    for place, (what, episode) in enumerate(shown.items()):
        steps = np.arange(len(rewards[episode]))
        axes.plot(
            steps, rewards[episode].numpy(), lw=0.8, alpha=0.8, color=COLOURS[place], label=f"{what}: episode {episode}"
        )
    axes.set(xlabel="step", ylabel="label", title="rewards along time")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(shown))
    plain_axes(axes)


def _draw_plan(
    figure: Figure, axes: Axes, options: RelabelOptions, problem: Problem, episode: int, chosen: int
) -> None:
    shares = Matcher(problem.demonstrations, problem.config, options.device).plan(problem.episodes()[episode], chosen)
    n, m = shares.shape
    blocks = min(n, BLOCKS), min(m, BLOCKS)
    pooled = adaptive_avg_pool2d(shares[None].float().cpu(), blocks)[0].T * (m / blocks[1])
    image = axes.imshow(
        pooled.clamp_min(1e-3).numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, n, 0, m),
        cmap="magma",
        norm=LogNorm(1e-3, 1),
    )
    figure.colorbar(image, ax=axes, label="share of a step's match")
    what = "transport plan" if problem.config.transports else "nearest state"
    axes.set(xlabel=f"step of episode {episode}", ylabel=f"step of demonstration {chosen}", title=what)


def _draw_choices(axes: Axes, after: Dataset, chosen: Sequence[int]) -> None:
    given = after.about["relabelling"]["demonstrations"]
    numbers = np.arange(len(given["lengths"]))
    counts = np.bincount(chosen, minlength=len(numbers))
    axes.bar(numbers, counts, color=[COLOURS[number % len(COLOURS)] for number in numbers])
    axes.set(xlabel="demonstration", ylabel="episodes that it labels", title="chosen demonstrations")
    axes.set_xlim(-1, len(numbers))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes, "y")


def main(arguments: Sequence[str]) -> int:
    """Run ``headway relabel``.

    :param arguments: the command line after "relabel"
    :return: exit code
    """
    return run_flags(RelabelOptions, arguments, "headway relabel", relabel_dataset)
