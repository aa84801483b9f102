"""From an agent that learnt among a crowd to a policy table, and to what a crowd of such agents could still gain."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from ...envs.mean_field import MFGame, exploitability, flow
from ...envs.mean_field.member import Encoder, Flow, check_population, encode, one_flow
from ...envs.mean_field.n_agents import one_policy

Model = Any
"""What acts: a Stable-Baselines3 or Headway model, or whatever has ``action_probabilities`` or ``predict``."""


def action_probabilities(model: Model, observations: Tensor, legal: Tensor, temperature: float = 0.0) -> Tensor:
    """Ask a model with Discrete actions how it acts.

    - One with a method ``action_probabilities(observations) -> (B, A)`` is asked by it.
    - One whose policy has a distribution over actions (PPO, A2C) gives that.
    - One with ``policy.q_net`` (DQN) takes the best action, or, given a temperature, a softmax of its values.
    - Any other takes the action that ``predict`` gives.

    Probabilities of illegal actions are left out, and the rest made to sum to 1; where nothing is left, all legal
    actions are equally likely. Observations are normalised first for a model that learnt on a ``VecNormalize``.

    :param model: the model
    :param observations: (B, D) float32
    :param legal: (B, A) bool
    :param temperature: of action values, in the reward's unit; 0: the best one
    :return: (B, A) float64, on the CPU
    :raises TypeError: it is no model
    :raises ValueError: a negative temperature, or probabilities that are none
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must lie in [0, inf), got {temperature}")
    legal = legal.cpu()
    with torch.no_grad():
        if hasattr(model, "action_probabilities"):
            probabilities = _plain(model.action_probabilities(observations))
        elif not hasattr(model, "predict"):
            raise TypeError(f"a {type(model).__name__} is no model: it has neither action_probabilities nor predict")
        else:
            probabilities = _of_predictor(model, observations, legal, temperature)
    if probabilities.shape != legal.shape or not bool((probabilities >= 0).all()):
        raise ValueError(
            f"{type(model).__name__} gave probabilities {tuple(probabilities.shape)} that are not all at least 0, "
            f"of {tuple(legal.shape)} asked for"
        )
    probabilities = probabilities * legal
    mass = probabilities.sum(1, keepdim=True)
    uniform = legal / legal.sum(1, keepdim=True)
    return torch.where(mass > 0, probabilities / mass.clamp(min=torch.finfo(mass.dtype).tiny), uniform.to(mass))


def _of_predictor(model: Model, observations: Tensor, legal: Tensor, temperature: float) -> Tensor:
    """:return: (B, A), not normalised yet."""
    shown = observations.cpu().numpy()
    policy: Any = getattr(model, "policy", None)
    if hasattr(policy, "get_distribution") or hasattr(policy, "q_net"):
        normalizer = model.get_vec_normalize_env()
        policy.set_training_mode(False)
        tensors, _ = policy.obs_to_tensor(shown if normalizer is None else normalizer.normalize_obs(shown))
        if hasattr(policy, "get_distribution"):
            return _plain(policy.get_distribution(tensors).distribution.probs)
        values = _plain(policy.q_net(tensors)).masked_fill(~legal, -torch.inf)
        if values.isnan().any():
            raise ValueError(f"{type(model).__name__} gave action values that are NaN: its learning diverged")
        return (values / temperature).softmax(1) if temperature else _one_hot(values.argmax(1), legal)
    actions, _ = model.predict(shown, deterministic=True)
    return _one_hot(torch.as_tensor(np.asarray(actions)).long().flatten(), legal)


def _plain(part: Any) -> Tensor:
    return torch.as_tensor(part).detach().double().cpu()


def _one_hot(actions: Tensor, legal: Tensor) -> Tensor:
    return torch.zeros(legal.shape, dtype=torch.float64).scatter_(1, actions.unsqueeze(1), 1.0)


# ---- a policy table --------------------------------------------------------------------------------------------------


def tabular_policy(
    models: Model | Sequence[Model], game: MFGame, *, mean_field: Flow | None = None, temperature: float = 0.0
) -> Tensor:
    """Read off what models do at every time in every state, from one batch of observations for each.

    :param models: one that learnt on ``headway/MeanFieldAgent-v0``, or one for each population
    :param game: the game
    :param mean_field: the flow (n_pop, H + 1, S) shown to models that see the crowd; None: the one that they make
        themselves when all members do as they do
    :param temperature: see :func:`action_probabilities`
    :return: (1 or n_pop, H, S, A), of the game's type and on its device
    :raises ValueError: another number of models; one whose spaces do not match the game
    """
    listed = list(models) if isinstance(models, (list, tuple)) else [models]
    if len(listed) not in (1, game.n_pop):
        raise ValueError(f"{game.name} has {game.n_pop} populations, got {len(listed)} models: give one for each")
    aware = [_sees_crowd(model, game) for model in listed]
    if not any(aware):
        return torch.stack([_table(model, game, range(game.H), None, temperature) for model in listed])
    if mean_field is None:
        return _along_own_flow(listed, aware, game, temperature)
    mu = one_flow(game, mean_field)
    shown = [mu if sees else None for sees in aware]
    pairs = zip(listed, shown, strict=True)
    return torch.stack([_table(model, game, range(game.H), crowd, temperature) for model, crowd in pairs])


