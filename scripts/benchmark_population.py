"""``headway benchmark population``: what PGPS does besides gradient steps, side by side with loops over networks.

Timed are the evaluation of a population, the choice of candidates by a critic, and the parts of a generation. The
loops are what the program released with PGPS does (OpenReview PeT5p3ocagr), written here in the plainest way: one
network after the other is given its weights, and asked for the action of one environment, or for those of all states.
"""

import functools
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from ..agents.core.config import Range
from ..agents.core.nets import Actor, Critics, DeterministicActor, StackedMLP
from ..agents.core.spaces import ObservationCodec, actions_of
from ..agents.pgps import PGPS, CEMSearch, Population, evaluate, flatten
from ..agents.pgps.agent import scores, screened
from ..envs import make_batched
from ..wrappers import as_batched
from .options import TurnOptions, check_device
from .runs import check_outputs
from .timing import Absent, Stopwatch, finish, in_json, noted, print_conditions, spread, take_turns, write_json

Part = Literal["evaluation", "screening", "generation"]

TASK, OURS = "HalfCheetah-v5", "headway/HalfCheetah-v5"
"""Gymnasium's environment, which never ends by itself, and ours, which is the same to the last bit."""

SPREAD = 0.0866
"""Standard deviation of weights, where PGPS's search begins."""

CHECKED = 10
"""Steps after which returns are compared: later the robot's tumbling has magnified the last bits of products."""

HEADWAY, SHARED, LOOP, EVOTORCH, PHYSICS = "headway", "headway, shared noise", "loop", "evotorch", "physics alone"
DOUBLE = "loop, float64"
SIDES = {"evaluation": (HEADWAY, LOOP, EVOTORCH, PHYSICS), "screening": (HEADWAY, SHARED, LOOP, DOUBLE)}


