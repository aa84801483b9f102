"""PGPS: a population search and a gradient learner that share their experience and help each other; and CEM alone.

Kim, Baek, Shin: "PGPS: Coupling Policy Gradient with Population-based Search", submitted to ICLR 2021 (OpenReview
PeT5p3ocagr). The paper's body could not be read: this is written from its abstract and from the behaviour of the
program released with it. Pourchot, Sigaud: "CEM-RL: Combining evolutionary and gradient-based methods for policy
search", arXiv 1810.01222 (the preset ``cem-rl``).

Shapes: ``P`` members, ``D`` weights of a policy, ``B`` rows, ``S`` states, ``M`` candidates, ``A`` action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor

from ...envs.schema import array, flag, group, real, whole
from ..core.config import Count, LearningRate, Positive, Range, SmoothingConfig, StoreConfig
from ..core.data import Step
from ..core.loop import Part
from ..core.nets import Actor, Critics, DeterministicActor
from ..core.off_policy import ReplayAgent
from .cem import CEMSearch
from .evolution import COLUMNS, ORIGINS, PopulationAgent, PopulationConfig
from .learners import Learner, SACLearner, TD3Learner, distance
from .population import Population, flatten, unflatten

CHUNK = 2**20
"""Weights of candidates that are scored together: 4 MiB, about what a core's cache holds. Our choice."""

BETA = 2.0**10
"""Bounds on the strength of guidance, and one over it (the upper one the program's, the lower one our choice)."""


@dataclass(frozen=True, kw_only=True)
class CEMConfig(PopulationConfig):
    """Hyper-parameters of CEM. Defaults are those of the search within PGPS."""

    live = frozenset()
    unused = frozenset({"learning_rate", "learning_rate_schedule", "gamma", "batch_size", "max_grad_norm", "compile"})


