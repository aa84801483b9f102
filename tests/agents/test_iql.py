"""IQL: its losses word by word, their limits, the order of its updates, its schedule, and a chain of stages."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import IQL, Dataset
from headway.agents.bc import cloning_loss
from headway.agents.core.data import Transitions
from headway.agents.core.nets import BoundedGaussian, Categorical, Critics, DensityActor, QValues
from headway.agents.core.nets.policies import action_values
from headway.agents.core.spaces import VectorFeatures
from headway.agents.iql import advantage_weights, ascending_loss, critic_loss, expectile_loss
from headway.agents.relabelling import RelabelConfig, relabel
from torch import Tensor
from toys import Point, played

B, D, A, GAMMA = 5, 3, 2, 0.9


@pytest.fixture
def batch() -> Transitions:
    torch.manual_seed(0)
    terminated = torch.tensor([False, True, False, False, True])
    truncated = torch.tensor([False, False, True, False, False])
    actions = torch.rand(B, A) * 2 - 1
    return Transitions(torch.randn(B, D), actions, torch.randn(B), terminated, truncated, torch.randn(B, D))


def an_actor() -> DensityActor:
    torch.manual_seed(1)
    actor = DensityActor(VectorFeatures(D), BoundedGaussian(A, -0.5), (8,))
    actor.policy.raw_log_std.data += torch.tensor([0.0, 0.3])  # type: ignore[union-attr]
    return actor


def log_density(actor: DensityActor, obs: Tensor, action: Tensor) -> float:
    """Of one row, from the definition of a Gaussian."""
    mean = actor.outputs(obs.unsqueeze(0))[0].tanh().tolist()
    spread = actor.policy.raw_log_std[0].exp().tolist()  # type: ignore[union-attr]
    return sum(
        -0.5 * ((a - m) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)
        for a, m, s in zip(action.tolist(), mean, spread, strict=True)
    )


# -- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_expectile_loss(tau: float) -> None:
    torch.manual_seed(0)
    values, q = torch.randn(B), torch.randn(B)
    expected = 0.0
    for v, each in zip(values.tolist(), q.tolist(), strict=True):
        u = each - v
        expected += abs(tau - (1 if u < 0 else 0)) * u**2 / B
    assert expectile_loss(values, q, tau).item() == pytest.approx(expected, abs=1e-6)
    if tau == 0.5:
        half = 0.5 * (q - values).square().mean().item()
        assert expectile_loss(values, q, tau).item() == pytest.approx(half, abs=1e-6)
    stacked = expectile_loss(torch.stack((values, q)), torch.stack((q, values)), tau)
    assert stacked.item() == pytest.approx(expected + expectile_loss(q, values, tau).item(), abs=1e-6)


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.99, 0.9999])
def test_expectiles_rise_to_the_greatest(tau: float) -> None:
    """Of uniform numbers on [0, 1] the expectile is sqrt(tau) / (sqrt(tau) + sqrt(1 - tau))."""
    q, v = torch.linspace(0, 1, 2001).double(), torch.tensor([0.5]).double().requires_grad_()
    for _ in range(300):  # Newton's, of a loss that is nearly quadratic
        (grad,) = torch.autograd.grad(expectile_loss(v.expand(2001), q, tau), v, create_graph=True)
        (curvature,) = torch.autograd.grad(grad, v)
        v = (v - 0.5 * grad / curvature).detach().requires_grad_()
    assert v.item() == pytest.approx(tau**0.5 / (tau**0.5 + (1 - tau) ** 0.5), abs=1e-2)


def test_weights_are_bounded() -> None:
    q, values = torch.tensor([0.0, 1.0, 10.0, 1e9, -1e9]), torch.zeros(5)
    expected = [1.0, math.exp(3), 100.0, 100.0, 0.0]
    assert advantage_weights(q, values, 3.0, 100.0).tolist() == pytest.approx(expected, rel=1e-6)
    assert advantage_weights(q, values, 0.0, 100.0).tolist() == [1] * 5


def test_cloning_loss(batch: Transitions) -> None:
    actor, weights = an_actor(), torch.rand(B)
    rows = range(B)
    expected = [log_density(actor, batch.obs[row], batch.actions[row]) for row in rows]
    assert cloning_loss(actor, batch).item() == pytest.approx(-sum(expected) / B, abs=1e-5)
    weighted = -sum(weights[row].item() * expected[row] for row in rows) / B
    assert cloning_loss(actor, batch, weights).item() == pytest.approx(weighted, abs=1e-5)


def test_critic_loss_of_both_kinds(batch: Transitions) -> None:
    torch.manual_seed(2)
    critics, values = Critics(VectorFeatures(D), A, (8,)), torch.randn(B)
    choices = QValues(VectorFeatures(D), 4, (8,), n_critics=2)
    picks = torch.tensor([0, 3, 1, 1, 2])
    discrete = Transitions(batch.obs, picks, batch.rewards, batch.terminated, batch.truncated, batch.next_obs)
    expected, of_choices = 0.0, 0.0
    for row in range(B):
        y = batch.rewards[row].item() + (0.0 if batch.terminated[row] else GAMMA * values[row].item())
        q = critics(batch.obs[row : row + 1], batch.actions[row : row + 1]).flatten().tolist()
        expected += sum((one - y) ** 2 for one in q) / B
        each = choices(batch.obs[row : row + 1])[:, 0, picks[row]].tolist()
        of_choices += sum((one - y) ** 2 for one in each) / B
    assert critic_loss(critics, batch, values, GAMMA).item() == pytest.approx(expected, abs=1e-5)
    assert critic_loss(choices, discrete, values, GAMMA).item() == pytest.approx(of_choices, abs=1e-5)


def test_values_of_choices_in_a_stack() -> None:
    torch.manual_seed(0)
    critics, obs = QValues(VectorFeatures(D), 4, (8,), n_critics=2, stack=(3,)), torch.randn(3, B, D)
    picks = torch.randint(4, (3, B))
    found, every = action_values(critics, obs, picks), critics(obs)
    assert found.shape == (3, 2, B)
    assert all(found[s, e, b] == every[s, e, b, picks[s, b]] for s in range(3) for e in range(2) for b in range(B))


def test_ascending_loss(batch: Transitions) -> None:
    torch.manual_seed(2)
    actor, critics = an_actor(), Critics(VectorFeatures(D), A, (8,))
    q, logs = [], 0.0
    for row in range(B):
        obs = batch.obs[row : row + 1]
        q.append(critics(obs, actor.outputs(obs).tanh()).min().item())
        logs += log_density(actor, batch.obs[row], batch.actions[row]) / B
    expected = -np.mean(q) / np.mean(np.abs(q)) - 0.7 * logs
    loss = ascending_loss(actor, critics, batch, 0.7)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    grads = torch.autograd.grad(loss, list(critics.parameters()), allow_unused=True)
    assert all(grad is None for grad in grads)


# -- updates ---------------------------------------------------------------------------------------------------------

FAST: dict[str, Any] = {"net_arch": [32, 32], "batch_size": 64, "device": "cpu", "seed": 0, "learning_rate": 3e-3}


def test_one_update_in_the_order_of_the_authors() -> None:
    """V, then the actor with the new V, then Q with the new V, then the targets: written out with torch's own Adam."""
    data = played(Point(), 5)
    hyper = FAST | {"net_arch": [8], "batch_size": 16, "gamma": GAMMA, "tau": 0.1, "actor_schedule": "constant"}
    agent: Any = IQL("MlpPolicy", dataset=data, **hyper)
    twin: Any = IQL("MlpPolicy", dataset=data, **hyper)
    batch = twin.sample()
    value, actor, critics, slow = twin.value.module, twin.actor.module, twin.critics.module, twin.critics.target

    def descend(module: Any, loss: Tensor) -> None:
        torch.optim.Adam(module.parameters(), 3e-3).zero_grad()
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        module.zero_grad()
        loss.backward()
        optimizer.step()

    q = slow(batch.obs, batch.actions).min(0).values.detach()
    u = q - value(batch.obs)[0]
    descend(value, (torch.where(u > 0, 0.7, 0.3) * u**2).mean())
    weights = torch.exp(3.0 * (q - value(batch.obs)[0])).clamp(max=100).detach()
    descend(actor, -(weights * actor.log_prob(batch.obs, batch.actions)).mean())
    y = batch.rewards + GAMMA * ~batch.terminated * value(batch.next_obs)[0].detach()
    descend(critics, sum((one - y).square().mean() for one in critics(batch.obs, batch.actions)))  # type: ignore[arg-type]
    for old, new in zip(slow.parameters(), critics.parameters(), strict=True):
        old.data.mul_(0.9).add_(0.1 * new.data)
    agent.learn(1)
    for name in ("value", "actor", "critics"):
        mine, theirs = getattr(agent, name).module, getattr(twin, name).module
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one, other, atol=2e-6), name
    for one, other in zip(agent.critics.target.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_actors_rate_falls_along_a_cosine(schedule: str) -> None:
    agent: Any = IQL("MlpPolicy", dataset=played(Point(), 3), **FAST | {"actor_schedule": schedule, "batch_size": 4})
    rates = []
    agent.learn(1)
    for _ in range(2):
        agent.learn(10)
        rates.append(agent.actor.optimizer.param_groups[0]["lr"])
    agent.learn(10, callback=lambda *_: rates.append(agent.actor.optimizer.param_groups[0]["lr"]) or True)
    # What a step's callback sees is the rate of the update before it.
    expected = [3e-3 * 0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(1, 10)]
    assert rates[3:] == pytest.approx(expected if schedule == "cosine" else [3e-3] * 9, abs=1e-9)
    assert agent.critics.optimizer.param_groups[0]["lr"] == 3e-3


def test_no_temperature_is_cloning() -> None:
    """With b = 0 its actor is that of behaviour cloning, whatever the rewards."""
    data, hyper = played(Point(), 5), FAST | {"batch_size": 8, "inverse_temperature": 0.0}
    one: Any = IQL("MlpPolicy", dataset=data, **hyper).learn(20)
    other: Any = IQL("MlpPolicy", dataset=data.with_rewards(torch.randn(len(data))), **hyper).learn(20)
    for a, b in zip(one.actor.module.parameters(), other.actor.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ascending_takes_numbers_only() -> None:
    with pytest.raises(ValueError, match="these are choices: use 'weighted'"):
        IQL("MlpPolicy", dataset=played(Point(moves="discrete"), 2), extraction="ddpg+bc", device="cpu")


# -- a chain -----------------------------------------------------------------------------------------------------------

STAGES = 6


def chain(rewards: str) -> Dataset:
    """Wanderers between stages 0 to 5, each a row of an identity matrix: left or right by chance; the last is the goal.

    :param rewards: "goal": 1 where it is reached, which ends the episode; "shuffled": the same numbers in any order
    """
    rng = np.random.default_rng(0)
    stages, moves, lengths, gained, finals, ends = [], [], [], [], [], []
    for _ in range(60):
        at, steps = int(rng.integers(STAGES - 1)), 0
        while at < STAGES - 1 and steps < 20:
            move = int(rng.integers(2))
            stages.append(at)
            moves.append(move)
            at, steps = max(0, at + 2 * move - 1), steps + 1
            gained.append(float(at == STAGES - 1))
        lengths.append(steps)
        finals.append(at)
        ends.append(at == STAGES - 1)
    if rewards == "shuffled":
        rng.shuffle(gained)
    one = torch.eye(STAGES)
    return Dataset(
        observation_space=spaces.Box(0, 1, (STAGES,)),
        action_space=spaces.Discrete(2),
        obs=one[stages],
        final_obs=one[finals],
        actions=torch.tensor(moves),
        rewards=torch.tensor(gained).double(),
        lengths=torch.tensor(lengths),
        terminated=torch.tensor(ends),
    )


@pytest.mark.parametrize("rewards", ["goal", "shuffled"])
def test_a_chain_is_walked_to_its_goal(rewards: str) -> None:
    """True rewards lead right from everywhere; the same rewards in another order do not."""
    hyper = FAST | {"gamma": 0.9, "expectile": 0.9, "inverse_temperature": 10.0, "tau": 0.05}
    agent = IQL("MlpPolicy", dataset=chain(rewards), **hyper).learn(400)
    ways, _ = agent.predict(np.eye(STAGES, dtype=np.float32)[:-1], deterministic=True)
    assert (ways == 1).all() == (rewards == "goal")


def walks(right: float, episodes: int) -> Dataset:
    """Twenty steps each between stages 0 to 5, none of which ends the episode; no rewards.

    :param right: the chance of a step to the right
    :param episodes: how many
    """
    rng = np.random.default_rng(0)
    moves = (rng.random((episodes, 20)) < right).astype(int)
    places = np.zeros((episodes, 21), int)
    for step in range(20):
        places[:, step + 1] = np.clip(places[:, step] + 2 * moves[:, step] - 1, 0, STAGES - 1)
    one = torch.eye(STAGES)
    return Dataset(
        observation_space=spaces.Box(0, 1, (STAGES,)),
        action_space=spaces.Discrete(2),
        obs=one[places[:, :-1].ravel()],
        final_obs=one[places[:, -1]],
        actions=torch.from_numpy(moves.ravel()),
        rewards=torch.zeros(moves.size, dtype=torch.float64),
        lengths=torch.full((episodes,), 20),
        terminated=torch.zeros(episodes, dtype=torch.bool),
    )


@pytest.mark.parametrize("method", ["otr", "min-distance", "shuffled"])
def test_labels_from_one_demonstration_lead_along_a_chain(method: Any) -> None:
    """Beside one walk to the goal, which stays there, transport leads there from everywhere, with every seed; shuffled
    labels do not, nor do distances to the nearest state, which is at hand everywhere."""
    hyper = FAST | {"gamma": 0.9, "expectile": 0.9, "inverse_temperature": 3.0, "tau": 0.05}
    led = []
    for seed in range(3):
        labelled = relabel(walks(0.5, 60), walks(1.0, 1), RelabelConfig(method=method, seed=seed))
        agent = IQL("MlpPolicy", dataset=labelled, **hyper | {"seed": seed}).learn(400)
        ways, _ = agent.predict(np.eye(STAGES, dtype=np.float32), deterministic=True)
        led.append(bool((ways == 1).all()))
    assert all(led) == (method == "otr")


def test_categorical_policies_clone_shares() -> None:
    """What was chosen three times in four is chosen so: the likelihood of a softmax."""
    actor = DensityActor(VectorFeatures(1), Categorical(2), ())
    obs, picks = torch.zeros(400, 1), torch.tensor([0, 0, 0, 1]).repeat(100)
    flags = torch.zeros(400, dtype=torch.bool)
    batch = Transitions(obs, picks, torch.zeros(400), flags, flags, obs)
    optimizer = torch.optim.Adam(actor.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        cloning_loss(actor, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert actor.log_prob(obs[:1], picks[:1]).exp().item() == pytest.approx(0.75, abs=0.01)
