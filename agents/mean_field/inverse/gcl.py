"""What a whole crowd earns, from how it moves: guided cost learning on the planner's problem.

Yang, Ye, Trivedi, Xu, Zha: "Learning deep mean field games for modeling large population behavior", ICLR 2018, arXiv
1711.03156, after Finn, Levine, Abbeel, "Guided cost learning", 2016, arXiv 1603.00448. States are distributions pi of a
crowd, actions its matrices of moves P, pi' = P^T pi; trajectories are thought to occur with probabilities proportional
to exp sum_n R(pi^n, P^n). See :mod:`.fitting` for when this planner's problem is the crowd's.

Two things differ from the authors' code. Its score of the Dirichlet policy takes digammas of alpha, not of c alpha, and
so has a mean far from 0; here it is exact. Its samples stand for the normaliser with weight 1; here they are weighted
by their density, as the paper derives, and ``importance_weights="off"`` gives weight 1. With d^2 numbers in each
action those weights are very uneven: the effective sample size in the history tells how much.

Shapes: ``n`` crowds, ``N`` moves, ``d`` states, ``M`` samples, ``K`` policies.
"""

import copy
import math
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ....envs.mean_field.cohorts import Trajectories
from ...core.config import Count, Fraction, Positive, Range
from .crowd_models import Fit, FitConfig, Rollout
from .matrix_policies import DirichletNet, DirichletScalar, PolicyHead, SoftmaxGaussian
from .rewards import LinearReward, MembersReward, PaperNetwork, PopulationReward, reward_model


@dataclass(frozen=True, kw_only=True)
class GCLConfig(FitConfig):
    """Guided cost learning. Defaults are arXiv 1711.03156's or its authors' code's, where not said otherwise."""

    iterations: Count = 20
    """Rounds of sampling, learning the reward, and solving for the policy."""

    importance_weights: Literal["on", "off"] = "on"
    """Weigh samples by the inverse of their density under the last policies; off, as published, all count alike."""

    weight_clip: Positive = 10.0
    """Logarithms of weights stay so close to their median (our choice)."""

    policy: Literal["dirichlet_scalar", "dirichlet_net", "softmax_gaussian"] = "dirichlet_scalar"
    """Rows of P: Dirichlet with concentrations softplus(theta (pi_j - pi_i - shift)), as published, or by a perceptron
    of pi; or the softmax of Gaussian numbers around a perceptron of pi (the last two are ours)."""

    theta: float = 8.64
    """Where the published policy starts from in each round."""

    shift: float = 0.0
    """Subtracted from differences of popularity."""

    concentration: Positive = 1e4
    """c of dirichlet_scalar, the factor on concentrations."""

    net_concentration: Positive = 3.0
    """c of dirichlet_net; with thousands, densities are too steep for its many numbers to be learned (our choice)."""

    noise: Positive = 0.1
    """Standard deviation of softmax_gaussian's numbers (our choice)."""

    hidden: tuple[Count, ...] = (32,)
    """Widths of the policies' perceptrons (our choice)."""

    policy_learning_rate: Positive = 1e-3
    """Of Adam, for policies other than the published (our choice)."""

    episodes: Count = 200
    """Of actor-critic learning in each round (code; the paper says at most 4000)."""

    final_episodes: Count = 2000
    """Of actor-critic learning at the end (code)."""

    critic_step: Positive = 0.1
    """Step of the critic in episode s is this over s + 1."""

    actor_step: Positive = 1e-3
    """Step of the published policy in episode s is this over (s + 1) ln ln (s + 20)."""

    gamma: Fraction = 1.0
    """Discount per move."""

    bootstrap_last: bool = False
    """Go on as if the game did after its last move, as the code does; the horizon is part of the game, so we do not."""

    reward_learning_rate: Positive = 1e-4
    """Of Adam."""

    reward_steps: Count = 100
    """Of Adam in each round, at most."""

    reward_tolerance: Annotated[float, Range(0)] = 1e-4
    """Stop where the mean reward of what was observed moves less in 10 steps."""

    reward_batch: Count = 5
    """Crowds observed, and as many sampled ones, in each step."""

    new_samples: Count = 5
    """Trajectories sampled in each round."""

    kept_policies: Count = 10
    """Policies whose samples are kept, new_samples each."""

    tau: Annotated[float, Range(0)] = 0.0
    """Temperature of members whose reward is given instead of a crowd's (ours)."""


