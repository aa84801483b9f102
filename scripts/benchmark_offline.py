"""``headway benchmark offline``: gradient steps on data, ours against eager code and d3rlpy, and several seeds at once.

The eager code is what single-file implementations such as CORL's do, written here with the same sizes: a
``torch.nn.Sequential`` per network, two critics one after the other, torch's own Adam, a loop of Polyak averages,
losses read as they arise. Its IQL weighs actions by V before its update, as CORL's does, and so evaluates one network
less than ours, which keeps the order of IQL's authors.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from ..agents import HDCR, IQL, Dataset
from ..agents.core.config import Range
from .options import TurnOptions, check_device
from .runs import check_outputs
from .timing import Absent, finish, in_json, noted, print_conditions, spread, take_turns, write_json

Step = Literal["iql", "hdcr value", "hdcr actor"]

STEPS: tuple[Step, ...] = get_args(Step)
"""What is timed: an update of IQL, and a step of either phase of HDCR."""

OBS, ACTIONS, EPISODE = 17, 6, 1000
"""Sizes of HalfCheetah: of observations, actions and episodes."""

SMALL = (64, 64)
"""Layers of the networks of which several are trained at once."""

HEADWAY, EAGER, D3RLPY, SEEDS, ONE = "headway", "eager", "d3rlpy", "headway, several seeds", "headway, one seed"


@dataclass(frozen=True, kw_only=True)
class OfflineOptions(TurnOptions):
    """Updates/s of IQL and HDCR from data, ours, eager code and d3rlpy; several seeds at once; in turn: A B A B …"""

    steps: tuple[Step, ...] = STEPS
    """What to time: updates of IQL, and steps of HDCR's values and of its actor."""

    rows: Annotated[int, Range(EPISODE, unit="steps")] = 100_000
    """Steps of data, random numbers in the sizes of HalfCheetah."""

    net_arch: tuple[Annotated[int, Range(1)], ...] = (256, 256)
    """Widths of hidden layers."""

    batch_size: Annotated[int, Range(1, unit="transitions")] = 256
    """Rows per update."""

    seeds: Annotated[int, Range(0)] = 8
    """Seeds that are trained at once, with layers of 64, against one; 0 leaves this out."""

    peers: bool = True
    """Time eager code, and d3rlpy, which counts as absent unless it is installed."""

    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Our compile switch."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if not self.steps or len({*self.steps}) < len(self.steps):
            raise ValueError(f"--steps: name some of {', '.join(STEPS)}, each once")
        if self.seeds == 1:
            raise ValueError("--seeds 1: one seed is what several are compared with; 0 leaves this out")


@dataclass(frozen=True)
class Measurement:
    """One side of one comparison.

    :param step: of :data:`STEPS`
    :param side: "headway", "eager", "d3rlpy", "headway, several seeds" or "headway, one seed"
    :param rates: updates per second, by round; of several seeds, of the whole stack
    """

    step: str
    side: str
    rates: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return float(np.median(self.rates))


@dataclass(frozen=True)
class Turn:
    """One side, ready to be timed.

    :param update: takes one step
    :param device: on which it does
    """

    update: Callable[[], Any]
    device: str

    def run(self, count: int) -> None:
        """Take so many steps."""
        for _ in range(count):
            self.update()
        finish(self.device)


def some_data(rows: int) -> Dataset:
    """:return: episodes of random numbers, none of which terminates"""
    generator = torch.Generator().manual_seed(0)
    episodes = rows // EPISODE
    count = episodes * EPISODE
    return Dataset(
        observation_space=spaces.Box(-np.inf, np.inf, (OBS,)),
        action_space=spaces.Box(-1, 1, (ACTIONS,)),
        obs=torch.randn(count, OBS, generator=generator),
        final_obs=torch.randn(episodes, OBS, generator=generator),
        actions=torch.rand(count, ACTIONS, generator=generator) * 2 - 1,
        rewards=torch.randn(count, generator=generator).double(),
        lengths=torch.full((episodes,), EPISODE),
        terminated=torch.zeros(episodes, dtype=torch.bool),
    )


# -- Ours ------------------------------------------------------------------------------------------------------------


def ours(
    step: str, data: Dataset, options: OfflineOptions, net_arch: Sequence[int], seeds: Sequence[int] | None
) -> Turn:
    """:return: our agent's step, with what surrounds it in ``learn`` but for callbacks"""
    hyper: dict[str, Any] = {"net_arch": list(net_arch), "batch_size": options.batch_size, "normalize_obs": False}
    hyper |= {"device": options.device, "compile": options.compile, "dataset": data, "seeds": seeds, "seed": 0}
    agent: Any
    if step == "iql":
        agent = IQL("MlpPolicy", **hyper)
    else:
        agent = HDCR("MlpPolicy", value_steps=10 if step == "hdcr value" else 1, **hyper)
    agent.train(4)  # returns of all data, or their weights, are there
    phase = step.partition(" ")[2] or "update"
    # One phase alone, as the loop takes it: train() would sweep all data first.
    return Turn(lambda: agent.metrics.add(agent._update(phase)), options.device)


