"""Batches behind Stable-Baselines3's interface, met with its own tools."""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway.agents import SAC
from headway.envs import BatchedEnv
from headway.wrappers import BatchedVecEnv, Snapshot, VecEnvBatch, as_batched
from headway.wrappers.random_delay import BatchedRandomDelay
from headway.wrappers.sb3 import DUMMY, row_infos, to_numpy
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env as check_sb3_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecEnv
from toys import Labelled, episodes, flat, truth

SEED = 7


def labelled(
    mode: AutoresetMode = AutoresetMode.SAME_STEP, form: str = "box", n: int = 3, **kwargs: Any
) -> BatchedVecEnv:
    fns = [partial(Labelled, row, form, **kwargs) for row in range(n)]
    return BatchedVecEnv(as_batched(SyncVectorEnv(fns, autoreset_mode=mode)))


class Still:
    """A policy that always does the same."""

    def predict(self, observation: Any, state: Any = None, **_: Any) -> tuple[Any, Any]:
        return np.zeros((len(observation), 2), np.float32), state


def first_episodes(total: int, n: int) -> list[tuple[float, int]]:
    """Returns and lengths that ``evaluate_policy`` must find: it shares the episodes out between the rows."""
    return [episode for row in range(n) for episode in islice(episodes(row), (total + row) // n)]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_evaluate_policy(mode: AutoresetMode) -> None:
    returns, lengths = evaluate_policy(Still(), labelled(mode), n_eval_episodes=11, return_episode_rewards=True)
    assert sorted(zip(returns, lengths, strict=True)) == sorted(first_episodes(11, 3))


def test_eval_callback_takes_it_for_what_the_agent_trains_in() -> None:
    callback = EvalCallback(labelled(), n_eval_episodes=6, eval_freq=10, verbose=0)
    agent = SAC("MlpPolicy", labelled().batched, net_arch=(4,), learning_starts=1000, device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent.learn(30, callback)
    assert [str(warning.message) for warning in caught] == []
    assert callback.last_mean_reward == pytest.approx(np.mean([total for total, _ in first_episodes(6, 3)]))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_sb3s_own_sac_learns_in_it(mode: AutoresetMode) -> None:
    model = stable_baselines3.SAC(
        "MlpPolicy", labelled(mode), learning_starts=12, batch_size=8, policy_kwargs={"net_arch": [4]}, seed=SEED
    )
    before = [parameter.clone() for parameter in model.actor.parameters()]
    model.learn(45)
    assert not all(torch.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True))
    memory: Any = model.replay_buffer
    assert memory.pos == 15
    for row in range(3):
        actions = model.policy.unscale_action(memory.actions[:15, row])
        expected = list(truth(row, "box", SEED + row, actions))
        assert memory.observations[:15, row].tolist() == [step.obs for step in expected]
        assert memory.next_observations[:15, row, :3].tolist() == [step.next_obs[:3] for step in expected]
        np.testing.assert_allclose(  # scaled to the bounds and back, in float32
            memory.next_observations[:15, row, 3], [step.next_obs[3] for step in expected], atol=1e-6
        )
        assert memory.rewards[:15, row].tolist() == [step.reward for step in expected]
        assert memory.dones[:15, row].tolist() == [step.terminated or step.truncated for step in expected]
        assert memory.timeouts[:15, row].tolist() == [step.truncated for step in expected]
    assert {info["l"] for info in model.ep_info_buffer or ()} == {1, 2, 3, 4, 5}


def test_sb3s_own_sac_learns_in_dicts() -> None:
    model = stable_baselines3.SAC(
        "MultiInputPolicy", labelled(form="dict"), learning_starts=6, policy_kwargs={"net_arch": [4]}
    )
    model.learn(15)
    memory: Any = model.replay_buffer
    assert memory.next_observations["place"][:3, 1].tolist() == [[1, 0, 1], [1, 0, 2], [1, 1, 1]]
    assert memory.observations["place"][:3, 1].tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("form", ["box", "dict"])
def test_only_rows_that_ended_have_infos(form: str) -> None:
    env = labelled(form=form)
    env.seed(SEED)
    env.reset()
    for t in range(1, 31):
        obs, rewards, dones, infos = env.step(np.zeros((3, 2), np.float32))
        assert (rewards.dtype, dones.dtype) == (np.float32, np.bool_)
        for row, info in enumerate(infos):
            steps = list(truth(row, form, SEED + row, np.zeros((t, 2), np.float32)))
            ended = steps[-1].terminated or steps[-1].truncated
            assert dones[row] == ended
            assert set(info) == ({"episode", "terminal_observation", "TimeLimit.truncated"} if ended else set())
            if ended:
                assert info["TimeLimit.truncated"] is steps[-1].truncated
                assert flat(info["terminal_observation"]) == steps[-1].next_obs
                assert set(info["episode"]) == {"r", "l", "t"}
                assert (type(info["episode"]["r"]), type(info["episode"]["l"])) == (float, int)
            else:
                row_obs = {key: part[row] for key, part in obs.items()} if form == "dict" else obs[row]
                assert flat(row_obs) == steps[-1].next_obs


def test_delayed_resets_are_marked() -> None:
    env = labelled(AutoresetMode.NEXT_STEP)
    env.reset()
    steps = [env.step(np.zeros((3, 2), np.float32)) for _ in range(4)]
    # Row 1 ends at the second step and row 0 at the third.
    assert [[DUMMY in info for info in infos] for *_, infos in steps] == [
        [False, False, False],
        [False, False, False],
        [False, True, False],
        [True, False, False],
    ]
    assert steps[2][3][1] == {DUMMY: True}
    assert steps[2][1][1] == 0
    # A wrapper in between hides the batch, not the mark.
    behind = as_batched(VecCheckNan(labelled(AutoresetMode.NEXT_STEP)))
    behind.reset()
    dummies = [behind.step(torch.zeros(3, 2))[4].get("dummy", torch.zeros(3, dtype=torch.bool)) for _ in range(4)]
    assert [dummy.nonzero().flatten().tolist() for dummy in dummies] == [[], [], [1], [0]]


def test_a_rows_own_infos_are_kept() -> None:
    batched = VecEnvBatch(DummyVecEnv([lambda: Labelled(1)]))
    env = BatchedVecEnv(batched)
    env.reset()
    for t in (1, 2):
        *_, infos = env.step(np.zeros((1, 2), np.float32))
        assert infos[0]["t"] == t
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["episode"] == {"r": 3.5, "l": 2, "t": 0.0}
    monitored = {"r": 1.0, "l": 1, "t": 2.5}
    info = {"sb3": ({"episode": monitored},), "episode": {"r": torch.tensor([9.0]), "l": torch.tensor([9])}}
    assert row_infos(info, np.array([True]), torch.tensor([False])) == [{"episode": monitored}]


def test_empty_infos_may_be_lent() -> None:
    blank: list[dict[str, Any]] = [{}, {}, {}]
    obs = torch.tensor([[1.0], [2.0], [3.0]])
    info = {"final_obs": obs, "episode": {"r": torch.tensor([4.0, 5.0, 6.0]), "l": torch.tensor([7, 8, 9])}}
    info["dummy"] = torch.tensor([True, False, False])
    infos = row_infos(info, np.array([False, False, True]), torch.tensor([False, False, True]), blank)
    assert infos[:2] == [{DUMMY: True}, {}]
    assert infos[1] is blank[1]
    assert infos[2].pop("terminal_observation").tolist() == [3]
    assert infos[2] == {"episode": {"r": 6.0, "l": 9, "t": 0.0}, "TimeLimit.truncated": True}
    assert blank == [{}, {}, {}]


def test_seeds_are_used_once() -> None:
    def draws(env: BatchedVecEnv) -> list[float]:
        return env.reset()[:, 4].tolist()

    env = labelled()
    assert env.seed(20) == [20, 21, 22]
    expected = [float(Labelled().reset(seed=seed)[0][4]) for seed in (20, 21, 22)]
    first, second = draws(env), draws(env)
    assert first == expected
    assert second != expected
    env.seed(20)
    assert [draws(env), draws(env)] == [first, second]
    assert env.take_seeds() is None
    env.seed(3)
    assert env.take_seeds() == [3, 4, 5]
    assert env.take_seeds() is None


def test_options_are_used_once() -> None:
    env = labelled()
    rows = env.batched.env.envs  # type: ignore[attr-defined]
    env.set_options({"way": "up"})
    env.reset()
    assert [row.options for row in rows] == [{"way": "up"}] * 3
    env.reset()
    assert [row.options for row in rows] == [None] * 3


def test_attributes_and_methods_are_those_of_the_batch() -> None:
    env = labelled()
    assert (env.num_envs, env.render_mode) == (3, None)
    assert env.observation_space == Labelled().observation_space
    assert env.action_space == Labelled().action_space
    assert env.get_attr("num_envs") == [3, 3, 3]
    assert env.get_attr("num_envs", indices=[0, 2]) == [3, 3]
    assert env.get_attr("num_envs", indices=1) == [3]
    assert env.has_attr("single_action_space")
    assert not env.has_attr("nothing_of_this_name")
    env.batched.note = "nothing"  # type: ignore[attr-defined]
    env.set_attr("note", "hello")
    assert env.batched.note == "hello"  # type: ignore[attr-defined]
    calls = []
    env.batched.shout = lambda word, loud: calls.append((word, loud)) or len(calls)  # type: ignore[attr-defined]
    assert env.env_method("shout", "hey", loud=True) == [1, 1, 1]
    assert calls == [("hey", True)]
    for refused in (
        lambda: env.set_attr("note", "you", indices=[0, 1]),
        lambda: env.env_method("shout", "hey", indices=2, loud=True),
        lambda: env.set_attr("nothing_of_this_name", 1),
    ):
        with pytest.raises(AttributeError, match=r"is one for all its 3 rows|has no attribute 'nothing_of"):
            refused()
    assert (env.batched.note, len(calls)) == ("hello", 1)  # type: ignore[attr-defined]
    with pytest.raises(IndexError, match="row 3 of 3"):
        env.get_attr("num_envs", indices=[3])
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=[1]) == [False]
    assert env.unwrapped is env


AROUND: dict[str, Callable[[list[Callable[[], Any]]], VecEnv]] = {
    "a vector environment": lambda makers: BatchedVecEnv(as_batched(SyncVectorEnv(makers))),
    "one in a wrapper": lambda makers: BatchedVecEnv(
        as_batched(gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv(makers)))
    ),
    "a VecEnv": lambda makers: BatchedVecEnv(as_batched(DummyVecEnv(makers))),
    "behind delays": lambda makers: BatchedVecEnv(
        BatchedRandomDelay(as_batched(SyncVectorEnv(makers)), "constant:1", "constant:0", terminal_delivery="immediate")
    ),
}


