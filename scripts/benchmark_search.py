"""``headway benchmark search``: simulations per second of tree searches, beside what the simulator does by itself.

A simulation is one step of the environment in a copy of it, and all that leads there: the descent through the tree, the
copying of states, the networks, and the way back up. Beside it are the simulator alone, with as many rows, and a search
written in the plainest way: a node is an object, one environment is stepped, one state is read by the networks.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from torch import Tensor

from ..agents import PPO
from ..agents.core.config import Range
from ..agents.tpo import TreeConfig, TreePlanner, guide_of
from ..agents.tpo.planners import Roots
from ..envs import make_batched
from ..envs.mujoco import MujocoBatch
from ..envs.splitmix import stream_of
from ..wrappers import BatchedVecEnv
from .options import TurnOptions
from .runs import check_outputs
from .timing import Stopwatch, in_json, noted, print_conditions, spread, take_turns, write_json

HEADWAY, PHYSICS, NODES = "headway", "physics alone", "node by node"
SIDES = (HEADWAY, PHYSICS, NODES)

AHEAD = 4
"""Steps that the physics alone goes from a start: about as far as trees of these sizes reach."""


@dataclass(frozen=True, kw_only=True)
class SearchSpeedOptions(TurnOptions):
    """Simulations/s of tree searches, side by side with the simulator alone and with a search node by node"""

    tasks: tuple[str, ...] = ("HalfCheetah-v5", "Humanoid-v5")
    """MuJoCo robots of Gymnasium, of which there is a batch as headway/…."""

    roots: Annotated[tuple[int, ...], Range(1)] = (1, 16, 256)
    """States from which is searched at once; node by node they are searched one after the other, at the same rate."""

    simulations: Annotated[int, Range(1)] = 32
    """N."""

    candidates: Annotated[int, Range(1)] = 8
    """K."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "roots"):
            if not getattr(self, name):
                raise ValueError(f"--{name}: name at least one")


@dataclass(frozen=True)
class Measurement:
    """What one side did.

    :param task: the robot
    :param side: of :data:`SIDES`
    :param roots: R
    :param rates: steps of the simulator per second, one per round
    """

    task: str
    side: str
    roots: int
    rates: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Turn:
    """One side, ready to be timed.

    :param work: does something, and returns how many steps of the simulator it took
    """

    work: Callable[[], int]

    def run(self, count: int) -> int:
        """:return: steps of the simulator"""
        return sum(self.work() for _ in range(count))


def ours(task: str, roots: int, options: SearchSpeedOptions) -> tuple[TreePlanner, Roots, Any]:
    """Make a search ready.

    :param task: the robot
    :param roots: R
    :param options: N and K
    :return: the planner, where it searches from, and the agent that guides it, PPO with its first weights
    """
    env: Any = make_batched(f"headway/{task}", roots)
    agent = PPO("MlpPolicy", BatchedVecEnv(env), seed=0)
    obs, _ = env.reset(seed=0)
    cfg = TreeConfig(simulations=options.simulations, candidates=options.candidates)
    planner = TreePlanner(guide_of(agent), env, roots, cfg)
    return planner, Roots(env.state(torch.arange(roots)), obs, stream_of(0, obs)), agent


def _searching(task: str, roots: int, options: SearchSpeedOptions) -> Turn:
    planner, start, _ = ours(task, roots, options)
    return Turn(lambda: int(planner.plan(start).simulated.sum()))


def _physics(task: str, roots: int, options: SearchSpeedOptions) -> Turn:
    env = make_batched(f"headway/{task}", roots)
    assert isinstance(env, MujocoBatch)
    env.reset(seed=0)
    engine: Any = env.engine
    batch, skip = engine.batch, env.task.frame_skip
    controls, rng = batch.bind("ctrl"), np.random.default_rng(0)
    space: Any = env.single_action_space
    state = batch.state.copy()

    def steps() -> int:
        batch.state[:] = state  # from where searches start, too, and as far as they go: contacts cost time
        for _ in range(AHEAD):
            controls[:] = rng.uniform(space.low, space.high, controls.shape)
            batch.step(nstep=skip)
        return AHEAD * roots

    return Turn(steps)


