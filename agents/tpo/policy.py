"""The policy that searches improve: PPO's, whose standard deviation becomes the state's; and how it is taken over."""

from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ..core.nets import ActorValue, Gaussian
from ..core.nets.distributions import HALF_LOG_2PI, gaussian_log_prob


class StateGaussian(Gaussian):
    """A diagonal Gaussian that begins with one standard deviation for all states, as PPO's, and can be set free.

    The network says a mean and a change of the logarithm of the standard deviation. The latter begins at 0, and as long
    as it is not free neither counts nor learns.

    :param action_dim: A
    :param log_std_init: as of :class:`Gaussian`
    """

    free: Tensor

    def __init__(self, action_dim: int, log_std_init: float = 0.0) -> None:
        super().__init__(action_dim, log_std_init)
        self.size, self.outputs = action_dim, 2 * action_dim
        self.register_buffer("free", torch.zeros(()))

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """:return: mean and log standard deviation, (B, A) each, of outputs (B, 2 A)"""
        mean, change = outputs.chunk(2, -1)
        return mean, (self.log_std + self.free * change).clamp(-5.0, 2.0)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """See :meth:`Gaussian.noise`."""
        return torch.randn(rows, self.size, generator=generator, device=generator.device)

    def sample(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Gaussian.sample`."""
        mean, log_std = self.moments(outputs)
        actions = torch.addcmul(mean, log_std.exp(), noise)
        return actions, gaussian_log_prob(mean, log_std, actions)

    def evaluate(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Gaussian.evaluate`."""
        mean, log_std = self.moments(outputs)
        return gaussian_log_prob(mean, log_std, actions), (log_std + 0.5 + HALF_LOG_2PI).sum(-1)

    def mode(self, outputs: Tensor) -> Tensor:
        """:return: the mean, (B, A)"""
        return outputs[..., : self.size]


@torch.no_grad()
def keep_shared(nets: ActorValue) -> None:
    """Let what is said of standard deviations begin at 0."""
    if isinstance(policy := nets.policy, StateGaussian):
        for tensor in (nets.mlp.weights[-1], nets.mlp.biases[-1]):
            tensor[..., 0, :, policy.size :] = 0.0


@torch.no_grad()
def adopt(nets: ActorValue, source: BaseAlgorithm) -> None:
    """Take over a trained actor and value.

    :param nets: of vectors, of the same layers
    :param source: PPO or TPO, or Stable-Baselines3's PPO, A2C or TRPO
    :raises TypeError: another agent
    :raises ValueError: other layers
    """
    pairs = _pairs(nets, source)
    for to, found in pairs:
        if to.shape != found.shape:
            raise ValueError(
                f"the bootstrap has layers of another size ({tuple(found.shape)} for {tuple(to.shape)}): take its "
                "net_arch, and an environment with the same spaces"
            )
    for to, found in pairs:
        to.copy_(found)


def _pairs(nets: ActorValue, source: BaseAlgorithm) -> list[tuple[Tensor, Tensor]]:
    """:return: parameters beside those that they are to become"""
    given = getattr(getattr(source, "nets", None), "module", None)
    if isinstance(given, ActorValue):
        layers = zip(given.mlp.weights, given.mlp.biases, strict=True)
        own = [([weight[0], weight[1]], [bias[0], bias[1]]) for weight, bias in layers]
        log_std = getattr(given.policy, "log_std", None)
    elif isinstance(policy := source.policy, ActorCriticPolicy):
        own, log_std = (
            _layers(policy),
            policy.log_std if isinstance(policy.action_dist, DiagGaussianDistribution) else None,
        )
    else:
        raise TypeError(f"{type(source).__name__} cannot be a bootstrap: PPO can, and Stable-Baselines3's PPO and A2C")
    if len(own) != len(nets.mlp.weights):
        raise ValueError(f"the bootstrap has {len(own)} layers, for {len(nets.mlp.weights)}: take its net_arch")
    pairs = []
    for weight, bias, (weights, biases) in zip(nets.mlp.weights, nets.mlp.biases, own, strict=True):
        for network in (0, 1):
            width = min(weights[network].shape[-1], weight.shape[-1])  # of the last layer, the mean or the value alone
            pairs.append((weight[network][:, :width], weights[network][:, :width]))
            pairs.append((bias[network].view(-1)[:width], biases[network].view(-1)[:width]))
    if log_std is not None:
        pairs.append((nets.policy.log_std.view(-1), log_std.view(-1)))  # type: ignore[operator]
    return pairs


def _layers(policy: ActorCriticPolicy) -> list[tuple[list[Tensor], list[Tensor]]]:
    """:return: weights and biases of both networks, as (inputs, outputs), layer by layer"""
    both: list[list[Any]] = []
    for body, head in (
        (policy.mlp_extractor.policy_net, policy.action_net),
        (policy.mlp_extractor.value_net, policy.value_net),
    ):
        both.append([*(layer for layer in body if isinstance(layer, nn.Linear)), head])
    return [([p.weight.T, v.weight.T], [p.bias, v.bias]) for p, v in zip(*both, strict=True)]
