"""``headway benchmark mfg``: solving mean field games and stepping their members, side by side with OpenSpiel."""

import contextlib
import importlib
import importlib.util
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch

from ..agents.core.config import Range
from ..envs.mean_field import MFGame, exploitability, make_game, solve
from ..envs.mean_field.member import MeanFieldAgentBatch, MeanFieldAgentEnv
from ..envs.naming import nearest
from .options import TurnOptions
from .runs import check_outputs
from .timing import (
    Absent,
    finish,
    in_json,
    need_cuda,
    noted,
    print_conditions,
    spread,
    take_turns,
    write_json,
)

PEERS: dict[str, dict[str, tuple[str, str | None]]] = {
    "crowd_modelling": {
        "openspiel-python": ("python_mfg_crowd_modelling", None),
        "openspiel-c++": ("mfg_crowd_modelling", None),
    },
    "crowd_modelling_2d": {"openspiel-c++": ("mfg_crowd_modelling_2d", "crowd_modelling_2d_10x10")},
    "four_rooms": {"openspiel-c++": ("mfg_crowd_modelling_2d", "crowd_modelling_2d_four_rooms")},
    "linear_quadratic": {"openspiel-python": ("mean_field_lin_quad", "linear_quadratic")},
    "predator_prey": {"openspiel-python": ("python_mfg_predator_prey", "predator_prey_5x5x3")},
    "periodic_aversion": {"openspiel-python": ("python_mfg_periodic_aversion", "periodic_aversion")},
}
"""OpenSpiel's games, by ours and by the language they are written in: their names, and settings of its factory."""

Algorithm = Literal["fictitious_play", "online_mirror_descent"]

SOLVE = 100
"""Iterations of ours per call of ``solve`` at most: as many as people would ask for."""

ONE_DIMENSIONAL = "crowd_modelling"
"""The game that is solved in batches."""


@dataclass(frozen=True, kw_only=True)
class MeanFieldOptions(TurnOptions):
    """Seconds per iteration of solvers of mean field games, and steps/s of members: ours and OpenSpiel's; A B A B …"""

    games: tuple[str, ...] = tuple(name for name in PEERS if name != "periodic_aversion")
    """Games. OpenSpiel takes five minutes for one iteration of fictitious play in periodic_aversion."""

    algorithms: tuple[Algorithm, ...] = ("fictitious_play", "online_mirror_descent")
    """Algorithms; OpenSpiel's mirror descent is its MirrorDescent."""

    batch: Annotated[int, Range(0)] = 10_000
    """Games of one dimension that are solved in one call by mirror descent, each with its own start; 0: none."""

    batch_iterations: Annotated[int, Range(1)] = 20
    """Iterations per call in a batch."""

    env_games: tuple[str, ...] = ("crowd_modelling", "four_rooms", "predator_prey")
    """Games whose members are stepped, with actions drawn beforehand; none leaves this out."""

    num_envs: Annotated[tuple[int, ...], Range(1)] = (1, 256, 4096)
    """Members that are stepped together; 1 is the single environment as well."""

    peers: bool = True
    """Time OpenSpiel, which counts as absent unless it is installed."""

    gpu: bool = True
    """Time ours on a GPU too, where there is one."""

    threads: Annotated[int, Range(0)] = 1
    """Threads of torch; OpenSpiel has one. 0 leaves torch's own choice."""

    rounds: Annotated[int, Range(1)] = 5
    """Rounds, in each of which every side has its turn; medians over rounds are compared."""

    seconds: Annotated[float, Range(0.001, unit="s")] = 0.5
    """Length of a turn, about, and at least one iteration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, names in (("--games", self.games), ("--env-games", self.env_games)):
            for name in names:
                if name not in PEERS:
                    raise ValueError(f"{flag} {name}: the benchmark has no such game: {nearest(name, PEERS)}")


@dataclass(frozen=True)
class Measurement:
    """What one side needed for one thing.

    :param quantity: "fictitious_play", …: seconds per iteration; "batch": seconds per iteration of all games together;
        "env": steps per second, summed over members
    :param game: ours
    :param side: "headway", "headway-gpu", "headway-single", "openspiel-python" or "openspiel-c++"
    :param rows: games or members at once
    :param values: one per round
    """

    quantity: str
    game: str
    side: str
    rows: int
    values: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Missing:
    """A side that could not be measured.

    :param quantity: see :class:`Measurement`
    :param game: ours
    :param side: see :class:`Measurement`
    :param reason: why not
    """

    quantity: str
    game: str
    side: str
    reason: str


@dataclass(frozen=True)
class Turn:
    """One side, ready to be timed.

    :param run: does a number of iterations or steps, and is done when it returns
    """

    run: Callable[[int], Any]


Maker = Callable[[], Turn]
Makers = dict[tuple[str, int], Maker]
"""What makes sides ready, by their names and rows."""


# -- Ours ------------------------------------------------------------------------------------------------------------


def _device(side: str) -> str:
    if side != "headway-gpu":
        return "cpu"
    need_cuda()
    return "cuda"


def our_solver(game: MFGame, algorithm: str, at_once: int) -> Turn:
    """:return: calls of :func:`solve`, with one evaluation before and one after up to ``at_once`` iterations."""

    def run(count: int) -> None:
        while count > 0:
            part = min(count, at_once)
            solve(game, algorithm, part, evaluate_every=part)
            count -= part
        finish(game.device)

    return Turn(run)


def our_members(side: str, name: str, num_envs: int) -> Turn:
    """:return: members in one batch; illegal actions become legal ones, which OpenSpiel's side never takes."""
    device = _device(side)
    env = MeanFieldAgentBatch(num_envs, name, illegal="random", device=device, compat="openspiel")
    drawn = torch.randint(env.game.A, (64, num_envs), generator=torch.Generator().manual_seed(0)).to(device)
    actions = itertools.cycle(drawn.unbind(0))
    env.reset(seed=0)

    def run(count: int) -> None:
        for _ in range(count):
            env.step(next(actions))
        finish(device)

    return Turn(run)