# -- node by node ------------------------------------------------------------------------------------------------------


class Node:
    """A state in the plain search."""

    def __init__(self, state: np.ndarray[Any, Any], actions: np.ndarray[Any, Any], value: float, over: bool) -> None:
        self.state, self.actions, self.value, self.over = state, actions, value, over
        self.total, self.visits = value, 1
        self.children: list[Node | None] = [None] * len(actions)
        self.n, self.w, self.rewards = ([0.0] * len(actions) for _ in range(3))


class NodeSearch:
    """The same search in the plainest way, on Gymnasium's own environment and through one network call per node.

    States are MuJoCo's integration states, which are copied quickly, though of some robots not exactly.

    :param task: the robot
    :param options: N and K
    """

    def __init__(self, task: str, options: SearchSpeedOptions) -> None:
        single: Any = gym.make(task)
        self.env = single.unwrapped
        self.root: Node | None = None
        self.obs, _ = self.env.reset(seed=0)
        self.agent = PPO("MlpPolicy", f"headway/{task}", seed=0)
        self.options, self.gamma = options, self.agent.config.gamma
        self.generator = torch.Generator().manual_seed(0)
        self.kind = mujoco.mjtState.mjSTATE_INTEGRATION.value
        self.size = mujoco.mj_stateSize(self.env.model, self.kind)
        self.start = self._state()

    def _state(self) -> np.ndarray[Any, Any]:
        state = np.empty(self.size)
        mujoco.mj_getState(self.env.model, self.env.data, state, self.kind)
        return state

    def _node(self, obs: np.ndarray[Any, Any], over: bool) -> Node:
        nets: Any = self.agent.nets.module
        outputs, values = nets(torch.as_tensor(obs, dtype=torch.float32).unsqueeze(0))
        actions = (outputs + nets.policy.log_std.exp() * self._noise(outputs.shape[1])).numpy()
        return Node(self._state(), actions, 0.0 if over else float(values), over)

    def _noise(self, size: int) -> Tensor:
        return torch.randn(self.options.candidates, size, generator=self.generator)

    @torch.no_grad()
    def search(self) -> int:
        """Search once; :return: steps of the simulator"""
        mujoco.mj_setState(self.env.model, self.env.data, self.start, self.kind)
        root = self.root = self._node(self.obs, False)
        low, high, steps = math.inf, -math.inf, 0
        for _ in range(self.options.simulations):
            node, path = root, []
            while True:
                choice = self._best(node, low, high)
                path.append((node, choice))
                child = node.children[choice]
                if child is None:
                    mujoco.mj_setState(self.env.model, self.env.data, node.state, self.kind)
                    obs, reward, over, _, _ = self.env.step(np.clip(node.actions[choice], *self._bounds))
                    child, steps = self._node(obs, over), steps + 1
                    node.children[choice], node.rewards[choice] = child, reward
                    break
                if child.over:
                    break
                node = child
            back = child.value
            for node, choice in reversed(path):
                back = node.rewards[choice] + self.gamma * back
                node.n[choice] += 1
                node.w[choice] += back
                node.visits, node.total = node.visits + 1, node.total + back
                q = node.w[choice] / node.n[choice]
                low, high = min(low, q), max(high, q)
        return steps

    @property
    def _bounds(self) -> tuple[Any, Any]:
        return self.env.action_space.low, self.env.action_space.high

    def _best(self, node: Node, low: float, high: float) -> int:
        mean, span = node.total / node.visits, high - low
        bonus = 1.25 / len(node.n) * math.sqrt(max(1.0, node.visits - 1))
        scores = []
        for n, w in zip(node.n, node.w, strict=True):
            q = w / n if n else mean
            scaled = min(max((q - low) / span, 0.0), 1.0) if span > 0 else 0.0
            scores.append(scaled + bonus / (1 + n))
        return scores.index(max(scores))


