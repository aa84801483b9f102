"""``headway benchmark``: timings side by side with a peer, in one process, in turn, so that a slow minute hits both.

``speed``: gradient updates per second and environment steps per second of a whole ``learn()``, ours against
Stable-Baselines3's, each at its own best number of threads; DCAC, which has no peer there, against our SAC on the same
delayed observations; PPO, whose speed is that of data and updates together, by ``learn()`` alone, with 64 rows in one
batch against 64 environments in turn, and against Stable-Baselines3's PPO on our batch. Each other is in a module of
its name, as ``rollout`` in :mod:`.benchmark_rollout`, but ``mfg``, in :mod:`.benchmark_mean_field`, and ``learn``, in
:mod:`.learning`.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import stable_baselines3
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from .. import agents
from ..agents.core.config import Range
from ..envs import is_batched
from ..envs.naming import nearest
from ..wrappers import BatchedVecEnv
from .benchmark_frostbite import FrostbiteSpeedOptions, frostbite_speed
from .benchmark_mbpo import MBPOSpeedOptions, mbpo_speed
from .benchmark_mean_field import MeanFieldOptions, mean_field
from .benchmark_offline import OfflineOptions, offline
from .benchmark_population import PopulationOptions, population_speed
from .benchmark_relabel import RelabelSpeedOptions, relabel_speed
from .benchmark_rollout import RolloutOptions, rollout
from .benchmark_search import SearchSpeedOptions, search_speed
from .learning import LearnOptions, learn
from .machine import origin
from .options import Flags, check_device, run_flags
from .runs import check_outputs, write_json
from .timing import finish, in_json, spread
from .worlds import World


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(Flags):
    """Updates/s and steps/s of our agents against Stable-Baselines3's, or of DCAC against SAC, in turn: A B A B …"""

    agents: tuple[str, ...] = ("sac", "td3", "ppo", "dqn")
    """Which agents to time."""

    env: str = "HalfCheetah-v5"
    """Environment that gives the data, and is stepped by learn(); DQN's is CartPole-v1."""

    delay: str = "constant:2,2"
    """Delays that DCAC and its peer are behind."""

    rounds: Annotated[int, Range(1)] = 7
    """Rounds per thread count; medians over rounds are compared."""

    updates: Annotated[int, Range(1)] = 150
    """Gradient updates per round and side, batch 256 (DCAC: 128, DQN: 32), two hidden layers of 256 (DQN: 64)."""

    steps: Annotated[int, Range(1)] = 300
    """Environment steps, with one update each (DQN: one in four), of a whole learn() per round and side. PPO: at least
    so many, in whole rounds of its own."""

    minibatches: tuple[Annotated[int, Range(1)], ...] = (64, 512, 2048)
    """Rows per gradient step of PPO, each timed; its rounds are of 2,048 rows, ten epochs each."""

    precision: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Precisions to time SAC, TD3 and DCAC in. bfloat16 of a peer, which has no such field, is torch's switch for all
    products of a process: torch.set_float32_matmul_precision("medium")."""

    threads: tuple[Annotated[int, Range(1)], ...] = ()
    """Thread counts to try for each side; by default 1 and the number of cores, for PPO and DQN 1."""

    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Our compile switch."""

    device: str = "cpu"
    """cpu or cuda."""

    json: Path | None = None
    """Also write every measurement to this file."""

    overwrite: bool = False
    """Allow --json to replace a file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if not self.agents:
            raise ValueError(f"--agents: name at least one of {', '.join(PEERS)}")
        for flag in ("agents", "minibatches", "precision", "threads"):
            if len(values := getattr(self, flag)) != len({*values}):
                raise ValueError(f"--{flag} {' '.join(map(str, values))}: one is named twice, name each once")
        for name in self.agents:
            if name not in PEERS:
                raise ValueError(
                    f"--agents {name}: there is no peer to time it against; choose from {', '.join(PEERS)}"
                )


PEERS: dict[str, Any] = {
    "sac": stable_baselines3.SAC,
    "td3": stable_baselines3.TD3,
    "dcac": agents.SAC,
    "ppo": stable_baselines3.PPO,
    "dqn": stable_baselines3.DQN,
}
"""What each agent is timed against."""

WARM_UP = 1_000
"""Environment steps that fill the stores before anything is timed."""

ROWS, ROUND = 64, 2_048
"""Of PPO: environments, and steps of all of them together in a round (Stable-Baselines3's default, of one)."""

HEADWAY, PEER, PEER_ON_OURS = "headway", "peer", "peer on our batch"


@dataclass(frozen=True)
class Case:
    """What is timed together.

    :param agent: "sac", "td3", "dcac", "ppo" or "dqn"
    :param precision: of products
    :param minibatch: rows per gradient step of PPO
    """

    agent: str
    precision: str = "float32"
    minibatch: int | None = None

    def __str__(self) -> str:
        details = [self.precision] * (self.precision != "float32") + [str(self.minibatch)] * (
            self.minibatch is not None
        )
        return " ".join([self.agent, *details])

    @property
    def quantities(self) -> tuple[str, ...]:
        """What is measured."""
        return ("learn steps/s",) if self.agent == "ppo" else ("updates/s", "learn steps/s")


def cases(options: SpeedOptions) -> list[Case]:
    """:return: what there is to time."""
    found = []
    for name in options.agents:
        if name == "ppo":
            found += [Case(name, minibatch=minibatch) for minibatch in options.minibatches]
        else:
            found += [Case(name, precision) for precision in (("float32",) if name == "dqn" else options.precision)]
    return found


@dataclass(frozen=True)
class Measurement:
    """One quantity of one side at one thread count.

    :param agent: the case: "sac", "td3 bfloat16", "ppo 512"
    :param quantity: "updates/s" or "learn steps/s"
    :param side: "headway", "peer" or "peer on our batch"
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
    """One implementation, warmed up and ready to be timed.

    :param model: the agent
    :param update: takes so many gradient steps
    :param products: torch's precision of float32 products meanwhile, as for ``torch.set_float32_matmul_precision``
    """

    def __init__(self, model: Any, update: Callable[[int], Any] | None = None, products: str = "highest") -> None:
        self.model, self._update, self.products = model, update, products
        model.set_logger(Logger(None, []))
        self._rate(lambda: model.learn(WARM_UP if update else ROUND), 1)

    def updates(self, count: int) -> float:
        """:return: updates per second."""
        assert self._update is not None
        update = self._update
        return self._rate(lambda: update(count), count)

    def learning(self, steps: int) -> float:
        """:return: environment steps per second of ``learn``, with the updates that go with them."""
        return self._rate(lambda: self.model.learn(steps, log_interval=None, reset_num_timesteps=False), steps)

    def _rate(self, work: Callable[[], Any], count: int) -> float:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.products)
        try:
            start = time.perf_counter()
            work()
            finish(self.model.device)
            return count / (time.perf_counter() - start)
        finally:
            torch.set_float32_matmul_precision(before)


def _ours(agent: Any, env: Any, options: SpeedOptions, **hyper: Any) -> _Side:
    policy = "MlpPolicy" if isinstance(env, str) else "MultiInputPolicy"
    fixed: Any = {"seed": 0, "device": options.device, "buffer_size": 100_000, "compile": options.compile}
    model = agent(policy, env, **fixed, **hyper)

    return _Side(model, model.train)


def _sides(case: Case, options: SpeedOptions, threads: int) -> dict[str, _Side]:
    agent: Any = agents.AGENTS[case.agent.upper()]
    if case.agent == "ppo":
        return _ppo_sides(case, options, threads)
    if case.agent == "dcac":
        sides = {HEADWAY: agent, PEER: PEERS[case.agent]}
        hyper = {"batch_size": 128, "learning_starts": 100, "precision": case.precision}
        return {
            side: _ours(timed, World(options.env, options.delay).single(), options, **hyper)
            for side, timed in sides.items()
        }
    env = "CartPole-v1" if case.agent == "dqn" else options.env
    ours = _ours(agent, env, options, precision=case.precision)
    peer = PEERS[case.agent](
        "MlpPolicy",
        env,
        seed=0,
        device=options.device,
        buffer_size=100_000,
        policy_kwargs={"net_arch": list(ours.model.config.net_arch)},  # its TD3 has 400 and 300 by default
    )
    products = "highest" if case.precision == "float32" else "medium"
    return {HEADWAY: ours, PEER: _Side(peer, lambda count: peer.train(count, peer.batch_size), products)}


def _ppo_sides(case: Case, options: SpeedOptions, threads: int) -> dict[str, _Side]:
    batched = f"headway/{options.env}"
    if not is_batched(batched):
        raise ValueError(
            f"--env {options.env}: PPO is timed in what has a batched form, headway/HalfCheetah-v5 and so on"
        )
    hyper: Any = {"n_steps": ROUND // ROWS, "batch_size": case.minibatch, "seed": 0, "device": options.device}
    batch, other = (BatchedVecEnv(World(batched).batch(ROWS, threads=threads)) for _ in range(2))
    ours = agents.PPO("MlpPolicy", batch, compile=options.compile, **hyper)
    in_turn = make_vec_env(options.env, ROWS)  # monitored
    return {
        HEADWAY: _Side(ours),
        PEER: _Side(stable_baselines3.PPO("MlpPolicy", in_turn, **hyper)),
        PEER_ON_OURS: _Side(stable_baselines3.PPO("MlpPolicy", other, **hyper)),
    }


def measure(case: Case, options: SpeedOptions) -> list[Measurement]:
    """Time one agent on its sides, at every thread count, in turn.

    :param case: what
    :param options: how much to time
    :return: every measurement
    """
    alone = case.agent in ("ppo", "dqn")
    counts = options.threads or ((1,) if alone else tuple(sorted({1, torch.get_num_threads()})))
    sides = _sides(case, options, max(counts))
    steps = -(-options.steps // ROUND) * ROUND if case.agent == "ppo" else options.steps
    found = {
        (quantity, side, threads): Measurement(str(case), quantity, side, threads, [])
        for quantity in case.quantities
        for threads in counts
        for side in sides
    }
    for _ in range(options.rounds):
        for (quantity, side, threads), measurement in found.items():
            torch.set_num_threads(threads)
            timed = sides[side]
            rate = timed.updates(options.updates) if quantity == "updates/s" else timed.learning(steps)
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
    for case in cases(options):
        with contextlib.redirect_stdout(sys.stderr):
            measurements += measure(case, options)
        torch.set_num_threads(cores)
    print(f"{options.env}, batch 256, networks 256x256, {options.rounds} rounds A B A B, device {options.device}")
    print("medians over rounds [least, greatest], each side at its best thread count (t)")
    for name, note in NOTES.items():
        if name in options.agents:
            print(note.format(options=options))
    _print_table(measurements)
    if options.json is not None:
        write_json(options.json, {**origin(), "measurements": in_json(measurements)})
    return measurements


NOTES = {
    "dcac": "dcac and its peer, our SAC: batch 128, behind delays {options.delay}",
    "ppo": f"ppo and its minibatch: {ROWS} rows, rounds of {ROUND:,} steps, ten epochs, networks 64x64; ours and "
    f"{PEER_ON_OURS!r} (PB) step one batch, the peer {ROWS} environments in turn",
    "dqn": "dqn and its peer: CartPole-v1, batch 32, networks 64x64, one update in four steps",
}


def _print_table(measurements: Sequence[Measurement]) -> None:
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.agent, m.quantity), []).append(m)
    width = max([6, *(len(agent) for agent, _ in groups)])
    print(f"\n{'agent':<{width}} {'quantity':<14} {'headway':>26} {'peer':>26} {'ratio':>6}")
    for (agent, quantity), group in groups.items():
        best = {m.side: m for m in sorted(group, key=lambda m: m.median)}
        for side in (PEER, PEER_ON_OURS):
            if side in best:
                ours, peer = best[HEADWAY], best[side]
                cells = [f"{spread(m.rates, '.0f')} {m.threads}t" for m in (ours, peer)]
                what = f"{quantity}{' PB' * (side == PEER_ON_OURS)}"
                ratio = ours.median / peer.median
                print(f"{agent:<{width}} {what:<14} {cells[0]:>26} {cells[1]:>26} {ratio:>6.2f}")


BENCHMARKS: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
    "speed": (SpeedOptions, speed),
    "rollout": (RolloutOptions, rollout),
    "mfg": (MeanFieldOptions, mean_field),
    "relabel": (RelabelSpeedOptions, relabel_speed),
    "offline": (OfflineOptions, offline),
    "population": (PopulationOptions, population_speed),
    "mbpo": (MBPOSpeedOptions, mbpo_speed),
    "search": (SearchSpeedOptions, search_speed),
    "frostbite": (FrostbiteSpeedOptions, frostbite_speed),
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
            print(f"  {name:<10} {flags.__doc__}")
        return 0
    name = arguments[0]
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}: {nearest(name, BENCHMARKS)}")
    flags, run = BENCHMARKS[name]
    return run_flags(flags, arguments[1:], f"headway benchmark {name}", run)
