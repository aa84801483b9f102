"""``headway benchmark mbpo``: a step of the model, of the agents and of imagination, and what learning takes by phase.

Peers are written here in the plainest way, as ports of MBPO are: the model as one ``torch.nn.Sequential`` per member,
each with an Adam of its own; SAC with two critics one after the other, on rows that come from NumPy arrays each time;
imagination by all members, of which one is picked afterwards. mbrl-lib, whose model is a stack too, counts as absent
unless it is installed. Its pins ask for an old Gym and for a Hydra that Python 3.11 cannot import; without them::

    pip install --no-deps mbrl hydra-core==1.3.2 omegaconf==2.3.0 antlr4-python3-runtime==4.9.3 termcolor
"""

import importlib
import importlib.util
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from ..agents import MBPO, SAC
from ..agents.core.config import Range
from ..agents.mbpo.dynamics import BOUND_WEIGHT, BOUNDS, DECAY, Fit
from ..agents.mbpo.imagination import by_any_elite, by_own_member
from .benchmark_offline import perceptron
from .options import TurnOptions, check_device
from .runs import check_outputs
from .timing import Absent, finish, in_json, noted, print_conditions, spread, take_turns, write_json

Part = Literal["model", "update", "imagine", "learn"]

TASK = "headway/Hopper-v5"

HEADWAY, EAGER, MBRL, SAC_ALONE, STACK = "headway", "eager", "mbrl-lib", "headway, SAC", "headway, several agents"
OWN, ALL = "headway, own member", "all members"

UNITS = {"model": "gradient steps/s", "update": "gradient steps/s", "imagine": "1,000 imagined steps/s"}

CALL, MOVED = 250, 14_000
"""Environment steps between trainings of the model, which are MBPO's own, and rollouts that are moved to be timed."""

RATE = 3e-4
"""Step size of SAC."""


@dataclass(frozen=True, kw_only=True)
class MBPOSpeedOptions(TurnOptions):
    """Steps/s of MBPO's model, agents and imagination, ours, eager code and mbrl-lib; what learning takes by phase"""

    parts: tuple[Part, ...] = get_args(Part)
    """What to time. model: gradient steps of the ensemble, by whole passes over the rows. update: gradient steps of SAC
    on real and imagined rows. imagine: one step of many rollouts. learn: what each phase takes of a whole learn()."""

    rows: Annotated[int, Range(300, unit="environment steps")] = 5000
    """Real rows, of uniformly random actions in Hopper-v5."""

    net_arch: tuple[Annotated[int, Range(1)], ...] = (256, 256)
    """Widths of the agents' hidden layers."""

    model_net_arch: tuple[Annotated[int, Range(1)], ...] = (200, 200, 200, 200)
    """Widths of the model's hidden layers."""

    rollouts: Annotated[int, Range(7)] = 100_000
    """Rollouts after each training of the model; a step of imagination is timed on 14,000 of them at most."""

    agents: Annotated[int, Range(0)] = 5
    """Agents that are trained as one stack, one for each model, against one; 0 leaves this out."""

    steps: Annotated[int, Range(1, unit="environment steps")] = 251
    """Environment steps of the learn() that is timed, after the random ones; the model is trained after the first,
    and 250 later, from where it was."""

    peers: bool = True
    """Time eager code, and mbrl-lib, which counts as absent unless it is installed."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products of our networks; peers' are float32."""

    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Our compile switch."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if not self.parts or len({*self.parts}) < len(self.parts):
            raise ValueError(f"--parts: name some of {', '.join(get_args(Part))}, each once")
        if self.agents == 1:
            raise ValueError("--agents 1: one agent is what several are compared with; 0 leaves this out")


@dataclass(frozen=True)
class Measurement:
    """One side of one comparison.

    :param part: "model", "update" or "imagine"
    :param side: "headway", "eager" and so on
    :param rates: steps per second, by round; of several agents, of the whole stack; of imagination, thousands of rows
    :param processors: seconds of processors per step, or thousand rows, all threads together: they tell more where much
        else runs
    """

    part: str
    side: str
    rates: list[float]
    processors: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Turn:
    """One side, ready to be timed.

    :param work: takes one step, or a pass
    :param device: on which it does
    :param steps: that it takes at once; thousands of imagined ones
    """

    work: Callable[[], Any]
    device: str
    steps: float = 1

    def run(self, count: int) -> float:
        """:return: seconds of processors that doing it so many times took, those of all threads together"""
        begun = time.process_time()
        for _ in range(count):
            self.work()
        finish(self.device)
        return time.process_time() - begun