# -- measuring ---------------------------------------------------------------------------------------------------------


def shares(task: str, roots: int, options: SearchSpeedOptions) -> dict[str, float]:
    """:return: seconds per search of ours, by part: physics and rewards, networks, copies of states, the tree"""
    planner, start, agent = ours(task, roots, options)
    planner.plan(start)
    watch = Stopwatch()
    watch.watch(planner, "plan", "tree")
    watch.watch(planner.simulator, "step", "simulator")
    watch.watch(agent.nets.module, "forward", "networks")
    for owner, methods in ((planner.simulator, ("load", "state")), (planner.states, ("read", "write"))):
        for method in methods:
            watch.watch(owner, method, "states")
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < options.seconds:
        planner.plan(start)
        count += 1
    return {name: seconds / count for name, seconds in watch.seconds.items()}


def search_speed(options: SearchSpeedOptions) -> list[Measurement]:
    """Run ``headway benchmark search``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    measurements: list[Measurement] = []
    parts: list[dict[str, Any]] = []
    with noted(options.threads, ()) as conditions:
        for task in options.tasks:
            makers = {HEADWAY: _searching, PHYSICS: _physics}
            planned = [(side, roots) for roots in options.roots for side in makers] + [(NODES, 1)]

            def make(side: str, roots: int, task: str = task, makers: Any = makers) -> Turn:
                return Turn(NodeSearch(task, options).search) if side == NODES else makers[side](task, roots, options)

            timed, _ = take_turns(task, planned, make, options.rounds, options.seconds, warm_up=1)
            measurements += [
                Measurement(task, t.name, t.rows, [steps / seconds for steps, seconds in t.laps]) for t in timed
            ]
            parts += [
                {"task": task, "roots": roots, "seconds": shares(task, roots, options)} for roots in options.roots
            ]
    _print(options, conditions, measurements, parts)
    content = {
        "units": "steps of the simulator per second; seconds per search of all roots",
        "measurements": in_json(measurements),
        "ratios": ratios(measurements),
        "parts": parts,
    }
    write_json(options.json, conditions, options, content)
    return measurements


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Compare medians.

    :param measurements: of any tasks
    :return: for each search of ours "task", "roots", its rate over that of the physics alone with as many rows,
        "of_physics", and over that of the search node by node, "of_nodes"
    """
    medians = {(m.task, m.side, m.roots): m.median for m in measurements}
    return [
        {
            "task": task,
            "roots": roots,
            "of_physics": rate / medians[task, PHYSICS, roots],
            "of_nodes": rate / medians[task, NODES, 1],
        }
        for (task, side, roots), rate in medians.items()
        if side == HEADWAY
    ]


def _print(
    options: SearchSpeedOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    parts: Sequence[dict[str, Any]],
) -> None:
    print_conditions(f"Tree search, {options.simulations} simulations of {options.candidates} candidates", conditions)
    print(f"simulator steps per second; medians of {options.rounds} rounds [least, greatest]")
    compared = {(row["task"], row["roots"]): row for row in ratios(measurements)}
    named = ("simulator", "networks", "states", "tree")
    head = f"{'ours':>26} {'physics alone':>26} {'ours of it':>10} {'x node by node':>14}"
    for task in options.tasks:
        found = {(m.side, m.roots): spread(m.rates) for m in measurements if m.task == task}
        print(
            f"\n{task}; node by node {found[NODES, 1]}\n{'roots':>7} {head} {'':>4}"
            + "".join(f"{n:>11}" for n in named)
        )
        for part in (part for part in parts if part["task"] == task):
            roots, seconds = part["roots"], part["seconds"]
            row, whole = compared[task, roots], sum(seconds.values())
            cells = f"{found[HEADWAY, roots]:>26} {found[PHYSICS, roots]:>26} {row['of_physics']:>10.0%}"
            took = "".join(f"{seconds[name] / whole:>11.0%}" for name in named)
            print(f"{roots:>7} {cells} {row['of_nodes']:>14.1f} {'':>4}{took}")
