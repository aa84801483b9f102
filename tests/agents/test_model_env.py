"""A model as an environment: it does what the model says, by rows, with ends and copies. Ends that are learned."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from headway.agents import CEM, MBPO
from headway.agents.core.nets import Tracked
from headway.agents.mbpo import Dynamics, ModelEnv
from headway.agents.mbpo.ends import LearnedEnds, fit_ends
from headway.envs.splitmix import normals, start
from headway.envs.terminations import hopper, never
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from support import same_tree
from toys import Point, planted

SHOWN = (spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-2.0, 2.0, (1,)))


def made(num_envs: int = 3, model: Dynamics | None = None, **options: Any) -> ModelEnv:
    options = {"horizon": 5, "termination": never, "starts": torch.tensor([[0.0], [10.0]]), **options}
    return ModelEnv(planted(0.25, -0.25) if model is None else model, shown=SHOWN, num_envs=num_envs, **options)


def test_rows_go_where_their_member_says() -> None:
    env = made(64, keeps_member=True)
    obs, _ = env.reset(seed=0)
    assert set(obs.flatten().tolist()) == {0.0, 10.0}
    first, actions = obs, torch.full((64, 1), 1.0)  # half of what is allowed: the model knows actions from -1 to 1
    for _ in range(4):
        before = obs
        obs, rewards, terminated, truncated, _ = env.step(actions)
        torch.testing.assert_close(rewards, 10 * before[:, 0], atol=1e-4, rtol=1e-5)
        assert not terminated.any()
        assert not truncated.any()
    moved = (obs - first).flatten() / 4
    assert set(moved.mul(100).round().int().tolist()) == {50, 0}  # 0.25 of the action, and 0.25 this way or that
    *_, truncated, info = env.step(actions)
    assert truncated.all()
    assert (info["episode"]["l"] == 5).all()


def test_members_mix_where_they_are_drawn_anew_and_only_the_named_move() -> None:
    env = made(64, horizon=9)
    first, _ = env.reset(seed=0)
    obs = first
    for _ in range(8):
        obs = env.step(torch.zeros(64, 1))[0]
    assert len((obs - first).flatten().mul(4).round().unique()) > 4
    one = made(64, members=torch.tensor([1]))
    first, _ = one.reset(seed=0)
    obs = one.step(torch.zeros(64, 1))[0]
    torch.testing.assert_close(obs - first, torch.full((64, 1), -0.25), atol=1e-4, rtol=0)


def test_an_episode_ends_where_it_is_said_to_and_another_begins() -> None:
    env = made(2, planted(1.0), starts=torch.tensor([[0.0]]), termination=lambda obs: obs[..., 0] > 2.5)
    env.reset(seed=0)
    for step in range(1, 8):
        obs, _, terminated, truncated, info = env.step(torch.zeros(2, 1))
        assert terminated.tolist() == [step % 3 == 0] * 2
        assert not truncated.any()
        assert float(info["final_obs"][0]) == pytest.approx((step - 1) % 3 + 1, abs=1e-4)
        assert float(obs[0]) == pytest.approx(step % 3, abs=1e-4)


def test_an_end_at_the_time_limit_is_no_truncation() -> None:
    env = made(1, planted(1.0), horizon=3, starts=torch.tensor([[0.0]]), termination=lambda obs: obs[..., 0] > 2.5)
    env.reset(seed=0)
    for _ in range(2):
        env.step(torch.zeros(1, 1))
    *_, terminated, truncated, _ = env.step(torch.zeros(1, 1))
    assert terminated.tolist() == [True]
    assert truncated.tolist() == [False]


def test_finished_rows_rest_where_they_are_not_reset() -> None:
    starts = torch.tensor([[0.0], [10.0]])
    env = made(
        8, planted(1.0), starts=starts, termination=lambda o: o[..., 0] > 10.5, autoreset_mode=AutoresetMode.DISABLED
    )
    first, _ = env.reset(seed=0)
    far = first[:, 0] == 10
    assert 0 < int(far.sum()) < 8
    obs, _, terminated, *_ = env.step(torch.zeros(8, 1))
    assert torch.equal(terminated, far)
    again, rewards, *_ = env.step(torch.zeros(8, 1))
    assert torch.equal(again[far], obs[far])
    assert torch.equal(rewards[far], torch.zeros(int(far.sum())))
    fresh, _ = env.reset_rows(far)
    assert set(fresh[far].flatten().tolist()) <= {0.0, 10.0}


@pytest.mark.parametrize("keeps_member", [True, False])
def test_rows_are_what_they_would_be_alone_and_can_be_copied(keeps_member: bool) -> None:
    torch.manual_seed(0)
    model = Dynamics(1, 1, members=3, net_arch=(4,))
    env = made(4, model, keeps_member=keeps_member)
    alone = made(1, model, keeps_member=keeps_member)
    seen = [env.reset(seed=7)[0]]
    single = [alone.reset(seed=9)[0]]
    for _ in range(12):
        seen.append(env.step(torch.ones(4, 1))[0])
        single.append(alone.step(torch.ones(1, 1))[0])
    torch.testing.assert_close(torch.stack(seen)[:, 2], torch.stack(single)[:, 0], atol=1e-5, rtol=1e-5)
    saved, other = env.state(), env.like(4)
    other.load_state(saved)
    env.copy_rows(torch.tensor([0]), torch.tensor([3]))
    for _ in range(7):
        seen.append(env.step(torch.ones(4, 1))[0])
        same_tree(seen[-1][:3], other.step(torch.ones(4, 1))[0][:3])
        assert torch.equal(seen[-1][0], seen[-1][3])


def test_normal_numbers_are_normal_and_of_each_stream() -> None:
    words = torch.tensor([start(seed) for seed in range(200)])
    drawn, after = normals(words, 501)
    assert torch.isfinite(drawn).all()
    assert abs(float(drawn.mean())) < 0.02  # 100,000 numbers: six standard errors
    assert float(drawn.std()) == pytest.approx(1, abs=0.015)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=0.2)
    assert abs(float((drawn[:, 0] * drawn[:, 251]).mean())) < 0.3  # cosine and sine of a pair
    assert torch.equal(normals(words[5:6], 501)[0][0], drawn[5])
    assert not torch.equal(after, words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": torch.zeros(0, 1)}, "starts is empty: give at least one observation"),
        ({"horizon": 0}, "horizon must be at least 1 step, got 0"),
        ({"num_envs": 0}, "num_envs is 0"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


TINY: dict[str, Any] = {"net_arch": [8, 8], "batch_size": 20, "learning_starts": 20, "seed": 3, "device": "cpu"}
TINY |= {"n_models": 3, "n_elites": 2, "model_net_arch": [8], "model_train_freq": 20, "rollouts_per_step": 4}


def agent(**hyper: Any) -> MBPO:
    return MBPO("MlpPolicy", DummyVecEnv([lambda: Monitor(Point())]), **{**TINY, "gradient_steps": 1, **hyper})


@pytest.mark.parametrize("variant", ["mbpo", "ps"])
def test_others_can_learn_in_what_an_agent_has_learnt(variant: str) -> None:
    learner = agent(variant=variant)
    with pytest.raises(ValueError, match="the model has not been trained yet"):
        learner.model_env(2)
    env = learner.learn(60).model_env(4, horizon=6)
    assert env.keeps_member is (variant == "ps")
    assert len(env.members) == (3 if variant == "ps" else 2)
    assert env.single_action_space == learner.action_space
    weights = [part.clone() for part in env.model.parameters()]
    learner.learn(40, reset_num_timesteps=False)
    assert all(torch.equal(one, two) for one, two in zip(weights, env.model.parameters(), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searched = CEM("MlpPolicy", env, population_size=4, net_arch=[4], horizon=6, seed=0, device="cpu").learn(200)
    assert searched.num_timesteps >= 200


def test_what_is_shown_of_observations_by_name_is_the_vector_that_is_read_of_them() -> None:
    learner = MBPO("MultiInputPolicy", DummyVecEnv([lambda: Monitor(Point(form="dict"))]), **TINY, gradient_steps=1)
    env = learner.learn(25).model_env(2, horizon=3)
    assert env.single_observation_space == spaces.Box(-np.inf, np.inf, (3,))
    assert env.reset(seed=0)[0].shape == (2, 3)


# -- ends that are learned -------------------------------------------------------------------------------------------


def test_ends_are_learned_from_those_that_were_experienced() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    obs = torch.randn(4000, 11, generator=generator) * 0.15
    obs[:, 0] += 0.9
    ends = Tracked(LearnedEnds(11), 3e-3)
    losses = [float(fit_ends(ends, obs[:3000], hopper(obs[:3000]), generator)) for _ in range(30)]
    assert losses[-1] < losses[0] / 3
    told, known = ends.module.tell(obs[3000:]), hopper(obs[3000:])
    assert 0.1 < float(known.float().mean()) < 0.5
    assert float((told == known).float().mean()) > 0.95
    assert ends.module.tell(torch.full((2, 3, 11), torch.nan)).all()


def test_a_world_without_a_formula_can_be_learned_as_a_last_resort() -> None:
    learner = agent(learn_termination=True).learn(60)
    known = learner.store.at(learner.store.chronological()[0])
    assert float((learner.termination(known.next_obs) == known.terminated).float().mean()) > 0.8
    saved = learner.modules.state()
    assert any(name.startswith("ends.") for name in saved)
    env = learner.model_env(2, horizon=4)
    before = env.termination(known.next_obs)
    with torch.no_grad():
        learner.ends.module.mlp.biases[-1].add_(100)
    assert torch.equal(env.termination(known.next_obs), before)
    assert learner.termination(known.next_obs).all()