def _table(model: Model, game: MFGame, times: Iterable[int], mu: Tensor | None, temperature: float) -> Tensor:
    """:return: (T, S, A)."""
    moments = torch.tensor(list(times), device=game.device)
    states = torch.arange(game.S, device=game.device).repeat(len(moments))
    observations = encode(game, states, moments.repeat_interleave(game.S), mu)
    probabilities = action_probabilities(model, observations, game.legal[states], temperature)
    return probabilities.to(game.device, game.dtype).view(len(moments), game.S, game.A)


def _along_own_flow(models: list[Model], aware: list[bool], game: MFGame, temperature: float) -> Tensor:
    """What models do that see the crowd that they are; what they see at a time follows from what they did before."""
    if len(models) != game.n_pop:
        raise ValueError(
            f"the model sees the crowds of {game.n_pop} populations: give a model for each, or a mean_field to show it"
        )
    policy = game.uniform_policy()
    for t in range(game.H):
        mu = flow(game, policy)
        for population, (model, sees) in enumerate(zip(models, aware, strict=True)):
            policy[population, t] = _table(model, game, [t], mu if sees else None, temperature)[0]
    return policy


def _sees_crowd(model: Model, game: MFGame) -> bool:
    """:return: whether a model sees the crowd; a ValueError if its spaces do not match the game."""
    action_space, observation_space = getattr(model, "action_space", None), getattr(model, "observation_space", None)
    if action_space is not None and not (isinstance(action_space, spaces.Discrete) and action_space.n == game.A):
        raise ValueError(f"the model acts in {action_space}, {game.name} has {game.A} actions, Discrete({game.A})")
    blind, seeing = Encoder(game).size, Encoder(game, population_aware=True).size
    shape = (blind,) if observation_space is None else observation_space.shape
    if shape not in ((blind,), (seeing,)):
        raise ValueError(
            f"the model reads observations of shape {shape}, those of {game.name} have {blind} numbers, or {seeing} "
            "with the crowd: it learnt in another environment, or in this game with other parameters"
        )
    return bool(shape == (seeing,))


def exploitability_of(
    models: Model | Sequence[Model],
    game: MFGame,
    *,
    mean_field: Flow | None = None,
    temperature: float = 0.0,
    tau: float = 0.0,
) -> float:
    """How much one member could still gain if all did as the model does: NashConv, exactly.

    :param models: one model, or one for each population
    :param game: the game
    :param mean_field: see :func:`tabular_policy`
    :param temperature: see :func:`action_probabilities`
    :param tau: see :func:`headway.envs.mean_field.exploitability`
    :return: the sum over populations
    :raises ValueError: see :func:`tabular_policy`; or one model for several populations
    """
    if game.batch:
        raise ValueError(f"{game.name} is a batch of {game.batch} games: take one of them")
    policy = tabular_policy(models, game, mean_field=mean_field, temperature=temperature)
    if len(policy) != game.n_pop:
        raise ValueError(f"{game.name} has {game.n_pop} populations, got one model: give one for each")
    with torch.no_grad():
        return float(exploitability(game, policy, tau))


# ---- callbacks -------------------------------------------------------------------------------------------------------