@dataclass(frozen=True, kw_only=True)
class PopulationOptions(TurnOptions):
    """Seconds per evaluation of a population and per choice of candidates, ours and loops'; shares of a generation"""

    parts: tuple[Part, ...] = get_args(Part)
    """What to time. evaluation: an episode of every member. screening: the best of many candidates, by a critic.
    generation: how long each part of a whole one takes, of PGPS's defaults."""

    population_size: Annotated[tuple[int, ...], Range(1)] = (10, 64)
    """Members that are evaluated."""

    steps: Annotated[int, Range(1)] = 200
    """Length of an episode."""

    net_arch: tuple[Annotated[int, Range(1)], ...] = (400, 300)
    """Widths of hidden layers."""

    candidates: Annotated[int, Range(2)] = 500
    """Drawn, of which the critic keeps the best four, or all but one if there are less."""

    states: Annotated[int, Range(1)] = 32
    """On which it judges them."""

    generations: Annotated[int, Range(1)] = 2
    """Generations of ten members whose parts are timed, after 1,000 random steps."""

    horizon: Annotated[int, Range(1, unit="steps")] = 400
    """Length of their episodes."""

    device: str = "cpu"
    """cpu; or cuda, for our members, their physics (MuJoCo Warp) and all critics. A loop's environment has the CPU."""

    threads: Annotated[int, Range(0)] = 1
    """Threads of torch; physics of ours has one per core. 0 leaves torch's own choice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if not self.parts or len({*self.parts}) < len(self.parts):
            raise ValueError(f"--parts: name some of {', '.join(get_args(Part))}, each once")
        if not self.population_size:
            raise ValueError("--population-size: name a number of members")


@dataclass(frozen=True)
class Measurement:
    """What one side needed.

    :param part: "evaluation" or "screening"
    :param side: of :data:`SIDES`
    :param members: of the population, or candidates
    :param values: seconds, one per round
    :param processors: the same, of all threads together: less than half of it cannot be had of two processors, however
        much else runs there
    :param difference: the greatest between its returns, or scores, and the loop's; None: not compared
    """

    part: str
    side: str
    members: int
    values: list[float]
    processors: list[float]
    difference: float | None

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Turn:
    """One side, ready to be timed.

    :param work: evaluates a population, or chooses among candidates
    :param outcome: returns of members after so many steps, or scores of candidates; None: cannot be told
    """

    work: Callable[[], Any]
    outcome: Callable[[], Tensor] | None = None
    device: str = "cpu"

    def run(self, count: int) -> float:
        """:return: seconds of processors that doing it so many times took, those of all threads together"""
        start = time.process_time()
        for _ in range(count):
            self.work()
        finish(self.device)
        return time.process_time() - start


# -- Networks --------------------------------------------------------------------------------------------------------


def sequential(mlp: StackedMLP, *, squash: bool) -> nn.Sequential:
    """Copy a perceptron into torch's own layers, one after the other.

    :param mlp: of a stack, the first
    :param squash: with tanh at the end, as an actor
    :return: it, with ELUs between layers
    """
    layers: list[nn.Module] = []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        weight, bias = (part.detach().reshape(-1, *part.shape[-2:])[0] for part in (weight, bias))
        layers += [nn.Linear(*weight.shape), nn.ELU()]
        nn.utils.vector_to_parameters(torch.cat((weight.T.flatten(), bias.flatten())), layers[-2].parameters())
    layers[-1:] = [nn.Tanh()] if squash else []
    return nn.Sequential(*layers)


def some_actor(inputs: int, outputs: int, net_arch: Sequence[int]) -> DeterministicActor:
    """:return: a policy, always the same"""
    torch.manual_seed(0)
    features = ObservationCodec(gym.spaces.Box(-np.inf, np.inf, (inputs,))).features()
    return DeterministicActor(features, outputs, net_arch, activation="elu")


# -- Evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Policies that are evaluated.

    :param members: how many
    :param options: sizes
    """

    members: int
    options: PopulationOptions
    task: gym.Env[Any, Any] = field(default_factory=lambda: gym.make(TASK))

    @functools.cached_property
    def single(self) -> DeterministicActor:
        """A policy of the architecture."""
        spaces: Any = (self.task.observation_space, self.task.action_space)
        return some_actor(spaces[0].shape[0], spaces[1].shape[0], self.options.net_arch)

    @functools.cached_property
    def weights(self) -> Tensor:
        """(P, D)."""
        middle = flatten(self.single)
        return middle + SPREAD * torch.randn(self.members, len(middle), generator=torch.Generator().manual_seed(1))

    def in_torch_layers(self) -> Tensor:
        """:return: the same weights in the order of torch's own layers, (P, D)"""
        stack = Population(self.single, self.weights).actors.mlp
        pairs = zip(stack.weights, stack.biases, strict=True)
        return torch.cat([part for weight, bias in pairs for part in (weight.mT.flatten(1), bias.flatten(1))], 1)

    def ours(self) -> Turn:
        """:return: all members in one batch"""
        env = make_batched(OURS, self.members, device=self.options.device)
        codec = ObservationCodec(env.single_observation_space)
        actions = actions_of(env.single_action_space, env.device, True)
        single, weights = deepcopy(self.single).to(env.device), self.weights.to(env.device)

        def play(steps: int) -> Tensor:
            population = Population(single, weights)
            return evaluate(population, env, codec, actions, horizon=steps, seed=0)[0].cpu()

        return self._turn(play)

    def loop(self) -> Turn:
        """:return: one member after the other, one step after the other"""
        network, weights = sequential(self.single.mlp, squash=True), self.in_torch_layers()

        def play(steps: int) -> Tensor:
            returns = []
            for number, vector in enumerate(weights):
                nn.utils.vector_to_parameters(vector, network.parameters())
                obs, _ = self.task.reset(seed=number)
                total = 0.0
                for _ in range(steps):
                    state = torch.from_numpy(obs.astype(np.float32).reshape(1, -1))
                    action = network(state).numpy().flatten()
                    obs, reward, terminated, truncated, _ = self.task.step(action)
                    total += float(reward)
                    if terminated or truncated:
                        break
                returns.append(total)
            return torch.tensor(returns, dtype=torch.float64)

        return self._turn(torch.no_grad()(play))

    def evotorch(self) -> Turn:
        """:return: EvoTorch's evaluation in a vector environment, networks by ``torch.func``
        :raises Absent: it is not installed
        """
        if importlib.util.find_spec("evotorch") is None:
            raise Absent("EvoTorch is not installed: pip install evotorch")
        try:
            made: Any = importlib.import_module("evotorch.neuroevolution")
        except ImportError as cause:
            raise Absent(f"EvoTorch cannot be imported: {' '.join(str(cause).split())}") from cause
        problem = made.VecGymNE(
            TASK,
            partial(sequential, self.single.mlp, squash=True),
            env_config={"max_episode_steps": self.options.steps},
            num_actors=0,
        )
        batch = problem.generate_batch(self.members)

        def play() -> None:
            batch.set_values(self.in_torch_layers())  # which asks for an evaluation
            problem.evaluate(batch)

        return Turn(play)

    def physics(self) -> Turn:
        """:return: our batch alone, under actions that are there beforehand"""
        env = make_batched(OURS, self.members, device=self.options.device)
        drawn = torch.rand(self.options.steps, self.members, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
        drawn = drawn.to(env.device)

        def play() -> None:
            env.reset(seed=0)
            for actions in drawn:
                env.step(actions)

        return Turn(play, device=self.options.device)

    def _turn(self, play: Callable[[int], Tensor]) -> Turn:
        return Turn(partial(play, self.options.steps), partial(play, min(CHECKED, self.options.steps)))


# -- Screening -------------------------------------------------------------------------------------------------------


class Screening:
    """Candidates that a critic chooses from.

    :param options: sizes, those of observations and actions are HalfCheetah's
    """

    def __init__(self, options: PopulationOptions) -> None:
        self.count, self.best = options.candidates, min(4, options.candidates - 1)
        self.device = options.device
        self.actor: Actor = some_actor(17, 6, options.net_arch).to(self.device)
        self.critics = Critics(self.actor.features, 6, options.net_arch, activation="elu").to(self.device)
        self.obs = torch.randn(options.states, 17, generator=torch.Generator().manual_seed(0)).to(self.device)
        stream = torch.Generator(self.device).manual_seed(0)
        self.search = CEMSearch(flatten(self.actor), 10, stream, variance=SPREAD**2)
        self.plain_actor = sequential(self.actor.mlp, squash=True)
        self.plain_critic = sequential(self.critics.mlp, squash=False)
        self.middle = nn.utils.parameters_to_vector(self.plain_actor.parameters()).detach()

    def ours(self, shared: bool) -> Turn:
        """:return: drawn and judged a few at a time
        :param shared: see :meth:`CEMSearch.batches`
        """
        choose = partial(
            screened,
            self.search,
            self.actor,
            self.critics,
            self.obs,
            count=self.count,
            best=self.best,
            shared=shared,
        )
        return Turn(choose, self._few, self.device)

    @torch.no_grad()
    def _few(self) -> Tensor:
        few = torch.stack([flatten(self.actor) + SPREAD * k for k in range(3)])
        return scores(Population(self.actor, few), self.critics, self.obs)

    @torch.no_grad()
    def judge(self, candidates: Any) -> Tensor:
        """:return: scores of policies, one after the other, (M,)
        :param candidates: their weights in the order of torch's layers, float32 or float64
        """
        found = []
        for vector in candidates:
            vector = torch.as_tensor(vector, dtype=torch.float32, device=self.device)
            nn.utils.vector_to_parameters(vector, self.plain_actor.parameters())
            values = self.plain_critic(torch.cat((self.obs, self.plain_actor(self.obs)), 1))
            found.append(float(values.mean()))
        return torch.tensor(found, device=self.device)

    def loop(self) -> Turn:
        """:return: all drawn first, by torch in float32"""

        def choose() -> Tensor:
            drawn = torch.randn(self.count, len(self.middle), device=self.device).mul_(SPREAD).add_(self.middle)
            return drawn[self.judge(drawn).topk(self.best).indices]

        return Turn(choose, lambda: self.judge([self.middle + SPREAD * k for k in range(3)]), self.device)

    def loop_in_float64(self) -> Turn:
        """:return: all drawn first, by NumPy in float64, as in the released program"""
        middle, stream = self.middle.double().cpu().numpy(), np.random.RandomState(0)

        def choose() -> Any:
            drawn = stream.randn(self.count, len(middle))
            drawn *= SPREAD
            drawn += middle
            return drawn[self.judge(drawn).topk(self.best).indices.cpu().numpy()]

        return Turn(choose, lambda: self.judge([middle + SPREAD * k for k in range(3)]), self.device)


# -- A generation ----------------------------------------------------------------------------------------------------


def time_generations(options: PopulationOptions) -> dict[str, Any]:
    """Let PGPS learn, and see what takes how long.

    :param options: how many generations, of which length
    :return: "generations", "steps", "updates" of the critics and of the actor together, and "seconds" by part
    """
    env = make_batched(OURS, 10, device=options.device)
    agent = PGPS(
        "MlpPolicy",
        as_batched(env),
        seed=0,
        device=options.device,
        net_arch=options.net_arch,
        learning_starts=1000,
        surrogate_start=0,
        candidates=-(-options.candidates // 10),
        surrogate_states=options.states,
        horizon=options.horizon,
        initial_horizon=None,
    )
    agent.learn(1000)
    watch = Stopwatch()
    parts = [
        (agent, "learn", "the rest"),
        (agent.collector, "collect", "playing"),
        (agent, "breed", "breeding"),
        (agent, "tell", "the search's move"),
        (agent, "sample", "drawing batches"),
        (agent.gradient_learner, "critic_step", "critic updates"),
        (agent.gradient_learner, "actor_step", "actor updates"),
    ]
    for owner, method, name in parts:
        watch.watch(owner, method, name)
    steps, updates = agent.num_timesteps, agent.updates
    agent.learn(10 * options.horizon * options.generations, reset_num_timesteps=False)
    return {
        "generations": agent.generation,
        "steps": agent.num_timesteps - steps,
        "updates": agent.updates - updates,
        "seconds": {name: watch.seconds[name] for _, _, name in (*parts[1:], parts[0])},
    }


# -- The command -----------------------------------------------------------------------------------------------------


def plan(part: str, members: int, options: PopulationOptions) -> dict[str, Callable[[], Turn]]:
    """:return: what makes each side of a part ready, by its name"""
    makers: list[Callable[[], Turn]]
    if part == "evaluation":
        scene = Evaluation(members, options)
        makers = [scene.ours, scene.loop, scene.evotorch, scene.physics]
    else:
        scores_ = Screening(options)
        makers = [partial(scores_.ours, False), partial(scores_.ours, True), scores_.loop, scores_.loop_in_float64]
    return dict(zip(SIDES[part], makers, strict=True))


def population_speed(options: PopulationOptions) -> list[Measurement]:
    """Run ``headway benchmark population``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    measurements: list[Measurement] = []
    absent: list[dict[str, Any]] = []
    generation = None
    with noted(options.threads, ("evotorch",)) as conditions:
        for part in options.parts:
            if part == "generation":
                generation = time_generations(options)
                continue
            for members in options.population_size if part == "evaluation" else (options.candidates,):
                measured, missing = _measure(part, members, options)
                measurements += measured
                absent += missing
    _print(options, conditions, measurements, absent, generation)
    content = {
        "units": "seconds per evaluation of all members, or per choice among all candidates",
        "measurements": in_json(measurements),
        "ratios": ratios(measurements),
        "absent": absent,
        "generation": generation,
    }
    write_json(options.json, conditions, options, content)
    return measurements


def _measure(part: str, members: int, options: PopulationOptions) -> tuple[list[Measurement], list[dict[str, Any]]]:
    sides = plan(part, members, options)
    planned = [(side, members) for side in sides]
    timed, missing = take_turns(
        f"{part}, {members}", planned, lambda side, _: sides[side](), options.rounds, options.seconds, warm_up=1
    )
    outcomes = {t.name: None if t.side.outcome is None else t.side.outcome() for t in timed}
    expected = outcomes[LOOP]
    assert expected is not None
    found = [
        Measurement(
            part,
            t.name,
            members,
            [seconds / t.count for _, seconds in t.laps],
            [seconds / t.count for seconds, _ in t.laps],
            None if (outcome := outcomes[t.name]) is None else float((outcome - expected).abs().max()),
        )
        for t in timed
    ]
    return found, [{"part": part, "side": side, "members": rows, "reason": reason} for side, rows, reason in missing]


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Compare medians.

    :param measurements: of any parts
    :return: for each of another side "part", "members", "side", and how many times as long as ours it takes: "times",
        and "processors", of all threads together
    """
    ours = {(m.part, m.members): m for m in measurements if m.side == HEADWAY}
    return [
        {
            "part": m.part,
            "members": m.members,
            "side": m.side,
            "times": m.median / ours[m.part, m.members].median,
            "processors": statistics.median(m.processors) / statistics.median(ours[m.part, m.members].processors),
        }
        for m in measurements
        if m.side != HEADWAY
    ]


def _print(
    options: PopulationOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    absent: Sequence[dict[str, Any]],
    generation: dict[str, Any] | None,
) -> None:
    print_conditions(f"Populations in {TASK}", conditions)
    layers = "x".join(map(str, options.net_arch))
    print(f"medians of {options.rounds} rounds [least, greatest]; layers {layers}")
    compared = {(row["part"], row["members"], row["side"]): row for row in ratios(measurements)}
    titles = {
        "evaluation": f"members, {options.steps} steps each",
        "screening": f"candidates, {options.states} states",
    }
    head = f"{'ms':>28} {'x ours':>7} {'ms of processors':>28} {'x ours':>7} {'off by':>8}"
    for part, members in dict.fromkeys((m.part, m.members) for m in measurements):
        print(f"\n{part}: {members} {titles[part]}\n{'':<24} {head}")
        for m in measurements:
            if (m.part, m.members) == (part, members):
                row = compared.get((part, members, m.side), {})
                cells = [f"{spread([1000 * v for v in values], ',.4g'):>28}" for values in (m.values, m.processors)]
                beside = [f"{row[name]:.2f}" if row else "" for name in ("times", "processors")]
                off = "" if m.difference is None else f"{m.difference:.0e}"
                print(f"  {m.side:<22} {cells[0]} {beside[0]:>7} {cells[1]} {beside[1]:>7} {off:>8}")
        for row in absent:
            if (row["part"], row["members"]) == (part, members):
                print(f"  {row['side']:<22} absent: {row['reason']}")
    if generation is not None:
        whole, count = sum(generation["seconds"].values()), generation["generations"]
        print(f"\na generation of 10 members, {generation['steps'] // count:,} steps, {whole / count:.1f} s")
        for name, seconds in generation["seconds"].items():
            print(f"  {name:<22} {seconds / count:>8.2f} s {seconds / whole:>7.1%}")
