"""``headway benchmark rollout``: environment steps per second, ours beside MuJoCo's own limit and our peers."""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import gymnasium as gym
import torch
from tqdm import tqdm

from .. import envs  # noqa: F401  (registers Headway's own)
from ..agents.core.config import Range, describe
from ..agents.core.files import versions
from ..envs.naming import nearest
from .contenders import MAKERS, WARM_UP, Absent, Scene, Side
from .machine import cores, machine
from .plot import rollout_speeds

Peer = Literal["gymnasium", "gymnasium-sync", "gymnasium-async", "sb3-dummy", "sb3-subproc", "envpool"]
PEERS = get_args(Peer)
PROCESS_POOLS = ("gymnasium-async", "sb3-subproc")


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
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
        for name, info in describe(type(self)).items():
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            for number in value if isinstance(value, tuple) else (value,):
                if any(number not in interval for interval in info.ranges):
                    raise ValueError(f"{flag} must lie in {info.ranges[0]}, got {number}")
        known = [
            env_id[8:-3] for env_id in gym.registry if env_id.startswith("headway/") and env_id[8:] in gym.registry
        ]
        for robot in self.robots:
            if robot not in known:
                raise ValueError(f"--robots {robot}: there is no such robot: {nearest(robot, known)}")
        if not self.robots:
            raise ValueError(f"--robots: name some of {', '.join(known)}")

    def sides(self) -> list[tuple[str, int]]:
        """:return: names of sides and their numbers of rows, in the order of their turns."""
        rows = sorted({*self.num_envs, self.peer_envs})
        found = [(name, n) for name in ("headway", "mujoco.batch") for n in rows]
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
    scene = Scene(robot, options.threads or cores(), options.policy)
    measured: list[Measurement] = []
    absent: list[Missing] = []
    turns: list[tuple[Side, int]] = []
    planned = options.sides()
    with contextlib.ExitStack() as stack, _progress(robot, len(planned) * (1 + options.rounds)) as bar:
        for name, num_envs in planned:
            _say(bar, f"preparing {name}, {num_envs}")
            try:
                side = MAKERS[name](scene, num_envs)
            except Absent as reason:
                absent.append(Missing(robot, name, num_envs, str(reason)))
                bar.total = (bar.total or 0) - options.rounds
            else:
                stack.callback(side.close)
                turns.append((side, _steps_in(options.seconds, side)))
                measured.append(Measurement(robot, name, side.num_envs, side.workers, []))
            bar.update()
        for _ in range(options.rounds):
            for (side, steps), measurement in zip(turns, measured, strict=True):
                _say(bar, f"{measurement.side}, {measurement.num_envs}")
                measurement.rates.append(_rate(side, steps))
                bar.update()
    return measured, absent


def _steps_in(seconds: float, side: Side) -> int:
    """Warm a side up, and find out how many steps it makes in so many seconds."""
    side.run(WARM_UP)
    steps = 1
    while True:
        start = time.perf_counter()
        side.run(steps)
        elapsed = time.perf_counter() - start
        if elapsed > 0.25 * seconds:
            return max(1, round(steps * seconds / elapsed))
        steps *= 2


def _rate(side: Side, steps: int) -> float:
    start = time.perf_counter()
    transitions = side.run(steps)
    return transitions / (time.perf_counter() - start)


@contextlib.contextmanager
def _progress(robot: str, total: int) -> Iterator["tqdm[Any]"]:
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=robot,
        bar_format="{desc}: {percentage:3.0f}% |{bar:20}| {remaining} left{postfix}",
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        mininterval=0.2 if terminal else 10.0,
        leave=False,
    ) as bar:
        yield bar


def _say(bar: "tqdm[Any]", text: str) -> None:
    bar.set_postfix_str(text, refresh=sys.stderr.isatty())


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


