"""``headway benchmark``: timings side by side with a peer, in one process, in turn, so that a slow minute hits both.

``speed``: gradient updates per second and environment steps per second of a whole ``learn()``, ours against
Stable-Baselines3's, each at its own best number of threads; DCAC, which has no peer there, against our SAC on the same
delayed observations. ``rollout`` is in :mod:`.benchmark_rollout`, ``mfg`` in :mod:`.benchmark_mean_field`, ``learn`` in
:mod:`.learning`.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger

from .. import agents
from ..agents.core.config import Range
from ..agents.core.off_policy import OffPolicyAgent
from ..envs.naming import nearest
from .benchmark_mean_field import MeanFieldOptions, mean_field
from .benchmark_rollout import RolloutOptions, rollout
from .learning import LearnOptions, learn
from .machine import origin
from .options import Flags, run_flags
from .runs import write_json
from .timing import check_outputs, in_json, spread
from .worlds import World


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(Flags):
    """Updates/s and steps/s of SAC and TD3 against Stable-Baselines3's, or of DCAC against SAC, in turn: A B A B …"""

    agents: tuple[str, ...] = ("sac", "td3")
    """Which agents to time."""

    env: str = "HalfCheetah-v5"
    """Environment that gives the data, and is stepped by learn()."""

    delay: str = "constant:2,2"
    """Delays that DCAC and its peer are behind."""

    rounds: Annotated[int, Range(1)] = 7
    """Rounds per thread count; medians over rounds are compared."""

    updates: Annotated[int, Range(1)] = 150
    """Gradient updates per round and side, batch 256 (DCAC: 128), two hidden layers of 256."""

    steps: Annotated[int, Range(1)] = 300
    """Environment steps, with one update each, of a whole learn() per round and side."""

    threads: tuple[int, ...] = ()
    """Thread counts to try for each side; by default 1 and the number of cores."""

    compile: str = "off"
    """Our compile switch: off, default, reduce-overhead or max-autotune."""

    device: str = "cpu"
    """cpu or cuda."""

    json: Path | None = None
    """Also write every measurement to this file."""

    overwrite: bool = False
    """Allow --json to replace a file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.agents:
            if name not in PEERS:
                raise ValueError(
                    f"--agents {name}: there is no peer to time it against; choose from {', '.join(PEERS)}"
                )


PEERS: dict[str, Any] = {"sac": stable_baselines3.SAC, "td3": stable_baselines3.TD3, "dcac": agents.SAC}
"""What each agent is timed against."""

WARM_UP = 1_000
"""Environment steps that fill the stores before anything is timed."""


@dataclass(frozen=True)
class Measurement:
    """One quantity of one side at one thread count.

    :param agent: "sac", "td3" or "dcac"
    :param quantity: "updates/s" or "learn steps/s"
    :param side: "headway" or "peer"
    :param threads: torch threads
    :param rates: one per round
    """

    agent: str
    quantity: str
    side: str
    threads: int
    rates: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)


class _Side:
    """One implementation, warmed up and ready to be timed."""

    def __init__(self, model: Any, update: Callable[[int], Any]) -> None:
        self.model, self._update = model, update
        model.set_logger(Logger(None, []))
        model.learn(WARM_UP)

    def updates(self, count: int) -> float:
        """:return: updates per second."""
        return self._rate(lambda: self._update(count), count)

    def learning(self, steps: int) -> float:
        """:return: environment steps per second of ``learn``, with one update each."""
        return self._rate(lambda: self.model.learn(steps, log_interval=None, reset_num_timesteps=False), steps)

    def _rate(self, work: Callable[[], Any], count: int) -> float:
        start = time.perf_counter()
        work()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return count / (time.perf_counter() - start)


def _ours(agent: type[OffPolicyAgent[Any]], env: Any, options: SpeedOptions, **hyper: Any) -> _Side:
    policy = "MlpPolicy" if isinstance(env, str) else "MultiInputPolicy"
    fixed: Any = {"seed": 0, "device": options.device, "buffer_size": 100_000, "compile": options.compile}
    model = agent(policy, env, **fixed, **hyper)

    return _Side(model, model.train)


def _sides(name: str, options: SpeedOptions) -> dict[str, _Side]:
    agent: Any = agents.AGENTS[name.upper()]
    if name == "dcac":
        sides = {"headway": agent, "peer": PEERS[name]}
        hyper = {"batch_size": 128, "learning_starts": 100}
        return {
            side: _ours(timed, World(options.env, options.delay).single(), options, **hyper)
            for side, timed in sides.items()
        }
    ours = _ours(agent, options.env, options)
    peer = PEERS[name](
        "MlpPolicy",
        options.env,
        seed=0,
        device=options.device,
        buffer_size=100_000,
        policy_kwargs={"net_arch": list(ours.model.config.net_arch)},  # its TD3 has 400 and 300 by default
    )
    return {"headway": ours, "peer": _Side(peer, lambda count: peer.train(count, peer.batch_size))}


def measure(name: str, options: SpeedOptions) -> list[Measurement]:
    """Time one agent on both sides, at every thread count, in turn.

    :param name: "sac", "td3" or "dcac"
    :param options: how much to time
    :return: every measurement
    """
    sides = _sides(name, options)
    counts = options.threads or tuple(sorted({1, torch.get_num_threads()}))
    found = {
        (quantity, side, threads): Measurement(name, quantity, side, threads, [])
        for quantity in ("updates/s", "learn steps/s")
        for threads in counts
        for side in sides
    }
    for _ in range(options.rounds):
        for (quantity, side, threads), measurement in found.items():
            torch.set_num_threads(threads)
            timed = sides[side]
            rate = timed.updates(options.updates) if quantity == "updates/s" else timed.learning(options.steps)
            measurement.rates.append(rate)
    return list(found.values())


def speed(options: SpeedOptions) -> list[Measurement]:
    """Run ``headway benchmark speed``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    cores = torch.get_num_threads()
    measurements = []
    for name in options.agents:
        with contextlib.redirect_stdout(sys.stderr):
            measurements += measure(name, options)
    torch.set_num_threads(cores)
    print(f"{options.env}, batch 256, networks 256x256, {options.rounds} rounds A B A B, device {options.device}")
    print("medians over rounds [least, greatest], each side at its best thread count (t)")
    if "dcac" in options.agents:
        print(f"dcac and its peer, our SAC: batch 128, behind delays {options.delay}")
    print(f"\n{'agent':<6} {'quantity':<14} {'headway':>26} {'peer':>26} {'ratio':>6}")
    for name in options.agents:
        for quantity in ("updates/s", "learn steps/s"):
            best = [
                max(
                    (m for m in measurements if (m.agent, m.quantity, m.side) == (name, quantity, side)),
                    key=lambda m: m.median,
                )
                for side in ("headway", "peer")
            ]
            cells = [f"{spread(b.rates, '.0f')} {b.threads}t" for b in best]
            print(f"{name:<6} {quantity:<14} {cells[0]:>26} {cells[1]:>26} {best[0].median / best[1].median:>6.2f}")
    if options.json is not None:
        write_json(options.json, {**origin(), "command": sys.argv, "measurements": in_json(measurements)})
    return measurements


BENCHMARKS: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
    "speed": (SpeedOptions, speed),
    "rollout": (RolloutOptions, rollout),
    "mfg": (MeanFieldOptions, mean_field),
    "learn": (LearnOptions, learn),
}
"""Flags, and what they are passed to."""


def main(arguments: Sequence[str]) -> int:
    """Run ``headway benchmark``.

    :param arguments: the command line after "benchmark"
    :return: exit code
    :raises ValueError: an unknown benchmark
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: headway benchmark NAME [--flags]\n")
        for name, (flags, _) in BENCHMARKS.items():
            print(f"  {name:<8} {flags.__doc__}")
        return 0
    name = arguments[0]
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}: {nearest(name, BENCHMARKS)}")
    flags, run = BENCHMARKS[name]
    return run_flags(flags, arguments[1:], f"headway benchmark {name}", run)