class Samples(NamedTuple):
    """Trajectories of a policy."""

    pi: Tensor
    """At the times of moves, (M, N, d)"""
    matrices: Tensor
    """P, (M, N, d, d)"""


def policy_head(config: GCLConfig, d: int) -> PolicyHead:
    """:return: a fresh policy of the kind that is configured."""
    if config.policy == "dirichlet_scalar":
        return DirichletScalar(config.theta, config.shift, config.concentration)
    if config.policy == "dirichlet_net":
        return DirichletNet(d, config.hidden, config.net_concentration)
    return SoftmaxGaussian(d, config.hidden, config.noise)


# -- the policy that a reward asks for ---------------------------------------------------------------------------------


class Critic:
    """V(pi), linear in all monomials of pi up to degree 2, with weights that start uniform in [0, 1].

    :param d: states
    :param rng: draws the weights
    :param device: where
    """

    def __init__(self, d: int, rng: np.random.Generator, device: torch.device) -> None:
        self.rows, self.columns = torch.triu_indices(d, d, device=device)
        self.weights = torch.from_numpy(rng.random(d * (d + 1) // 2 + d + 1)).to(device)

    def features(self, pi: Tensor) -> Tensor:
        """:return: 1, pi_i and pi_i pi_j, (…, d (d + 1) / 2 + d + 1)."""
        one = torch.ones_like(pi[..., :1])
        return torch.cat((one, pi, pi[..., self.rows] * pi[..., self.columns]), -1)


def follow(head: PolicyHead, starts: Tensor, horizon: int, rng: np.random.Generator) -> Samples:
    """:return: trajectories of a policy from starts (M, d)."""
    pi, crowds, matrices = starts, [], []
    for _ in range(horizon):
        crowds.append(pi)
        matrices.append(head.sample(pi, rng))
        pi = (pi.unsqueeze(1) @ matrices[-1]).squeeze(1)
    return Samples(torch.stack(crowds, 1), torch.stack(matrices, 1))


def solve_policy(
    reward: PopulationReward,
    head: PolicyHead,
    starts: Tensor,
    horizon: int,
    episodes: int,
    config: GCLConfig,
    rng: np.random.Generator,
    bar: Any,
) -> None:
    """Improve a policy by actor-critic learning, one move at a time: delta = R + gamma V(pi') - V(pi).

    :param reward: R(pi, P)
    :param head: the policy, changed in place
    :param starts: where episodes start, (n, d)
    :param horizon: N
    :param episodes: how many
    :param config: steps
    :param rng: draws starts and moves
    :param bar: shows the progress
    """
    critic = Critic(starts.shape[1], rng, starts.device)
    optimiser = None
    if not isinstance(head, DirichletScalar):
        optimiser = torch.optim.Adam(head.parameters(), config.policy_learning_rate)
    for s in range(episodes):
        pi = starts[int(rng.integers(len(starts)))]
        critic_step = config.critic_step / (s + 1)
        actor_step = config.actor_step / ((s + 1) * math.log(math.log(s + 20)))
        for n in range(horizon):
            matrix = head.sample(pi, rng)
            ahead, now = pi @ matrix, critic.features(pi)
            with torch.no_grad():
                delta = reward(pi, matrix) - critic.weights @ now
                if n + 1 < horizon or config.bootstrap_last:
                    delta = delta + config.gamma * (critic.weights @ critic.features(ahead))
                critic.weights += critic_step * delta * now
                if isinstance(head, DirichletScalar):
                    head.theta.add_(actor_step * delta * head.score(pi, matrix))
            if optimiser is not None:
                optimiser.zero_grad()
                (-delta * head.log_prob(pi, matrix)).backward()
                optimiser.step()
            pi = ahead
        bar.update()


# -- the reward that trajectories ask for ------------------------------------------------------------------------------


def log_weights(samples: Samples, policies: list[PolicyHead]) -> Tensor:
    """log z_j = -log (1/K) sum_k F_k(tau_j).

    :param samples: M of them
    :param policies: that they came from, K
    :return: (M,)
    """
    with torch.no_grad():
        densities = torch.stack([head.log_prob(*samples).sum(-1) for head in policies])  # (K, M)
    return math.log(len(policies)) - densities.logsumexp(0)


def clipped(logs: Tensor, distance: float) -> Tensor:
    """Keep logarithms of weights, (M,), so close to their median."""
    middle = logs.median()
    return logs.clamp(middle - distance, middle + distance)


def reward_loss(demonstrated: Tensor, sampled: Tensor, logs: Tensor) -> Tensor:
    """-(1/L) sum_i R(tau_i) + log (1/M) sum_j z_j exp R(tau_j).

    :param demonstrated: R of what was observed, (L,)
    :param sampled: R of samples, (M,)
    :param logs: log z, (M,)
    :return: scalar
    """
    return (sampled + logs).logsumexp(0) - math.log(len(sampled)) - demonstrated.mean()


def effective_samples(logs: Tensor) -> float:
    """(sum_j w_j)^2 / sum_j w_j^2: how many samples of equal weight would be worth as much, from log w, (M,)."""
    return float((2 * logs.logsumexp(0) - (2 * logs).logsumexp(0)).exp())


def learn_reward(
    reward: PopulationReward,
    optimiser: torch.optim.Optimizer,
    observed: Samples,
    samples: Samples,
    logs: Tensor,
    config: GCLConfig,
    rng: np.random.Generator,
) -> float:
    """Descend :func:`reward_loss` on random batches, until what was observed earns the same as 10 steps before.

    :param reward: R(pi, P), changed in place
    :param optimiser: its
    :param observed: n trajectories
    :param samples: M trajectories
    :param logs: log z, (M,)
    :param config: sizes
    :param rng: draws batches
    :return: the last loss
    """

    def batch(of: Samples) -> tuple[Any, Tensor]:
        chosen = rng.choice(len(of.pi), min(config.reward_batch, len(of.pi)), replace=False)
        return chosen, reward(of.pi[chosen], of.matrices[chosen]).sum(-1)

    last, value = math.inf, math.nan
    for step in range(config.reward_steps):
        reward.train()
        _, demonstrated = batch(observed)
        chosen, sampled = batch(samples)
        loss = reward_loss(demonstrated, sampled, logs[chosen])
        value = loss.item()
        optimiser.zero_grad()
        (loss + reward.penalty().to(loss.device)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if (step + 1) % 10 == 0:
            with torch.no_grad():
                reward.eval()
                now = float(reward(*observed).mean())
            if abs(now - last) < config.reward_tolerance:
                break
            last = now
    reward.eval()
    return value


class Round(NamedTuple):
    """What happened in a round."""

    loss: float
    """The reward's, without penalty, on the last batch"""
    observed: float
    """Mean reward of a move that was observed"""
    sampled: float
    """Mean reward of a move that was sampled"""
    effective_samples: float
    """Of all that were kept, weighted by z exp R, z as it is: what the estimate of the normaliser rests on"""
    clipped_samples: float
    """As well, with z clipped, as the loss has it"""


class GCLFit(Fit):
    """What guided cost learning found.

    :param reward: R(pi, P)
    :param head: the policy for it
    :param config: of the fit
    :param horizon: N
    :param history: round by round
    """

    config: GCLConfig

    def __init__(
        self, reward: PopulationReward, head: PolicyHead, config: GCLConfig, horizon: int, history: tuple[Round, ...]
    ) -> None:
        super().__init__("gcl_population", config, horizon)
        self.reward, self.head, self.history = reward, head, history

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Weights of the reward, and of the policy under ``policy.…``."""
        named = {f"policy.{name}": part for name, part in self.head.named_parameters()}
        return {name: part.detach().clone() for name, part in (dict(self.reward.named_parameters()) | named).items()}

    def rollout(self, pi0: Tensor) -> Rollout:
        """Predict crowds from their start by what the policy does on average.

        :param pi0: (n, d)
        :return: flow and matrices
        """
        line, matrices = [pi0], []
        for _ in range(self.horizon):
            matrices.append(self.head.mean(line[-1]))
            line.append((line[-1].unsqueeze(1) @ matrices[-1]).squeeze(1))
        return Rollout(torch.stack(line, 1), torch.stack(matrices, 1))


def population_reward(model: str | nn.Module, d: int, tau: float) -> PopulationReward:
    """Make a crowd's reward.

    :param model: "network", the paper's; a :class:`PopulationReward`; or what :func:`reward_model` makes a member's of
    :param d: states
    :param tau: temperature of members
    :return: the model
    :raises ValueError: it is none
    """
    if isinstance(model, PopulationReward):
        return model.double()
    if model == "network":
        return PaperNetwork(d)
    members = reward_model(model, d)
    if isinstance(members, LinearReward) and "drift" in members.terms:
        raise ValueError("R(pi, P) of a crowd knows no time: leave the term 'drift' out, or fit by 'mce_individual'")
    return MembersReward(members, tau)


def fit_gcl(data: Trajectories, model: str | nn.Module, config: GCLConfig, progress: bool) -> GCLFit:
    """See :func:`.fitting.fit`."""
    device = data.pi.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # dropout knows no other generator
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would change the GPUs' too
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(config.seed)
        rng = np.random.default_rng(config.seed)
        reward = population_reward(model, data.d, config.tau).to(device)
        first = policy_head(config, data.d).to(device)
        return _rounds(data, reward, first, config, rng, progress)


def _rounds(
    data: Trajectories,
    reward: PopulationReward,
    first: PolicyHead,
    config: GCLConfig,
    rng: np.random.Generator,
    progress: bool,
) -> GCLFit:
    starts, horizon = data.pi[:, 0], data.horizon
    observed = Samples(data.pi[:, :-1], data.matrices())
    optimiser = torch.optim.Adam(reward.parameters(), config.reward_learning_rate)

    def sampled(head: PolicyHead) -> Samples:
        chosen = rng.integers(len(starts), size=config.new_samples)
        return follow(head, starts[chosen], horizon, rng)

    head = copy.deepcopy(first)
    policies = deque([head] * config.kept_policies, config.kept_policies)
    kept = deque((sampled(head) for _ in policies), config.kept_policies)
    history = []
    total = config.iterations * config.episodes + config.final_episodes
    with tqdm(total=total, desc="guided cost learning", unit=" episodes", disable=not progress, leave=False) as bar:
        for _ in range(config.iterations):
            policies.append(head)
            kept.append(sampled(head))
            samples = Samples(*(torch.cat(parts) for parts in zip(*kept, strict=True)))
            raw = torch.zeros(len(samples.pi), dtype=torch.float64, device=starts.device)
            if config.importance_weights == "on":
                raw = log_weights(samples, list(policies))
            logs = clipped(raw, config.weight_clip)
            loss = learn_reward(reward, optimiser, observed, samples, logs, config, rng)
            head = copy.deepcopy(first)
            solve_policy(reward, head, starts, horizon, config.episodes, config, rng, bar)
            history.append(_round(reward, observed, samples, (raw, logs), loss))
            if progress:
                bar.set_postfix(history[-1]._asdict())
        head = copy.deepcopy(first)
        solve_policy(reward, head, starts, horizon, config.final_episodes, config, rng, bar)
    return GCLFit(reward, head, config, horizon, tuple(history))


@torch.no_grad()
def _round(
    reward: PopulationReward, observed: Samples, samples: Samples, logs: tuple[Tensor, Tensor], loss: float
) -> Round:
    earned = reward(*samples)  # (M, N)
    sizes = [effective_samples(part + earned.sum(-1)) for part in logs]
    return Round(loss, float(reward(*observed).mean()), float(earned.mean()), *sizes)
