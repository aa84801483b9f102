"""Each loss against a loop over five rows that follows the equation word by word."""

import math

import numpy as np
import pytest
import torch
from headway.agents import sac, td3
from headway.agents.core.data import Transitions
from headway.agents.core.nets import Critics, DeterministicActor, SquashedGaussianActor
from headway.agents.core.spaces import VectorFeatures
from torch import Tensor

B, D, A, GAMMA, ALPHA = 5, 3, 2, 0.9, 0.3


@pytest.fixture
def batch() -> Transitions:
    torch.manual_seed(0)
    terminated = torch.tensor([False, True, False, False, True])
    truncated = torch.tensor([False, False, True, False, False])
    actions = torch.rand(B, A) * 2 - 1
    return Transitions(torch.randn(B, D), actions, torch.randn(B), terminated, truncated, torch.randn(B, D))


def networks() -> tuple[SquashedGaussianActor, DeterministicActor, Critics, Critics]:
    torch.manual_seed(1)
    features = VectorFeatures(D)
    return (
        SquashedGaussianActor(features, A, (8,)),
        DeterministicActor(features, A, (8,)),
        Critics(features, A, (8,)),
        Critics(features, A, (8,)),
    )


def q(critics: Critics, obs: Tensor, action: Tensor) -> list[float]:
    return critics(obs.unsqueeze(0), action.unsqueeze(0)).flatten().tolist()  # type: ignore[no-any-return]


def test_sac_losses(batch: Transitions) -> None:
    actor, _, critics, slow = networks()
    noise = torch.randn(2, B, A)
    target = sac.soft_target(batch, actor, slow, torch.tensor(ALPHA), GAMMA, noise[1])
    actions, log_prob = actor.sample(batch.obs, noise[0])
    expected, critic, policy = [], 0.0, 0.0
    for row in range(B):
        next_action, next_log_prob = actor.sample(batch.next_obs[row : row + 1], noise[1, row : row + 1])
        future = min(q(slow, batch.next_obs[row], next_action[0])) - ALPHA * next_log_prob.item()
        expected.append(batch.rewards[row].item() + (0.0 if batch.terminated[row] else GAMMA * future))
        critic += (
            sum(0.5 * (value - expected[row]) ** 2 for value in q(critics, batch.obs[row], batch.actions[row])) / B
        )
        policy += (ALPHA * log_prob[row].item() - min(q(critics, batch.obs[row], actions[row]))) / B
    assert target.tolist() == pytest.approx(expected, abs=1e-5)
    assert sac.critic_loss(critics, batch, target).item() == pytest.approx(critic, abs=1e-5)
    loss = sac.actor_loss(critics, batch.obs, actions, log_prob, torch.tensor(ALPHA))
    assert loss.item() == pytest.approx(policy, abs=1e-5)


def test_a_truncated_row_bootstraps_and_a_terminated_one_does_not(batch: Transitions) -> None:
    actor, slow_actor, _, slow = networks()
    noise = torch.zeros(B, A)
    soft = sac.soft_target(batch, actor, slow, torch.tensor(ALPHA), GAMMA, noise)
    smooth = td3.smoothed_target(batch, slow_actor, slow, td3.TD3Config(gamma=GAMMA), noise)
    for target in (soft, smooth):
        bootstrapped = (target - batch.rewards).abs() > 1e-6
        assert bootstrapped.tolist() == (~batch.terminated).tolist()


def test_an_infinite_value_beyond_the_end_does_not_leak(batch: Transitions) -> None:
    """0 * inf is nan: the end is a choice between two values, not a product."""
    actor, _, _, slow = networks()
    batch.next_obs[1] = np.inf
    target = sac.soft_target(batch, actor, slow, torch.tensor(ALPHA), GAMMA, torch.zeros(B, A))
    assert target[1] == batch.rewards[1]


def test_td3_losses(batch: Transitions) -> None:
    _, actor, critics, slow = networks()
    cfg = td3.TD3Config(gamma=GAMMA, target_policy_noise=0.8, target_noise_clip=0.5)
    noise = torch.randn(B, A)
    target = td3.smoothed_target(batch, actor, slow, cfg, noise)
    expected, critic, policy = [], 0.0, 0.0
    for row in range(B):
        eps = [max(-0.5, min(0.5, 0.8 * number)) for number in noise[row].tolist()]
        mode = actor.mode(batch.next_obs[row : row + 1])[0].tolist()
        next_action = torch.tensor([max(-1.0, min(1.0, m + e)) for m, e in zip(mode, eps, strict=True)])
        future = 0.0 if batch.terminated[row] else GAMMA * min(q(slow, batch.next_obs[row], next_action))
        expected.append(batch.rewards[row].item() + future)
        critic += sum((value - expected[row]) ** 2 for value in q(critics, batch.obs[row], batch.actions[row])) / B
        policy -= q(critics, batch.obs[row], actor.mode(batch.obs[row : row + 1])[0])[0] / B
    assert target.tolist() == pytest.approx(expected, abs=1e-5)
    assert td3.critic_loss(critics, batch, target).item() == pytest.approx(critic, abs=1e-5)
    assert td3.actor_loss(critics, actor, batch.obs).item() == pytest.approx(policy, abs=1e-5)


def test_temperature_moves_towards_the_target_entropy() -> None:
    log_alpha = torch.tensor(0.0, requires_grad=True)
    for log_prob, sign in ((torch.tensor([2.0, 4.0]), -1), (torch.tensor([-2.0, -4.0]), 1)):
        # Entropy is minus the mean of log_prob; with target 1: too small in the first case, so alpha must rise.
        (grad,) = torch.autograd.grad(sac.temperature_loss(log_alpha, log_prob, 1.0), [log_alpha])
        assert math.copysign(1, grad.item()) == sign
    loss = sac.temperature_loss(torch.tensor(0.5), torch.tensor([2.0, 4.0]), 1.0)
    assert loss.item() == pytest.approx(-0.5 * (3.0 + 1.0))


@pytest.mark.parametrize("ent_coef", ["auto_0", "auto_x", "fixed", "auto_-1", "auto_inf"])
def test_ent_coef_is_checked(ent_coef: str) -> None:
    with pytest.raises(ValueError, match="ent_coef must be a number"):
        sac.SACConfig(ent_coef=ent_coef)


def test_ent_coef_forms() -> None:
    assert sac.SACConfig(ent_coef="auto_0.1").initial_alpha() == 0.1
    assert sac.SACConfig(ent_coef="auto").initial_alpha() == 1.0
    assert sac.SACConfig(ent_coef=0.2).initial_alpha() == 0.2
    with pytest.raises(ValueError, match="target_entropy"):
        sac.SACConfig(target_entropy="high")
