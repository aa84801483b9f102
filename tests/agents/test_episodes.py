"""Whole episodes of a batch, against single environments stepped by hand."""

import multiprocessing
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway.agents.core.data.episodes import Episodes, Turn, run_episodes
from headway.envs import BatchedEnv
from headway.envs.mujoco import MujocoBatch
from headway.envs.mujoco.tasks import Hopper
from headway.wrappers import as_batched
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor
from toys import Point, vec


def hopper() -> gym.Env[Any, Any]:
    return gym.make("headway/Hopper-v5", max_episode_steps=60)


def pole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1", max_episode_steps=50)


def push(obs: Any, _: Turn) -> Tensor:
    """A policy without sums over columns, whose last bit may depend on the number of rows."""
    column = obs[:, 0]
    return torch.stack([(7 * column).sin(), column.cos(), (9 * column).cos()], 1).float()


def lean(obs: Any, _: Turn) -> Tensor:
    return (obs[:, 2] > 0).long()


def pull(obs: Any, _: Turn) -> Tensor:
    return -0.4 * (obs["place"] if isinstance(obs, dict) else obs)


def dict_point() -> Point:
    return Point(form="dict")


def sync(make: Callable[[], Any], n: int) -> BatchedEnv:
    return as_batched(SyncVectorEnv([make] * n, autoreset_mode=AutoresetMode.NEXT_STEP))


BATCHES: dict[str, tuple[Callable[[int], BatchedEnv], Callable[[], gym.Env[Any, Any]], Any]] = {
    "DummyVecEnv": (lambda n: as_batched(DummyVecEnv([pole] * n)), pole, lean),
    "SyncVectorEnv": (lambda n: sync(pole, n), pole, lean),
    "Dicts": (lambda n: as_batched(DummyVecEnv([dict_point] * n)), dict_point, pull),
    "MujocoBatch": (
        lambda n: MujocoBatch(Hopper(), n, max_episode_steps=60, num_threads=1, dtype=torch.float64),
        hopper,
        push,
    ),
}


def by_hand(make: Callable[[], gym.Env[Any, Any]], act: Any, seed: int) -> dict[str, Any]:
    env = make()
    obs, _ = env.reset(seed=seed)
    told: dict[str, Any] = {"obs": [], "actions": [], "rewards": []}
    over = cut = False
    while not (over or cut):
        batch: Any = _tree(obs, lambda part: torch.as_tensor(np.array(part)).unsqueeze(0))
        action = act(batch, None)[0]
        told["obs"].append(obs)
        obs, reward, over, cut, _ = env.step(action.numpy())
        told["actions"].append(action)
        told["rewards"].append(reward)
    return {**told, "final": obs, "terminated": over, "truncated": cut and not over}


def _tree(value: Any, change: Callable[[Any], Any]) -> Any:
    return {key: change(part) for key, part in value.items()} if isinstance(value, dict) else change(value)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(found, dict):
        for key, part in found.items():
            assert_same(part, [e[key] for e in expected] if isinstance(expected, list) else expected[key])
        return
    np.testing.assert_array_equal(found.numpy(), np.stack(expected) if isinstance(expected, list) else expected)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", BATCHES)
def test_episode_i_is_that_of_an_environment_seeded_s_plus_i_whatever_the_number_of_rows(name: str, rows: int) -> None:
    make_batch, make, act = BATCHES[name]
    env = make_batch(rows)
    env.reset(seed=99)  # where the batch stood before does not matter
    found = run_episodes(env, act, episodes=5, seed=30, keep=True)
    assert found.returns.dtype is torch.float64
    assert len(set(found.returns.tolist())) > 1
    for i, steps in enumerate(found.split()):
        expected = by_hand(make, act, 30 + i)
        assert found.lengths[i] == len(expected["rewards"])
        assert (bool(found.terminated[i]), bool(found.truncated[i])) == (expected["terminated"], expected["truncated"])
        assert found.returns[i] == pytest.approx(sum(expected["rewards"]), rel=1e-6)  # rewards of 24 bits
        assert_same(steps["obs"], expected["obs"])
        assert_same(steps["actions"], expected["actions"])
        np.testing.assert_allclose(steps["rewards"], expected["rewards"], rtol=1e-6)
        assert_same(_tree(found.final_obs, lambda part, i=i: part[i]), expected["final"])
    bare = run_episodes(env, act, episodes=5, seed=30)
    assert bare.steps is bare.final_obs is None
    for field in ("returns", "lengths", "terminated", "truncated"):
        assert torch.equal(getattr(bare, field), getattr(found, field))


def test_without_a_seed_the_streams_go_on_and_there_is_one_episode_per_row() -> None:
    env = as_batched(vec(3))
    env.reset(seed=0)
    first, second = run_episodes(env, pull), run_episodes(env, pull)
    assert first.returns.shape == (3,)
    assert not torch.equal(first.returns, second.returns)
    with pytest.raises(ValueError, match="episodes is 0, it must be at least 1"):
        run_episodes(env, pull, episodes=0)
    with pytest.raises(ValueError, match="horizon is 0, it must be at least 1"):
        run_episodes(env, pull, horizon=0)


