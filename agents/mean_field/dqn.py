"""How one member of a crowd learns to act by values of actions, from what many like it live through at once.

Deep mirror descent and deep fictitious play after Laurière, Perrin, Girgin, Muller, Jain, Cabannes, Piliouras, Pérolat,
Élie, Pietquin, Geist: "Scalable Deep Reinforcement Learning Algorithms for Mean Field Games", ICML 2022, arXiv
2203.11973. Written from the equations.

A *place* is a state x at a time t, numbered t S + x. Shapes: ``B`` rows, ``N`` members, ``H`` decisions, ``S`` states,
``A`` actions, ``D`` network inputs.
"""

from abc import ABC, abstractmethod
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from torch.nn import functional as F

from ...envs.mean_field import MFGame
from ...envs.mean_field.member import MeanFieldAgentBatch, encode
from ..core.compile import compiled
from ..core.nets import StackedMLP, Tracked
from .config import AverageConfig, BestResponseConfig, MemberConfig, MirrorDescentConfig

MIN_PROBABILITY = 1e-6
"""Probabilities below this count as this in logarithms (OpenSpiel's)."""
MOST_INPUTS = 10_000
"""Of a table, whose square has to fit into memory (our choice)."""


class Batch(NamedTuple):
    """Transitions."""

    places: Tensor
    """(B,) int64"""
    actions: Tensor
    """(B,) int64"""
    rewards: Tensor
    """(B,)"""
    next_places: Tensor
    """(B,) int64"""
    ended: Tensor
    """(B,) bool"""


class Episodes(NamedTuple):
    """What members lived through."""

    places: Tensor
    """(N, H + 1) int64"""
    actions: Tensor
    """(N, H) int64"""
    rewards: Tensor
    """(N, H)"""

    def newest(self, later: "Episodes", count: int) -> "Episodes":
        """:return: the last so many of these and later ones."""
        return Episodes(*(torch.cat(parts)[-count:] for parts in zip(self, later, strict=True)))

    def take(self, rows: Tensor) -> Batch:
        """:return: transitions by number, row H + time of these (…,)."""
        horizon = self.actions.shape[1]
        at = rows + rows // horizon  # places have one column more
        places, flat = self.places.flatten(), rows.flatten()
        actions, rewards = (
            part.flatten().index_select(0, flat).view(rows.shape) for part in (self.actions, self.rewards)
        )
        return Batch(places[at], actions, rewards, places[at + 1], rows % horizon == horizon - 1)


def munchausen_targets(
    batch: Batch, prior: Tensor, next_prior: Tensor, next_q: Tensor, temperature: float, alpha: float, gamma: float
) -> Tensor:
    """r + alpha tau log p(a|s) + gamma sum_a' p(a'|s') (Q'(s', a') - tau log p(a'|s')), nothing after the end.

    :param batch: B transitions
    :param prior: probabilities p(.|s) under the last policy, 0 where illegal, (B, A)
    :param next_prior: p(.|s'), 0 where illegal, (B, A)
    :param next_q: the target network's values of s', (B, A)
    :param temperature: tau
    :param alpha: share of the last policy that is kept
    :param gamma: discount
    :return: (B,)
    """
    log_taken = prior.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1).clamp(min=MIN_PROBABILITY).log()  # (B,)
    soft_q = next_q - temperature * next_prior.clamp(min=MIN_PROBABILITY).log()  # (B, A)
    next_values = (next_prior * soft_q).sum(-1).masked_fill(batch.ended, 0.0)  # (B,)
    return batch.rewards + alpha * temperature * log_taken + gamma * next_values


def best_targets(batch: Batch, next_legal: Tensor, next_q: Tensor, gamma: float) -> Tensor:
    """r + gamma max_a' Q'(s', a') over legal actions, nothing after the end.

    :param batch: B transitions
    :param next_legal: actions that exist in s', (B, A) bool
    :param next_q: the target network's values of s', (B, A)
    :param gamma: discount
    :return: (B,)
    """
    next_values = next_q.masked_fill(~next_legal, -torch.inf).amax(-1).masked_fill(batch.ended, 0.0)  # (B,)
    return batch.rewards + gamma * next_values