def our_member(name: str) -> Turn:
    """:return: the single environment."""
    env = MeanFieldAgentEnv(name, illegal="random", compat="openspiel")
    drawn = torch.randint(env.game.A, (4096,), generator=torch.Generator().manual_seed(0)).tolist()
    actions = itertools.cycle(drawn)
    env.reset(seed=0)

    def run(count: int) -> None:
        for _ in range(count):
            if env.step(next(actions))[2]:
                env.reset()

    return Turn(run)


# -- OpenSpiel -------------------------------------------------------------------------------------------------------


def _open_spiel(module: str) -> Any:
    if importlib.util.find_spec("pyspiel") is None or importlib.util.find_spec("open_spiel") is None:
        raise Absent("OpenSpiel is not installed: pip install open_spiel")
    try:
        return importlib.import_module(f"open_spiel.python.{module}")
    except ModuleNotFoundError as cause:  # ml_collections, say, which its package does not ask for
        raise Absent(f"OpenSpiel needs {cause.name}, which is not installed: pip install {cause.name}") from cause
    except ImportError as cause:
        raise Absent(f"OpenSpiel cannot be imported: {' '.join(str(cause).split())}") from cause


def peer_game(game: str, side: str) -> Any:
    """Make OpenSpiel's game.

    :param game: ours
    :param side: "openspiel-python" or "openspiel-c++"
    :return: it
    :raises Absent: it is not installed
    """
    name, setting = PEERS[game][side]
    _open_spiel("mfg.games")  # registers those that are written in Python
    if setting is None:
        return importlib.import_module("pyspiel").load_game(name)
    return _open_spiel("mfg.games.factory").create_game_with_setting(name, setting)


def peer_solver(game: str, side: str, algorithm: str) -> Turn:
    """:return: OpenSpiel's solver, one iteration after the other."""
    made = peer_game(game, side)
    if algorithm == "fictitious_play":
        solver = _open_spiel("mfg.algorithms.fictitious_play").FictitiousPlay(made)
    else:
        solver = _open_spiel("mfg.algorithms.mirror_descent").MirrorDescent(made, lr=0.1)

    def run(count: int) -> None:
        for _ in range(count):
            solver.iteration()

    return Turn(run)


