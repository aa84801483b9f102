"""``headway benchmark relabel``: labelling a pair of episodes, side by side with the plain loop, POT and ott-jax."""

import importlib
import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..agents.core.config import Range
from ..agents.relabelling import Matcher, Problem, RelabelConfig, compare, cosine_cost, log_domain, unit
from ..agents.relabelling.sinkhorn import exact_products, quick_on_cpu
from ..envs import make
from .machine import cores
from .options import TurnOptions, check_device
from .runs import check_outputs
from .timing import Absent, in_json, noted, print_conditions, spread, take_turns, write_json

Side = Literal[
    "headway",
    "headway-float64",
    "headway-temporal",
    "headway-min-distance",
    "plain",
    "plain-float64",
    "pot-log",
    "pot-kernel",
    "pot-exact",
    "ott-jax",
]

MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RelabelSpeedOptions(TurnOptions):
    """Seconds per pair of episodes that optimal transport labels: ours, the plain loop, POT, ott-jax; A B A B …"""

    env: str = "HalfCheetah-v5"
    """Environment whose states are compared, under random actions."""

    states: Annotated[int, Range(2)] = 1000
    """States of each episode."""

    iterations: Annotated[int, Range(1)] = 100
    """Of Sinkhorn's algorithm, on all sides but pot-exact."""

    epsilon: Annotated[float, Range(1e-4, 10)] = 0.01
    """Weight of the entropy."""

    sides: tuple[Side, ...] = tuple(side for side in get_args(Side) if side not in ("headway-temporal", "pot-kernel"))
    """Who is timed. plain: logarithms in torch; pot-log, pot-kernel: POT's ot.sinkhorn, by NumPy in float64; pot-exact:
    its ot.emd. Labels of temporal, min-distance and pot-exact are other labels."""

    device: str = "cpu"
    """cpu; or cuda, for ours and plain, which then solve --batch pairs at once."""

    batch: Annotated[int, Range(1)] = 128
    """Pairs at once on a GPU."""

    threads: Annotated[int, Range(0)] = 1
    """Threads of torch for the others; ours has one always. 0 leaves torch's own choice."""

    rounds: Annotated[int, Range(1)] = 5
    """Rounds, in each of which every side has its turn; medians over rounds are compared."""

    episodes: Annotated[int, Range(0)] = 100
    """Episodes that are labelled in the end as a data set is, by one demonstration and one process per core, the start
    of processes included; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if len({*self.sides}) != len(self.sides):
            raise ValueError(f"--sides {' '.join(self.sides)}: one is named twice, name each once")

    def config(self, **changes: Any) -> RelabelConfig:
        """:return: how ours labels."""
        return RelabelConfig(epsilon=self.epsilon, iterations=self.iterations, **changes)


@dataclass(frozen=True)
class Measurement:
    """What one side needed.

    :param side: see :class:`RelabelSpeedOptions`
    :param rows: pairs at once
    :param values: seconds per pair, one per round
    :param difference: the greatest between its costs per step and those of the plain loop in float64
    """

    side: str
    rows: int
    values: list[float]
    difference: float

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Turn:
    """One side, ready to be timed.

    :param label: labels some pairs; returns the mean cost of each step of the first
    """

    label: Callable[[], Tensor]

    def run(self, count: int) -> Tensor:
        """:return: the mean cost of each step of the first pair."""
        costs = torch.empty(0)
        for _ in range(count):
            costs = self.label()
        return costs


def states_of(env_id: str, count: int, seed: int) -> Tensor:
    """Record states under random actions.

    :param env_id: environment
    :param count: how many; after an episode's end those of the next
    :param seed: of the environment and of actions
    :return: of length 1, (count, D) float64
    """
    env: gym.Env[Any, Any] = make(env_id)
    env.action_space.seed(seed)
    seen: list[np.ndarray] = []
    obs, _ = env.reset(seed=seed)
    while len(seen) < count:
        seen.append(np.asarray(spaces.flatten(env.observation_space, obs), np.float64))
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            obs, _ = env.reset()
    env.close()
    return unit(torch.from_numpy(np.array(seen)))


# -- Sides -----------------------------------------------------------------------------------------------------------


def _ours(x: Tensor, y: Tensor, rows: int, options: RelabelSpeedOptions, config: RelabelConfig) -> Turn:
    dtype = getattr(torch, config.dtype)
    matcher = Matcher([y.to(dtype)], config, options.device)
    episodes = [x.to(dtype)] * rows

    def run() -> Tensor:
        with quick_on_cpu() if options.device == "cpu" else exact_products():
            return matcher.match(episodes)[0].costs[0]

    return Turn(run)


def _plain(x: Tensor, y: Tensor, rows: int, options: RelabelSpeedOptions, dtype: torch.dtype) -> Turn:
    x, y = x.to(options.device, dtype), y.to(options.device, dtype)

    def run() -> Tensor:
        for _ in range(rows):
            cost = cosine_cost(x, y)
            plan = log_domain(cost, options.epsilon, options.iterations)
            found = ((plan * cost).sum(1) / plan.sum(1)).cpu()
        return found

    return Turn(run)


def _pot(x: Tensor, y: Tensor, options: RelabelSpeedOptions, method: str | None) -> Turn:
    if importlib.util.find_spec("ot") is None:
        raise Absent("POT is not installed: pip install POT")
    ot = importlib.import_module("ot")
    a, b = (np.full(len(states), 1 / len(states)) for states in (x, y))

    def run() -> Tensor:
        cost = cosine_cost(x, y).numpy()
        if method is None:
            plan = ot.emd(a, b, cost)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it has not converged
                plan = ot.sinkhorn(a, b, cost, options.epsilon, method=method, numItermax=options.iterations, stopThr=0)
        return torch.from_numpy((plan * cost).sum(1) / plan.sum(1))

    return Turn(run)


def _ott(x: Tensor, y: Tensor, options: RelabelSpeedOptions) -> Turn:
    """One thread as for the others, if jax was not imported before."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    for name, package in (("jax", "jax"), ("ott", "ott-jax")):
        if importlib.util.find_spec(name) is None:
            raise Absent(f"{package} is not installed: pip install ott-jax jax")
    jax = importlib.import_module("jax")
    geometry = importlib.import_module("ott.geometry.geometry")
    linear_problem = importlib.import_module("ott.problems.linear.linear_problem")
    sinkhorn = importlib.import_module("ott.solvers.linear.sinkhorn")
    solver = sinkhorn.Sinkhorn(lse_mode=True, min_iterations=options.iterations, max_iterations=options.iterations)

    @jax.jit  # type: ignore[untyped-decorator]
    def solve(u: Any, v: Any) -> Any:
        cost = jax.numpy.clip(1 - u @ v.T, 0, 2)
        plan = solver(linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=options.epsilon))).matrix
        return (plan * cost).sum(1) / plan.sum(1)

    u, v = (jax.numpy.asarray(states.float().numpy()) for states in (x, y))
    return Turn(lambda: torch.from_numpy(np.array(solve(u, v))))


