"""MBPO and posterior sampling: who acts, who knows what, what variants reduce to, agents of a stack by themselves."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from headway.agents import MBPO, SAC
from headway.agents.core.data import Transitions
from headway.agents.mbpo.agent import anchor_loss
from headway.envs.terminations import never
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import same_tree
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from toys import Point

TINY: dict[str, Any] = {"net_arch": [8, 8], "batch_size": 20, "buffer_size": 500, "learning_starts": 20, "seed": 3}
TINY |= {"n_models": 2, "n_elites": 2, "model_net_arch": [8], "model_train_freq": 20, "rollouts_per_step": 4}
TINY |= {"gradient_steps": 2, "rollout_schedule": [0, 2, 1, 3], "epoch_length": 20, "device": "cpu", "real_ratio": 0.2}


def points(rows: int = 1, **options: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(Point(**options)) for _ in range(rows)])


def agent(env: Any = None, **hyper: Any) -> MBPO:
    return MBPO("MlpPolicy", points() if env is None else env, **{**TINY, **hyper})


# -- a stack of agents -----------------------------------------------------------------------------------------------


def batch(agents: int, rows: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs, actions = (torch.rand(agents, rows, 1, generator=generator) for _ in range(3))
    rewards = torch.randn(agents, rows, generator=generator)
    return Transitions(obs, 2 * actions - 1, rewards, rewards > 1, rewards > 9, next_obs)


def test_agents_of_a_stack_learn_as_each_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = agent(variant="ps", agents_per_model=2)
    alone = []
    for number in range(4):
        single = SAC("MlpPolicy", points(), net_arch=[8, 8], batch_size=20, device="cpu", seed=3)
        for tracked, own in ((stack.actor, single.actor), (stack.critics, single.critics)):
            for theirs, ours in zip(own.module.parameters(), tracked.module.parameters(), strict=True):
                theirs.data.copy_(ours[number])
            if own.target is not None:
                own.target.load_state_dict(own.module.state_dict())
        alone.append(single)
    noise = torch.Generator().manual_seed(1)
    for step in range(20):
        rows, drawn = batch(4, 20, step), torch.randn(2, 4, 20, 1, generator=noise)
        monkeypatch.setattr(stack, "_batch", lambda rows=rows: rows)
        monkeypatch.setattr(stack, "noise", lambda *_, drawn=drawn: drawn)
        stack._update("update")
        for number, single in enumerate(alone):
            own = Transitions(*(getattr(rows, name)[number] for name in Transitions.__slots__))
            monkeypatch.setattr(single, "sample", lambda own=own: own)
            monkeypatch.setattr(single, "noise", lambda *_, drawn=drawn, number=number: drawn[:, number])
            single._update("update")
    for number, single in enumerate(alone):
        for tracked, own in ((stack.actor, single.actor), (stack.critics, single.critics)):
            for theirs, ours in zip(own.module.parameters(), tracked.module.parameters(), strict=True):
                torch.testing.assert_close(theirs, ours[number], atol=1e-5, rtol=0)
        alpha = stack.temperature.module.alpha[number]
        torch.testing.assert_close(alpha, single.temperature.module.alpha, atol=1e-6, rtol=0)


def test_one_model_and_one_agent_are_mbpo() -> None:
    same = {"n_models": 1, "n_elites": 1, "bootstrap": "none"}
    found = [agent(variant=variant, **same).learn(500 // 5) for variant in ("mbpo", "ps", "ops")]
    assert found[0].updates > 150
    for other in found[1:]:
        same_tree(found[0].modules.state(), other.modules.state())


# -- who acts --------------------------------------------------------------------------------------------------------


def acting(rows: int, steps: int, **hyper: Any) -> tuple[list[list[int]], list[list[bool]]]:
    """Who acted in each step, and which episodes ended with it."""
    who, ended = [], []
    sampler = agent(points(rows), learning_starts=10**6, **hyper)
    keep = sampler.keep

    def noting(step: Any) -> None:
        who.append(sampler.acting.drawn.tolist())
        ended.append(step.dones.tolist())
        keep(step)

    sampler.keep = noting  # type: ignore[method-assign]
    sampler.learn(steps)
    return who, ended


def test_one_agent_acts_in_an_episode_and_all_are_drawn_alike() -> None:
    who, ended = acting(2, 5000, variant="ps", n_models=3, n_elites=1)
    drawn: list[list[int]] = [[], []]
    for row in range(2):
        for step, numbers in enumerate(who):
            begins = step == 0 or ended[step - 1][row]
            if begins:
                drawn[row].append(numbers[row])
            else:
                assert numbers[row] == who[step - 1][row]
    counts = np.bincount(np.concatenate(drawn), minlength=3)
    expected = counts.sum() / 3
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.8  # chi squared, two degrees, 0.1 %
    both = min(map(len, drawn))
    assert abs(np.corrcoef(drawn[0][:both], drawn[1][:both])[0, 1]) < 0.2


def test_ops_lets_the_best_act() -> None:
    sampler = agent(variant="ops").learn(60)
    value = sampler.critics.target
    assert value is not None
    sampler.termination = never
    for best in (0, 1):
        with torch.no_grad():
            for part in value.mlp.parameters():
                part.zero_()
            value.mlp.biases[-1][best] = 1000.0
        sampler._judge()
        assert sampler.acting.best == best
        assert sampler.acting.draw(True, sampler.generators["collect"]).tolist() == [best]
    with torch.no_grad():
        deterministic = sampler.predict(np.array([0.5], np.float32), deterministic=True)[0]
        own = sampler.actor.module.mode(torch.tensor([[0.5]]))[1, 0]
    assert float(deterministic[0]) == pytest.approx(float(own))


# -- who knows what --------------------------------------------------------------------------------------------------


def test_counts_are_drawn_once_and_kept() -> None:
    sampler = agent(points(2), variant="ps", learning_starts=10**6).learn(400)
    rows, _ = sampler.store.chronological()
    first = sampler.store.take("agent_counts", rows[:50]).clone()
    assert sampler.store.take("model_counts", rows).shape == (400, 2)
    sampler.learn(40, reset_num_timesteps=False)
    assert torch.equal(sampler.store.take("agent_counts", rows[:50]), first)
    counts = sampler.store.take("agent_counts", rows).float()
    assert float(counts.mean()) == pytest.approx(1, abs=0.1)


def test_batches_are_real_by_their_share() -> None:
    sampler = agent(variant="ps").learn(40)
    sampler.imagined._data["rewards"].fill_(77.0)
    rows = sampler._batch()
    assert rows.rewards.shape == (2, 20)
    assert (rows.rewards == 77).sum(1).tolist() == [16, 16]


def test_data_change_agents_but_not_those_that_know_a_model_alone() -> None:
    changed = {}
    for variant in ("ps", "model_only"):
        pair = [agent(variant=variant, refit_factor=1).learn(40) for _ in range(2)]
        other = pair[1]
        assert other.store._data["rewards"].shape[0] == 500
        other.store._data["rewards"] += 3.0  # what was experienced is another thing, the model is the same
        for one in pair:
            one._pending = [("update", 10)]
            one._work_off()
        states = [one.actor.module.state_dict() for one in pair]
        changed[variant] = any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert changed == {"ps": True, "model_only": False}


def test_agents_begin_anew_with_their_model() -> None:
    plain = agent(variant="model_only", refit_factor=1, real_ratio=0.9)
    plain.learn(21)
    before = [part.clone() for part in plain.actor.module.parameters()]
    plain._restart_agents()
    assert all(not torch.equal(one, two) for one, two in zip(before, plain.actor.module.parameters(), strict=True))
    assert all(
        not tensor.any()
        for state in plain.actor.optimizer.state.values()
        for tensor in state.values()  # type: ignore[union-attr]
    )
    assert plain._batch().rewards.shape == (2, 20)  # of which nothing is real


def test_what_models_disagree_about_is_rewarded() -> None:
    curious = agent(variant="sombrl", n_models=3, spread_weight=5.0).learn(30)
    obs, actions = torch.zeros(1, 4, 1), torch.zeros(1, 4, 1)
    drawn: dict[float, Tensor] = {}
    for weight in (0.0, 5.0):
        curious.spread_weight = weight
        curious.generators["update"].manual_seed(0)
        drawn[weight] = curious._stepped(obs, actions).rewards
    means, _ = curious.dynamics.module(torch.zeros(4, 2))
    expected = 5 * means[..., 1:].std(0).mean(-1)
    torch.testing.assert_close(drawn[5.0] - drawn[0.0], expected.detach().view(1, 4))
    assert bool((expected > 0).all())


def test_the_model_is_trained_and_imagines_when_it_is_time() -> None:
    fitted = agent()
    done: list[tuple[int, str, int]] = []
    plan = fitted.phases

    def noting(collected: int) -> Any:
        steps = plan(collected)
        done.extend((fitted.num_timesteps, name, count) for name, count in steps if name != "fit")
        return steps

    fitted.phases = noting  # type: ignore[method-assign]
    fitted.learn(82)
    assert [(step, count) for step, name, count in done if name == "imagine"] == [(20, 2), (40, 3), (60, 3), (80, 3)]
    assert [step for step, name, _ in done if name == "update"] == [*range(20, 83)]
    assert fitted.imagined.capacity == 3 * 80
    line = fitted.describe_round()
    assert line.startswith("model at step 80: ")
    assert all(f"{phase} " in line for phase in fitted.seconds)
    assert fitted.describe_round() == ""
    assert set(fitted.seconds) == {"fit", "imagine", "update"}
    assert all(seconds > 0 for seconds in fitted.seconds.values())


def test_no_ended_rollout_is_kept() -> None:
    fitted = agent(rollout_schedule=[0, 1, 3, 3])
    fitted.termination = lambda obs: torch.ones(obs.shape[:-1], dtype=torch.bool)
    fitted.learn(20)
    assert fitted.imagined.sizes.tolist() == [80]
    told = fitted.metrics.flush()
    assert np.isfinite(told["imagined_reward"])  # the second and third step have no rows
    assert told["imagined_ends"] == pytest.approx(1 / 3)
    fitted = agent(rollout_schedule=[0, 1, 3, 3])
    fitted.termination = never
    fitted.learn(20)
    assert fitted.imagined.sizes.tolist() == [240]


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"real_ratio": 1.5}, r"real_ratio must lie in \[0, 1\], got 1.5"),
        ({"rollout_schedule": [5, 5, 1, 1]}, r"a < b and 1 <= lo <= hi, got \(5, 5, 1, 1\)"),
        ({"rollout_schedule": [0, 1, 0, 1]}, "a < b and 1 <= lo <= hi"),
        ({"rollout_schedule": [0, 1, 3, 2]}, "a < b and 1 <= lo <= hi"),
        ({"n_elites": 3}, "n_elites must be at most n_models, 2, got 3"),
        ({"learning_starts": 3}, r"learning_starts must lie in \[5, inf\) environment steps, got 3"),
        ({"variant": "pets"}, "variant must be"),
        ({"anchor_kl": 0.1}, "anchor_kl is for the variants ps and ops, got 0.1 for mbpo"),
        ({"rollouts_per_step": 10**12}, "imagined rows for each of 1 agents need"),
    ],
)
def test_settings_that_do_not_fit_are_refused(hyper: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        agent(**hyper)


class Nameless(gym.Wrapper[Any, Any, Any, Any]):
    """Hides what it is around."""

    @property
    def unwrapped(self) -> Any:
        return self


def test_worlds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"when episodes of Nameless end .*register_termination"):
        agent(DummyVecEnv([lambda: Nameless(Point())]))
    with pytest.raises(ValueError, match=r"predicts one vector, the environment shows Box\(0, 255, \(1, 36, 36\)"):
        MBPO("CnnPolicy", points(form="image"), **TINY)
    with pytest.raises(ValueError, match="leave VecNormalize out"):
        agent(VecNormalize(points()))


# -- an anchor -------------------------------------------------------------------------------------------------------


def test_the_pull_of_an_anchor_is_a_divergence_of_gaussians() -> None:
    stack = agent(variant="ps", anchor_kl=0.1)
    actor, obs = stack.actor.module, torch.rand(2, 5, 1, generator=torch.Generator().manual_seed(0))
    found = anchor_loss(actor, obs)
    expected = torch.zeros(())
    for number in range(2):
        mean, log_std = actor.gaussian(obs[number].expand(3, 5, 1))
        own, anchor = (Normal(mean[which], log_std[which].exp()) for which in (number, 2))
        expected = expected + kl_divergence(own, anchor).sum(-1).mean()
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, list(actor.parameters()))
    assert all(bool(grad[:2].any()) for grad in grads)
    assert not any(grad[2].any() for grad in grads)


def test_an_anchor_pulls_agents_together_and_never_acts() -> None:
    apart = {}
    for weight in (1e-6, 100.0):
        pulled = agent(variant="ps", anchor_kl=weight, learning_rate=1e-2, model_train_freq=40).learn(80)
        apart[weight] = float(anchor_loss(pulled.actor.module, torch.zeros(2, 1, 1)).detach())
        assert pulled.acting.agents == 2
        assert pulled.acting.best in (0, 1)
        assert pulled.temperature.module.alpha.shape == (3,)
    assert apart[100.0] < apart[1e-6] / 3


def test_an_anchor_imagines_by_any_member() -> None:
    stack = agent(variant="ps", anchor_kl=0.1).learn(25)
    with torch.no_grad():
        for parts in (stack.dynamics.module.mlp.weights, stack.dynamics.module.mlp.biases):
            for part in parts:
                part.zero_()
        stack.dynamics.module.mlp.biases[-1][:, 0, 0] = torch.tensor([5.0, -5.0])
        stack.dynamics.module.mlp.biases[-1][:, 0, 2:] = -100
        stack.dynamics.module.min_log_var.fill_(-40)
    rewards = stack._stepped(torch.zeros(3, 40, 1), torch.zeros(3, 40, 1)).rewards.round()
    assert rewards[0].unique().tolist() == [5]
    assert rewards[1].unique().tolist() == [-5]
    assert rewards[2].unique().tolist() == [-5, 5]
    counts = stack.store.take("agent_counts", stack.store.chronological()[0])
    assert (counts[:, 2] == 1).all()
    assert not (counts[:, :2] == 1).all()
