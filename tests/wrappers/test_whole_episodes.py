"""Batches whose rows rest when their episode is over."""

from functools import partial
from typing import Any

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway.wrappers import WholeEpisodes, as_batched
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import same_tree
from toys import Point


def dummy(lengths: list[int]) -> Any:
    return DummyVecEnv([partial(lambda n: Monitor(Point(length=n)), length) for length in lengths])


def still(env: WholeEpisodes) -> Any:
    return env.step(torch.zeros(env.num_envs, 1))


def test_rows_rest_until_all_are_reset() -> None:
    env = WholeEpisodes(as_batched(dummy([2, 4, 3])))
    start, _ = env.reset(seed=0)
    costs = -(start[:, 0].double() ** 2)
    ends, dummies, rewards = [], [], []
    for _ in range(6):
        _, reward, terminated, truncated, info = still(env)
        ends.append((terminated | truncated).tolist())
        dummies.append(info["dummy"].tolist() if "dummy" in info else [False] * 3)
        rewards.append(reward)
    assert (
        ends
        == [[False, False, False], [True, False, False], [False, False, True], [False, True, False]] + [[False] * 3] * 2
    )
    assert dummies == [[False] * 3] * 2 + [[True, False, False], [True, False, True]] + [[True] * 3] * 2
    assert env.lengths.tolist() == [2, 4, 3]
    torch.testing.assert_close(env.returns, costs * torch.tensor([2.0, 4.0, 3.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.stack(rewards).sum(0).double(), env.returns, atol=1e-6, rtol=0)
    assert not env.running.any()
    env.reset()
    assert env.running.all()
    assert "dummy" not in still(env)[-1]


def test_a_cut_is_accounted_for_as_an_end() -> None:
    env = WholeEpisodes(as_batched(dummy([9, 2])), horizon=3)
    env.reset(seed=0)
    still(env), still(env)
    obs, _, terminated, truncated, info = still(env)
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [True, False])
    assert info["episode"]["l"][0] == 3
    assert float(info["episode"]["r"][0]) == pytest.approx(float(env.returns[0]))
    assert info["sb3"][0]["TimeLimit.truncated"]
    assert info["sb3"][0]["terminal_observation"] == obs[0].numpy()


def test_rows_that_are_not_needed_rest_from_the_start() -> None:
    env = WholeEpisodes(as_batched(dummy([3, 3])))
    env.reset(seed=0)
    env.rest(1)
    info = still(env)[-1]
    assert info["dummy"].tolist() == [False, True]
    env.reset()
    env.rest(5)
    assert env.running.all()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_delayed_resets_are_no_steps(mode: AutoresetMode) -> None:
    env = WholeEpisodes(as_batched(SyncVectorEnv([partial(Point, length=n) for n in (2, 5)], autoreset_mode=mode)))
    env.reset(seed=0)
    for _ in range(7):
        still(env)
    assert env.lengths.tolist() == [2, 5]


def test_returns_are_those_before_normalisation() -> None:
    env = WholeEpisodes(as_batched(VecNormalize(dummy([4, 4]))), horizon=3)
    env.reset(seed=0)
    raw = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        raw = raw + still(env)[-1]["raw"][1]
    torch.testing.assert_close(env.returns, raw, atol=1e-6, rtol=0)


def test_what_was_begun_goes_on_from_a_state() -> None:
    env, other = (WholeEpisodes(as_batched(dummy([2, 4, 3])), horizon=3) for _ in range(2))
    env.reset(seed=0)
    still(env), still(env)
    state = env.state()
    other.reset(seed=5)
    other.horizon = None
    other.load_state(state)
    for _ in range(2):
        one, two = still(env), still(other)
        same_tree(list(one[:4]), list(two[:4]))
    same_tree(env.state()["returns"], other.state()["returns"])
    with pytest.raises(ValueError, match="whole episodes"):
        other.load_state({**state, "running": torch.zeros(2, dtype=torch.bool)})
