"""``headway benchmark rollout``: environment steps per second, ours beside MuJoCo's own limit and our peers."""

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import gymnasium as gym

from .. import envs  # noqa: F401  (registers Headway's own)
from ..agents.core.config import Range
from ..envs.naming import nearest
from ..wrappers.delays import parse_pair
from .contenders import MAKERS, WARM_UP, Scene, Side
from .figures import rollout_speeds
from .machine import cores
from .options import Flags
from .runs import check_outputs
from .timing import in_json, noted, place, print_conditions, spread, take_turns, write_json

Peer = Literal["gymnasium", "gymnasium-sync", "gymnasium-async", "sb3-dummy", "sb3-subproc", "envpool"]
PEERS = get_args(Peer)
PROCESS_POOLS = ("gymnasium-async", "sb3-subproc")
PACKAGES = ("mujoco-warp", "warp-lang", "envpool")
"""Whose versions are noted besides those that agents are saved with."""


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(Flags):
    """Environment steps/s of MuJoCo robots: ours, raw mujoco.batch, Gymnasium, Stable-Baselines3, EnvPool; A B A B …"""

    robots: tuple[str, ...] = ("HalfCheetah", "Hopper", "Ant", "Humanoid")
    """Robots, by the names of Gymnasium's v5 tasks."""

    num_envs: Annotated[tuple[int, ...], Range(1)] = (1, 8, 64, 1024)
    """Rows of ours on the CPU, and of raw mujoco.batch."""

    gpu_num_envs: Annotated[tuple[int, ...], Range(1)] = (1024, 4096, 16384)
    """Rows of ours on a GPU, where there is one."""

    peers: tuple[Peer, ...] = PEERS
    """Whom to time beside ours; gymnasium is one environment alone. EnvPool counts as absent unless it is installed."""

    peer_envs: Annotated[int, Range(1)] = 64
    """Rows of the peers; ours is timed with as many too, and the last column compares with that."""

    processes: Annotated[int, Range(1)] = 8
    """Rows of gymnasium-async and sb3-subproc, each in a process of its own (0.2 GB for sb3-subproc)."""

    threads: Annotated[int, Range(0)] = 0
    """Threads that step ours, mujoco.batch and EnvPool; 0: one per CPU."""

    torch_threads: Annotated[int, Range(0)] = 0
    """Threads of torch, in ours and in actors; 0 leaves torch's own choice."""

    policy: bool = False
    """Choose actions by a 256x256 actor (SAC's, untrained, sampling) instead of drawing them beforehand."""

    delay: str | None = None
    """Time ours behind random delays of observations and of actions too, such as wifi,wifi: side headway-delayed."""

    rounds: Annotated[int, Range(1)] = 9
    """Rounds, in each of which every side has its turn; medians over rounds are compared."""

    seconds: Annotated[float, Range(0.001, unit="s")] = 0.5
    """Length of a turn, about: it is a fixed number of steps, found beforehand."""

    json: Path | None = None
    """Write every measurement to this file."""

    plot: Path | None = None
    """Draw the medians into this PNG."""

    overwrite: bool = False
    """Allow --json and --plot to replace files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [
            env_id[8:-3] for env_id in gym.registry if env_id.startswith("headway/") and env_id[8:] in gym.registry
        ]
        for robot in self.robots:
            if robot not in known:
                raise ValueError(f"--robots {robot}: there is no such robot: {nearest(robot, known)}")
        if not self.robots:
            raise ValueError(f"--robots: name some of {', '.join(known)}")
        if self.delay is not None:
            parse_pair(self.delay)

    def sides(self) -> list[tuple[str, int]]:
        """:return: names of sides and their numbers of rows, in the order of their turns."""
        rows = sorted({*self.num_envs, self.peer_envs})
        ours = ["headway", *(["headway-delayed"] if self.delay is not None else [])]
        found = [(name, n) for name in (*ours, "mujoco.batch") for n in rows]
        found += [("headway-gpu", n) for n in self.gpu_num_envs]
        own = {"gymnasium": 1} | dict.fromkeys(PROCESS_POOLS, self.processes)
        return found + [(peer, own.get(peer, self.peer_envs)) for peer in self.peers]


@dataclass(frozen=True)
class Measurement:
    """The speed of one side on one robot.

    :param robot: "HalfCheetah", …
    :param side: a key of ``MAKERS``
    :param num_envs: rows
    :param workers: who stepped them: "2 threads"
    :param rates: environment steps per second, summed over rows; one per round
    """

    robot: str
    side: str
    num_envs: int
    workers: str
    rates: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Missing:
    """A side that could not be measured.

    :param robot: "HalfCheetah", …
    :param side: a key of ``MAKERS``
    :param num_envs: rows
    :param reason: why not
    """

    robot: str
    side: str
    num_envs: int
    reason: str


def measure(robot: str, options: RolloutOptions) -> tuple[list[Measurement], list[Missing]]:
    """Time all sides on one robot, in turn.

    :param robot: "HalfCheetah", …
    :param options: what to time and how long
    :return: measurements, and what is absent
    """
    scene = Scene(robot, options.threads or cores(), options.policy, options.delay)
    with contextlib.ExitStack() as stack:

        def make(name: str, num_envs: int) -> Side:
            side = MAKERS[name](scene, num_envs)
            stack.callback(side.close)
            return side

        timed, absent = take_turns(robot, options.sides(), make, options.rounds, options.seconds, warm_up=WARM_UP)
    measured = [
        Measurement(robot, t.name, t.side.num_envs, t.side.workers, [done / seconds for done, seconds in t.laps])
        for t in timed
    ]
    return measured, [Missing(robot, *missing) for missing in absent]


def ratios(measurements: Sequence[Measurement], peer_envs: int) -> list[dict[str, Any]]:
    """How many times as fast as each side ours is on the CPU.

    :param measurements: of any robots
    :param peer_envs: rows of ours that sides with other numbers of rows are compared with too
    :return: per measurement: "robot", "side", "num_envs", and two ratios of medians: "at_same_rows" (None: ours was not
        timed with so many rows) and, of peers, "at_peer_envs"
    """
    ours = {(m.robot, m.num_envs): m.median for m in measurements if m.side == "headway"}

    def ratio(m: Measurement, rows: int) -> float | None:
        return ours[m.robot, rows] / m.median if (m.robot, rows) in ours else None

    return [
        {
            "robot": m.robot,
            "side": m.side,
            "num_envs": m.num_envs,
            "at_same_rows": ratio(m, m.num_envs) if m.side != "headway" else None,
            "at_peer_envs": ratio(m, peer_envs) if m.side in PEERS else None,
        }
        for m in measurements
    ]


def rollout(options: RolloutOptions) -> list[Measurement]:
    """Run ``headway benchmark rollout``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises OSError: a file to write exists, or cannot be written
    """
    check_outputs(options.json, plot=options.plot, overwrite=options.overwrite)
    measurements: list[Measurement] = []
    absent: list[Missing] = []
    with noted(options.torch_threads, PACKAGES) as conditions:
        for robot in options.robots:
            measured, missing = measure(robot, options)
            measurements += measured
            absent += missing
    compared = ratios(measurements, options.peer_envs)
    _print(options, conditions, measurements, absent, compared)
    content = {
        "unit": "environment steps per second, summed over rows",
        "measurements": in_json(measurements),
        "ratios": compared,
        "absent": [asdict(m) for m in absent],
    }
    write_json(options.json, conditions, options, content)
    if options.plot is not None:
        _draw(options, conditions, measurements)
        print(f"plot: {options.plot}")
    return measurements


def _title(options: RolloutOptions) -> str:
    how = "a 256x256 actor in the loop" if options.policy else "actions drawn beforehand"
    return f"Environment steps per second, {how}"


def _print(
    options: RolloutOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    absent: Sequence[Missing],
    compared: Sequence[dict[str, Any]],
) -> None:
    print_conditions(_title(options), conditions)
    print(f"medians of {options.rounds} rounds [least, greatest]; ratios: ours on the CPU over each side, with as many")
    print(f"rows as that side has, and with {options.peer_envs} rows")
    last = f"rows = {options.peer_envs}"
    for robot in options.robots:
        print(f"\n{robot:<16} {'rows':>6}  {'steps/s':>34}  {'same rows':>9}  {last:>9}")
        for m, ratio in zip(measurements, compared, strict=True):
            if m.robot == robot:
                cells = [f"{r:.2f}" if r else "" for r in (ratio["at_same_rows"], ratio["at_peer_envs"])]
                print(f"{m.side:<16} {m.num_envs:>6}  {spread(m.rates):>34}  {cells[0]:>9}  {cells[1]:>9}  {m.workers}")
        for side, reason in dict.fromkeys((a.side, a.reason) for a in absent if a.robot == robot):
            print(f"{side:<16} absent: {reason}")


def _draw(options: RolloutOptions, conditions: dict[str, Any], measurements: Sequence[Measurement]) -> None:
    assert options.plot is not None
    rates: dict[str, dict[str, dict[int, list[float]]]] = {}
    for m in measurements:
        rates.setdefault(m.robot, {}).setdefault(m.side, {})[m.num_envs] = m.rates
    note = f"{place(conditions)}; medians of {options.rounds} rounds, bars from least to greatest"
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    rollout_speeds(rates, _title(options), note, options.plot)
