"""``headway plot``: figures of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .draw_searches import read_sizes, tree_sizes
from .figures import Curve, learning_curves
from .grouping import find_runs, grouped, place_of
from .inside import MODEL, POPULATION, Inside, inside_figure, read_inside
from .options import Flags, TrainOptions, run_flags
from .runs import check_outputs, read_run


@dataclass(frozen=True, kw_only=True)
class PlotOptions(Flags):
    """Draw the learning curves of runs, a panel per environment and its delays: interquartile mean over seeds, with
    95 % intervals.

    Runs of the same agent in the same environment are one group; where their settings differ, they are told apart."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders that hold some at any depth; with --search, tables."""

    population: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw instead what the generations of PGPS or CEM did, of one run or of several seeds of the same: returns, origin
    of the parents, learner, guidance, critic, width of the search."""

    model: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw instead how the model of MBPO fared, of one run or of several seeds of the same: error on held-out rows,
    what members disagree about, whether they know how far they err, passes of each training."""

    search: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw instead what trees of several sizes bring, from tables that headway evaluate … --search tree:32,8 … --csv
    wrote of policies in one environment: a panel for each length of training."""

    output: Path | None = None
    """The figure to write: .png, .pdf or .svg; by default learning_curves.png, population.png, model.png or
    search.png."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a figure that exists."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population + self.model + self.search > 1:
            raise ValueError("--population, --model and --search are different figures: ask for one")

    @property
    def inside(self) -> "Inside | None":
        """What is drawn of agents themselves; None: learning curves are."""
        return POPULATION if self.population else MODEL if self.model else None

    @property
    def default_output(self) -> str:
        """The figure's name, unless another is asked for."""
        return "search.png" if self.search else f"{self.inside.name if self.inside else 'learning_curves'}.png"


def plot(options: PlotOptions) -> None:
    """Run ``headway plot``.

    :param options: its arguments
    :raises FileExistsError: the figure would be overwritten
    :raises ValueError: there is nothing to draw
    """
    inside = options.inside
    output = options.output or Path(options.default_output)
    check_outputs(plot=output, flag="--output", overwrite=options.overwrite)
    if options.search:
        sizes = read_sizes(options.runs)
        output.parent.mkdir(parents=True, exist_ok=True)
        tree_sizes(sizes, "Looking ahead with trees of N simulations and K candidates", output)
        print(f"written: {output}")
        return
    runs = find_runs(options.runs)
    if inside is not None:
        records, first = read_inside(runs, inside), read_run(runs[0])
        title = f"{first['agent']} in {place_of({**vars(TrainOptions()), **first['options']})}"
        print(f"{title}: {len(runs)} run{'s' * (len(runs) > 1)}")
        output.parent.mkdir(parents=True, exist_ok=True)
        inside_figure(records, inside, title, output, first["config"])
    else:
        panels = grouped(runs)
        _announce(panels)
        output.parent.mkdir(parents=True, exist_ok=True)
        learning_curves(panels, output)
    print(f"written: {output}")


def _announce(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> None:
    for title, groups in panels.items():
        for label, curves in groups.items():
            ends = [steps[-1] for steps, _ in curves]
            short = "" if min(ends) == max(ends) else f", drawn to step {min(ends):,.0f}, where the shortest ends"
            print(f"{title}: {label}, {len(curves)} run{'s' * (len(curves) > 1)}{short}")


def main(arguments: Sequence[str]) -> int:
    """Run ``headway plot``.

    :param arguments: the command line after "plot"
    :return: exit code
    """
    return run_flags(PlotOptions, arguments, "headway plot", plot)