def value_loss(network: StackedMLP, inputs: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
    """E[(Q(s, a) - y)^2].

    :param network: Q
    :param inputs: s, (B, D)
    :param actions: a, (B,)
    :param targets: y, (B,)
    :return: scalar
    """
    q = network(inputs)  # (B, A)
    return F.mse_loss(q.gather(1, actions.unsqueeze(1)).squeeze(1), targets)


def imitation_loss(network: StackedMLP, inputs: Tensor, legal: Tensor, actions: Tensor) -> Tensor:
    """-E[log p(a|s)], with p a softmax over legal actions.

    :param network: the logits of p
    :param inputs: s, (B, D)
    :param legal: (B, A) bool
    :param actions: a, (B,)
    :return: scalar
    """
    logits = network(inputs).masked_fill(~legal, -torch.inf)  # (B, A)
    return F.cross_entropy(logits, actions)


class Places:
    """What networks read of every place, and what can be done there.

    :param game: the game
    :param inputs: see :class:`MemberConfig`
    :raises ValueError: too many for a table
    """

    def __init__(self, game: MFGame, inputs: Literal["coordinates", "table"]) -> None:
        self.game = game
        count = (game.H + 1) * game.S
        if inputs == "table" and count > MOST_INPUTS:
            raise ValueError(
                f"inputs='table' would give networks {count} inputs, for {game.S} states at {game.H + 1} times; "
                f"{MOST_INPUTS} fit at most: use 'coordinates'"
            )
        numbers = torch.arange(count, device=game.device)
        self.legal = game.legal.repeat(game.H + 1, 1)  # (count, A)
        if inputs == "table":
            self.inputs = torch.eye(count, device=game.device)
        else:
            self.inputs = encode(game, numbers % game.S, numbers // game.S).float()  # (count, D)

    def new_network(
        self, net_arch: tuple[int, ...], activation: Literal["relu", "tanh", "elu"], seed: int
    ) -> StackedMLP:
        """:return: a new network from what is read of a place to a number for each action."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would change the GPUs' too
            network = StackedMLP((), self.inputs.shape[1], self.game.A, net_arch, activation)
        return network.to(self.game.device)

    @torch.no_grad()
    def evaluate(self, network: StackedMLP) -> Tensor:
        """Evaluate a network wherever members decide.

        :param network: the network
        :return: its outputs, -inf where illegal, (H, S, A) of the game's type
        :raises ValueError: they are not finite
        """
        game = self.game
        count = game.H * game.S
        outputs: Tensor = network(self.inputs[:count]).to(game.dtype)
        if not outputs.isfinite().all():
            raise ValueError(f"{game.name}: a network's outputs are no longer finite: lower the learning_rate")
        return outputs.masked_fill(~self.legal[:count], -torch.inf).view(game.H, game.S, game.A)


@torch.no_grad()
def live(env: MeanFieldAgentBatch, policy: Tensor, generator: torch.Generator) -> Episodes:
    """Let all members of a batch live through an episode.

    :param env: N members, not reset by themselves
    :param policy: what they do, (H, S, A)
    :param generator: of their decisions
    :return: what they lived through
    """
    game = env.game
    _, info = env.reset()
    places, actions, rewards = [info["state"]], [], []
    for t in range(game.H):
        chances = policy[t].index_select(0, info["state"])  # (N, A)
        chosen = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        _, reward, _, _, info = env.step(chosen)
        places.append((t + 1) * game.S + info["state"])
        actions.append(chosen)
        rewards.append(reward)
    return Episodes(torch.stack(places, 1), torch.stack(actions, 1), torch.stack(rewards, 1))


C = TypeVar("C", bound=MemberConfig)


class Member(ABC, Generic[C]):
    """A learner of action values for the members of one population.

    :param game: the game
    :param population: which
    :param cfg: hyper-parameters
    :param seed: of all it draws
    :raises ValueError: an iteration collects too little to learn from
    """

    def __init__(self, game: MFGame, population: int, cfg: C, seed: int) -> None:
        self._kept = max(1, cfg.buffer_size // game.H)  # episodes
        collected = cfg.episodes * game.H
        if (most := min(collected, self._kept * game.H)) < cfg.learning_starts:
            raise ValueError(
                f"learning starts after {cfg.learning_starts} transitions, but an iteration collects {collected} and "
                f"keeps {most}: lower learning_starts, or raise episodes or buffer_size"
            )
        if collected < cfg.train_freq:
            raise ValueError(
                f"a gradient step is taken every {cfg.train_freq:g} transitions, but an iteration collects "
                f"{collected}: lower train_freq, or raise episodes"
            )
        self.game, self.cfg, self.population = game, cfg, population
        self.generator = torch.Generator(game.device).manual_seed(seed)
        self.places = Places(game, cfg.inputs)
        network = self.places.new_network(cfg.net_arch, cfg.activation, seed)
        self.q = Tracked(network, cfg.learning_rate, target=True, max_grad_norm=cfg.max_grad_norm)
        self._rounds = -(-cfg.episodes // min(cfg.members, self._kept))
        count = -(-cfg.episodes // self._rounds)
        self.env = MeanFieldAgentBatch(count, game, population=population, autoreset_mode=AutoresetMode.DISABLED)
        self.env.reset(seed=seed)
        self._loss = compiled(value_loss, cfg.compile, game.device)

    @abstractmethod
    def policy(self) -> Tensor:
        """:return: what the action values say to do, (H, S, A)"""

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """:return: what values of actions should be, (B,)"""

    def schedule(self, progress: float) -> None:
        """Set the learning rate.

        :param progress: share of the iterations done
        """
        if self.cfg.learning_rate_schedule == "linear":
            self.q.scale_learning_rate(1 - progress)

    def learn(self, mu: Tensor) -> int:
        """Learn the values of actions against a flow, for an iteration.

        :param mu: where the crowd is, (n_pop, H + 1, S)
        :return: transitions collected
        """
        self.env.set_mean_field(mu)
        uniform = self.game.legal / self.game.legal.sum(1, keepdim=True)
        episodes = None
        steps = owed = 0
        for _ in range(self._rounds):
            lived = live(self.env, torch.lerp(self.policy(), uniform.to(mu), self.cfg.exploration), self.generator)
            episodes = lived if episodes is None else episodes.newest(lived, self._kept)
            steps += lived.actions.numel()
            if episodes.actions.numel() >= self.cfg.learning_starts:
                due = int(steps / self.cfg.train_freq)
                self._fit(episodes, due - owed)
                owed = due
        return steps

    def _fit(self, episodes: Episodes, updates: int) -> None:
        """Take gradient steps. What a target network says is worked out at once, up to its next copy."""
        cfg, window = self.cfg, max(1, round(self.cfg.target_update_interval / self.cfg.train_freq))
        shape = (updates, cfg.batch_size)
        rows = torch.randint(episodes.actions.numel(), shape, generator=self.generator, device=self.game.device)
        for some in torch.split(rows, window):
            batch = episodes.take(some)
            with torch.no_grad():
                targets = self.targets(Batch(*(part.flatten() for part in batch))).view(some.shape)
            inputs = self.places.inputs[batch.places]  # (window, B, D)
            for own, actions, wanted in zip(inputs, batch.actions, targets, strict=True):
                self.q.minimise(self._loss(self.q.module, own, actions, wanted))
            self.q.follow(1.0)

    def next_values(self, batch: Batch) -> Tensor:
        """:return: the target network's values of what comes next, (B, A)"""
        assert self.q.target is not None
        return self.q.target(self.places.inputs[batch.next_places]).squeeze(0)  # type: ignore[no-any-return]


class MirrorMember(Member[MirrorDescentConfig]):
    """One whose values hold all former ones, by the logarithm of the last policy."""

    def __init__(self, game: MFGame, population: int, cfg: MirrorDescentConfig, seed: int) -> None:
        super().__init__(game, population, cfg, seed)
        self.remember()

    def policy(self) -> Tensor:
        """See :class:`Member`."""
        return (self.places.evaluate(self.q.module) / self.cfg.temperature).softmax(-1)

    def remember(self) -> Tensor:
        """Make the policy the last one.

        :return: it, (H, S, A)
        """
        policy = self.policy()
        over = policy.new_zeros(1, *policy.shape[1:])  # at the end there is nothing to do
        self._prior = torch.cat((policy, over)).flatten(0, 1).float()  # by place
        return policy

    def targets(self, batch: Batch) -> Tensor:
        """See :class:`Member`."""
        cfg, prior = self.cfg, self._prior
        priors = prior[batch.places], prior[batch.next_places]
        return munchausen_targets(batch, *priors, self.next_values(batch), cfg.temperature, cfg.alpha, cfg.gamma)


class BestMember(Member[BestResponseConfig]):
    """One that takes the action of the highest value: deep Q-learning (DQN)."""

    def policy(self) -> Tensor:
        """See :class:`Member`."""
        best = self.places.evaluate(self.q.module).argmax(-1)
        return F.one_hot(best, self.game.A).to(self.game.dtype)

    def targets(self, batch: Batch) -> Tensor:
        """See :class:`Member`."""
        return best_targets(batch, self.places.legal[batch.next_places], self.next_values(batch), self.cfg.gamma)


class Average:
    """A network that has learnt what all best responses so far do, each as much as any other.

    :param member: who best responds
    :param cfg: hyper-parameters
    :param seed: of all it draws
    """

    def __init__(self, member: BestMember, cfg: AverageConfig, seed: int) -> None:
        self.member, self.cfg, device = member, cfg, member.game.device
        self.generator = torch.Generator(device).manual_seed(seed)
        network = member.places.new_network(cfg.net_arch, cfg.activation, seed)
        self.network = Tracked(network, cfg.average_learning_rate, max_grad_norm=cfg.average_max_grad_norm)
        self._loss = compiled(imitation_loss, cfg.compile, device)
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        self._places, self._actions = empty, empty
        self._keys = torch.zeros(0, dtype=torch.float64, device=device)

    def policy(self) -> Tensor:
        """:return: (H, S, A)"""
        return self.member.places.evaluate(self.network.module).softmax(-1)

    def learn(self) -> int:
        """Take up the member's present best response.

        :return: transitions collected
        """
        response, left, steps = self.member.policy(), self.cfg.average_episodes, 0
        while left > 0:
            lived = live(self.member.env, response, self.generator)
            self._keep(lived.places[:left, :-1].flatten(), lived.actions[:left].flatten())
            steps += lived.actions.numel()
            left -= len(lived.actions)
        shape = (self.cfg.average_steps, self.cfg.average_batch_size)
        places = self.member.places
        for rows in torch.randint(len(self._keys), shape, generator=self.generator, device=self._keys.device):
            at = self._places[rows]
            self.network.minimise(
                self._loss(self.network.module, places.inputs[at], places.legal[at], self._actions[rows])
            )
        return steps

    def _keep(self, places: Tensor, actions: Tensor) -> None:
        """Add decisions to the reservoir: those with the highest of random keys stay, so that each is as likely to."""
        keys = torch.rand(len(places), generator=self.generator, dtype=torch.float64, device=places.device)
        self._keys = torch.cat((self._keys, keys))
        self._places, self._actions = torch.cat((self._places, places)), torch.cat((self._actions, actions))
        if len(self._keys) > self.cfg.reservoir_size:
            self._keys, stay = self._keys.topk(self.cfg.reservoir_size)
            self._places, self._actions = self._places[stay], self._actions[stay]
