"""TD3+BC and ReBRAC: their losses word by word, their relation to TD3's, and the layer norms of ReBRAC's critics."""

from typing import Any

import pytest
import torch
from headway.agents import TD3BC, TD3BCConfig
from headway.agents.core.data import Transitions
from headway.agents.core.nets import Critics, DeterministicActor, LayerNormCritics
from headway.agents.core.spaces import VectorFeatures
from headway.agents.td3 import TD3Config, smoothed_target
from headway.agents.td3_bc import ContinuedTransitions, actor_loss, critic_loss, penalised_target
from torch import Tensor
from toys import Point, played

B, D, A, GAMMA = 5, 3, 2, 0.9


@pytest.fixture
def batch() -> ContinuedTransitions:
    torch.manual_seed(0)
    terminated = torch.tensor([False, True, False, False, True])
    truncated = torch.tensor([False, False, True, False, False])
    plain = (torch.randn(B, D), torch.rand(B, A) * 2 - 1, torch.randn(B), terminated, truncated, torch.randn(B, D))
    return ContinuedTransitions(*plain, next_actions=torch.rand(B, A) * 2 - 1, continued=~(terminated | truncated))


def networks(kind: type[Critics] = Critics) -> tuple[DeterministicActor, Critics]:
    torch.manual_seed(1)
    features = VectorFeatures(D)
    return DeterministicActor(features, A, (8,)), kind(features, A, (8,))


def squares(one: Tensor, other: Tensor) -> float:
    return sum((a - b) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True))


@pytest.mark.parametrize("kind", [Critics, LayerNormCritics])
@pytest.mark.parametrize("c", [0.0, 0.7])
def test_target_and_critic_loss(batch: ContinuedTransitions, kind: type[Critics], c: float) -> None:
    actor, critics = networks(kind)
    noise = torch.randn(B, A)
    cfg = TD3BCConfig(gamma=GAMMA, critic_bc_coef=c, target_policy_noise=0.4)
    target = penalised_target(batch, actor, critics, cfg, noise)
    expected, loss = [], 0.0
    for row in range(B):
        eps = (noise[row] * 0.4).clamp(-0.5, 0.5)
        action = (actor.mode(batch.next_obs[row : row + 1])[0] + eps).clamp(-1, 1)
        q = critics(batch.next_obs[row : row + 1], action.unsqueeze(0)).min().item()
        if batch.continued[row]:
            q -= c * squares(action, batch.next_actions[row])
        expected.append(batch.rewards[row].item() + (0.0 if batch.terminated[row] else GAMMA * q))
        values = critics(batch.obs[row : row + 1], batch.actions[row : row + 1]).flatten().tolist()
        loss += sum((value - expected[row]) ** 2 for value in values) / B
    assert target.tolist() == pytest.approx(expected, abs=1e-5)
    assert critic_loss(critics, batch, target).item() == pytest.approx(loss, abs=1e-5)


def test_without_penalty_the_target_is_td3s(batch: ContinuedTransitions) -> None:
    actor, critics = networks()
    noise = torch.randn(B, A)
    plain = smoothed_target(batch, actor, critics, TD3Config(gamma=GAMMA), noise)
    assert torch.equal(penalised_target(batch, actor, critics, TD3BCConfig(gamma=GAMMA), noise), plain)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("by", ["first", "least"])
@pytest.mark.parametrize("coef", [None, 0.4])
def test_actor_loss(batch: ContinuedTransitions, layer_norm: bool, by: Any, coef: float | None) -> None:
    actor, critics = networks(LayerNormCritics if layer_norm else Critics)
    cfg = TD3BCConfig(actor_critic=by, layer_norm=layer_norm, actor_bc_coef=coef, q_coef=1.5)
    q, distance = [], 0.0
    for row in range(B):
        action = actor.mode(batch.obs[row : row + 1])
        values = critics(batch.obs[row : row + 1], action).flatten().tolist()
        q.append(values[0] if by == "first" else min(values))
        distance += squares(action[0], batch.actions[row]) / B
    share = 1 / A if coef is None else coef
    expected = share * distance - 1.5 * sum(q) / sum(map(abs, q))
    loss = actor_loss(actor, critics, batch, cfg)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    grads = torch.autograd.grad(loss, [*actor.parameters(), *critics.parameters()], allow_unused=True)
    moved = len(list(actor.parameters()))
    assert all(grad is not None for grad in grads[:moved])
    assert all(grad is None for grad in grads[moved:])


def test_what_was_done_next_is_known() -> None:
    """Of every step but an episode's last."""
    data = played(Point(), 4)
    agent: Any = TD3BC("MlpPolicy", dataset=data, device="cpu")
    rows = agent.data
    assert isinstance(rows, ContinuedTransitions)
    last = torch.zeros(len(data), dtype=torch.bool)
    last[data.ends] = True
    assert torch.equal(rows.continued, ~last)
    assert torch.equal(rows.next_actions[:-1][~last[:-1]], rows.actions[1:][~last[:-1]])


def test_the_actor_moves_every_other_time() -> None:
    agent: Any = TD3BC("MlpPolicy", dataset=played(Point(), 4), device="cpu", net_arch=[8], batch_size=8, seed=0)
    moved = []
    for _ in range(6):
        before = {name: tensor.clone() for name, tensor in agent.modules.state().items()}
        agent.learn(1, reset_num_timesteps=False)
        after = agent.modules.state()
        moved.append({".".join(n.split(".")[:2]) for n, tensor in after.items() if not torch.equal(tensor, before[n])})
    critics = {"critics.online", "critics.optimizer"}
    both = critics | {"critics.target", "actor.online", "actor.target", "actor.optimizer"}
    assert moved == [critics, both] * 3


def test_stacked_losses_are_sums(batch: ContinuedTransitions) -> None:
    torch.manual_seed(1)
    features = VectorFeatures(D)
    actor, critics = DeterministicActor(features, A, (8,), stack=(2,)), Critics(features, A, (8,), stack=(2,))
    both = Transitions(*(torch.stack((part, part)) for part in (batch.obs, batch.actions, batch.rewards)),
                       *(torch.stack((part, part)) for part in (batch.terminated, batch.truncated)),
                       torch.stack((batch.next_obs, batch.next_obs)))  # fmt: skip
    total = 0.0
    for index in range(2):
        one, q = networks()
        for single, stacked in ((one, actor), (q, critics)):
            for mine, theirs in zip(single.parameters(), stacked.parameters(), strict=True):
                mine.data.copy_(theirs[index])
        total += actor_loss(one, q, batch, TD3BCConfig()).item()
    assert actor_loss(actor, critics, both, TD3BCConfig()).item() == pytest.approx(total, abs=1e-5)