# -- Eager code, as in single files ------------------------------------------------------------------------------------


def perceptron(
    inputs: int, outputs: int, net_arch: Sequence[int], activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """:return: a chain of torch's own layers"""
    layers: list[nn.Module] = []
    for width in net_arch:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class EagerPolicy(nn.Module):
    """A Gaussian around tanh of a network's output."""

    def __init__(self, net_arch: Sequence[int]) -> None:
        super().__init__()
        self.net = perceptron(OBS, ACTIONS, net_arch)
        self.log_std = nn.Parameter(torch.zeros(ACTIONS))

    def forward(self, obs: Tensor) -> Normal:
        """:return: the distribution of actions"""
        return Normal(self.net(obs).tanh(), self.log_std.clamp(-5, 2).exp())


class Eager:
    """Networks, optimisers and updates of both agents, in the plainest way.

    :param data: what to learn from
    :param options: for sizes and device
    """

    def __init__(self, data: Dataset, options: OfflineOptions) -> None:
        made: Any = data.obs, data.actions, data.rewards.float(), data.next_obs, torch.zeros(len(data))
        self.rows: list[Tensor] = [part.to(options.device) for part in made]
        self.batch_size, device = options.batch_size, options.device
        self.value = perceptron(OBS, 1, options.net_arch).to(device)
        self.critics = nn.ModuleList(perceptron(OBS + ACTIONS, 1, options.net_arch) for _ in range(2)).to(device)
        self.slow = deepcopy(self.critics).requires_grad_(False)
        self.policy = EagerPolicy(options.net_arch).to(device)
        self.of_value, self.of_critics, self.of_policy = (
            torch.optim.Adam(net.parameters(), lr=3e-4) for net in (self.value, self.critics, self.policy)
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.of_policy, 1_000_000)
        self.weights = torch.rand(len(data), device=device)

    def drawn(self, *columns: Tensor) -> list[Tensor]:
        """:return: a batch"""
        at = torch.from_numpy(np.random.randint(0, len(self.weights), self.batch_size))  # noqa: NPY002
        return [column[at.to(column.device)] for column in columns]

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        """:return: the loss, after a step down its gradient"""
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    def iql(self) -> None:
        """Take one update of IQL."""
        obs, actions, rewards, next_obs, terminated = self.drawn(*self.rows)
        both = torch.cat((obs, actions), 1)
        with torch.no_grad():
            next_v = self.value(next_obs).squeeze(-1)
            q = torch.min(*(critic(both).squeeze(-1) for critic in self.slow))
        advantage = q - self.value(obs).squeeze(-1)
        self.descend(self.of_value, (torch.abs(0.7 - (advantage < 0).float()) * advantage**2).mean())
        target = rewards + (1 - terminated) * 0.99 * next_v
        losses = [F.mse_loss(critic(both).squeeze(-1), target) for critic in self.critics]
        self.descend(self.of_critics, sum(losses[1:], losses[0]) / 2)
        for slow, fast in zip(self.slow.parameters(), self.critics.parameters(), strict=True):
            slow.data.copy_(0.995 * slow.data + 0.005 * fast.data)
        weights = torch.exp(3.0 * advantage.detach()).clamp(max=100.0)
        self.descend(self.of_policy, -(weights * self.policy(obs).log_prob(actions).sum(-1)).mean())
        self.schedule.step()

    def hdcr_value(self) -> None:
        """Fit V to returns."""
        obs, returns = self.drawn(self.rows[0], self.weights)
        self.descend(self.of_value, 0.5 * F.mse_loss(self.value(obs).squeeze(-1), returns))

    def hdcr_actor(self) -> None:
        """Fit the policy to weighted actions."""
        obs, actions, weights = self.drawn(*self.rows[:2], self.weights)
        self.descend(self.of_policy, -(weights * self.policy(obs).log_prob(actions).sum(-1)).mean())


def eager(step: str, data: Dataset, options: OfflineOptions) -> Turn:
    """:return: a step of eager code"""
    return Turn(getattr(Eager(data, options), step.replace(" ", "_")), options.device)


def d3rlpy(step: str, data: Dataset, options: OfflineOptions) -> Turn:
    """:return: an update of d3rlpy's IQL
    :raises Absent: it is not installed
    """
    if importlib.util.find_spec("d3rlpy") is None:
        raise Absent("d3rlpy is not installed: pip install d3rlpy, in an environment of its own")
    try:
        library: Any = importlib.import_module("d3rlpy")
    except ImportError as cause:
        raise Absent(f"d3rlpy cannot be imported: {' '.join(str(cause).split())}") from cause
    encoder = library.models.VectorEncoderFactory(hidden_units=list(options.net_arch))
    algorithm = library.algos.IQLConfig(
        batch_size=options.batch_size,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
    ).create(device="cpu:0" if options.device == "cpu" else "cuda:0")
    ends = np.zeros(len(data), np.float32)
    ends[data.ends.numpy()] = 1
    columns = (data.obs, data.actions, data.rewards.float())
    recorded = library.dataset.MDPDataset(*(np.asarray(column) for column in columns), ends)
    algorithm.build_with_dataset(recorded)
    return Turn(lambda: algorithm.update(recorded.sample_transition_batch(options.batch_size)), options.device)


# -- The command -----------------------------------------------------------------------------------------------------


def plan(step: str, data: Dataset, options: OfflineOptions) -> dict[str, Callable[[], Turn]]:
    """:return: what makes each side of a step ready, by its name"""
    sides: dict[str, Callable[[], Turn]] = {HEADWAY: partial(ours, step, data, options, options.net_arch, None)}
    if options.peers:
        sides[EAGER] = partial(eager, step, data, options)
        if step == "iql":
            sides[D3RLPY] = partial(d3rlpy, step, data, options)
    if options.seeds:
        sides[SEEDS] = partial(ours, step, data, options, SMALL, range(options.seeds))
        sides[ONE] = partial(ours, step, data, options, SMALL, None)
    return sides


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Compare medians.

    :param measurements: of any steps
    :return: per comparison "step", "of", "to" and "times": how many times as fast as a peer ours is, and how many times
        as long as one seed several take
    """
    found = {(m.step, m.side): m.median for m in measurements}
    pairs = [(HEADWAY, EAGER), (HEADWAY, D3RLPY), (ONE, SEEDS)]
    return [
        {"step": step, "of": of, "to": to, "times": found[step, of] / found[step, to]}
        for step in dict.fromkeys(step for step, _ in found)
        for of, to in pairs
        if (step, to) in found
    ]


def offline(options: OfflineOptions) -> list[Measurement]:
    """Run ``headway benchmark offline``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    data, measurements, absent = some_data(options.rows), [], []
    with noted(options.threads, ("d3rlpy",)) as conditions:
        for step in options.steps:
            sides = plan(step, data, options)
            planned = [(side, 1) for side in sides]
            make = _maker(sides)
            timed, missing = take_turns(step, planned, make, options.rounds, options.seconds, warm_up=8)
            measurements += [Measurement(step, t.name, [t.count / seconds for _, seconds in t.laps]) for t in timed]
            absent += [{"step": step, "side": side, "reason": reason} for side, _, reason in missing]
    compared = ratios(measurements)
    _print(options, conditions, measurements, absent, compared)
    content = {
        "unit": "updates per second",
        "measurements": in_json(measurements),
        "ratios": compared,
        "absent": absent,
    }
    write_json(options.json, conditions, options, content)
    return measurements


def _maker(sides: dict[str, Callable[[], Turn]]) -> Callable[[str, int], Turn]:
    return lambda side, _: sides[side]()


def _print(
    options: OfflineOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    absent: Sequence[dict[str, Any]],
    compared: Sequence[dict[str, Any]],
) -> None:
    print_conditions("Learning from data", conditions)
    layers, small = ("x".join(map(str, widths)) for widths in (options.net_arch, SMALL))
    print(
        f"medians of {options.rounds} rounds [least, greatest]; batch {options.batch_size}, layers {layers}; of several"
    )
    print(f"seeds, {options.seeds}, layers {small}; {options.device}, compile {options.compile}")
    for step in dict.fromkeys(m.step for m in measurements):
        print(f"\n{step:<24} {'updates/s':>32}")
        for m in measurements:
            if m.step == step:
                print(f"  {m.side:<22} {spread(m.rates):>32}{_beside(m, compared)}")
        for row in absent:
            if row["step"] == step:
                print(f"  {row['side']:<22} absent: {row['reason']}")


def _beside(m: Measurement, compared: Sequence[dict[str, Any]]) -> str:
    """:return: what is said of a peer, or of several seeds, beside its rates"""
    for row in compared:
        if (row["step"], row["to"]) == (m.step, m.side):
            seeds = m.side == SEEDS
            return f"  {row['times']:.2f} x as long as one" if seeds else f"  headway is {row['times']:.2f} x as fast"
    return ""