@pytest.mark.parametrize("around", AROUND)
def test_rows_that_are_environments_are_reached_by_name(around: str) -> None:
    made: list[Labelled] = []
    env = AROUND[around]([lambda row=row: made.append(Labelled(row)) or made[-1] for row in range(3)])
    made = made[-3:]
    assert env.get_attr("row") == [0, 1, 2]
    assert env.get_attr("row", indices=[2, 0]) == [2, 0]
    env.set_attr("row", 7, indices=[1])
    assert [one.row for one in made] == [0, 7, 2]
    env.set_attr("row", 4)
    assert [one.row for one in made] == [4, 4, 4]
    assert [bool(space) for space in env.env_method("get_wrapper_attr", "row", indices=-1)] == [True]
    assert env.env_is_wrapped(gym.wrappers.OrderEnforcing) == [False] * 3
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        env.set_attr("nothing_of_this_name", 1)


def test_what_rows_are_wrapped_in() -> None:
    env = BatchedVecEnv(as_batched(SyncVectorEnv([lambda: gym.wrappers.TimeLimit(Labelled(), 9), Labelled])))
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True, False]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=[1]) == [False]
    assert env.env_is_wrapped(Monitor) == [True, True]


@pytest.mark.parametrize("kind", ["vector", "vec"])
def test_options_reach_what_an_agent_learns_in(kind: str) -> None:
    rows = [Labelled(0), Labelled(1)]
    makers = [lambda row=row: row for row in rows]
    agent = SAC("MlpPolicy", SyncVectorEnv(makers) if kind == "vector" else DummyVecEnv(makers), device="cpu")
    env = agent.get_env()
    assert env is not None
    env.set_options({"way": "up"})
    agent.learn(2)
    assert [row.options for row in rows] == [{"way": "up"}] * 2
    agent.learn(2)
    assert not any(row.options for row in rows)