# -- Ours ------------------------------------------------------------------------------------------------------------


Agent = TypeVar("Agent", MBPO, SAC)


def made(kind: type[Agent], options: MBPOSpeedOptions, **hyper: Any) -> Agent:
    """:return: an agent that is about to learn from random steps, untrained"""
    names = ("device", "compile", "precision", "net_arch")
    hyper |= {name: getattr(options, name) for name in names}
    agent = kind("MlpPolicy", TASK, seed=0, learning_starts=options.rows, **hyper)
    agent.learn(options.rows - 1)
    return agent


def some_agent(options: MBPOSpeedOptions, **hyper: Any) -> MBPO:
    """:return: the same of MBPO"""
    hyper |= {"model_net_arch": options.model_net_arch, "rollouts_per_step": max(options.rollouts // CALL, 1)}
    return made(MBPO, options, **hyper)


def imagining(agent: MBPO) -> MBPO:
    """Put rows into the store of imagined ones, those that were experienced, since their numbers do not matter.

    :return: the agent
    """
    config = agent.config
    rows = agent._real(config.rows)
    named = {name: getattr(rows, name) for name in ("obs", "actions", "rewards", "terminated", "next_obs")}
    agent.imagined.add(named, torch.ones(rows.rewards.shape, dtype=torch.bool, device=agent.device))
    return agent


def real_rows(agent: MBPO) -> tuple[Tensor, Tensor]:
    """:return: what the model learns from: inputs (N, O + A) and targets (N, d)"""
    batch = agent.store.at(agent.store.chronological()[0])
    assert isinstance(batch.obs, Tensor)
    assert isinstance(batch.next_obs, Tensor)
    targets = agent.dynamics.module.targets(batch.obs, batch.rewards, batch.next_obs)
    return torch.cat((batch.obs, batch.actions), 1), targets


def fitting(agent: MBPO) -> Turn:
    """:return: a pass over the rows as in ``learn``, the look at held-out rows included, in a call that does not end"""
    inputs, targets = real_rows(agent)
    settings = replace(agent.config.fitting, patience=10**9)
    fit = Fit(agent.dynamics.module, agent.dynamics, settings, agent.generators["update"], agent._record)
    fit.begin(inputs, targets)
    return Turn(lambda: fit.advance(inputs, targets), str(agent.device), batches(len(inputs), settings.batch_size))


def batches(rows: int, size: int) -> int:
    """:return: gradient steps of a pass over what of these rows is not held out"""
    return -(-(rows - held_out(rows)) // size)


def held_out(rows: int) -> int:
    """:return: rows that are held out"""
    return min(rows // 5, 5000)


def plain_sac(options: MBPOSpeedOptions) -> Turn:
    """:return: an update of the agent for one network without a stack, on real rows alone"""
    agent = made(SAC, options)
    return Turn(lambda: agent._update("update"), options.device)


# -- Eager code, as ports of MBPO write it -----------------------------------------------------------------------------


class EagerMember(nn.Module):
    """One network of the model, with bounds of its own.

    :param inputs: O + A
    :param outputs: d
    :param net_arch: widths of hidden layers
    """

    def __init__(self, inputs: int, outputs: int, net_arch: Sequence[int]) -> None:
        super().__init__()
        self.net = perceptron(inputs, 2 * outputs, net_arch, nn.SiLU)
        self.low, self.high = (nn.Parameter(torch.full((outputs,), bound)) for bound in BOUNDS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:return: mean and log variance, (B, d) each"""
        mean, raw = self.net(x).chunk(2, -1)
        log_var = self.high - F.softplus(self.high - raw)
        return mean, self.low + F.softplus(log_var - self.low)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """:return: what it is trained to lower, with decay and bounds, scalar"""
        mean, log_var = self(x)
        loss: Tensor = ((mean - targets).square() * (-log_var).exp()).mean() + log_var.mean()
        linear = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        for layer, module in enumerate(linear):
            decay = DECAY[round(layer / max(len(linear) - 1, 1) * (len(DECAY) - 1))]
            loss = loss + 0.5 * decay * module.weight.square().sum()
        return loss + BOUND_WEIGHT * (self.high.sum() - self.low.sum())


class EagerModel:
    """An ensemble, one member after the other.

    :param inputs: (N, O + A)
    :param targets: (N, d)
    :param net_arch: widths of hidden layers
    :param members: E
    """

    def __init__(self, inputs: Tensor, targets: Tensor, net_arch: Sequence[int], members: int) -> None:
        count, sizes = len(inputs), (inputs.shape[1], targets.shape[1])
        held = held_out(count)
        scaled = (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-6)
        self.held, self.kept = (scaled[:held], targets[:held]), (scaled[held:], targets[held:])
        self.members = [EagerMember(*sizes, net_arch).to(inputs.device) for _ in range(members)]
        self.optimizers = [torch.optim.Adam(member.parameters(), lr=1e-3) for member in self.members]
        self.drawn = torch.randint(count - held, (members, count - held))
        self.errors: list[float] = []
        self.losses: list[float] = []

    def train(self, batch_size: int = 256) -> None:
        """Pass over the rows once, and look at those that were held out."""
        inputs, targets = self.kept
        order = torch.stack([rows[torch.randperm(len(rows))] for rows in self.drawn])
        for rows in torch.split(order, batch_size, 1):
            for member, optimizer, own in zip(self.members, self.optimizers, rows, strict=True):
                optimizer.zero_grad()
                loss = member.loss(inputs[own], targets[own])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                self.losses.append(loss.item())
        with torch.no_grad():
            self.errors = [F.mse_loss(member(self.held[0])[0], self.held[1]).item() for member in self.members]


class EagerSAC:
    """SAC as single files have it, on a few real rows and many imagined ones.

    :param real: observations, actions, rewards, whether they ended, and next observations, (N, …) each
    :param imagined: the same
    :param net_arch: widths of hidden layers
    :param device: of the networks
    """

    def __init__(
        self, real: Sequence[NDArray[Any]], imagined: Sequence[NDArray[Any]], net_arch: Sequence[int], device: str
    ) -> None:
        self.sources, self.device = ((real, 12), (imagined, 244)), device
        width, self.size = real[0].shape[1], real[1].shape[1]
        self.actor = perceptron(width, 2 * self.size, net_arch).to(device)
        self.critics = nn.ModuleList(perceptron(width + self.size, 1, net_arch) for _ in range(2)).to(device)
        self.slow = deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.zeros((), requires_grad=True, device=device)
        self.of_actor, self.of_critics, self.of_alpha = (
            torch.optim.Adam(parameters, lr=RATE)
            for parameters in (self.actor.parameters(), self.critics.parameters(), [self.log_alpha])
        )
        self.losses: dict[str, float] = {}

    def batch(self) -> list[Tensor]:
        """:return: 256 rows, from NumPy's arrays"""
        parts = []
        for source, count in self.sources:
            at = np.random.randint(0, len(source[0]), count)  # noqa: NPY002
            parts.append([column[at] for column in source])
        joined = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return [torch.as_tensor(column, dtype=torch.float32).to(self.device) for column in joined]

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """:return: actions (B, A), and their log densities (B, 1)"""
        mean, log_std = self.actor(obs).chunk(2, -1)
        normal = Normal(mean, log_std.clamp(-20, 2).exp())
        raw = normal.rsample()
        actions = raw.tanh()
        log_prob: Tensor = normal.log_prob(raw) - torch.log(1 - actions.pow(2) + 1e-6)  # type: ignore[no-untyped-call]
        return actions, log_prob.sum(-1, keepdim=True)

    def descend(self, name: str, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Take a step down the gradient of a loss, and read the loss."""
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.losses[name] = loss.item()

    def update(self) -> None:
        """Take a gradient step."""
        obs, actions, rewards, terminated, next_obs = self.batch()
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_actions, next_log_prob = self.act(next_obs)
            both = torch.cat((next_obs, next_actions), 1)
            soft = torch.min(*(critic(both) for critic in self.slow)) - alpha * next_log_prob
            target = rewards.unsqueeze(1) + 0.99 * (1 - terminated.unsqueeze(1)) * soft
        both = torch.cat((obs, actions), 1)
        losses = [F.mse_loss(critic(both), target) for critic in self.critics]
        self.descend("critics", self.of_critics, (losses[0] + losses[1]) / 2)
        drawn, log_prob = self.act(obs)
        both = torch.cat((obs, drawn), 1)
        q = torch.min(*(critic(both) for critic in self.critics))
        self.descend("actor", self.of_actor, (alpha * log_prob - q).mean())
        self.descend("alpha", self.of_alpha, -(self.log_alpha * (log_prob.detach() - self.size)).mean())
        for slow, fast in zip(self.slow.parameters(), self.critics.parameters(), strict=True):
            slow.data.copy_(0.995 * slow.data + 0.005 * fast.data)


def in_numpy(batch: Any) -> list[NDArray[Any]]:
    """:return: the columns that learning takes, of the first agent where rows are of several"""
    columns = (batch.obs, batch.actions, batch.rewards, batch.terminated, batch.next_obs)
    lead = batch.rewards.dim()
    return [np.asarray((part if lead == 1 else part[0]).cpu()) for part in columns]


def eager_sac(agent: MBPO, options: MBPOSpeedOptions) -> Turn:
    """:return: an update of the same rows by eager code"""
    real = in_numpy(agent.store.at(agent.store.chronological()[0]))
    drawn = in_numpy(agent.imagined.sample(torch.rand(1, int(agent.imagined.sizes[0]), device=agent.device)))
    return Turn(EagerSAC(real, drawn, options.net_arch, options.device).update, options.device)


# -- mbrl-lib ----------------------------------------------------------------------------------------------------------


def mbrl(module: str) -> Any:
    """:return: a module of mbrl-lib
    :raises Absent: it is not installed, or cannot be imported
    """
    if importlib.util.find_spec("mbrl") is None:
        raise Absent("mbrl-lib is not installed, see headway/scripts/benchmark_mbpo.py")
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as cause:  # its pin of Hydra raises ValueError on Python 3.11
        raise Absent(f"mbrl-lib cannot be imported: {' '.join(str(cause).split())}") from cause


def one_width(net_arch: Sequence[int], depth: int | None = None) -> int:
    """:return: of all layers
    :raises Absent: mbrl-lib does not take such layers
    """
    if len({*net_arch}) != 1 or depth not in (None, len(net_arch)):
        raise Absent(f"mbrl-lib takes layers of one width, two in SAC, not {'x'.join(map(str, net_arch))}")
    return net_arch[0]


def mbrl_model(agent: MBPO, options: MBPOSpeedOptions) -> Turn:
    """:return: a pass of its model's training, with its defaults for Hopper but for bounds, which are trained
    :raises Absent: see :func:`mbrl`
    """
    models, replay, types = (mbrl(f"mbrl.{name}") for name in ("models", "util.replay_buffer", "types"))
    width = one_width(options.model_net_arch)
    obs, actions, rewards, terminated, next_obs = in_numpy(agent.store.at(agent.store.chronological()[0]))
    inner = models.GaussianMLP(
        obs.shape[1] + actions.shape[1],
        1 + obs.shape[1],
        options.device,
        num_layers=len(options.model_net_arch),
        ensemble_size=agent.config.n_models,
        hid_size=width,
        learn_logvar_bounds=True,
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    model = models.OneDTransitionRewardModel(inner, normalize=True, normalize_double_precision=True, num_elites=5)
    every = types.TransitionBatch(obs, actions, next_obs, rewards, terminated, np.zeros_like(terminated))
    model.update_normalizer(every)
    held = held_out(len(obs))
    kept = replay.BootstrapIterator(
        every[held:], 256, agent.config.n_models, shuffle_each_epoch=True, permute_indices=False
    )
    trainer = models.ModelTrainer(model, optim_lr=1e-3, weight_decay=1e-5)
    validation = replay.TransitionIterator(every[:held], 256)

    def train() -> None:
        for batch in kept:
            model.update(batch, trainer.optimizer)
        trainer.evaluate(validation)

    return Turn(train, options.device, batches(len(obs), 256))


def mbrl_sac(agent: MBPO, options: MBPOSpeedOptions) -> Turn:
    """:return: an update of its SAC, whose batches are of imagined rows alone, with a learned temperature
    :raises Absent: see :func:`mbrl`
    """
    sac, replay = (mbrl(f"mbrl.{name}") for name in ("third_party.pytorch_sac_pranz24.sac", "util.replay_buffer"))
    settings = {"gamma": 0.99, "tau": 0.005, "alpha": 0.2, "policy": "Gaussian", "target_update_interval": 1}
    settings |= {"automatic_entropy_tuning": True, "target_entropy": None, "lr": RATE}
    settings |= {"hidden_size": one_width(options.net_arch, 2), "device": torch.device(options.device)}
    obs, actions, rewards, terminated, next_obs = in_numpy(agent.store.at(agent.store.chronological()[0]))
    peer = sac.SAC(obs.shape[1], agent.action_space, SimpleNamespace(**settings))
    memory = replay.ReplayBuffer(len(obs), obs.shape[1:], actions.shape[1:])
    memory.add_batch(obs, actions, next_obs, rewards, terminated, np.zeros_like(terminated))
    count = itertools.count()
    return Turn(lambda: peer.update_parameters(memory, 256, next(count), reverse_mask=True), options.device)


# -- Imagination -------------------------------------------------------------------------------------------------------


def imagination(agent: MBPO, options: MBPOSpeedOptions, how: str) -> Turn:
    """:return: a step of all rollouts
    :param how: HEADWAY, each row by any elite; OWN, each seventh of the rows by its own member; ALL, each row by any
        elite, of what all members say
    """
    model, members, device = agent.dynamics.module, agent.config.n_models, agent.device
    rollouts = min(options.rollouts, MOVED)
    lead = (members, rollouts // members) if how == OWN else (1, rollouts)
    picked = agent.store.sample(math.prod(lead))
    assert isinstance(picked.obs, Tensor)
    obs, actions = (part.view(*lead, part.shape[-1]) for part in (picked.obs, picked.actions))

    @torch.no_grad()
    def step() -> None:
        noise = torch.randn(*lead, 1 + obs.shape[-1], device=device)
        if how == OWN:
            by_own_member(model, obs, actions, noise, agent.termination)
            return
        chosen = torch.randint(agent.config.n_elites, lead, device=device)
        if how == HEADWAY:
            by_any_elite(model, obs, actions, noise, agent.termination, chosen)
            return
        _, every = model.predict(obs[0], actions[0], noise[0])
        agent.termination(every[chosen[0], torch.arange(lead[1], device=device)])

    return Turn(step, options.device, math.prod(lead) / 1000)


# -- Learning ----------------------------------------------------------------------------------------------------------


def time_learning(options: MBPOSpeedOptions) -> dict[str, Any]:
    """Let MBPO learn, and see what takes how long.

    :return: "steps" of the environment, "model_steps" and "updates"; "seconds" by phase and "processors", seconds of
        all threads together; "passes" of each training of the model; and for both clocks under "per_thousand" what a
        thousand steps would take, of the model's trainings as many as the last
    """
    agent = some_agent(options)
    update, clocks = agent._update, (time.perf_counter, time.process_time)
    spent = {phase: [np.zeros(2)] for phase in ("fit", "imagine", "update")}  # by call of the model
    passes = []

    def timed(phase: str) -> dict[str, Tensor]:
        begun = np.array([clock() for clock in clocks])
        metrics = update(phase)
        spent[phase][-1] += [clock() for clock in clocks] - begun
        if phase == "fit" and not agent.fit.in_progress:
            passes.append(agent.fit.passes)
            spent[phase].append(np.zeros(2))
        return metrics

    agent._update = timed  # type: ignore[method-assign]
    begun = np.array([clock() for clock in clocks])
    agent.learn(options.steps, reset_num_timesteps=False)
    whole = np.array([clock() for clock in clocks]) - begun
    totals = {phase: sum(laps, np.zeros(2)) for phase, laps in spent.items()}
    totals["the rest"] = whole - sum(totals.values())
    steps, calls = agent.num_timesteps - (options.rows - 1), len(passes)
    each = {phase: 1000 / steps * total for phase, total in totals.items()}
    each |= {"fit": 1000 / CALL * spent["fit"][calls - 1], "imagine": 1000 / CALL / calls * totals["imagine"]}
    named = [{phase: total[clock] for phase, total in totals.items()} for clock in range(2)]
    return {
        "steps": steps,
        "passes": passes,
        "model_steps": sum(passes) * batches(options.rows, agent.config.fitting.batch_size),
        "updates": agent.config.gradient_steps * steps,
        "seconds": named[0],
        "processors": named[1],
        "per_thousand": {phase: total.tolist() for phase, total in each.items()},
    }


# -- The command -------------------------------------------------------------------------------------------------------


def plan(part: str, agent: MBPO, options: MBPOSpeedOptions) -> dict[str, Callable[[], Turn]]:
    """:return: what makes each side of a part ready, by its name"""
    if part == "imagine":
        names = (HEADWAY, OWN, ALL) if options.peers else (HEADWAY, OWN)
        return {name: partial(imagination, agent, options, name) for name in names}
    sides: dict[str, Callable[[], Turn]] = {}
    if part == "model":
        sides[HEADWAY] = partial(fitting, agent)
        if options.peers:
            sides[EAGER] = partial(_eager_model, agent, options)
            sides[MBRL] = partial(mbrl_model, agent, options)
        return sides
    sides[HEADWAY] = lambda: Turn(imagining(agent)._learn, options.device)
    sides[SAC_ALONE] = partial(plain_sac, options)
    if options.agents:
        sides[STACK] = partial(_stack, options)
    if options.peers:
        sides[EAGER] = partial(eager_sac, agent, options)
        sides[MBRL] = partial(mbrl_sac, agent, options)
    return sides


def _eager_model(agent: MBPO, options: MBPOSpeedOptions) -> Turn:
    inputs, targets = real_rows(agent)
    model = EagerModel(inputs, targets, options.model_net_arch, agent.config.n_models)
    return Turn(model.train, options.device, batches(len(inputs), 256))


def _stack(options: MBPOSpeedOptions) -> Turn:
    agent = imagining(some_agent(options, variant="ps", n_models=options.agents))
    return Turn(agent._learn, options.device)


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Compare medians.

    :param measurements: of any parts
    :return: for each of another side "part", "side", and how many times as long as ours it takes: "times", and
        "processors", of all threads together
    """
    ours = {m.part: m for m in measurements if m.side == HEADWAY}
    return [
        {
            "part": m.part,
            "side": m.side,
            "times": ours[m.part].median / m.median,
            "processors": statistics.median(m.processors) / statistics.median(ours[m.part].processors),
        }
        for m in measurements
        if m.side != HEADWAY
    ]


def mbpo_speed(options: MBPOSpeedOptions) -> list[Measurement]:
    """Run ``headway benchmark mbpo``.

    :param options: its arguments
    :return: every measurement, as printed and written
    :raises ValueError: the file to write exists, or its folder does not
    """
    check_outputs(options.json, overwrite=options.overwrite)
    measurements: list[Measurement] = []
    absent: list[dict[str, Any]] = []
    learning = None
    with noted(options.threads, ("mbrl", "hydra-core")) as conditions:
        timed = [part for part in options.parts if part != "learn"]
        agent = some_agent(options) if timed else None
        for part in timed:
            assert agent is not None
            measured, missing = _measure(part, agent, options)
            measurements += measured
            absent += missing
        if "learn" in options.parts:
            learning = time_learning(options)
    compared = ratios(measurements)
    _print(options, conditions, measurements, absent, compared)
    if learning is not None:
        _print_learning(learning, measurements)
    content = {
        "units": UNITS,
        "measurements": in_json(measurements),
        "ratios": compared,
        "absent": absent,
        "learning": learning,
    }
    write_json(options.json, conditions, options, content)
    return measurements


def _measure(part: str, agent: MBPO, options: MBPOSpeedOptions) -> tuple[list[Measurement], list[dict[str, Any]]]:
    sides = plan(part, agent, options)
    planned = [(side, 1) for side in sides]
    timed, missing = take_turns(
        part, planned, lambda side, _: sides[side](), options.rounds, options.seconds, warm_up=4 - 3 * (part == "model")
    )
    found = [
        Measurement(
            part,
            t.name,
            [t.side.steps * t.count / seconds for _, seconds in t.laps],
            [spent / t.count / t.side.steps for spent, _ in t.laps],
        )
        for t in timed
    ]
    return found, [{"part": part, "side": side, "reason": reason} for side, _, reason in missing]


def _print(
    options: MBPOSpeedOptions,
    conditions: dict[str, Any],
    measurements: Sequence[Measurement],
    absent: Sequence[dict[str, Any]],
    compared: Sequence[dict[str, Any]],
) -> None:
    print_conditions(f"MBPO in {TASK}", conditions)
    agents, model = ("x".join(map(str, widths)) for widths in (options.net_arch, options.model_net_arch))
    print(f"{options.rows:,} rows of random actions; agents {agents}, 7 models {model}, batch 256; {options.device},")
    print(f"ours {options.precision}, compile {options.compile}; {options.agents} agents in a stack;")
    print(f"{min(options.rollouts, MOVED):,} rollouts; medians of {options.rounds} rounds [least, greatest]")
    rows = {(row["part"], row["side"]): row for row in compared}
    head = f"{'ms of processors':>32} {'x ours':>7}"
    for part in dict.fromkeys(m.part for m in measurements):
        print(f"\n{part:<26} {UNITS[part]:>32} {'x ours':>7} {head}")
        for m in measurements:
            if m.part == part:
                row = rows.get((part, m.side), {})
                beside = [f"{row[name]:.2f}" if row else "" for name in ("times", "processors")]
                cells = [f"{spread(v, ',.4g'):>32}" for v in (m.rates, [1e3 * spent for spent in m.processors])]
                print(f"  {m.side:<24} {cells[0]} {beside[0]:>7} {cells[1]} {beside[1]:>7}")
        for gone in absent:
            if gone["part"] == part:
                print(f"  {gone['side']:<24} absent: {gone['reason']}")


def _print_learning(learning: dict[str, Any], measurements: Sequence[Measurement]) -> None:
    passes = ", ".join(map(str, learning["passes"]))
    print(
        f"\nlearning: {learning['steps']:,} steps, {learning['updates']:,} gradient steps of the agent, passes of the"
    )
    print(
        f"model's trainings {passes}; seconds, those of processors, and of both for 1,000 steps with trainings of the"
    )
    print(f"model as the last{'':<6} {'seconds':>12} {'processors':>12} {'per 1,000':>12} {'processors':>12}")
    rows = {
        phase: (seconds, learning["processors"][phase], *learning["per_thousand"][phase])
        for phase, seconds in learning["seconds"].items()
    }
    rows["together"] = tuple(map(sum, zip(*rows.values(), strict=True)))
    for phase, cells in rows.items():
        print(f"  {phase:<21}", *(f"{cell:>12.1f}" for cell in cells))
    for side, seconds in worked_out(learning, measurements):
        print(f"  the same gradient steps by {side}, from what each takes above: {seconds:.1f} s of processors")


def worked_out(learning: dict[str, Any], measurements: Sequence[Measurement]) -> Iterator[tuple[str, float]]:
    """:return: of each side that has both, what the gradient steps would have taken it, in seconds of processors"""
    each = {(m.part, m.side): statistics.median(m.processors) for m in measurements}
    for side in (HEADWAY, EAGER, MBRL):
        if ("model", side) in each and ("update", side) in each:
            yield side, learning["model_steps"] * each["model", side] + learning["updates"] * each["update", side]
