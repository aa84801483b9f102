"""PPO: closed forms, and whole rounds against Stable-Baselines3's, with the same weights, draws and orders."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from headway.agents import PPO, PPOConfig
from headway.agents.core.data import generalised_advantages
from headway.agents.core.nets import ActorValue, Categorical, Gaussian
from headway.agents.core.on_policy import ReturnScale
from headway.agents.core.spaces import VectorFeatures
from headway.agents.ppo import Minibatch, ppo_losses
from headway.wrappers import as_batched
from peers import TOLERANCE, copy_into, gap, linears
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv
from support import Stop
from torch import Tensor

CPU = torch.device("cpu")
ROWS, STEPS, EPOCHS, BATCH, ROUNDS = 2, 64, 3, 40, 2  # 128 rows: the last minibatch of an epoch has 8


def layers(peer: Any, actor: bool) -> list[torch.nn.Linear]:
    policy = peer.policy
    hidden, head = (
        (policy.mlp_extractor.policy_net, policy.action_net)
        if actor
        else (policy.mlp_extractor.value_net, policy.value_net)
    )
    return [*linears(hidden), head]


def envs(env_id: str) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(gym.make(env_id, max_episode_steps=25)) for _ in range(ROWS)])


@pytest.mark.parametrize(
    ("env_id", "hyper"),
    [
        ("Pendulum-v1", {}),
        ("Pendulum-v1", {"clip_range_vf": 0.1, "ent_coef": 0.01, "normalize_advantage": False}),
        ("CartPole-v1", {"ent_coef": 0.01, "max_grad_norm": 0.1, "gae_lambda": 1.0}),
        ("CartPole-v1", {"target_kl": 1e-5, "clip_range": 0.05}),
    ],
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")  # which is what is tested
def test_whole_rounds_are_the_peers(env_id: str, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same weights, draws and orders, both act, bootstrap at time limits, estimate and learn alike."""
    shared = {"n_steps": STEPS, "n_epochs": EPOCHS, "batch_size": BATCH, "seed": 0, "device": "cpu", **hyper}
    ours, peer = PPO("MlpPolicy", envs(env_id), **shared), sb3.PPO("MlpPolicy", envs(env_id), **shared)
    nets = ours.nets.module
    copy_into(nets.mlp, 0, layers(peer, actor=True))
    copy_into(nets.mlp, 1, layers(peer, actor=False))

    rng = np.random.default_rng(1)
    count, total = ROWS * STEPS, ROUNDS * STEPS
    orders = [rng.permutation(count) for _ in range(ROUNDS * EPOCHS)]
    discrete = isinstance(ours.action_space, gym.spaces.Discrete)
    drawn = torch.from_numpy(
        rng.integers(0, 2, (total, ROWS)) if discrete else rng.standard_normal((total, ROWS, 1)).astype(np.float32)
    )

    ours_drawn, peers_drawn, ours_orders, peers_orders = iter(drawn), iter(drawn), iter(orders), iter(orders)
    if discrete:
        monkeypatch.setattr(
            nets.policy, "sample", lambda outputs, noise: (a := next(ours_drawn), nets.policy.evaluate(outputs, a)[0])
        )
        monkeypatch.setattr("torch.distributions.Categorical.sample", lambda self: next(peers_drawn))
    else:
        monkeypatch.setattr(nets.policy, "noise", lambda rows, generator: next(ours_drawn))
        monkeypatch.setattr(
            "torch.distributions.Normal.rsample", lambda self, *a: self.loc + self.scale * next(peers_drawn)
        )

    def order(n: int, **kwargs: Any) -> Tensor:
        """The peer's rows are numbered environment by environment, ours step by step."""
        peers = torch.from_numpy(next(ours_orders))
        return peers % STEPS * ROWS + peers // STEPS

    with monkeypatch.context() as patched:
        patched.setattr(torch, "randperm", order)
        ours.learn(ROWS * total)
    with monkeypatch.context() as patched:
        patched.setattr(np.random, "permutation", lambda n: next(peers_orders))
        peer.learn(ROWS * total)

    rollout, buffer = ours.rollout, peer.rollout_buffer
    for name, theirs in (("rewards", buffer.rewards), ("values", buffer.values), ("log_probs", buffer.log_probs)):
        mine = rollout[name].T.reshape(-1) if theirs.shape[-1] == 1 else rollout[name]
        assert torch.allclose(mine, torch.from_numpy(theirs).view(mine.shape), atol=1e-4), name
    # The same updates were left out, where the policy had moved too far.
    assert len(list(ours_orders)) == len(list(peers_orders))
    assert gap(nets.mlp, 0, layers(peer, actor=True)) < TOLERANCE * ROUNDS
    assert gap(nets.mlp, 1, layers(peer, actor=False)) < TOLERANCE * ROUNDS
    assert not nets.mlp.weights[-1][1, :, 1:].any()  # what nothing reads stays as it began
    if not discrete:
        assert (nets.policy.log_std.flatten() - peer.policy.log_std).abs().max() < TOLERANCE * ROUNDS
        assert nets.policy.log_std.abs().max() > 1e-3  # it moved