def makers(x: Tensor, y: Tensor, options: RelabelSpeedOptions) -> dict[str, Callable[[int], Turn]]:
    """:return: what makes each side ready, from its number of rows."""
    ours = {
        "headway": options.config(),
        "headway-float64": options.config(dtype="float64"),
        "headway-temporal": options.config(method="temporal"),
        "headway-min-distance": options.config(method="min-distance"),
    }
    found: dict[str, Callable[[int], Turn]] = {
        side: partial(_ours, x, y, options=options, config=config) for side, config in ours.items()
    }
    found["plain"] = partial(_plain, x, y, options=options, dtype=torch.float32)
    found["plain-float64"] = partial(_plain, x, y, options=options, dtype=torch.float64)
    for side, method in (("pot-log", "sinkhorn_log"), ("pot-kernel", "sinkhorn"), ("pot-exact", None)):
        found[side] = lambda _, method=method: _pot(x, y, options, method)  # type: ignore[misc]
    found["ott-jax"] = lambda _: _ott(x, y, options)
    return found


# -- The command -----------------------------------------------------------------------------------------------------


def label_a_data_set(x: Tensor, y: Tensor, options: RelabelSpeedOptions) -> dict[str, Any]:
    """Label many episodes as ``headway relabel`` does.

    :param x: states of each
    :param y: of the demonstration
    :param options: how many
    :return: "episodes", "steps", "workers", "seconds_until_first": until processes have started and one of them has
        labelled an episode; "seconds", and what a million steps would take: "seconds_per_million_steps"
    """
    lengths = torch.full((options.episodes,), len(x))
    problem = Problem(x.float().repeat(options.episodes, 1), lengths, [y.float()], x.shape[1], options.config())
    workers = cores() if options.device == "cpu" else 1
    start = time.perf_counter()
    laps = [
        time.perf_counter() - start
        for _ in compare(problem, range(options.episodes), workers=workers, device=options.device)
    ]
    steps, first = options.episodes * len(x), laps[0]
    share = (MILLION - len(x)) / max(1, steps - len(x))
    return {
        "episodes": options.episodes,
        "steps": steps,
        "workers": workers,
        "seconds_until_first": first,
        "seconds": laps[-1],
        "seconds_per_million_steps": first + (laps[-1] - first) * share,
    }