def peer_member(game: str, side: str) -> Turn:
    """:return: a member in OpenSpiel's ``rl_environment``, against the uniform policy's flow."""
    made = peer_game(game, side)
    crowd = _open_spiel("mfg.algorithms.distribution").DistributionPolicy(
        made, _open_spiel("policy").UniformRandomPolicy(made)
    )
    env = _open_spiel("rl_environment").Environment(made, mfg_distribution=crowd, mfg_population=0)
    numbers = itertools.cycle(range(97))
    now = env.reset()

    def run(count: int) -> None:
        nonlocal now
        for _ in range(count):
            legal = now.observations["legal_actions"][0]
            now = env.step([legal[next(numbers) % len(legal)]])
            if now.last():
                now = env.reset()

    return Turn(run)


def disagreement(game: str, side: str) -> float:
    """See that both sides have the same game.

    :param game: ours
    :param side: of OpenSpiel
    :return: the difference between both NashConvs of the uniform policy
    :raises Absent: it is not installed
    """
    made = peer_game(game, side)
    uniform = _open_spiel("policy").UniformRandomPolicy(made)
    theirs: float = _open_spiel("mfg.algorithms.nash_conv").NashConv(made, uniform).nash_conv()
    same = make_game(game, "openspiel")
    return abs(float(exploitability(same, same.uniform_policy())) - theirs)


# -- Timing ----------------------------------------------------------------------------------------------------------


def plan(options: MeanFieldOptions) -> dict[tuple[str, str], Makers]:
    """What is timed against what.

    :param options: what to time
    :return: by quantity and game, what makes each side ready
    """
    ours = ["headway", *(["headway-gpu"] if options.gpu else [])]
    planned: dict[tuple[str, str], Makers] = {}
    for game, algorithm in itertools.product(options.games, options.algorithms):
        makers = planned[algorithm, game] = {(side, 1): partial(_one_solved, side, game, algorithm) for side in ours}
        for side in PEERS[game] if options.peers else ():
            makers[side, 1] = partial(peer_solver, game, side, algorithm)
    if options.batch:
        planned["batch", ONE_DIMENSIONAL] = {
            (side, options.batch): partial(_many_solved, side, options) for side in ours
        }
    for game in options.env_games:
        planned["env", game] = _member_makers(game, ours, options)
    return planned


def _one_solved(side: str, game: str, algorithm: str) -> Turn:
    return our_solver(make_game(game, "openspiel", device=_device(side)), algorithm, SOLVE)


def _many_solved(side: str, options: MeanFieldOptions) -> Turn:
    game = make_game(ONE_DIMENSIONAL, device=_device(side))
    starts = torch.rand(options.batch, 1, game.S, generator=torch.Generator().manual_seed(0), dtype=game.dtype)
    games = replace(game, mu0=(starts / starts.sum(-1, keepdim=True)).to(game.device))
    return our_solver(games, "online_mirror_descent", options.batch_iterations)


def _member_makers(game: str, ours: Sequence[str], options: MeanFieldOptions) -> Makers:
    makers: Makers = {("headway-single", 1): partial(our_member, game)} if 1 in options.num_envs else {}
    for side, rows in itertools.product(ours, options.num_envs):
        makers[side, rows] = partial(our_members, side, game, rows)
    for side in PEERS[game] if options.peers else ():
        makers[side, 1] = partial(peer_member, game, side)
    return makers


def measure(
    quantity: str, game: str, makers: Makers, options: MeanFieldOptions
) -> tuple[list[Measurement], list[Missing]]:
    """Time all sides on one thing, in turn.

    :param quantity: see :class:`Measurement`
    :param game: ours
    :param makers: what makes each side ready
    :param options: how long to time
    :return: measurements, and what is absent
    """

    def make(side: str, rows: int) -> Turn:
        return makers[side, rows]()

    least = options.batch_iterations if quantity == "batch" else 1
    what = f"{game}, {quantity}"
    timed, absent = take_turns(what, list(makers), make, options.rounds, options.seconds, least=least)
    measured = []
    for t in timed:
        elapsed = [seconds for _, seconds in t.laps]
        values = [t.count * t.rows / s for s in elapsed] if quantity == "env" else [s / t.count for s in elapsed]
        measured.append(Measurement(quantity, game, t.name, t.rows, values))
    return measured, [Missing(quantity, game, side, reason) for side, _, reason in absent]