def test_a_horizon_cuts() -> None:
    def outward(obs: Any, _: Turn) -> Tensor:
        return 2 * obs  # beyond 2 in one to many steps

    env = as_batched(vec(4))
    whole = run_episodes(env, outward, seed=0, keep=True)
    cut = run_episodes(env, outward, seed=0, horizon=2, keep=True)
    assert cut.lengths.tolist() == whole.lengths.clamp(max=2).tolist()
    assert cut.terminated.tolist() == (whole.terminated & (whole.lengths <= 2)).tolist()
    assert torch.equal(cut.truncated, ~cut.terminated)
    assert cut.truncated.any()
    assert cut.terminated.any()
    for row, (steps, full) in enumerate(zip(cut.split(), whole.split(), strict=True)):
        assert torch.equal(steps["rewards"], full["rewards"][:2])
        assert cut.returns[row] == pytest.approx(float(steps["rewards"].sum()), abs=1e-6)


def test_a_population_acts_each_member_in_its_own_episodes() -> None:
    """Six members, two episodes each, in five rows: the member is the number of the episode, halved."""
    gains = torch.linspace(-1, 0, 6)

    def act(obs: Any, turn: Turn) -> dict[str, Tensor]:
        member = turn.episodes // 2
        return {"actions": gains[member].unsqueeze(1) * obs, "member": member}

    found = run_episodes(as_batched(vec(5)), act, episodes=12, seed=0, keep=True)
    for i, steps in enumerate(found.split()):
        alone = run_episodes(as_batched(vec(1)), lambda obs, _, i=i: gains[i // 2] * obs, seed=i)
        assert torch.equal(found.returns[i : i + 1], alone.returns)
        assert steps["member"].tolist() == [i // 2] * 7


def test_what_a_policy_is_told() -> None:
    """One row of two has an episode in the second round; both have the clock that a memory would have."""
    turns: list[tuple[list[int], list[bool], list[bool]]] = []

    def act(obs: Any, turn: Turn) -> Tensor:
        turns.append((turn.episodes.tolist(), turn.starts.tolist(), turn.running.tolist()))
        return torch.zeros(2, 1)

    run_episodes(as_batched(vec(2, length=3)), act, episodes=3, seed=0)
    rest = [([0, 1], [False, False], [True, True])] * 2
    last = [([2, 2], [False, False], [True, False])] * 2
    assert turns == [([0, 1], [True, True], [True, True]), *rest, ([2, 2], [True, True], [True, False]), *last]


def test_memory_does_not_grow_with_the_length_of_episodes() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def act(obs: Any, _: Turn) -> Tensor:
        seen.append(weakref.ref(obs))
        assert sum(ref() is not None for ref in seen) <= 3
        return torch.zeros(2, 1)

    run_episodes(as_batched(vec(2, length=50)), act, seed=0)
    assert len(seen) == 50


def test_under_a_normalizer_raw_observations_and_rewards_are_kept() -> None:
    venv = VecNormalize(vec(2), training=False)
    venv.obs_rms.mean, venv.obs_rms.var, venv.ret_rms.var = np.array([0.5]), np.array([0.04]), np.array(0.01)

    def act(obs: Any, _: Turn) -> Tensor:
        return -0.4 * (obs * 0.2 + 0.5)

    found = run_episodes(as_batched(venv), act, seed=0, keep=True)
    plain = run_episodes(as_batched(vec(2)), pull, seed=0, keep=True)
    # normalised in float32, epsilon 1e-8 in the variance, and turned back
    torch.testing.assert_close(found.returns, plain.returns, rtol=0, atol=1e-5)
    for name in ("obs", "rewards"):
        torch.testing.assert_close(found.steps[name], plain.steps[name], rtol=0, atol=1e-5)  # type: ignore[index]


class Lives(gym.Wrapper[Any, Any, Any, Any]):
    """Ends for the learner every second step, as Atari's lives do, and resets only where the game is over."""

    def reset(self, **kwargs: Any) -> Any:
        if getattr(self, "over", True) or kwargs.get("seed") is not None:
            self.obs, self.t = self.env.reset(**kwargs)[0], 0
        self.over = False
        return self.obs, {}

    def step(self, action: Any) -> Any:
        self.obs, reward, over, cut, info = self.env.step(action)
        self.t, self.over = self.t + 1, over or cut
        return self.obs, reward, over or (self.t % 2 == 0 and not cut), cut, info


def test_lives_are_not_episodes_where_a_monitor_counts_whole_games() -> None:
    starts: list[bool] = []

    def act(obs: Any, turn: Turn) -> Tensor:
        starts.append(bool(turn.starts[0]))
        return pull(obs, turn)

    found = run_episodes(as_batched(DummyVecEnv([lambda: Lives(Monitor(Point()))])), act, seed=4, keep=True)
    assert found.lengths.tolist() == [7]
    assert torch.equal(found.returns, run_episodes(as_batched(vec(1)), pull, seed=4).returns)
    assert starts == [True, False, True, False, True, False, True]  # though for who acts they are
    unmonitored = as_batched(DummyVecEnv([lambda: Lives(Point())]))
    assert run_episodes(unmonitored, pull, seed=4).lengths.tolist() == [2]


def worker(gain: float) -> Episodes:
    return run_episodes(as_batched(vec(2)), lambda obs, _: gain * obs, episodes=3, seed=0, keep=True)


def test_episodes_come_back_from_another_process() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(worker, -0.4).result()
    expected = worker(-0.4)
    assert torch.equal(found.returns, expected.returns)
    assert torch.equal(found.steps["obs"], expected.steps["obs"])  # type: ignore[index]