class _EveryNSteps(BaseCallback):
    """What both callbacks share: when they act, and how the learner's policy completes that of the others.

    :param game: the game
    :param every: environment steps between two times
    :param population: the learner's
    :param policy: of all populations (n_pop, H, S, A), of which the learner's is replaced; None: uniform
    :param temperature: see :func:`action_probabilities`
    :raises ValueError: no such population, ``every`` below 1, a policy that is none of this game
    """

    def __init__(
        self,
        game: MFGame,
        every: int = 1000,
        *,
        population: int = 0,
        policy: Tensor | None = None,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.game, self.every, self.population = game, every, check_population(game, population)
        self.policy = one_policy(game, game.uniform_policy() if policy is None else policy)
        self.temperature = temperature
        self._next = 0

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self.every
            self._act()
        return True

    def _act(self) -> None:
        raise NotImplementedError

    def learners(self, mean_field: Flow | None = None) -> Tensor:
        """:return: the policy of all populations, with what the learner does now, (n_pop, H, S, A)."""
        if mean_field is None and self.game.n_pop > 1:
            mean_field = flow(self.game, self.policy)
        policy = self.policy.clone()
        found = tabular_policy(self.model, self.game, mean_field=mean_field, temperature=self.temperature)
        policy[self.population] = found[0]
        return policy


class NashConvCallback(_EveryNSteps):
    """Logs ``mean_field/nash_conv``, the exploitability of what the learner does, also as :attr:`history`.

    :param game: the game, as the environment has it
    :param every: environment steps between two evaluations; the end of ``learn`` is another
    :param population: the learner's
    :param policy: of the other populations, (n_pop, H, S, A); None: uniform
    :param temperature: of a learner of action values
    :raises ValueError: no such population, ``every`` below 1, a policy that is none of this game; while learning, a
        model whose spaces do not match the game
    """

    def __init__(self, game: MFGame, every: int = 1000, **options: Any) -> None:
        super().__init__(game, every, **options)
        self.history: list[tuple[int, float]] = []
        """Environment steps done, and exploitability then."""

    def _act(self) -> None:
        value = float(exploitability(self.game, self.learners()))
        self.history.append((self.num_timesteps, value))
        self.logger.record("mean_field/nash_conv", value)

    def _on_training_end(self) -> None:
        if self.history and self.history[-1][0] == self.num_timesteps:  # before the last update
            self.history.pop()
        self._act()


class CrowdFollowsLearner(_EveryNSteps):
    """While an agent learns in ``headway/MeanFieldAgent-v0``, lets the crowd do what the agent has learnt so far.

    Every so often the learner's policy is averaged into that of its population, weighted by the masses that follow
    each (as fictitious play does, arXiv 2007.03458), and the environment's flow becomes the flow of that average. In
    ``headway/NAgentMFG-v0`` the others take up the average policy instead. Experience in a replay buffer keeps the
    rewards of the flow it was made in.

    Logs ``mean_field/crowd_nash_conv``, the exploitability of the average, and ``mean_field/flow_change``, the largest
    change of a mass.

    :param game: the game, as the environment has it
    :param every: environment steps between two updates
    :param weight: of the learner's policy, in (0, 1]; None: 1 / (k + 1) in update k, so that all policies so far
        count the same; 1: the crowd does what the learner does now
    :param population: the learner's
    :param policy: of all populations at first, (n_pop, H, S, A); None: uniform
    :param temperature: of a learner of action values
    :raises ValueError: a weight out of range, or see :class:`NashConvCallback`
    """

    def __init__(self, game: MFGame, every: int = 1000, *, weight: float | None = None, **options: Any) -> None:
        super().__init__(game, every, **options)
        if weight is not None and not 0 < weight <= 1:
            raise ValueError(f"weight must lie in (0, 1], got {weight}")
        self.weight, self.updates = weight, 0
        self.flow = flow(game, self.policy)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._tell()

    def _act(self) -> None:
        self.updates += 1
        weight = 1 / (self.updates + 1) if self.weight is None else self.weight
        new, before = self.learners(self.flow), self.flow
        self.policy = averaged(self.game, self.policy, new, weight)
        self.flow = flow(self.game, self.policy)
        self.logger.record("mean_field/crowd_nash_conv", float(exploitability(self.game, self.policy)))
        self.logger.record("mean_field/flow_change", float((self.flow - before).abs().max()))
        self._tell()

    def _tell(self) -> None:
        env = self.training_env
        if env.has_attr("set_mean_field"):
            env.env_method("set_mean_field", self.flow.cpu().numpy())
        elif env.has_attr("set_policy"):
            env.env_method("set_policy", self.policy.cpu().numpy())
        else:
            raise ValueError("the environment has no crowd: learn in headway/MeanFieldAgent-v0 or headway/NAgentMFG-v0")


def averaged(game: MFGame, first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Average two policies, each weighted by the mass that follows it.

    :param game: the game
    :param first: (n_pop, H, S, A)
    :param second: (n_pop, H, S, A)
    :param weight: of the second, in [0, 1]
    :return: (n_pop, H, S, A); uniform over legal actions where nobody is
    """
    masses = [flow(game, policy)[..., :-1, :, None] for policy in (first, second)]
    joint = torch.lerp(masses[0] * first, masses[1] * second, weight)
    mass = joint.sum(-1, keepdim=True)  # of what is left after underflow, lest rows not sum to 1
    return torch.where(mass > 0, joint / mass, game.uniform_policy())
