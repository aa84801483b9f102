"""Deep Q-networks that act as members of a crowd: what pays one of them, while all others do as a given flow says.

Deep mirror descent and deep fictitious play after Laurière, Perrin, Girgin, Muller, Jain, Cabannes, Piliouras, Pérolat,
Élie, Pietquin, Geist: "Scalable Deep Reinforcement Learning Algorithms for Mean Field Games", ICML 2022, arXiv
2203.11973. Written from the equations.

A *place* is a state x at a time t, numbered t S + x. Shapes: ``B`` rows, ``N`` members side by side, ``H`` decisions,
``S`` states, ``A`` actions, ``D`` numbers of an observation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, final

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor, nn
from torch.nn import functional as F

from ...envs.mean_field import MFGame
from ...envs.mean_field.member import MeanFieldAgentBatch, encode
from ...envs.schema import array, each, group, maybe, real, row, whole
from ...wrappers.sb3 import BatchedVecEnv
from ..core.attributes import expose
from ..core.compile import compiled
from ..core.config import AgentConfig
from ..core.data import Step, StepCollector, Transitions
from ..core.loop import Part
from ..core.nets import Adam, Head
from ..core.off_policy import OffPolicyAgent
from ..dqn import best_target, q_loss
from .config import AverageConfig, BestResponseConfig, MemberConfig, MirrorDescentConfig

MIN_PROBABILITY = 1e-6
"""Probabilities below this count as this in logarithms (OpenSpiel's)."""
MOST_INPUTS = 10_000
"""Of a table, whose one-hot batches have to fit into memory (our choice)."""


def munchausen_target(
    batch: Transitions,
    prior: Tensor,
    next_prior: Tensor,
    next_q: Tensor,
    temperature: float,
    alpha: float,
    gamma: float,
) -> Tensor:
    """y = r + alpha tau log p(a|s) + gamma sum_a' p(a'|s') (Q'(s', a') - tau log p(a'|s')), nothing after the end.

    :param batch: B transitions
    :param prior: probabilities p(.|s) under the last policy, 0 where illegal, (B, A)
    :param next_prior: p(.|s'), 0 where illegal, (B, A)
    :param next_q: the target network's values of s', (B, A)
    :param temperature: tau
    :param alpha: share of the last policy that is kept
    :param gamma: discount
    :return: (B,)
    """
    log_taken = prior.gather(1, batch.actions.unsqueeze(1)).squeeze(1).clamp(min=MIN_PROBABILITY).log()  # (B,)
    soft_q = next_q - temperature * next_prior.clamp(min=MIN_PROBABILITY).log()  # (B, A)
    next_values = (next_prior * soft_q).sum(1).masked_fill(batch.terminated, 0.0)  # (B,)
    return batch.rewards + alpha * temperature * log_taken + gamma * next_values


def imitation_loss(actor: "Logits", obs: Tensor, legal: Tensor, actions: Tensor) -> Tensor:
    """-E[log p(a|s)], with p a softmax over legal actions.

    :param actor: the logits of p
    :param obs: s, (B, D)
    :param legal: (B, A) bool
    :param actions: a, (B,)
    :return: scalar
    """
    return F.cross_entropy(actor(obs).masked_fill(~legal, -torch.inf), actions)


class Places:
    """What members see and can do in every place.

    :param game: the game
    :param device: where tensors are
    """

    def __init__(self, game: MFGame, device: torch.device) -> None:
        self.count = (game.H + 1) * game.S
        numbers = torch.arange(self.count, device=game.device)
        self.observations = encode(game, numbers % game.S, numbers // game.S).to(device)  # (count, D)
        self.legal = game.legal.repeat(game.H + 1, 1).to(device)  # (count, A)
        # Coordinates and time are one-hot, so that a number is a sum over the columns that are 1. What a column adds
        # is the first number that has it: there all other coordinates are 0.
        numbers = numbers.to(device, torch.float32).unsqueeze(1)  # exact, below 2^24
        self._strides = torch.where(self.observations > 0, numbers, torch.inf).amin(0)  # (D,)

    def find(self, obs: Any) -> Tensor:
        """:return: the places of observations (B, D), (B,) int64"""
        return (obs * self._strides).sum(-1).long()  # type: ignore[no-any-return]


class Logits(Head):
    """A number for each action."""

    def forward(self, obs: Tensor) -> Tensor:
        """:return: of all actions in observations (B, D), (B, A)"""
        return self.mlp(self.features(obs))  # type: ignore[no-any-return]


class Values(Logits):
    """Values of all actions, by one network without an axis for others, which takes a few percent less time."""

    def forward(self, obs: Tensor) -> Tensor:
        """:return: values of all actions in observations (B, D), (1, B, A)"""
        return super().forward(obs).unsqueeze(0)


class TableFeatures(nn.Module):
    """Places, one-hot.

    :param places: of the game
    :raises ValueError: too many
    """

    def __init__(self, places: Places) -> None:
        super().__init__()
        if places.count > MOST_INPUTS:
            raise ValueError(
                f"inputs='table' would give networks {places.count} inputs, one for each state and time; "
                f"{MOST_INPUTS} fit at most: use 'coordinates'"
            )
        self.places, self.features_dim = places, places.count

    def forward(self, obs: Tensor) -> Tensor:
        """:return: features of observations (B, D), (B, count)"""
        return F.one_hot(self.places.find(obs), self.features_dim).float()


class MemberDQN(OffPolicyAgent[Any]):
    """A learner of action values for the members of one population: what the three agents below share.

    Its training goes in iterations: so many whole episodes of N members side by side, and the gradient steps that they
    bring. Each begins with an empty store (our deviation), as the crowd, and rewards with it, may have changed. What
    the target network says is computed at once for all gradient steps up to its next copy.

    :param game: the game, which ``load`` and ``resume`` have to be told too; without an environment, one is made of it
    :param population: which one its members belong to, 0 by default

    The others as :class:`~headway.agents.core.agent.ActorCriticAgent`.

    :raises ValueError: no game, one that members see otherwise, or an iteration that collects too little to learn from
    """

    config: MemberConfig
    action_kinds = ("Discrete",)
    arguments = ("game", "population")
    game: Any
    population: int | None

    def __init_subclass__(cls, *, config: type[MemberConfig], **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.config_class = config  # only now: who learns in nothing but mean field games is none of AGENTS
        expose(cls)

    # -- construction ------------------------------------------------------------------------------------------------

    def _default_env(self) -> BatchedVecEnv | None:
        if self.game is None:
            return None
        cfg = self.config
        rounds = -(-cfg.episodes // min(cfg.members, max(1, cfg.buffer_size // self.game.H)))
        rows = -(-cfg.episodes // rounds)
        return BatchedVecEnv(MeanFieldAgentBatch(rows, self.game, population=self.population or 0))

    def _seed_global_streams(self, seed: int) -> None:
        """Leave them alone."""

    def _setup_model(self) -> None:
        self._window: list[tuple[Transitions, Tensor]] = []
        self.share_done: float | None = None
        super()._setup_model()
        if not (self.verbose or self.tensorboard_log):
            self.set_logger(Logger(None, []))  # Stable-Baselines3 makes a folder for each learn(), and there are many
        self.register("member", Part(self._member_state, self._load_member_state))
        cfg, collected = self.config, self.exploring
        if (most := min(collected, self.store.capacity_per_env * self.n_envs)) < cfg.learning_starts:
            raise ValueError(
                f"learning starts after {cfg.learning_starts} transitions, but an iteration collects {collected} and "
                f"keeps {most}: lower learning_starts, or raise episodes or buffer_size"
            )
        if collected < cfg.train_freq:
            raise ValueError(
                f"a gradient step is taken every {cfg.train_freq:g} transitions, but an iteration collects "
                f"{collected}: lower train_freq, or raise episodes"
            )

    def _build(self) -> None:
        if self.game is None:
            raise ValueError(f"a member has to know its game: {type(self).__name__}(game=make_game(NAME), …)")
        self.places = Places(self.game, self.device)
        if self.observation_space.shape != self.places.observations.shape[1:] or self._vec_normalize_env is not None:
            raise ValueError(
                f"{type(self).__name__} reads one-hot coordinates and time, {self.places.observations.shape[1]} "
                f"numbers in {self.game.name}, got {self.observation_space}: show it no crowd, and do not normalise"
            )
        self.exploring = self.iteration = self._rounds(self.config.episodes)
        """Environment steps of an iteration in which values are learnt, and all of them."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed or 0)  # the CPU's alone, not the GPUs' too
            self._make_networks()
        self._loss = compiled(q_loss, self.config.compile, self.device)

    def _rounds(self, episodes: int) -> int:
        """:return: environment steps until so many episodes are through."""
        return int(-(-episodes // self.n_envs) * self.n_envs * self.game.H)

    def _features(self) -> nn.Module:
        return TableFeatures(self.places) if self.config.inputs == "table" else self.codec.features()

    def _values(self) -> Values:
        return Values(self._features(), self.actions.size, stack=(), **self.config.perceptron)

    def _make_networks(self) -> None:
        self.q = self.track("q", self._values(), target=True)

    def _make_collector(self) -> StepCollector:
        return StepCollector(self, self.game.H)

    # -- acting ------------------------------------------------------------------------------------------------------

    def _response(self, values: Tensor) -> Tensor:
        """:return: probabilities of actions with these values, -inf where illegal, (B, A) float64"""
        return F.one_hot(values.argmax(1), values.shape[1]).double()

    def _respond(self, obs: Tensor) -> Tensor:
        """:return: what the action values say to do, (B, A) float64"""
        return self._response(self._masked(self.q.module(obs).squeeze(0), obs))

    def _masked(self, outputs: Tensor, obs: Tensor) -> Tensor:
        """:return: outputs of a network, -inf where illegal, (B, A) float64; refused if they are not finite"""
        if not outputs.isfinite().all():
            raise ValueError(f"{self.game.name}: a network's outputs are no longer finite: lower the learning_rate")
        return outputs.double().masked_fill(~self.places.legal[self.places.find(obs)], -torch.inf)

    def action_probabilities(self, observations: Tensor) -> Tensor:
        """:return: how the agent acts on observations (B, D), (B, A) float64, 0 where illegal"""
        return self._respond(observations.to(self.device))

    def _act(self, obs: Tensor, deterministic: bool, generator: torch.Generator) -> Tensor:
        probabilities = self.action_probabilities(obs)
        return probabilities.argmax(1) if deterministic else _drawn(probabilities, generator)

    def explore(self, obs: Any) -> dict[str, Tensor]:
        """See :meth:`ActorCriticAgent.explore`."""
        probabilities = self._respond(obs)
        if self.num_timesteps % self.iteration < self.exploring:
            legal = self.places.legal[self.places.find(obs)].double()
            probabilities = torch.lerp(probabilities, legal / legal.sum(1, keepdim=True), self.config.exploration)
        return {"actions": _drawn(probabilities, self.generators["collect"])}

    def choose(self) -> dict[str, Tensor]:
        """:return: what :meth:`explore` says, also in the beginning."""
        if self.num_timesteps % self.iteration == 0:
            self._begin()
        with torch.no_grad():
            return self.explore(self.last_obs)

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn_against(self, mu: Tensor, share_done: float, callback: MaybeCallback = None) -> int:
        """Do an iteration among a crowd.

        :param mu: where the crowd is, (n_pop, H + 1, S)
        :param share_done: share of all iterations before it, for the schedule of the learning rate
        :param callback: Stable-Baselines3 callbacks
        :return: environment steps
        :raises KeyboardInterrupt: a callback has stopped it
        """
        assert self.env is not None
        before = self.num_timesteps
        self.env.env_method("set_mean_field", mu)
        self.share_done = share_done
        self.learn(self.iteration, callback, log_interval=None, reset_num_timesteps=False)
        if self.remaining_timesteps or self.collector.in_progress or self.pending_updates:
            raise KeyboardInterrupt  # what was asked for, as by Ctrl-C: to keep the last whole iteration
        return self.num_timesteps - before

    @property
    def progress_remaining(self) -> float:
        """See :class:`LearningLoop`; within an iteration of :meth:`learn_against` it stays."""
        return super().progress_remaining if self.share_done is None else 1 - self.share_done

    def _begin(self) -> None:
        """Begin an iteration."""
        self.store.clear()
        self._window = []

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`; a gradient step for every ``train_freq`` transitions."""
        now, every = self.num_timesteps % self.iteration or self.iteration, self.config.train_freq
        enough = len(self.store) >= self.config.learning_starts
        return self.schedule(int(now / every) - int((now - collected) / every)) if enough else []

    def _targets(self, batch: Transitions, target_q: Values) -> Tensor:
        """:return: what values of actions should be, (B,)"""

        def legal_q(obs: Any) -> Tensor:
            return target_q(obs).masked_fill(~self.places.legal[self.places.find(obs)], -torch.inf)  # type: ignore[no-any-return]

        return best_target(batch, self.q.module, legal_q, self.config.gamma, double=False)

    def _update(self, phase: str) -> dict[str, Tensor]:
        self._window = self._window or self._draw()
        batch, target = self._window[0]
        loss = self._loss(self.q.module, batch, target, "mse")
        self.q.minimise(loss)
        del self._window[0]
        if not self._window:
            self.q.follow(1.0)
        return {"loss": loss}

    @torch.no_grad()
    def _draw(self) -> list[tuple[Transitions, Tensor]]:
        """:return: batches and targets of the gradient steps up to the next copy of the target network"""
        cfg, target_q = self.config, self.q.target
        assert target_q is not None
        steps = min(max(1, round(cfg.target_update_interval / cfg.train_freq)), self.pending_updates)
        batch = self.store.sample(steps * cfg.batch_size)
        columns = [*_columns(batch), self._targets(batch, target_q)]
        rows = zip(*(column.split(cfg.batch_size) for column in columns), strict=True)
        return [(Transitions(*row), target) for *row, target in rows]

    def _member_state(self) -> dict[str, Any]:
        window = [[*_columns(batch), target] for batch, target in self._window]
        return {"population": self.population or 0, "share_done": self.share_done, "window": window}

    def _load_member_state(self, state: Mapping[str, Any]) -> None:
        size = (self.config.batch_size,)
        columns = [partial(self.store.fields[name].check, lead=size) for name in self.store.fields]
        windows = each(row(*columns, array(size, "float32")))
        group({"population": whole(), "share_done": maybe(real(0, 1)), "window": windows})(state, "the member")
        if state["population"] != (self.population or 0):
            raise ValueError(f"the checkpoint is of population {state['population']}, got {self.population or 0}")
        self.share_done = state["share_done"]
        rows = [[column.to(self.device) for column in row] for row in state["window"]]
        self._window = [(Transitions(*row), target) for *row, target in rows]


@final
class MirrorDescentDQN(MemberDQN, config=MirrorDescentConfig):
    """Deep Munchausen online mirror descent (D-MOMD, arXiv 2203.11973), the learner of one population.

    Each iteration goes on with the last one's Q, p = softmax(Q / tau) being its policy in the beginning::

        y   = r + alpha tau log p(a|s) + gamma sum_a' p(a'|s') (Q'(s', a') - tau log p(a'|s'))
        Q  <- descend (Q(s, a) - y)^2

    logarithms cut off at log 1e-6, and Q' <- Q every so often. With alpha = 1 this is online mirror descent of step
    size 1 / tau.

    Deviation: many members act at once, with probabilities p, not greedily.

    Parameters as :class:`MemberDQN`, hyper-parameters as :class:`MirrorDescentConfig`.
    """

    config: MirrorDescentConfig

    def _make_networks(self) -> None:
        super()._make_networks()
        self.prior = self.track("prior", self._values(), frozen=True)
        self._prior: Tensor | None = None

    def _begin(self) -> None:
        super()._begin()
        self.prior.module.load_state_dict(self.q.module.state_dict())
        self._prior = None

    def _response(self, values: Tensor) -> Tensor:
        return (values / self.config.temperature).softmax(1)

    def _targets(self, batch: Transitions, target_q: Values) -> Tensor:
        cfg, places = self.config, self.places
        if self._prior is None:  # by place, as long as the iteration lasts
            seen = places.observations
            self._prior = self._response(self._masked(self.prior.module(seen).squeeze(0), seen)).float()
        now, later = self._prior[places.find(batch.obs)], self._prior[places.find(batch.next_obs)]
        next_q = target_q(batch.next_obs).squeeze(0)
        return munchausen_target(batch, now, later, next_q, cfg.temperature, cfg.alpha, cfg.gamma)


@final
class BestResponseDQN(MemberDQN, config=BestResponseConfig):
    """Deep Q-learning of the best response to a crowd, over legal actions, with squared errors.

    Parameters as :class:`MemberDQN`, hyper-parameters as :class:`BestResponseConfig`.
    """


@final
class AverageDQN(MemberDQN, config=AverageConfig):
    """Deep average-network fictitious play (D-AFP, arXiv 2203.11973), the learner of one population.

    An iteration learns a best response, as :class:`BestResponseDQN` does; then lets members follow it, puts their
    decisions into a reservoir of those of all iterations, and fits a second network to the reservoir by cross-entropy.
    The agent acts as that network does.

    Deviations: the average is fitted by Adam over legal actions, and followed at the temperature at which it was
    fitted; OpenSpiel fits by gradient descent and follows at ten times that.

    Parameters as :class:`MemberDQN`, hyper-parameters as :class:`AverageConfig`.
    """

    config: AverageConfig

    def _build(self) -> None:
        super()._build()
        cfg = self.config
        self.iteration += self._rounds(cfg.average_episodes)
        places = len(self.places.observations)
        self.reservoir = Reservoir(cfg.reservoir_size, self.generators["store"], places, self.actions.size)
        self.register("reservoir", self.reservoir)
        self._imitation_loss = compiled(imitation_loss, cfg.compile, self.device)

    def _make_networks(self) -> None:
        super()._make_networks()
        cfg = self.config
        network = Logits(self._features(), self.actions.size, stack=(), **cfg.perceptron)
        self.average = self.track("average", network, optimiser=Adam(learning_rate=cfg.average_learning_rate))
        self.average.max_grad_norm = cfg.average_max_grad_norm

    def _config_changed(self, before: AgentConfig) -> None:
        super()._config_changed(before)
        self.average.max_grad_norm = self.config.average_max_grad_norm

    def action_probabilities(self, observations: Tensor) -> Tensor:
        """:return: how the average acts on observations (B, D), (B, A) float64, 0 where illegal"""
        obs = observations.to(self.device)
        return self._masked(self.average.module(obs), obs).softmax(1)

    def keep(self, step: Step) -> None:
        """See :meth:`OffPolicyAgent.keep`; decisions of the best response go into the reservoir."""
        followed = self.num_timesteps % self.iteration - self.exploring
        if followed < 0:
            super().keep(step)
            return
        before = followed // self._rounds(1) * self.n_envs  # episodes of rounds that are through
        left = max(0, self.config.average_episodes - before)
        self.reservoir.add(self.places.find(step.obs)[:left], step.chosen["actions"][:left])

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`MemberDQN.phases`; the last round brings the gradient steps of the average."""
        now = self.num_timesteps % self.iteration
        if 0 < now <= self.exploring:
            return super().phases(collected)
        return [("average", self.config.average_steps)] if now == 0 else []

    def _update(self, phase: str) -> dict[str, Tensor]:
        if phase != "average":
            return super()._update(phase)
        at, actions = self.reservoir.sample(self.config.average_batch_size)
        seen, legal = self.places.observations[at], self.places.legal[at]
        loss = self._imitation_loss(self.average.module, seen, legal, actions)
        self.average.scale_learning_rate(1.0)  # no schedule lowers it
        self.average.minimise(loss)
        return {"average_loss": loss}


class Reservoir:
    """Decisions, a uniform sample of all there were: each has a random key, and those with the highest keys stay.

    :param size: how many
    :param generator: of keys and samples
    :param places: how many places there are
    :param actions: how many actions there are
    """

    def __init__(self, size: int, generator: torch.Generator, places: int, actions: int) -> None:
        self.size, self.generator, self.places, self.actions = size, generator, places, actions
        self._parts: list[list[Tensor]] = []
        """Keys, places and actions; what was added since the last sample is not joined yet."""

    def add(self, places: Tensor, actions: Tensor) -> None:
        """Offer decisions: places and actions, (B,) int64 each."""
        keys = torch.rand(len(places), generator=self.generator, dtype=torch.float64, device=places.device)
        self._parts.append([keys, places, actions])

    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """:return: places and actions of decisions drawn uniformly, with replacement, (B,) int64 each"""
        if len(self._parts) > 1:
            keys, places, actions = map(torch.cat, zip(*self._parts, strict=True))
            if len(keys) > self.size:
                keys, stay = keys.topk(self.size)
                places, actions = places[stay], actions[stay]
            self._parts = [[keys, places, actions]]
        keys, places, actions = self._parts[0]
        rows = torch.randint(len(keys), (batch_size,), generator=self.generator, device=keys.device)
        return places[rows], actions[rows]

    def state(self) -> list[list[Tensor]]:
        """:return: everything but the generator"""
        return [list(part) for part in self._parts]

    def load_state(self, state: list[list[Tensor]]) -> None:
        """Put back what :meth:`state` returned.

        :raises ValueError: it does not fit
        """
        indices = (array((None,), "int64", low=0, high=most - 1) for most in (self.places, self.actions))
        each(row(array((None,), "float64", low=0, high=1), *indices))(state, "the reservoir")
        if any(len(set(map(len, part))) > 1 for part in state):
            raise ValueError("the reservoir must have as many keys as places and actions")
        self._parts = [[column.to(self.generator.device) for column in part] for part in state]


def _drawn(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def _columns(batch: Transitions) -> list[Any]:
    return [getattr(batch, field.name) for field in fields(batch)]
