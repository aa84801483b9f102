"""What a search is guided by: a policy to draw candidates from, and a value of states, of whichever agent has both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor

from ...envs.splitmix import normals, uniforms
from ..core.agent import ActorCriticAgent
from ..core.nets import ActorValue, Critics, DensityActor, SquashedGaussianActor, StateCritics
from ..core.nets.heads import DeterministicActor
from ..core.normalization import BatchNormalizer
from ..core.spaces import Obs, actions_of, map_obs

SPREAD = 0.2
"""Standard deviation of candidates around the action of a policy that has none, as half the action range. Our choice:
that of the noise with which TD3 smooths its targets."""

Look = Callable[[Obs], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A policy and a value, as a search asks them.

    Actions of a Box are (B, A) in the policy's own scale and before anything bounds them: those are what is fitted
    later, while :meth:`to_env` gives what acts. Those of a Discrete space are (B,) int64, counted from 0.

    :param look: maps encoded observations to what describes the policy, (B, 2 A) means and standard deviations, or
        (B, A) log probabilities; and to values (B,)
    :param encode: maps the environment's observations (B, *O) to what ``look`` reads, normalised as in training
    :param read: the same for observations as they are shown to ``predict``, normalised already where that is done
    :param bounded: maps the policy's actions to the environment's
    :param size: A
    :param discrete: whether the action space is
    :param gamma: discount per step
    :param reward_unit: what of the environment's reward is 1 to the value
    :param device: of its networks
    """

    look: Look
    encode: Callable[[Obs], Obs]
    read: Callable[[Obs], Obs]
    bounded: Callable[[Tensor], Tensor]
    size: int
    discrete: bool
    gamma: float
    device: torch.device
    reward_unit: float = 1.0

    def most(self, candidates: int) -> int:
        """:return: K, how many candidates there are at the most"""
        return min(candidates, self.size) if self.discrete else candidates

    def candidates(
        self, outputs: Tensor, words: Tensor, count: int, include_mean: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw actions to be tried.

        :param outputs: as of ``look``, (B, ·)
        :param words: a random stream of each, (B,) int64
        :param count: K. Of a Discrete space each action is drawn at most once.
        :param include_mean: the first is the mean; of a Discrete space that means nothing
        :return: actions (B, K, A) or (B, K), and how likely each was to be drawn, as logarithm up to a constant, (B, K)
        """
        if self.discrete:
            if count == self.size:
                return torch.arange(count, device=outputs.device).expand(len(outputs), count), outputs
            shares = uniforms(words, self.size)[0]
            gumbel = -(-shares.clamp_min(1e-300).log()).log()
            chosen = (outputs + gumbel).topk(count, 1).indices.sort(1).values
            return chosen, outputs.gather(1, chosen)
        mean, std = outputs.unsqueeze(1).chunk(2, -1)
        noise = normals(words, count * self.size)[0].view(-1, count, self.size).to(outputs.dtype)
        if include_mean:
            noise[:, 0] = 0.0
        return torch.addcmul(mean, std, noise), noise.square().sum(-1).mul(-0.5)

    def draw(self, outputs: Tensor, words: Tensor) -> Tensor:
        """:return: an action of the policy for each, (B, A) or (B,)"""
        return self.candidates(outputs, words, 1)[0].squeeze(1)

    def mode(self, outputs: Tensor) -> Tensor:
        """:return: the likeliest action of each, (B, A) or (B,)"""
        return outputs.argmax(1) if self.discrete else outputs.chunk(2, -1)[0]

    def to_env(self, actions: Tensor) -> Tensor:
        """:return: actions (…, A) or (…,) of the policy as the environment's, (…, *A)"""
        if self.discrete:
            return self.bounded(actions)
        lead = actions.shape[:-1]
        bounded = self.bounded(actions.flatten(0, -2))
        return bounded.view(*lead, *bounded.shape[1:])


def guide_of(model: BaseAlgorithm) -> Guide:
    """Read a policy and a value off an agent.

    Of PPO and its like these are the actor and the state's value. Where there are critics of actions instead, the
    value is the least that they say of the policy's mode (of SAC's it holds the entropy bonus that it was trained for).

    :param model: Headway's or Stable-Baselines3's, trained; its statistics of observations count where it has some
    :return: the guide
    :raises TypeError: an agent without a policy or without a value, or one of several members
    :raises ValueError: an action space that is neither a Box nor Discrete
    """
    space = model.action_space
    if not isinstance(space, (spaces.Box, spaces.Discrete)):
        raise ValueError(f"a search chooses in a Box or Discrete action space, this policy acts in {space}")
    return _ours(model) if isinstance(model, ActorCriticAgent) else _theirs(model)


def _refused(model: BaseAlgorithm, lacks: str) -> TypeError:
    return TypeError(
        f"{type(model).__name__} {lacks}: a search needs both, as PPO, A2C, SAC, TD3 and IQL have them, of one agent"
    )


# -- Headway's agents --------------------------------------------------------------------------------------------------


def _ours(agent: ActorCriticAgent[Any]) -> Guide:
    networks = agent.modules.networks()
    look, squashes = _look_of(agent, networks)
    source = agent.get_vec_normalize_env()
    normalizer = None if source is None else BatchNormalizer(source, agent.codec, agent.device)

    def encode(obs: Obs) -> Obs:
        if normalizer is None:
            return agent.codec.encode(obs, agent.device)
        return normalizer.obs(agent.codec.encode(obs, agent.device, raw=True))  # type: ignore[no-any-return]

    actions = agent.actions
    return Guide(
        look=look,
        encode=encode,
        read=lambda obs: agent.codec.encode(obs, agent.device),
        bounded=(lambda raw: actions.to_env(raw.tanh())) if squashes else actions.to_env,
        size=actions.size,
        discrete=isinstance(agent.action_space, spaces.Discrete),
        gamma=agent.config.gamma,
        reward_unit=agent.reward_unit,
        device=agent.device,
    )


def _look_of(agent: ActorCriticAgent[Any], networks: Mapping[str, Any]) -> tuple[Look, bool]:
    """:return: what looks at observations, and whether actions are squashed by tanh"""
    both = networks.get("policy")
    if isinstance(both, ActorValue):

        def look(obs: Obs) -> tuple[Tensor, Tensor]:
            outputs, values = both(obs)
            return _described(both.policy, outputs), values

        return look, False
    actor = networks.get("actor")
    if not isinstance(actor, (SquashedGaussianActor, DeterministicActor, DensityActor)):
        raise _refused(agent, "has no policy that candidates could be drawn from")
    if actor.mlp.stack:
        raise _refused(agent, f"has a stack of {tuple(actor.mlp.stack)} policies")
    squashes = not isinstance(actor, DensityActor)
    value = _value_of(agent, networks, squashes)

    def judged(obs: Obs) -> tuple[Tensor, Tensor]:
        outputs = _described_by(actor, obs)
        return outputs, value(obs, outputs)

    return judged, squashes


def _value_of(agent: ActorCriticAgent[Any], networks: Mapping[str, Any], squashes: bool) -> Callable[..., Tensor]:
    """:return: what maps observations and what describes the policy to values"""
    value, critics = networks.get("value"), networks.get("critics")
    if isinstance(value, StateCritics):
        return lambda obs, outputs: value(obs).amin(-2)
    if not isinstance(critics, Critics):
        raise _refused(agent, "has no value of states or actions")

    def worth(obs: Obs, outputs: Tensor) -> Tensor:
        mean = outputs.chunk(2, -1)[0]
        return critics(obs, mean.tanh() if squashes else mean.clamp(-1, 1)).amin(-2)  # type: ignore[no-any-return]

    return worth


def _described_by(actor: Any, obs: Obs) -> Tensor:
    """:return: the distribution of a policy network, as :class:`Guide` has it"""
    if isinstance(actor, SquashedGaussianActor):
        mean, log_std = actor.gaussian(obs)
        return torch.cat((mean, log_std.exp()), -1)
    if isinstance(actor, DeterministicActor):
        mean = actor.head(obs)
        return torch.cat((mean, torch.full_like(mean, SPREAD)), -1)
    return _described(actor.policy, actor.outputs(obs))


def _described(policy: Any, outputs: Tensor) -> Tensor:
    """:return: what describes a distribution, from what a network says of it, as :class:`Guide` has it"""
    if hasattr(policy, "log_probs"):
        return policy.log_probs(outputs).squeeze(-2)  # type: ignore[no-any-return]
    if hasattr(policy, "moments"):
        mean, log_std = policy.moments(outputs)
        return torch.cat((mean, log_std.exp()), -1)
    mean = policy.mode(outputs)
    return torch.cat((mean, policy.log_std.exp().expand_as(mean)), -1)


# -- Stable-Baselines3's -----------------------------------------------------------------------------------------------


def _theirs(model: BaseAlgorithm) -> Guide:
    policy, device, space = model.policy, model.device, model.action_space
    squashes = isinstance(policy, (SACPolicy, TD3Policy))
    if isinstance(policy, ActorCriticPolicy):
        look = _theirs_on_policy(model, policy)
    elif squashes:
        look = _theirs_off_policy(policy)
    else:
        raise _refused(model, "has no policy and value that are known here")
    source = model.get_vec_normalize_env()
    actions = actions_of(space, device, squashes)

    def read(obs: Obs) -> Obs:
        return map_obs(lambda part: part.to(device), obs)

    def encode(obs: Obs) -> Obs:
        if source is None:
            return read(obs)
        arrays: Any = obs.cpu().numpy() if isinstance(obs, Tensor) else {k: v.cpu().numpy() for k, v in obs.items()}
        return map_obs(lambda part: part.to(device), _as_tensors(source.normalize_obs(arrays)))

    return Guide(
        look=look,
        encode=encode,
        read=read,
        bounded=(lambda raw: actions.to_env(raw.tanh())) if squashes else actions.to_env,
        size=actions.size,
        discrete=isinstance(space, spaces.Discrete),
        gamma=model.gamma,  # type: ignore[attr-defined]
        reward_unit=float(np.sqrt(source.ret_rms.var + source.epsilon)) if source and source.norm_reward else 1.0,
        device=device,
    )


def _as_tensors(arrays: Any) -> Obs:
    if isinstance(arrays, dict):
        return {name: torch.as_tensor(part) for name, part in arrays.items()}
    return torch.as_tensor(arrays)


def _theirs_on_policy(model: BaseAlgorithm, policy: ActorCriticPolicy) -> Look:
    if not isinstance(policy.action_dist, (DiagGaussianDistribution, CategoricalDistribution)):
        raise _refused(model, f"acts by a {type(policy.action_dist).__name__}")

    def look(obs: Obs) -> tuple[Tensor, Tensor]:
        said: Any = policy.get_distribution(obs).distribution
        values = policy.predict_values(obs).squeeze(-1)
        return said.logits if hasattr(said, "logits") else torch.cat((said.mean, said.stddev), -1), values

    return look


def _theirs_off_policy(policy: Any) -> Look:
    critics: ContinuousCritic = policy.critic

    def look(obs: Obs) -> tuple[Tensor, Tensor]:
        features = policy.actor.extract_features(obs, policy.actor.features_extractor)
        if isinstance(policy, SACPolicy):
            mean, log_std, _ = policy.actor.get_action_dist_params(obs)
            outputs = torch.cat((mean, log_std.exp()), -1)
        else:
            mean = policy.actor.mu[:-1](features)  # the last of its layers is tanh
            outputs = torch.cat((mean, torch.full_like(mean, SPREAD)), -1)
        return outputs, torch.cat(critics(obs, mean.tanh()), 1).amin(1)

    return look
