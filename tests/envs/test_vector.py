"""The array face of a batch, against Gymnasium's own vector environments."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import (
    DtypeObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    RescaleAction,
)
from headway.envs import BatchedEnv, NumpyVectorEnv
from headway.envs.mujoco import MujocoBatch
from headway.envs.mujoco.tasks import TASKS
from headway.wrappers import as_batched, capture, restore
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import Point

ROWS = 8
LIMIT = 30
SEEDS = [3, 1, 4, 15, 9, 2, 6, 5]


def ours(name: str, rows: int = ROWS, **options: Any) -> Any:
    return gym.make_vec(f"headway/{name}-v5", rows, **{"max_episode_steps": LIMIT, **options})


def theirs(name: str, rows: int = ROWS, mode: AutoresetMode = AutoresetMode.SAME_STEP, **options: Any) -> Any:
    make = partial(gym.make, f"{name}-v5", **{"max_episode_steps": LIMIT, **options})
    return SyncVectorEnv([make] * rows, autoreset_mode=mode)


def actions(env: Any, steps: int, seed: int = 0) -> Any:
    low, high = env.action_space.low, env.action_space.high
    return np.random.default_rng(seed).uniform(low, high, (steps, *low.shape)).astype(np.float32)


def check_same(found: Any, expected: Any) -> None:
    """Bit for bit, with dtypes, shapes and keys, whatever is nested in what."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, part in expected.items():
            check_same(found[key], part)
    elif isinstance(expected, tuple):
        for part, expected_part in zip(found, expected, strict=True):
            check_same(part, expected_part)
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        check_same(tuple(found), tuple(expected))
    elif expected is not None:
        # Gymnasium's InvertedPendulum counts its reward in integers, as the only one
        assert found.dtype == expected.dtype or (found.dtype == np.float64 and expected.dtype == np.int64)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_what_gymnasium_steps_one_by_one(name: str) -> None:
    env, reference = ours(name), theirs(name)
    check_same(env.reset(seed=7), reference.reset(seed=7))
    assert (env.single_observation_space, env.single_action_space) == (
        reference.single_observation_space,
        reference.single_action_space,
    )
    ends = 0
    for action in actions(env, 2 * LIMIT + 5):
        found = env.step(action)
        check_same(found, reference.step(action))
        ends += "final_obs" in found[4]
    assert ends >= 2
    check_same(env.reset(), reference.reset())  # the streams go on
    check_same(env.reset(seed=list(SEEDS)), reference.reset(seed=list(SEEDS)))


def test_the_rows_of_an_end_are_told_apart() -> None:
    """Spelt out for one end, since the comparison above believes whatever Gymnasium does."""
    env = ours("Hopper", rows=4, max_episode_steps=1000)
    env.reset(seed=0)
    for action in actions(env, 100):
        obs, _, terminated, truncated, info = env.step(action)
        if terminated.any():
            break
    assert terminated.any()
    assert not truncated.any()
    assert not terminated.all()
    assert (info["_final_obs"] == terminated).all()
    assert [final is not None for final in info["final_obs"]] == terminated.tolist()
    row, other = int(terminated.argmax()), int((~terminated).argmax())
    assert (info["final_obs"][row] != obs[row]).all()
    assert info["final_info"]["x_velocity"][row] != 0
    assert info["final_info"]["x_velocity"][other] == 0
    assert info["x_velocity"][row] == 0  # a reset tells no velocity
    assert info["_x_velocity"].tolist() == (~terminated).tolist()
    assert info["_x_position"].all()  # but a position it does