def test_options_that_differ_between_rows_are_refused() -> None:
    env = labelled()
    env.set_options([{"way": "up"}] * 3)
    for options in ([{"way": "up"}, {"way": "down"}, {"way": "up"}], [{"way": "up"}]):
        with pytest.raises(ValueError, match="one dict of options"):
            env.set_options(options)
    assert env.take_seeds_and_options() == {"seed": None, "options": {"way": "up"}}


def test_images() -> None:
    env = labelled(render_mode="rgb_array")
    env.reset()
    assert env.render_mode == "rgb_array"
    assert [image.tolist() for image in env.get_images()] == [np.full((4, 6, 3), r + 1).tolist() for r in range(3)]
    tiled = env.render("rgb_array")
    assert tiled is not None
    assert set(np.unique(tiled)) == {0, 1, 2, 3}

    class Blind(BatchedEnv):
        num_envs, device = 2, torch.device("cpu")
        single_observation_space = single_action_space = spaces.Box(0, 1, (1,))
        reset = step = state = load_state = None  # type: ignore[assignment]

        def render(self) -> None:
            return None

    assert BatchedVecEnv(Blind()).get_images() == [None, None]


def test_arrays_are_the_callers_own() -> None:
    class Reusing(BatchedEnv):
        """Writes where it wrote before, which is more than a batch may do."""

        num_envs, device = 1, torch.device("cpu")
        single_observation_space = single_action_space = spaces.Box(-9, 9, (1,))
        obs, rewards = torch.zeros(1, 1), torch.zeros(1)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return self.obs.zero_(), {}

        def step(self, actions: torch.Tensor) -> Any:
            self.seen = actions
            self.obs += 1
            self.rewards += 1
            flag = torch.zeros(1, dtype=torch.bool)
            return self.obs, self.rewards, flag, flag, {"final_obs": self.obs, "episode": {}}

        state = load_state = None  # type: ignore[assignment]

    env = BatchedVecEnv(Reusing())
    action = np.ones((1, 1), np.float32)
    kept = [env.reset(), *(part for _ in range(3) for part in env.step(action)[:2])]
    assert [part.item() for part in kept] == [0, 1, 1, 2, 2, 3, 3]
    assert env.batched.seen.tolist() == [[1]]  # type: ignore[attr-defined]
    part = {"a": torch.ones(2)}
    copied = to_numpy(part)
    part["a"][:] = 0
    assert copied["a"].tolist() == [1, 1]


