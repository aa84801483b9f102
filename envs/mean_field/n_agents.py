"""As many members as one likes, each seen and counted: what a mean field game is the limit of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..horizon import first_row
from ..schema import array, group, whole
from ..streams import HostStreams
from .dynamics import best_response, flow
from .game import MFGame
from .member import Illegal, MemberEnv, cumulative, illegal_action, moves_of_member


def _drawn(table: Tensor, u: Tensor) -> Tensor:
    """:return: entries drawn from rows of :func:`cumulative` probabilities (…, K), by numbers (…) in [0, 1)."""
    return (table <= u.unsqueeze(-1)).sum(-1)


class Crowds:
    """E crowds of n_agents in each population, sampled; who decides, and all random numbers, come from outside.

    :param game: one game
    :param n_agents: in each population
    :raises ValueError: fewer than 1
    """

    def __init__(self, game: MFGame, n_agents: int) -> None:
        if n_agents < 1:
            raise ValueError(f"n_agents must be at least 1, got {n_agents}")
        self.game, self.n_agents = game, n_agents
        self._populations = torch.arange(game.n_pop, device=game.device).view(-1, 1)
        self._starts = cumulative(game.mu0)
        self._moves: list[Any] = []
        if not game.dynamic:
            nobody = game.mu0.unsqueeze(1)
            self._moves = [moves_of_member(game, nobody, population) for population in range(game.n_pop)]

    def start(self, u: Tensor) -> Tensor:
        """:return: where all start, (E, n_pop, n_agents), by as many numbers in [0, 1)."""
        return _drawn(self._starts.unsqueeze(1), u)

    def masses(self, states: Tensor) -> Tensor:
        """:return: the empirical mean field of agents at (E, n_pop, n_agents), (E, n_pop, S)."""
        counts = torch.zeros(*states.shape[:2], self.game.S, dtype=self.game.dtype, device=states.device)
        return counts.scatter_add_(2, states, torch.ones_like(states, dtype=counts.dtype)) / self.n_agents

    def act(self, policy: Tensor, t: int, states: Tensor, u: Tensor) -> Tensor:
        """:return: actions (E, n_pop, n_agents) that a policy (n_pop, H, S, A) takes at time t."""
        return _drawn(cumulative(policy[:, t])[self._populations, states], u)

    def move(self, t: int, mu: Tensor, states: Tensor, actions: Tensor, u: Tensor) -> Tensor:
        """:return: where all are next, (E, n_pop, n_agents), when the crowds are at mu (E, n_pop, S)."""
        game = self.game
        if game.transition is not None:
            assert game.succ_idx is not None
            p = game.transition(t, mu).to(mu).expand(len(mu), game.n_pop, *game.succ_idx.shape)
            episodes = torch.arange(len(mu), device=mu.device).view(-1, 1, 1)
            which = _drawn(cumulative(p[episodes, self._populations, states, actions]), u)
            return game.succ_idx[states, actions, which]
        moved = []
        for population, (rows, successors, probabilities) in enumerate(self._moves):
            row = rows[states[:, population], actions[:, population]]
            which = torch.zeros_like(row) if probabilities is None else _drawn(probabilities[0][row], u[:, population])
            moved.append(successors[row, which])
        return torch.stack(moved, 1)

    def earned(self, t: int, mu: Tensor, states: Tensor, actions: Tensor, population: int) -> Tensor:
        """:return: what the first agent (E,) of a population earns at time t."""
        game = self.game
        state, action = states[:, population, 0], actions[:, population, 0]
        reward = self._own(game.r_state(t, mu), 1, len(mu), population).gather(1, state.unsqueeze(1)).squeeze(1)
        if game.r_action is not None:
            table = self._own(game.r_action(t, mu), 2, len(mu), population)
            reward = reward + table[torch.arange(len(mu), device=mu.device), state, action]
        return reward

    def final(self, mu: Tensor, states: Tensor, population: int) -> Tensor | float:
        """:return: what the first agent (E,) of a population earns at the end."""
        if self.game.terminal is None:
            return 0.0
        table = self._own(self.game.terminal(mu), 1, len(mu), population)
        return table.gather(1, states[:, population, :1]).squeeze(1)

    def _own(self, part: Tensor, own: int, episodes: int, population: int) -> Tensor:
        """:return: what a function of E crowds returned, for one population, (E, S) or (E, S, A)."""
        game = self.game
        return part.to(game.dtype).expand(episodes, game.n_pop, *(game.S, game.A)[:own])[:, population]


class NAgentEnv(MemberEnv):
    """One learner among ``n_agents``: what it earns depends on where they really are, itself included.

    All others follow a policy. Observations, actions, rewards and ``info`` are those of a
    :class:`~headway.envs.mean_field.member.MeanFieldAgentEnv`, with the empirical mean field in the place of a flow;
    ``info["mean_field"]`` (n_pop, S) tells it.

    :param game: a game, or the name of one
    :param n_agents: in each population
    :param population: which one the learner belongs to
    :param policy: of the others, (n_pop, H, S, A); None: uniform
    :param population_aware: whether the learner sees the crowd
    :param illegal: "error" raises for an action that is not legal, "random" takes a legal one instead
    :param parameters: of a game given by name
    :raises ValueError: no agents, no such population, a policy that is none of this game, or see :func:`game_of`
    """

    def __init__(
        self,
        game: str | MFGame = "crowd_modelling",
        n_agents: int = 100,
        *,
        population: int = 0,
        policy: Tensor | None = None,
        population_aware: bool = False,
        illegal: Illegal = "error",
        **parameters: Any,
    ) -> None:
        super().__init__(game, parameters, population, population_aware, illegal)
        game = self.game
        self.crowds = Crowds(game, n_agents)
        self.set_policy(game.uniform_policy() if policy is None else policy)
        self._states = torch.zeros(1, game.n_pop, n_agents, dtype=torch.int64, device=game.device)

    def set_policy(self, policy: Tensor) -> None:
        """Let the others act in another way from now on.

        :param policy: (n_pop, H, S, A)
        :raises ValueError: it is none of this game
        """
        self.policy = one_policy(self.game, policy).clone()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.Env.reset``."""
        super().reset(seed=seed)
        self._time, self._states = 0, self.crowds.start(self._numbers())
        return self._observe()

    def _numbers(self) -> Tensor:
        return torch.from_numpy(self.np_random.random(tuple(self._states.shape))).to(self.game.device)

    def step(self, action: np.int64 | int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``.

        :raises ValueError: the action is not legal here
        :raises gymnasium.error.ResetNeeded: the episode is over, or none has begun
        """
        self._check_running()
        t, states, own = self._time, self._states, self.population
        mu = self.crowds.masses(states)
        actions = self.crowds.act(self.policy, t, states, self._numbers())
        actions[0, own, 0] = self._lawful(int(action), int(states[0, own, 0]))
        reward = self.crowds.earned(t, mu, states, actions, own)
        self._states, self._time = self.crowds.move(t, mu, states, actions, self._numbers()), t + 1
        over = self._time == self.game.H
        if over:
            reward = reward + self.crowds.final(self.crowds.masses(self._states), self._states, own)
        obs, info = self._observe()
        return obs, float(reward), over, False, info

    def _lawful(self, action: int, state: int) -> int:
        legal = self.game.legal[state]
        if 0 <= action < self.game.A and legal[action]:
            return action
        if self._illegal == "error" or not 0 <= action < self.game.A:
            raise illegal_action(self.game, action, state)
        return int(legal.nonzero()[int(self.np_random.random() * int(legal.sum()))])

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        state, times = self._states[0, self.population, :1], torch.tensor([self._time], device=self.game.device)
        mu = self.crowds.masses(self._states)
        obs = self._encoder(state, times, mu.flatten(1).float() if self.population_aware else None)
        told = {"action_mask": self.game.legal[state], "state": state, "time": times, "mean_field": mu}
        return np.array(obs[0].cpu().numpy()), first_row(told)

    def state(self) -> dict[str, Any]:
        """:return: a copy of where everybody is, of the others' policy and of ``np_random``."""
        streams = HostStreams(1)
        streams.put(0, self.np_random)
        parts = {"states": self._states, "policy": self.policy, "stream": streams.state}
        return {"time": self._time, **{name: part.clone() for name, part in parts.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what :meth:`state` copied.

        :raises ValueError: it is of another number of agents, or another game
        """
        places = array(None, "int64", low=0, high=self.game.S - 1)
        words = array((1, 4), "int64")
        fields = {"time": whole(0, self.game.H), "states": places, "policy": array(None), "stream": words}
        group(fields)(state, "the state")
        if state["states"].shape != self._states.shape:
            shapes = tuple(state["states"].shape), tuple(self._states.shape)
            raise ValueError(f"the state does not fit: agents (1, n_pop, n_agents) are {shapes[0]}, here {shapes[1]}")
        self.set_policy(state["policy"])
        self._time, self._states = state["time"], state["states"].clone()
        streams = HostStreams(1)
        streams.state.copy_(state["stream"])
        self.np_random = streams.generator(0)


def one_policy(game: MFGame, policy: Tensor) -> Tensor:
    """:return: a policy (n_pop, H, S, A) of this game, checked; a ValueError for a batch of them too."""
    if game.batch:
        raise ValueError(f"{game.name} is a batch of {game.batch} games: take one of them")
    policy = game.check_policy(policy)
    if policy.ndim != 4:
        raise ValueError(f"one policy (n_pop, H, S, A) of {game.name} is needed, got {tuple(policy.shape)}")
    return policy


@dataclass(frozen=True)
class DeviationGain:
    """What one agent gains by leaving the others' policy, by the population it belongs to."""

    gain: Tensor
    """Mean over episodes, (n_pop,)"""
    standard_error: Tensor
    """Of that mean, (n_pop,)"""

    @property
    def total(self) -> tuple[float, float]:
        """The sum over populations, which approaches :func:`exploitability` as agents become many, and its error."""
        return float(self.gain.sum()), float(self.standard_error.square().sum().sqrt())


@torch.no_grad()
def deviation_gain(
    game: MFGame,
    policy: Tensor,
    n_agents: int,
    episodes: int = 1000,
    seed: int | None = None,
    *,
    at_once: int = 1 << 20,
) -> DeviationGain:
    """Estimate what one agent gains by best responding to the mean field while all others follow a policy.

    Each episode is played twice, with the same random numbers: once all follow the policy, once the first agent of one
    population plays the best response to the flow that infinitely many would make. Bonuses of a regulariser count.

    :param game: one game
    :param policy: (n_pop, H, S, A)
    :param n_agents: in each population
    :param episodes: at least 2
    :param seed: of the random numbers; None: from the operating system's entropy
    :param at_once: agents simulated side by side, at most; bounds the memory
    :return: the gain and its standard error
    :raises ValueError: a policy that is none of this game, no agents, fewer than two episodes
    """
    policy = one_policy(game, policy)
    if episodes < 2:
        raise ValueError(f"episodes must be at least 2, to know a standard error, got {episodes}")
    crowds = Crowds(game, n_agents)
    response = best_response(game, flow(game, policy)).policy
    generator = torch.Generator(game.device)
    _ = generator.seed() if seed is None else generator.manual_seed(seed)
    size = max(1, at_once // (game.n_pop * n_agents))
    gains = []
    for population in range(game.n_pop):
        parts = [
            _gains(crowds, policy, response, population, min(size, episodes - done), generator)
            for done in range(0, episodes, size)
        ]
        gains.append(torch.cat(parts))
    found = torch.stack(gains)  # (n_pop, episodes)
    return DeviationGain(found.mean(1), found.std(1) / episodes**0.5)


def _gains(
    crowds: Crowds, policy: Tensor, response: Tensor, population: int, episodes: int, generator: torch.Generator
) -> Tensor:
    """:return: what the first agent of a population gains in each of some episodes, (episodes,)."""
    game = crowds.game
    shape = (episodes, game.n_pop, crowds.n_agents)

    def numbers() -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=game.device)

    begun = crowds.start(numbers())
    states, totals = [begun, begun], [torch.zeros(episodes, dtype=game.dtype, device=game.device) for _ in range(2)]
    for t in range(game.H):
        u, v = numbers(), numbers()
        for deviates in (0, 1):
            here = states[deviates]
            mu = crowds.masses(here)
            actions = crowds.act(policy, t, here, u)
            own = policy
            if deviates:
                own = response
                actions[:, population, 0] = crowds.act(response, t, here[..., :1], u[..., :1])[:, population, 0]
            totals[deviates] = totals[deviates] + crowds.earned(t, mu, here, actions, population)
            if game.regulariser is not None:
                totals[deviates] += game.regulariser.bonus(own[population, t], -1)[here[:, population, 0]]
            states[deviates] = crowds.move(t, mu, here, actions, v)
    ends = [total + crowds.final(crowds.masses(x), x, population) for total, x in zip(totals, states, strict=True)]
    return ends[1] - ends[0]