def relabel_speed(options: RelabelSpeedOptions) -> list[Measurement]:
    """Run ``headway benchmark relabel``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    on_cpu = options.device == "cpu"
    x, y = (states_of(options.env, options.states, seed) for seed in (0, 1))
    with noted(options.threads, ("POT", "ott-jax", "jax")) as conditions:
        make_side = makers(x, y, options)
        cost = cosine_cost(x, y)
        plan = log_domain(cost, options.epsilon, options.iterations)
        exact = (plan * cost).sum(1) / plan.sum(1)
        planned = [(side, 1 if on_cpu or not side.startswith("headway") else options.batch) for side in options.sides]
        timed, absent = take_turns(
            "pairs", planned, lambda side, rows: make_side[side](rows), options.rounds, options.seconds, warm_up=1
        )
        whole = label_a_data_set(x, y, options) if options.episodes else None
    measurements = [
        Measurement(
            t.name,
            t.rows,
            [seconds / t.count / t.rows for _, seconds in t.laps],
            float((t.laps[0][0].double() - exact).abs().max()),
        )
        for t in timed
    ]
    _print(options, conditions, measurements, absent, whole)
    content = {
        "units": "seconds per pair",
        "measurements": in_json(measurements),
        "ratios": ratios(measurements),
        "absent": [{"side": side, "reason": reason} for side, _, reason in absent],
        "data_set": whole,
    }
    write_json(options.json, conditions, options, content)
    return measurements


def ratios(measurements: Sequence[Measurement]) -> dict[str, float]:
    """:return: by side, how many times as long as ours it takes; nothing, where ours was not timed."""
    by_side = {m.side: m.median for m in measurements}
    return {side: median / by_side["headway"] for side, median in by_side.items()} if "headway" in by_side else {}


def _print(
    options: RelabelSpeedOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    absent: Sequence[tuple[str, int, str]],
    whole: dict[str, Any] | None,
) -> None:
    n = options.states
    print_conditions(f"Labels by optimal transport, pairs of {n} x {n} states of {options.env}", conditions)
    print(f"medians of {options.rounds} rounds [least, greatest]; device {options.device}; one thread each")
    head = f"{'ms per pair':>28} {'x ours':>7} {'steps/s':>10} {'min/million':>11} {'off by':>8}"
    print(f"\n{'side':<22} {'rows':>4} {head}")
    times = ratios(measurements)
    for m in measurements:
        cells = spread([1000 * value for value in m.values], ",.4g")
        ratio = f"{times[m.side]:.3g}" if m.side in times else ""
        row = f"{cells:>28} {ratio:>7} {n / m.median:>10,.0f} {m.median * MILLION / n / 60:>11.2f} {m.difference:>8.0e}"
        print(f"{m.side:<22} {m.rows:>4} {row}")
    for side, _, reason in absent:
        print(f"{side:<22} absent: {reason}")
    if whole is not None:
        print(
            f"\n{whole['episodes']} episodes, one demonstration, {whole['workers']} at once: the first after "
            f"{whole['seconds_until_first']:.1f} s, all after {whole['seconds']:.1f} s; a million steps would take "
            f"{whole['seconds_per_million_steps']:.0f} s"
        )