# -- The command -----------------------------------------------------------------------------------------------------


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """How many times as fast as OpenSpiel each side of ours is.

    :param measurements: of any quantities
    :return: per measurement of ours: "quantity", "game", "side", "rows", "peer" and "times"; a batch is compared with
        OpenSpiel's mirror descent of its games one after another
    """
    found = []
    for ours in measurements:
        if not ours.side.startswith("headway"):
            continue
        quantity = "online_mirror_descent" if ours.quantity == "batch" else ours.quantity
        for peer in measurements:
            if peer.side.startswith("openspiel") and (peer.quantity, peer.game) == (quantity, ours.game):
                faster = ours.median / peer.median if quantity == "env" else peer.median * ours.rows / ours.median
                key = {"quantity": ours.quantity, "game": ours.game, "side": ours.side, "rows": ours.rows}
                found.append(key | {"peer": peer.side, "times": faster})
    return found


def _agreement(options: MeanFieldOptions) -> list[dict[str, Any]]:
    """:return: by game and side of OpenSpiel, how far apart NashConvs of the uniform policy are."""
    found = []
    for game in dict.fromkeys(options.games if options.peers else ()):
        for side in PEERS[game]:
            with contextlib.suppress(Absent):
                found.append({"game": game, "side": side, "difference": disagreement(game, side)})
    return found


def mean_field(options: MeanFieldOptions) -> list[Measurement]:
    """Run ``headway benchmark mfg``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    measurements: list[Measurement] = []
    absent: list[Missing] = []
    with noted(options.threads, ("open_spiel",)) as conditions:
        agreement = _agreement(options)
        for (quantity, game), makers in plan(options).items():
            measured, missing = measure(quantity, game, makers, options)
            measurements += measured
            absent += missing
    compared = ratios(measurements)
    _print(options, conditions, measurements, absent, compared)
    for row in agreement:
        print(f"{row['game']}, {row['side']}: NashConv of the uniform policy differs by {row['difference']:.1g}")
    content = {
        "units": {"env": "steps per second, summed over members", "others": "seconds per iteration"},
        "measurements": in_json(measurements),
        "ratios": compared,
        "absent": [asdict(m) for m in absent],
        "agreement": agreement,
    }
    write_json(options.json, conditions, options, content)
    return measurements


def _print(
    options: MeanFieldOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    absent: Sequence[Missing],
    compared: Sequence[dict[str, Any]],
) -> None:
    print_conditions("Mean field games", conditions)
    print(f"medians of {options.rounds} rounds [least, greatest]; last: how many times as fast as OpenSpiel ours is")
    for quantity, game in dict.fromkeys((m.quantity, m.game) for m in measurements):
        unit = "steps/s" if quantity == "env" else "ms/iteration"
        print(f"\n{_what(quantity, game):<46} {'rows':>6}  {unit:>40}")
        for m in measurements:
            if (m.quantity, m.game) == (quantity, game):
                times = [
                    f"{row['times']:,.3g}x {row['peer'].partition('-')[2]}"
                    for row in compared
                    if (row["quantity"], row["game"], row["side"], row["rows"]) == (quantity, game, m.side, m.rows)
                ]
                print(f"  {m.side:<44} {m.rows:>6}  {_cell(m):>40}  {', '.join(times)}")
        for side, reason in dict.fromkeys(
            (a.side, a.reason) for a in absent if (a.quantity, a.game) == (quantity, game)
        ):
            print(f"  {side:<44} absent: {reason}")


def _what(quantity: str, game: str) -> str:
    if quantity == "env":
        return f"{game}, members stepped"
    return f"{game}, {'mirror descent of many games' if quantity == 'batch' else quantity.replace('_', ' ')}"


def _cell(m: Measurement) -> str:
    if m.quantity == "env":
        return spread(m.values)
    return spread([1000 * value for value in m.values], ",.4g")
