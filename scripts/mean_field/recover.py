"""``headway mfg recover``: how well a planted reward comes back, against the number of people seen."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...agents.core.config import Range
from ...agents.mean_field.inverse import MCEFit, fit, gauge_error, recovery
from ...envs.mean_field import MFGame, graph_game, observe, solve
from ...envs.mean_field.cohorts import Trajectories, synthetic
from ..machine import origin
from ..options import Flags
from ..runs import write_json
from .draw_fits import error_against_people
from .files import FORMAT, new_folder

Flow = Literal["data", "model"]


@dataclass(frozen=True, kw_only=True)
class Options(Flags):
    """Plant a reward, let more and more people follow it, and recover it from how they move."""

    instance: Literal["graph", "topics"] = "graph"
    """graph: 3 states, a reward for each move and one of avoiding crowds, eight crowds of 8 moves; topics: 15 topics,
    rewards of staying and of popularity, ten days of 15 moves."""

    people: Annotated[tuple[int, ...], Range(0)] = (0, 500, 5_000, 50_000)
    """Numbers of people in each crowd; 0: all, whose shares are exact, drawn once."""

    draws: Annotated[int, Range(1)] = 10
    """Samples of people for each number of them."""

    flow: tuple[Flow, ...] = ("data", "model")
    """The crowd in the reward of a fit: the sampled one, or the one that follows from the reward."""

    out: Path | None = None
    """Folder to write, which must not exist yet; by default runs/mfg/recover/<instance>/<time>."""

    seed: Annotated[int, Range(0)] = 0
    """Of the first draw; the others take the numbers after it."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("people", "flow"):
            values = getattr(self, name)
            if not values or len(values) != len({*values}):
                raise ValueError(
                    f"{name}: name at least one, and none twice; got {' '.join(map(str, values)) or 'none'}"
                )


# -- Instances -------------------------------------------------------------------------------------------------------

U = torch.tensor([[0.0, 1.0, -0.5], [0.3, 0.0, 0.8], [-0.2, 0.4, 0.0]], dtype=torch.float64)
"""Rewards of moves, planted in the graph."""


@dataclass(frozen=True)
class Instance:
    """Something to recover.

    :param model: terms of the reward
    :param tau: temperature
    :param sample: crowds, by number of people (None: all) and seed
    :param measure: what a fit found, and its errors (whose names begin with "error_")
    """

    model: str
    tau: float
    sample: Callable[[int | None, int], Trajectories]
    measure: Callable[[MCEFit, Trajectories], dict[str, float]]


@cache
def _graph() -> tuple[MFGame, Tensor]:
    starts = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 8))
    game = graph_game("entropy + log_congestion", starts, 8, u=U, tau=0.5, a=1.0)
    return game, solve(game, "fixed_point", 500, damping=0.9, evaluate_every=500).policy


def _sample_graph(people: int | None, seed: int) -> Trajectories:
    return observe(*_graph(), people, seed=seed)


def _measure_graph(found: MCEFit, _: Trajectories) -> dict[str, float]:
    weight = float(found.parameters["log_congestion"])
    worst = float(gauge_error(found.parameters["u"], U).abs().max())
    return {"log_congestion": weight, "error_u": worst, "error_log_congestion": abs(weight - 1)}


def _sample_topics(people: int | None, seed: int) -> Trajectories:
    return synthetic(days=10, people=people, seed=seed)


def _measure_topics(found: MCEFit, crowds: Trajectories) -> dict[str, float]:
    compared = recovery(found, crowds)
    values = {name: value for name, (value, _) in compared.parameters.items()}
    errors = {f"error_{name}": abs(value - truth) for name, (value, truth) in compared.parameters.items()}
    scores = {name: getattr(compared, name) for name in ("kl", "jsd_final", "jsd_mean", "exploitability")}
    return values | errors | scores


INSTANCES = {
    "graph": Instance("u,log_congestion", 0.5, _sample_graph, _measure_graph),
    "topics": Instance("stay,popularity", 0.05, _sample_topics, _measure_topics),
}
"""By name."""