def test_initial_weights_are_the_peers_kind() -> None:
    ours, peer = (cls("MlpPolicy", "Pendulum-v1", device="cpu", seed=0) for cls in (PPO, sb3.PPO))
    nets = ours.nets.module
    for member, actor in ((0, True), (1, False)):
        for weight, bias, layer in zip(nets.mlp.weights, nets.mlp.biases, layers(peer, actor), strict=True):
            ours_values, theirs = torch.linalg.svdvals(weight[member]), torch.linalg.svdvals(layer.weight)
            assert torch.allclose(ours_values, theirs, atol=1e-5)  # all equal to the gain
            assert not bias[member].any()
    plain = PPO("MlpPolicy", "Pendulum-v1", device="cpu", ortho_init=False).nets.module
    assert plain.mlp.biases[0].any()


def test_a_value_is_of_gain_one_beside_more_actions_than_hidden_units() -> None:
    nets = ActorValue(VectorFeatures(3), Categorical(9), (4,), stack=(2,))
    nets.orthogonal_()
    assert torch.allclose(nets.mlp.weights[-1][:, 1].norm(dim=(-2, -1)), torch.ones(2))


def test_advantages_by_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    steps, rows, gamma, lam = 9, 3, 0.9, 0.7
    rewards, values = torch.randn(2, steps, rows, generator=generator, dtype=torch.float64)
    last = torch.randn(rows, generator=generator, dtype=torch.float64)
    ended = torch.rand(steps, rows, generator=generator) < 0.3
    found = generalised_advantages(rewards, values, last, ended, gamma, lam)
    after = torch.cat([values, last.unsqueeze(0)])
    for n in range(rows):
        for t in range(steps):
            expected, weight = 0.0, 1.0
            for k in range(t, steps):
                delta = rewards[k, n] + gamma * after[k + 1, n] * ~ended[k, n] - values[k, n]
                expected += weight * delta
                weight *= gamma * lam
                if ended[k, n]:
                    break
            assert abs(found[t, n] - expected) < 1e-12


def losses_of(ratio: float, advantage: float, **hyper: Any) -> Any:
    """The losses of one row whose action is now ``ratio`` times as likely as it was."""
    nets = ActorValue(VectorFeatures(1), Categorical(2), (4,))
    obs, actions = torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        outputs, values = nets(obs)
        old = nets.policy.evaluate(outputs, actions)[0] - np.log(ratio)
    batch = Minibatch(obs, actions, old, values - 0.5, torch.tensor([advantage]), values - 0.5 + advantage)
    return ppo_losses(nets, batch, 0.2, PPOConfig(**hyper)), nets