def test_state_goes_round_with_the_seeds_that_wait() -> None:
    env, other = labelled(AutoresetMode.NEXT_STEP), labelled(AutoresetMode.NEXT_STEP)
    action = np.zeros((3, 2), np.float32)
    env.seed(1)
    env.reset()
    other.reset()
    env.step(action)
    env.step(action)  # row 1 waits for its reset
    env.seed(30)
    state = env.state()
    future = [env.step(action)[:3] for _ in range(5)]
    fresh = env.reset()
    other.load_state(state)
    for expected in future:
        for ours, theirs in zip(other.step(action)[:3], expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(other.reset(), fresh)
    assert fresh[:, 4].tolist() == [float(Labelled().reset(seed=seed)[0][4]) for seed in (30, 31, 32)]


def test_closing() -> None:
    env = labelled()
    env.close()
    assert env.batched.closed


# -- a single environment under Snapshot -------------------------------------------------------------------------------


class Plain(Labelled):
    """Without labels that are outside of what the checkers allow: the same seed must bring the same observations."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode = -1
        return super().reset(seed=seed, options=options)


MAKERS: dict[str, Callable[[], Any]] = {
    "box": Plain,
    "dict": partial(Plain, form="dict"),
    "Pendulum": partial(gym.make, "Pendulum-v1", disable_env_checker=True),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:.*(different from the unwrapped version|symmetric|unconventional shape)")
def test_snapshot_passes_both_checkers(name: str) -> None:
    check_gymnasium_env(Snapshot(MAKERS[name]()), skip_render_check=True)
    check_sb3_env(Snapshot(MAKERS[name]()), warn=True, skip_render_check=True)


@pytest.mark.filterwarnings("ignore:.*(different from the unwrapped version|symmetric)")
def test_the_checkers_see_what_is_wrong_under_snapshot() -> None:
    class Wrong(Plain):
        def step(self, action: Any) -> Any:
            return (result := super().step(action))[0].tolist(), *result[1:]

    with pytest.raises((AssertionError, UserWarning), match="numpy array"):
        check_gymnasium_env(Snapshot(Wrong()), skip_render_check=True)
    with pytest.raises(AssertionError, match="numpy array"):
        check_sb3_env(Snapshot(Wrong()), warn=False)