def _versions() -> dict[str, str]:
    found = versions()
    for name in ("mujoco-warp", "warp-lang", "envpool"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def rollout(options: RolloutOptions) -> list[Measurement]:
    """Run ``headway benchmark rollout``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: a file to write exists, or its folder does not
    """
    for path in (options.json, options.plot):
        if path is not None and path.exists() and not options.overwrite:
            raise ValueError(f"{path} exists: choose another name, or pass --overwrite")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
    before = torch.get_num_threads()
    torch.set_num_threads(options.torch_threads or before)
    conditions = {
        "command": " ".join(["headway", *sys.argv[1:]]),
        "machine": machine(),
        "versions": _versions(),
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
    }
    measurements: list[Measurement] = []
    absent: list[Missing] = []
    try:
        for robot in options.robots:
            with contextlib.redirect_stdout(sys.stderr):
                measured, missing = measure(robot, options)
            measurements += measured
            absent += missing
    finally:
        torch.set_num_threads(before)
    conditions["load_after"] = os.getloadavg()[0]
    compared = ratios(measurements, options.peer_envs)
    _print(options, conditions, measurements, absent, compared)
    if options.json is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
        content = conditions | {
            "options": settings,
            "unit": "environment steps per second, summed over rows",
            "measurements": [asdict(m) | {"median": m.median} for m in measurements],
            "ratios": compared,
            "absent": [asdict(m) for m in absent],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
        print(f"measurements: {options.json}")
    if options.plot is not None:
        _draw(options, conditions, measurements)
        print(f"plot: {options.plot}")
    return measurements


def _title(options: RolloutOptions) -> str:
    how = "a 256x256 actor in the loop" if options.policy else "actions drawn beforehand"
    return f"Environment steps per second, {how}"


def _place(conditions: dict[str, Any]) -> str:
    machine = conditions["machine"]
    return f"{machine['processor']}, {machine['cores']} cores{', ' + machine['gpu'] if machine['gpu'] else ''}"


def _print(
    options: RolloutOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    absent: Sequence[Missing],
    compared: Sequence[dict[str, Any]],
) -> None:
    load, versions = (conditions["load_before"], conditions["load_after"]), conditions["versions"]
    print(f"{_title(options)}\n{conditions['command']}")
    print(f"{_place(conditions)}; torch threads {conditions['torch_threads']}; load {load[0]:.2f}, then {load[1]:.2f}")
    print(", ".join(f"{name} {version}" for name, version in versions.items() if version != "not installed"))
    print(f"medians of {options.rounds} rounds [least, greatest]; ratios: ours on the CPU over each side, with as many")
    print(f"rows as that side has, and with {options.peer_envs} rows")
    last = f"rows = {options.peer_envs}"
    for robot in options.robots:
        print(f"\n{robot:<16} {'rows':>6}  {'steps/s':>34}  {'same rows':>9}  {last:>9}")
        for m, ratio in zip(measurements, compared, strict=True):
            if m.robot == robot:
                rate = f"{m.median:,.0f} [{min(m.rates):,.0f}, {max(m.rates):,.0f}]"
                cells = [f"{r:.2f}" if r else "" for r in (ratio["at_same_rows"], ratio["at_peer_envs"])]
                print(f"{m.side:<16} {m.num_envs:>6}  {rate:>34}  {cells[0]:>9}  {cells[1]:>9}  {m.workers}")
        for side, reason in dict.fromkeys((a.side, a.reason) for a in absent if a.robot == robot):
            print(f"{side:<16} absent: {reason}")


def _draw(options: RolloutOptions, conditions: dict[str, Any], measurements: Sequence[Measurement]) -> None:
    assert options.plot is not None
    rates: dict[str, dict[str, dict[int, list[float]]]] = {}
    for m in measurements:
        rates.setdefault(m.robot, {}).setdefault(m.side, {})[m.num_envs] = m.rates
    note = f"{_place(conditions)}; medians of {options.rounds} rounds, bars from least to greatest"
    rollout_speeds(rates, _title(options), note, options.plot)