@pytest.mark.parametrize(
    ("ratio", "advantage", "counted"),
    [(1.5, 2.0, 1.2), (0.5, 2.0, 0.5), (1.5, -2.0, 1.5), (0.5, -2.0, 0.8), (1.1, 2.0, 1.1)],
)
def test_the_ratio_is_clipped_where_it_would_pay(ratio: float, advantage: float, counted: float) -> None:
    losses, nets = losses_of(ratio, advantage)
    assert losses.policy_gradient_loss.item() == pytest.approx(-counted * advantage, rel=1e-5)
    assert losses.clip_fraction == float(abs(ratio - 1) > 0.2)
    assert losses.approx_kl.item() == pytest.approx(ratio - 1 - np.log(ratio), abs=1e-5)
    losses.policy_gradient_loss.backward()
    moved = max(float(p.grad.abs().max()) for p in nets.parameters() if p.grad is not None)
    assert (moved > 0) == (counted == ratio)


@pytest.mark.parametrize(("clip", "counted"), [(None, 0.5), (0.2, 0.2), (2.0, 0.5)])
def test_values_are_clipped_around_the_old_ones(clip: float | None, counted: float) -> None:
    losses, _ = losses_of(1.0, 2.0, clip_range_vf=clip)  # the value has moved by 0.5, its target is 2 above the old one
    assert losses.value_loss.item() == pytest.approx((2.0 - counted) ** 2, rel=1e-5)


def as_torch_finds_it(nets: ActorValue, batch: Minibatch, clip: float, cfg: PPOConfig) -> Tensor:
    """The loss by operations that torch differentiates itself."""
    outputs, values = nets(batch.obs)
    log_prob, entropy = nets.policy.evaluate(outputs, batch.actions)
    ratio, scaled = (log_prob - batch.log_probs).exp(), batch.advantages
    if cfg.normalize_advantage:
        scaled = (scaled - scaled.mean()) / (scaled.std() + 1e-8)
    policy = -torch.minimum(scaled * ratio, scaled * ratio.clamp(1 - clip, 1 + clip)).mean()
    if cfg.clip_range_vf is not None:
        values = batch.values + (values - batch.values).clamp(-cfg.clip_range_vf, cfg.clip_range_vf)
    value = torch.nn.functional.mse_loss(values, batch.returns)
    return policy + cfg.vf_coef * value - cfg.ent_coef * entropy.mean()


@pytest.mark.parametrize("hyper", [{}, {"clip_range_vf": 0.3, "ent_coef": 0.1, "normalize_advantage": False}])
@pytest.mark.parametrize("discrete", [True, False])
def test_gradients_in_closed_form_are_torchs(hyper: dict[str, Any], discrete: bool) -> None:
    torch.manual_seed(0)
    rows, cfg = 40, PPOConfig(**hyper)
    nets = ActorValue(VectorFeatures(3), Categorical(4) if discrete else Gaussian(2), (8,)).double()
    actions = torch.randint(4, (rows,)) if discrete else torch.randn(rows, 2).double()
    obs, advantages, returns, moved = torch.randn(rows, 3).double(), *torch.randn(3, rows).double()
    with torch.no_grad():
        outputs, values = nets(obs)
        old = nets.policy.evaluate(outputs, actions)[0] + 0.3 * moved  # some ratios are clipped, some not; so values
    batch = Minibatch(obs, actions, old, values + 0.3 * moved, advantages, returns)
    losses, expected = ppo_losses(nets, batch, 0.2, cfg), as_torch_finds_it(nets, batch, 0.2, cfg)
    assert 0 < losses.clip_fraction < 1
    assert losses.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    parameters = list(nets.parameters())
    ours, torchs = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (losses.loss, expected))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(ours, torchs, strict=True))