# -- The work --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """A line of ``recovery.csv``.

    :param people: 0: all
    :param flow: of the fit
    :param draw: number of the sample, from 0
    :param found: parameters, errors and scores
    :param converged: whether the fit did
    """

    people: int
    flow: str
    draw: int
    found: Mapping[str, float]
    converged: bool


def run(options: Options) -> int:
    """Run ``headway mfg recover``.

    :param options: its arguments
    :return: exit code: 0, or 130 after Ctrl-C
    :raises FileExistsError: the folder exists
    """
    folder = new_folder(options.out, "recover", options.instance)
    draws: list[Draw] = []
    interrupted = False
    try:
        _collect(folder / "recovery.csv", options, draws)
    except KeyboardInterrupt:
        interrupted = True
    about = {"instance": options.instance, "people": options.people, "draws": options.draws, "flow": options.flow}
    write_json(folder / "recover.json", {"format": FORMAT, **about, "seed": options.seed, **origin()})
    if draws:
        _print_table(draws)
    if any(draw.people for draw in draws):
        _draw(folder / "recovery.png", options.instance, draws)
    print(f"written: {folder}")
    if interrupted:
        print(f"interrupted after {len(draws)} of {len(_plan(options)) * len(options.flow)} fits")
    return 130 if interrupted else 0


def _plan(options: Options) -> list[tuple[int, int]]:
    """:return: people and number of each sample."""
    return [(people, draw) for people in options.people for draw in range(options.draws if people else 1)]


def _collect(file: Path, options: Options, draws: list[Draw]) -> None:
    """Sample and fit; every line is on disk before the next fit begins."""
    instance, plan = INSTANCES[options.instance], _plan(options)
    with (
        file.open("w", newline="") as lines,
        tqdm(
            total=len(plan) * len(options.flow),
            desc=options.instance,
            unit=" fits",
            disable=not options.progress,
            leave=False,
        ) as bar,
    ):
        writer = csv.writer(lines)
        for people, number in plan:
            crowds = instance.sample(people or None, options.seed + number)
            for flow in options.flow:
                found = fit(crowds, instance.model, tau=instance.tau, l2=0.0, flow=flow)
                draw = Draw(people, flow, number, instance.measure(found, crowds), found.converged)
                if not draws:
                    writer.writerow(["people", "flow", "draw", *draw.found, "converged"])
                writer.writerow([people or "all", flow, number, *map(repr, draw.found.values()), int(draw.converged)])
                lines.flush()
                draws.append(draw)
                bar.update()


# -- What is said and drawn ------------------------------------------------------------------------------------------


def _grouped(draws: Sequence[Draw]) -> dict[tuple[int, str], list[Draw]]:
    """:return: draws by people and flow, fits to the data's crowd first."""
    keys = sorted({(draw.people, draw.flow) for draw in draws}, key=lambda key: (key[1], key[0] or np.inf))
    return {key: [draw for draw in draws if (draw.people, draw.flow) == key] for key in keys}


def _print_table(draws: Sequence[Draw]) -> None:
    errors = _errors(draws)
    names = [name for error in errors for name in (error.removeprefix("error_"), error) if name in draws[0].found]
    print("median [range] over draws")
    print(f"{'people':>8}  {'flow':<5}" + "".join(f"  {name:<31}" for name in names) + "  converged")
    for (people, flow), own in _grouped(draws).items():
        cells = ""
        for name in names:
            values = np.array([draw.found[name] for draw in own])
            spread = f" [{values.min():.3g}, {values.max():.3g}]" if len(own) > 1 else ""
            cells += f"  {f'{np.median(values):.3g}{spread}':<31}"
        print(f"{people or 'all':>8}  {flow:<5}{cells}  {sum(draw.converged for draw in own)} of {len(own)}")


def _errors(draws: Sequence[Draw]) -> list[str]:
    return [name for name in draws[0].found if name.startswith("error_")]


def _draw(file: Path, instance: str, draws: Sequence[Draw]) -> None:
    panels: dict[str, dict[str, dict[int, Any]]] = {}
    for name in _errors(draws):
        flows = panels.setdefault(f"error of {name.removeprefix('error_')}", {})
        for (people, flow), own in _grouped(draws).items():
            flows.setdefault(flow, {})[people] = np.array([draw.found[name] for draw in own])
    error_against_people(file, f"{instance}: a planted reward comes back", panels)