@final
class CEM(PopulationAgent[CEMConfig]):
    """The cross-entropy method over the weights of deterministic policies, without gradients (arXiv 1810.01222).

    Each generation plays whole episodes, and the search moves towards its best: see
    :class:`~headway.agents.pgps.cem.CEMSearch`.

    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`CEMConfig`.
    """

    config_class = CEMConfig
    config: CEMConfig

    def _build(self) -> None:
        self._track_search(DeterministicActor(self.codec.features(), self.actions.size, **self.config.perceptron))

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`: none; the search moves at once."""
        self.log_generation(self.tell())
        return []

    def _update(self, phase: str) -> dict[str, Tensor]:
        raise AssertionError("there are no gradient steps")


@dataclass(frozen=True, kw_only=True)
class PGPSConfig(PopulationConfig, SmoothingConfig, StoreConfig):
    """Hyper-parameters of PGPS. Defaults are the released program's, where not said otherwise. Of its accidents, which
    have the names ``rules``, ``guided_margin`` and ``inverse_parents``, the last two are kept by default."""

    live = SmoothingConfig.live | StoreConfig.live

    rules: Literal["fixed", "released"] = "fixed"
    """What to do about the released program's accidents. released keeps them: until ``surrogate_start`` no member but
    the learner changes, episodes that are cut at ``horizon`` count as terminated, and in the first generation a member
    drawn at random counts as the learner."""

    learner: Literal["td3", "sac"] = "td3"
    """What learns by gradients; members are policies of its kind (of SAC, by their mean action)."""

    learning_rate: LearningRate = 1e-3
    """Step size of Adam for the critics."""

    actor_learning_rate: LearningRate | None = 2e-3
    """Step size of Adam for the learner's actor; none: the critics'."""

    weight_decay: Annotated[float, Range(0)] = 1e-5
    """Share of a weight added to its gradient."""

    max_grad_norm: Positive | None = 10.0
    """Clip each network's gradient to this Euclidean norm; none does not clip."""

    learning_starts: Annotated[int, Range(0, unit="environment steps")] = 10_000
    """Steps with uniformly random actions before the first generation."""

    gradients_start: Annotated[int, Range(0, unit="environment steps")] = 0
    """Steps before the first gradient step, in which the population searches alone (CEM-RL's 10,000)."""

    update_order: Literal["blocks", "delayed"] = "blocks"
    """How the gradient steps of a generation follow each other: in blocks of the critics', then of the actor's; or as
    TD3's own, with the actor's after every ``policy_delay`` of the critics'."""

    n_blocks: Count = 5
    """Blocks per generation, of so many gradient steps of each kind, all together, as it had environment steps."""

    target_from_elite: bool = True
    """Before a generation's gradient steps, the slow actor becomes the elite."""

    insert_every: Annotated[int, Range(0, unit="generations")] = 1
    """How often the learner's actor is a member; 0: never."""

    trained_members: Annotated[int, Range(0)] = 0
    """Members that take gradient steps of their own before they play (CEM-RL: half of them); the learner is then only
    what they are trained with."""

    surrogate: bool = True
    """Let the critic choose some members out of many candidates."""

    surrogate_start: Annotated[int, Range(0, unit="environment steps")] = 150_000
    """Steps before it does. In short runs take a fifth of them, or it never starts (our advice)."""

    candidates: Count = 50
    """Drawn for each member of the population."""

    surrogate_states: Count = 32
    """Stored states on which the critic judges them."""

    shared_noise: bool = False
    """Draw candidates as windows of one table of random numbers (see :meth:`CEMSearch.batches`): half the time of
    screening on a CPU, which is a small part of a generation's."""

    guided: bool = True
    """Pull the learner's actor towards the elite while it is worse than the population."""

    guided_margin: Annotated[float, Range(0, unit="standard deviations")] = 0.0
    """How much worse than the population's mean it must be. The program meant 1, and takes the standard deviation of a
    single number: 0 is what the published curves come from."""

    target_distance: Positive = 0.05
    """Mean squared distance of actions, in [-1, 1], that the strength of the pull steers towards."""

    probe_states: Count = 512
    """Stored states on which that distance is measured."""

    acts: Literal["mean", "elite", "actor"] = "mean"  # type: ignore[assignment]
    """Which policy predicts, is evaluated and is saved to be used: the middle of the search (as the program saves), the
    last generation's best, or the learner's actor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained_members > self.population_size:
            raise ValueError(
                f"{self._label('trained_members')} must be at most population_size, {self.population_size}, got "
                f"{self.trained_members}"
            )
        if self.learner == "sac" and self.update_order == "delayed":
            raise ValueError(f"{self._label('update_order')} = 'delayed' is TD3's: take 'blocks', or learner='td3'")


def scores(population: Population, critics: Critics, obs: Tensor) -> Tensor:
    """mean_s Q_1(s, pi_m(s)): how the critic judges policies.

    :param population: M of them
    :param critics: of which the first is asked
    :param obs: encoded, (S, O)
    :return: (M,)
    """
    count, states = len(population), len(obs)
    every = obs.expand(count, *obs.shape).flatten(0, 1)  # (M S, O)
    return critics.first(every, population.act(every)).view(count, states).mean(1)


@torch.no_grad()
def screened(
    search: CEMSearch, actor: Actor, critics: Critics, obs: Tensor, *, count: int, best: int, shared: bool = False
) -> Tensor:
    """Draw many policies, and keep those of which the critic expects most.

    :param search: that they are drawn from
    :param actor: of their architecture
    :param critics: of which the first judges
    :param obs: on which it does, encoded, (S, O)
    :param count: how many to draw
    :param best: how many to keep
    :param shared: see :meth:`CEMSearch.batches`
    :return: best first, (best, D)
    """
    kept, values, population = search.mean.new_zeros(0, len(search.mean)), search.mean.new_zeros(0), None
    for drawn in search.batches(count if best else 0, max(1, CHUNK // len(search.mean)), shared=shared):
        if population is None or len(population) != len(drawn):
            population = Population(actor, drawn)  # which reads whatever is written there
        before = len(values)
        judged = torch.cat((values, scores(population, critics, obs)))
        values, order = judged.topk(min(best, len(judged)))
        if int(order.max()) >= before:  # as few are, later on: copying megabytes for nothing costs as much as judging
            kept = torch.cat((kept, drawn))[order]
    return kept


def next_beta(beta: float, found: float, wanted: float) -> float:
    """Double the strength of the pull where policies are further apart than wanted, halve it where they are nearer.

    :param beta: until now
    :param found: distance
    :param wanted: D*; from two thirds to one and a half times it nothing changes
    :return: from now on, in [2^-10, 2^10]
    """
    factor = 2.0 if found > 1.5 * wanted else 0.5 if found < wanted / 1.5 else 1.0
    return min(max(beta * factor, 1 / BETA), BETA)


@final
class PGPS(PopulationAgent[PGPSConfig], ReplayAgent[PGPSConfig]):
    """PGPS: the cross-entropy method coupled with TD3 (or SAC) in both directions (OpenReview PeT5p3ocagr).

    All members of a generation play one episode each, of n steps in all, which go into one replay store; CEM moves by
    their returns. Then n gradient steps of the critics and n of the actor follow, in five blocks; where the learner
    earned less than the population did on average, its actor descends::

        -Q_1(s, pi(s)) + beta |pi(s) - pi_elite(s)|^2 / A

    with a beta that keeps the distance near D*. The next population is the elite, half of P candidates that Q_1 ranks
    first out of 50 P, fresh draws, and the learner's actor.

    Settings lead to its parts. TD3: ``population_size=1, update_order="delayed"`` without elitism, surrogate, guidance
    and ``target_from_elite``, with noise 0; ERL's insertion: without surrogate and guidance; CEM-RL: the preset; CEM:
    the agent of that name.

    Deviations of ``rules="fixed"`` from the program, each an accident of it: see ``rules``. In both, actions are scaled
    by the bounds of each dimension, where the program takes the first one's for all.
    Parameters as :class:`~headway.agents.core.agent.ActorCriticAgent`, hyper-parameters as :class:`PGPSConfig`.
    """

    config_class = PGPSConfig
    config: PGPSConfig
    shown = frozenset(name for columns in COLUMNS.values() for _, name, _, _ in columns)

    def _build(self) -> None:
        self.gradient_learner: Learner = (TD3Learner if self.config.learner == "td3" else SACLearner)(self)
        self.actor, self.critics = self.gradient_learner.actor, self.gradient_learner.critics
        self._track_search(self.actor.module)
        self.learner_slot: int | None = None
        """Which member is the learner's actor; None: none is."""
        self.is_guided = False
        self._beta = torch.ones((), device=self.device)
        self.trained = 0
        self.scores = torch.zeros(self.config.population_size, device=self.device)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.register("coupling", Part(self._coupling, self._load_coupling))

    @property
    def beta(self) -> float:
        """Strength of the pull."""
        return float(self._beta)

    # -- playing -----------------------------------------------------------------------------------------------------

    def plays_at_random(self) -> bool:
        """:return: whether it is too early for members to play"""
        return self.num_timesteps < self.config.learning_starts

    def next_horizon(self) -> int:
        """:return: where episodes are cut; ``learning_starts`` is met at a cut, where none ends before"""
        left = self.config.learning_starts - self.num_timesteps
        least = -(-left // self.config.episodes)
        return min(super().next_horizon(), least) if left > 0 else super().next_horizon()

    def keep(self, step: Step) -> None:
        """See :meth:`ReplayAgent.keep`."""
        rows = step.transitions()
        if self.config.rules == "released" and self.collector.horizon == self.config.horizon:
            ended = rows["terminated"] | rows["truncated"]
            rows |= {"terminated": ended, "truncated": torch.zeros_like(ended)}
        self.store.add(rows, step.real)

    # -- what follows a generation -----------------------------------------------------------------------------------

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        """See :meth:`LearningLoop.phases`: CEM moves, and as many gradient steps as there were environment steps."""
        cfg = self.config
        if self.collector.is_random:
            return []
        self._judge(self.tell())
        if self.num_timesteps <= cfg.gradients_start or self.num_timesteps <= cfg.learning_starts:
            return []
        if cfg.trained_members:
            self.trained = 0
            self.begin_generation()
            steps = max(collected // cfg.trained_members, 1)
            return [("adopt", 1), ("critic", steps), ("actor", collected), ("return", 1)] * cfg.trained_members
        if cfg.target_from_elite and self.actor.target is not None:
            assert self.search.elite is not None
            unflatten(self.search.elite, self.actor.target)
        if cfg.update_order == "delayed":
            return [("delayed", collected)]
        return [("critic", collected // cfg.n_blocks), ("actor", collected // cfg.n_blocks)] * cfg.n_blocks

    def _judge(self, told: dict[str, Tensor]) -> None:
        """See how the learner did among the members, whether it needs guidance, and how well the critic foresaw it."""
        fitness = self.collector.fitness.view(-1, self.config.member_episodes).mean(1).float()
        slot = self.learner_slot
        self.is_guided = False
        if slot is not None:
            bound = fitness.mean() - self.config.guided_margin * fitness.std(correction=0)
            self.is_guided = self.config.guided and bool(fitness[slot] < bound)
            told["learner_return"] = fitness[slot]
            told["learner_rank"] = 1.0 + (fitness > fitness[slot]).sum()
        if len(fitness) > 2 and self.scores.any():
            told["rank_correlation"] = rank_correlation(self.scores, fitness)
        told["guided"] = torch.tensor(float(self.is_guided))
        told["beta"] = self._beta.clone()
        self.log_generation(told)

    def _update(self, phase: str) -> dict[str, Tensor]:
        if phase in ("adopt", "return"):
            return self._lend(phase)
        guide: Actor | None = self.elite.module if self.is_guided else None
        if phase == "critic":
            return self.gradient_learner.critic_step(self.sample())
        if phase == "actor":
            metrics = self.gradient_learner.actor_step(self.sample(), guide, self._beta)
        else:
            assert isinstance(self.gradient_learner, TD3Learner)
            moves = (self._n_updates + 1) % self.config.policy_delay == 0
            metrics = self.gradient_learner.delayed_step(self.sample(), moves, guide, self._beta)
        if guide is not None and self._pending[0][1] == 1:  # the block ends
            metrics = metrics | self._adapt(guide)
        return metrics

    @torch.no_grad()
    def _adapt(self, guide: Actor) -> dict[str, Tensor]:
        """Steer the strength of the pull."""
        found = distance(self.actor.module, guide, self._states(self.config.probe_states))
        self._beta.fill_(next_beta(self.beta, float(found), self.config.target_distance))
        return {"population/distance": found}

    def _states(self, count: int) -> Tensor:
        """:return: stored states as networks read them, (count, O)"""
        obs = self.sample(count).obs
        assert isinstance(obs, Tensor)
        return obs

    def _lend(self, phase: str) -> dict[str, Tensor]:
        """Train a member in the learner's place, with an optimiser of its own, or put it back among the others."""
        if phase == "adopt":
            for actor in filter(None, (self.actor.module, self.actor.target)):
                unflatten(self.members[self.trained], actor)
            self.actor.restart_optimiser()
        else:
            self.members[self.trained] = flatten(self.actor.module)
            self.origins[self.trained] = ORIGINS.index("learner")
            self.trained += 1
        return {}

    # -- the next population -----------------------------------------------------------------------------------------

    def breed(self) -> None:
        """See :meth:`PopulationAgent.breed`: the elite, members that the critic chose, fresh ones, and the learner."""
        cfg, size = self.config, self.config.population_size
        begun = cfg.surrogate and self.num_timesteps > cfg.surrogate_start and len(self.store) > 0
        if begun:
            chosen = size // 2
            self.members[chosen:] = self.search.draw(size - chosen)
            if chosen:
                self.members[:chosen] = self._screened(chosen)
            self.origins[:] = ORIGINS.index("random")
            self.origins[1:chosen] = ORIGINS.index("screened")
            self.origins[:1] = ORIGINS.index("elite" if self.search.elite is not None else "screened")
        elif cfg.rules == "fixed" or not cfg.surrogate or self.generation == 0:
            super().breed()
        inserted = cfg.insert_every > 0 and (self.generation + 1) % cfg.insert_every == 0
        self.learner_slot = size - 1 if inserted else None
        if inserted and not (cfg.rules == "released" and self.generation == 0):
            self.members[-1] = flatten(self.actor.module)
            self.origins[-1] = ORIGINS.index("learner")
        self.scores.zero_()
        if cfg.surrogate and len(self.store):
            obs = self._states(cfg.surrogate_states)
            self.scores = scores(Population(self.actor.module, self.members), self.critics.module, obs)

    def _screened(self, chosen: int) -> Tensor:
        """:return: the elite, and the candidates of which the critic expects most, best first, (chosen, D)."""
        cfg, search = self.config, self.search
        obs = self._states(cfg.surrogate_states)
        count, wanted = cfg.candidates * cfg.population_size - 1, chosen if search.elite is None else chosen - 1
        best = screened(
            search, self.actor.module, self.critics.module, obs, count=count, best=wanted, shared=cfg.shared_noise
        )
        return best if search.elite is None else torch.cat((search.elite.unsqueeze(0), best))

    # -- state -------------------------------------------------------------------------------------------------------

    def _coupling(self) -> dict[str, Any]:
        names = ("beta", "is_guided", "trained")
        slot = -1 if self.learner_slot is None else self.learner_slot
        return {"slot": slot, "scores": self.scores.clone(), **{name: getattr(self, name) for name in names}}

    def _load_coupling(self, state: Mapping[str, Any]) -> None:
        size = self.config.population_size
        fields = {"slot": whole(-1, size - 1), "scores": array((size,), "float32"), "is_guided": flag}
        group(fields | {"beta": real(0, above=True), "trained": whole(0, size)})(state, "the coupling")
        self.learner_slot = None if state["slot"] < 0 else state["slot"]
        self.is_guided, self.trained = state["is_guided"], state["trained"]
        self._beta.fill_(state["beta"])
        self.scores.copy_(state["scores"])


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation; ranks of equal numbers are in the order of their places.

    :param one: (P,)
    :param other: (P,)
    :return: scalar; NaN of a single pair
    """
    ranks = torch.stack([values.argsort(stable=True).argsort().float() for values in (one, other)])
    return torch.corrcoef(ranks)[0, 1]