@pytest.mark.filterwarnings("ignore")  # what torch's own compiler warns of is not ours
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_compiled_losses_are_the_same(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Captured as a graph and differentiated as one, but not compiled to C++, which takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    agents = [
        PPO("MlpPolicy", env_id, seed=0, device="cpu", n_steps=16, batch_size=8, n_epochs=2, compile=mode).learn(16)
        for mode in ("off", "default")
    ]
    for ours, compiled in zip(*(agent.nets.module.parameters() for agent in agents), strict=True):
        assert torch.allclose(ours, compiled, atol=TOLERANCE)


def test_scaled_rewards_are_the_peers_normalised_ones() -> None:
    rng = np.random.default_rng(0)
    scale, rms, returns = ReturnScale(3, 0.9, CPU), RunningMeanStd(shape=()), np.zeros(3)
    for _ in range(50):
        rewards, ended = rng.normal(3, 20, 3).astype(np.float32), rng.random(3) < 0.2
        returns = returns * 0.9 + rewards
        rms.update(returns)
        expected = np.clip(rewards / np.sqrt(rms.var + 1e-8), -10, 10)
        returns[ended] = 0
        found = scale(torch.from_numpy(rewards), torch.from_numpy(ended))
        assert np.allclose(found.numpy(), expected, rtol=1e-5)
    copy = ReturnScale(3, 0.9, CPU)
    copy.load_state(scale.state())
    assert torch.equal(
        copy(torch.ones(3), torch.zeros(3, dtype=torch.bool)), scale(torch.ones(3), torch.zeros(3, dtype=torch.bool))
    )


class Ends(gym.Env[Any, Any]):
    """One step an episode, of reward 1, truncated or terminated."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, truncates: bool) -> None:
        self.truncates = truncates

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.full(1, 0.5, np.float32), 1.0, not self.truncates, self.truncates, {}


@pytest.mark.parametrize("truncates", [True, False])
def test_only_truncated_episodes_go_on_in_their_last_reward(truncates: bool) -> None:
    agent = PPO("MlpPolicy", Ends(truncates), device="cpu", seed=0, n_steps=4, batch_size=4, gamma=0.9)
    before = agent.values(torch.full((1, 1), 0.5)).item()
    agent.learn(4)
    assert agent.rollout["rewards"].flatten().tolist() == pytest.approx([1 + 0.9 * before * truncates] * 4)


def test_rows_that_only_did_a_delayed_reset_are_not_learnt_from() -> None:
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 3)] * 2,
        autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
    )
    agent = PPO("MlpPolicy", as_batched(envs), device="cpu", seed=0, n_steps=8, batch_size=16, n_epochs=1)
    seen: list[Tensor] = []
    take = agent.rollout.take
    agent.rollout.take = lambda names, rows: seen.append(rows) or take(names, rows)  # type: ignore[method-assign, func-returns-value]
    agent.learn(12)
    assert agent.num_timesteps == 12  # of 16 rows, four only did a reset
    assert agent.rollout["real"].tolist() == [[True, True]] * 3 + [[False, False]] + [[True, True]] * 3 + [
        [False, False]
    ]
    assert torch.cat(seen).sort().values.tolist() == [t * 2 + n for t in (0, 1, 2, 4, 5, 6) for n in range(2)]


@pytest.mark.parametrize("anew", [True, False])
def test_a_round_that_was_cut_off_is_not_followed_by_another_episode(anew: bool) -> None:
    agent = PPO("MlpPolicy", "Pendulum-v1", device="cpu", seed=0, n_steps=8, batch_size=8)
    agent.learn(100, Stop(5))
    assert agent.rollout.steps == 5
    if not anew:
        agent.set_env(gym.make("Pendulum-v1"))
    agent.learn(8, reset_num_timesteps=anew)
    assert agent.rollout.steps == 8
    assert agent.updates == 10


def test_what_is_logged_has_the_peers_names() -> None:
    agent = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=64, batch_size=32, n_epochs=2).learn(64)
    names = {"loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"}
    assert agent.metrics.flush().keys() == names | {"explained_variance"}