def test_a_caller_resets_rows_where_autoreset_is_disabled() -> None:
    env = ours("Ant", autoreset_mode=AutoresetMode.DISABLED)
    reference = theirs("Ant", mode=AutoresetMode.DISABLED)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    check_same(env.reset(seed=7), reference.reset(seed=7))
    for t, action in enumerate(actions(env, 70)):
        found = env.step(action)
        check_same(found, reference.step(action))
        ended = found[2] | found[3]
        if t in (10, 20):  # rows that have not ended can be reset too
            ended[t // 5] = True
        if ended.any():
            kept = found[0].copy()
            found = env.reset(options={"reset_mask": ended})
            check_same(found, reference.reset(options={"reset_mask": ended}))
            assert (found[0][~ended] == kept[~ended]).all()
            assert (found[0][ended] != kept[ended]).any(1).all()
    seeds: list[int | None] = [None, 5, None, None, 6, None, None, None]
    mask = np.array([seed is not None for seed in seeds])
    check_same(
        env.reset(seed=seeds, options={"reset_mask": mask}),
        reference.reset(seed=seeds, options={"reset_mask": mask}),
    )


def test_what_was_returned_stays_as_it_is_and_lies_in_its_space() -> None:
    env = ours("Humanoid")
    returned: list[tuple[Any, Any]] = []
    copied: list[Any] = []

    def keep(result: tuple[Any, ...]) -> None:
        assert env.observation_space.contains(result[0])
        parts = [*result[:-1], *result[-1].values(), *result[-1].get("final_info", {}).values()]
        arrays = [part for part in parts if isinstance(part, np.ndarray) and part.dtype != object]
        arrays.extend(final for final in result[-1].get("final_obs", ()) if final is not None)
        returned.extend((array, array.copy()) for array in arrays)
        copied.extend(array for array in arrays if array.dtype == np.float64)

    keep(env.reset(seed=0))
    for action in actions(env, 40):
        keep(env.step(action))
    env.reset()
    for array, copy in returned:
        assert (array == copy).all()
    state = env.batched.state()
    for array in copied:  # what is returned is the caller's: nothing of the simulation lies in it
        array[...] = 0
    assert all(torch.equal(part, state[key]) for key, part in env.batched.state().items())


def test_rows_do_not_depend_on_how_many_there_are() -> None:
    few, many = ours("Walker2d", rows=2), ours("Walker2d", rows=6, num_threads=3)
    few.reset(seed=[14, 12])
    many.reset(seed=10)
    for action in actions(many, 60):
        obs, rewards, *_ = many.step(action)
        few_obs, few_rewards, *_ = few.step(action[[4, 2]])
        assert (few_obs == obs[[4, 2]]).all()
        assert (few_rewards == rewards[[4, 2]]).all()


def test_arrays_of_every_make_are_taken_as_actions() -> None:
    env = ours("Hopper", rows=2)
    first = np.array([[0.5, -0.25, 1.0], [0.0, 1.0, -0.5]], np.float32)
    frozen = first.copy()
    frozen.flags.writeable = False
    forms: list[Any] = [first, frozen, first.tolist(), first[::-1].copy()[::-1], np.asfortranarray(first)]
    forms += [first.astype(np.float64), torch.from_numpy(first)]
    results = []
    for form in forms:
        env.reset(seed=0)
        results.append(env.step(form)[0])
    assert all((result == results[0]).all() for result in results)
    with pytest.raises(
        ValueError, match=r"actions are a Tensor of shape \(3,\), step takes a tensor of shape \(2, 3\)"
    ):
        env.step(first[0])


def test_episode_statistics() -> None:
    env, reference = RecordEpisodeStatistics(ours("Hopper")), RecordEpisodeStatistics(theirs("Hopper"))
    env.reset(seed=7)
    reference.reset(seed=7)
    ends = 0
    for action in actions(env, 65):
        *_, info = env.step(action)
        *_, expected = reference.step(action)
        assert ("episode" in info) == ("episode" in expected)
        if "episode" in info:
            ends += 1
            assert (info["_episode"] == expected["_episode"]).all()
            for key in "rl":
                assert (info["episode"][key] == expected["episode"][key]).all()
    assert ends > 3


@pytest.mark.filterwarnings("ignore:.*Box (low|high)'s precision lowered:UserWarning")
def test_wrappers_of_actions_and_rewards() -> None:
    env: Any = NormalizeReward(RescaleAction(ours("Humanoid"), -1.0, 1.0))
    reference: Any = NormalizeReward(RescaleAction(theirs("Humanoid"), -1.0, 1.0))
    env.reset(seed=7)
    reference.reset(seed=7)
    for action in actions(env, 40):
        found, expected = env.step(action), reference.step(action)
        check_same((found[0], found[4]), (expected[0], expected[4]))
        assert (found[1] == expected[1]).all()


@pytest.mark.filterwarnings("ignore:.*Box (low|high)'s precision lowered:UserWarning")
def test_wrappers_of_observations_need_another_autoreset_mode() -> None:
    """Gymnasium's refuse every environment that resets within the step; its normaliser refuses DISABLED too."""
    with pytest.raises(ValueError, match="Expected autoreset_mode to be NEXT_STEP or DISABLED"):
        DtypeObservation(ours("Hopper"), np.float32)
    with pytest.raises(ValueError, match=r"Expected autoreset_mode to be NEXT_STEP"):
        NormalizeObservation(ours("Hopper"))
    env: Any = DtypeObservation(ours("Hopper", autoreset_mode=AutoresetMode.DISABLED), np.float32)
    tensors = ours("Hopper", device="cpu")
    env.reset(seed=7)
    tensors.reset(seed=7)
    for action in actions(env, 40):
        obs, _, terminated, truncated, _ = env.step(action)
        if (ended := terminated | truncated).any():
            obs, _ = env.reset(options={"reset_mask": ended})
        assert (obs == tensors.step(torch.from_numpy(action))[0].numpy()).all()


def test_torch_wrapper() -> None:
    """Gymnasium's cannot turn ``final_obs`` into tensors, from its own environments neither: for them there is
    ``device=``."""
    pytest.importorskip("array_api_compat", reason="gymnasium's NumpyToTorch needs it")
    from gymnasium.wrappers.vector import NumpyToTorch

    mode = AutoresetMode.DISABLED
    env, plain = NumpyToTorch(ours("Hopper", autoreset_mode=mode)), ours("Hopper", autoreset_mode=mode)
    env.reset(seed=7)
    plain.reset(seed=7)
    for action in actions(env, 40):
        obs, rewards, terminated, _, info = env.step(torch.from_numpy(action))
        plain_obs, plain_rewards, plain_terminated, _, plain_info = plain.step(action)
        assert torch.equal(obs, torch.from_numpy(plain_obs))
        assert torch.equal(rewards, torch.from_numpy(plain_rewards))
        assert torch.equal(terminated, torch.from_numpy(plain_terminated))
        assert info.keys() == plain_info.keys()


def test_a_device_gives_tensors() -> None:
    tensors, arrays = ours("Hopper", device="cpu"), ours("Hopper")
    assert isinstance(tensors, MujocoBatch)
    assert isinstance(tensors, BatchedEnv)
    assert (tensors.spec.id, arrays.spec.id) == ("headway/Hopper-v5", "headway/Hopper-v5")
    obs, _ = tensors.reset(seed=7)
    plain_obs, _ = arrays.reset(seed=7)
    assert obs.dtype == torch.float32
    assert tensors.observation_space.contains(obs.numpy())
    assert torch.equal(obs, torch.from_numpy(plain_obs).float())
    for action in actions(arrays, 40):
        obs, rewards, terminated, truncated, _ = tensors.step(torch.from_numpy(action))
        plain = arrays.step(action)
        assert rewards.dtype == torch.float32
        assert torch.equal(obs, torch.from_numpy(plain[0]).float())
        assert torch.equal(rewards, torch.from_numpy(plain[1]).float())
        assert (terminated.tolist(), truncated.tolist()) == (plain[2].tolist(), plain[3].tolist())


def test_an_agent_sees_the_batch_below_the_arrays() -> None:
    env = ours("Hopper")
    assert isinstance(env, NumpyVectorEnv)
    assert as_batched(env) is env.batched
    wrapped = as_batched(RecordEpisodeStatistics(env))  # what a wrapper does must not be passed by
    assert wrapped is not env.batched
    batch: Any = ours("Hopper", device="cpu", dtype=torch.float64)
    wrapped.reset(seed=7)
    batch.reset(seed=7)
    ends = 0
    for action in actions(env, 40):
        obs, _, terminated, truncated, info = wrapped.step(torch.from_numpy(action))
        expected = batch.step(torch.from_numpy(action))
        assert torch.equal(obs, expected[0])
        assert torch.equal(info["final_obs"], expected[4]["final_obs"])
        assert torch.equal(info["episode"]["l"], expected[4]["episode"]["l"])
        assert (terminated | truncated).tolist() == (expected[2] | expected[3]).tolist()
        ends += int((terminated | truncated).sum())
    assert ends >= ROWS


def test_snapshots() -> None:
    def future(env: Any) -> list[Any]:
        return [env.step(action) for action in actions(env, 40, seed=1)]

    env = RecordEpisodeStatistics(ours("Ant"))
    env.reset(seed=7)
    for action in actions(env, 20):
        env.step(action)
    state, inner = capture(env), env.unwrapped.state()
    first = future(env)
    other = RecordEpisodeStatistics(ours("Ant"))
    restore(other, state)
    restore(env, state)
    for again in (future(other), future(env)):
        for found, expected in zip(again, first, strict=True):
            check_same(found[:4], expected[:4])
            check_same(without_clock(found[4]), without_clock(expected[4]))
    env.unwrapped.load_state(inner)
    check_same(future(env)[-1][:4], first[-1][:4])


def without_clock(info: dict[str, Any]) -> dict[str, Any]:
    """Info as it is, but for the durations of episodes."""
    return {
        key: {name: part for name, part in value.items() if name not in ("t", "_t")} if key == "episode" else value
        for key, value in info.items()
    }


@pytest.mark.parametrize("form", ["box", "dict"])
def test_any_batch_has_this_face(form: str) -> None:
    make: Callable[[], Any] = partial(Point, form=form)
    env = NumpyVectorEnv(as_batched(DummyVecEnv([make] * 3)))
    reference = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    check_same(env.reset(seed=7), reference.reset(seed=7))
    for action in actions(env, 20):
        obs, rewards, terminated, truncated, info = env.step(action)
        expected = reference.step(action)
        check_same((obs, terminated, info), (expected[0], expected[2], expected[4]))
        assert (rewards == expected[1].astype(np.float32)).all()
        assert (truncated == (expected[3] & ~expected[2])).all()  # a batch of Stable-Baselines3 tells only one of both
    env.close()
