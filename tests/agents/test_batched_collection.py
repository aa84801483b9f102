"""Collecting from a batch of many rows: what is stored, what crosses to the host, how much is learnt, resumption."""

import copy
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from headway.agents import SAC, TD3, NonFiniteError
from headway.agents.core.data.stepping import _read, take_step
from headway.envs import BatchedEnv
from headway.envs.mujoco import MujocoBatch
from headway.envs.mujoco.tasks import HalfCheetah
from headway.wrappers import BatchedVecEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from support import Stop
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TINY: dict[str, Any] = {"net_arch": [8], "batch_size": 8, "seed": 3, "device": "cpu"}


class Clocks(BatchedEnv):
    """Rows that count: an observation is row and step. Episodes of row ``i`` have ``3 + i % 5`` steps.

    They terminate, are truncated, or both at once, by ``i % 3``. The reward is the step; nothing waits for the device.
    """

    def __init__(self, num_envs: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.num_envs, self.device, self.dtype = num_envs, torch.device(device), dtype
        self.single_observation_space = spaces.Box(0, 1e6, (2,), np.float32)
        self.single_action_space = spaces.Box(-2, 2, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.row = torch.arange(num_envs, device=device)
        self.spoilt: float | None = None
        self.actions: list[Tensor] = []

    def _observe(self) -> Tensor:
        return torch.stack((self.row, self.t), 1).to(self.dtype)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Tensor, dict[str, Any]]:
        self.t = torch.zeros_like(self.row)
        self.returns = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        self.obs = self._observe()
        return self.obs, {}

    def step(self, actions: Tensor) -> Any:
        self.actions.append(actions)
        self.t = self.t + 1
        rewards = self.t.to(self.dtype)
        self.returns = self.returns + self.t
        final = self._observe()
        if self.spoilt is not None:
            final[-1, 1] = self.spoilt
        ended = self.t == 3 + self.row % 5
        episode = {"r": self.returns, "l": self.t}
        self.t = torch.where(ended, 0, self.t)
        self.returns = torch.where(ended, 0, self.returns)
        self.obs = torch.where(ended.unsqueeze(1), self._observe(), final)
        self.info = Asked({"final_obs": final, "episode": episode, "position": object()})
        return self.obs, rewards, ended & (self.row % 3 != 1), ended & (self.row % 3 != 0), self.info

    state = load_state = None  # type: ignore[assignment]


class Asked(dict[str, Any]):
    """Remembers which of its items were read."""

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__(items)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


class Look(BaseCallback):
    """Keeps what every step left."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.seen.append({name: self.locals[name] for name in ("dones", "infos", "rewards")})
        return True


def never_learning(env: BatchedEnv, **kwargs: Any) -> SAC:
    return SAC("MlpPolicy", env, **{**TINY, "learning_starts": 10**9, **kwargs})


# -- what is stored, and what callbacks see ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_stored_and_shown_as_they_were(dtype: torch.dtype) -> None:
    env, look = Clocks(7, dtype=dtype), Look()
    agent = never_learning(env).learn(7 * 12, look)
    stored = agent.store.state()
    t = np.zeros(7, int)
    for step, seen in enumerate(look.seen):
        ended = t + 1 == 3 + np.arange(7) % 5
        obs, next_obs, rewards, terminated, truncated = (
            stored[f"data.{name}"].view(12, 7, -1)[step].squeeze(-1).numpy()  # type: ignore[union-attr]
            for name in ("obs", "next_obs", "rewards", "terminated", "truncated")
        )
        np.testing.assert_array_equal(obs, np.stack((np.arange(7), t), 1))
        np.testing.assert_array_equal(next_obs, np.stack((np.arange(7), t + 1), 1))
        np.testing.assert_array_equal(rewards, t + 1)
        assert terminated.tolist() == [bool(end) and row % 3 != 1 for row, end in enumerate(ended)]
        # A row that ends in both ways at once does not go on: it must not bootstrap.
        assert truncated.tolist() == [bool(end) and row % 3 == 1 for row, end in enumerate(ended)]
        assert type(seen["dones"]) is np.ndarray
        assert seen["dones"].tolist() == ended.tolist()
        assert seen["rewards"].tolist() == rewards.tolist()
        assert type(seen["infos"]) is list
        for row, info in enumerate(seen["infos"]):
            if not ended[row]:
                assert info == {}
                continue
            length = 3 + row % 5
            assert info["episode"] == {"r": length * (length + 1) / 2, "l": length, "t": 0.0}
            assert info["TimeLimit.truncated"] is (row % 3 == 1)
            assert info["terminal_observation"].tolist() == [row, length]
        t = np.where(ended, 0, t + 1)
    counts = Counter(info["l"] for info in agent.ep_info_buffer or ())
    assert counts == {3: 8, 4: 6, 5: 2, 6: 2, 7: 1}
    assert agent._episode_num == sum(counts.values())


def test_an_end_in_both_ways_does_not_bootstrap() -> None:
    """With a value of 1000 after the end, a target that bootstraps shows."""
    agent = SAC("MlpPolicy", Clocks(3), **{**TINY, "learning_starts": 0, "ent_coef": 0.0}).learn(3 * 20)
    batch = agent.store.sample(500)
    both = (batch.obs[:, 0] == 2) & (batch.obs[:, 1] == 4)
    assert both.any()

    def critics(obs: Tensor, actions: Tensor) -> Tensor:
        return torch.full((2, len(obs)), 1000.0)

    target = agent._soft_target(batch, agent.actor.module, critics, torch.tensor(0.0), 0.5, agent.noise(500, 1))
    assert (target[both] == batch.rewards[both]).all()
    bootstrapping = target == batch.rewards + 500
    assert (bootstrapping == ~batch.terminated).all()
    assert bootstrapping[batch.truncated].all()
    assert batch.truncated.any()


def test_nothing_is_stored_of_a_step_that_is_not_finite() -> None:
    env = Clocks(5)
    agent = never_learning(env).learn(5 * 4)
    env.spoilt = float("nan")
    with pytest.raises(NonFiniteError, match=r"environment 4 .* returned observation\[1\] = nan at step 25"):
        agent.learn(5, reset_num_timesteps=False)
    assert (len(agent.store), agent.num_timesteps) == (20, 20)


def test_a_sum_too_large_is_no_number_too_large() -> None:
    env = Clocks(2)
    env.spoilt = 3e38  # twice that, in observation and next observation, is infinite in float32
    agent = never_learning(env).learn(2 * 3)
    assert agent.store.state()["data.next_obs"].max() == np.float32(3e38)  # type: ignore[union-attr]


# -- what crosses to the host ------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: reading a number, and asking where a mask is true."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("learning_starts", [0, 10**9], ids=["acting", "warming up"])
def test_a_step_reads_two_numbers_and_copies_nothing(learning_starts: int) -> None:
    env, look = Clocks(6), Look()
    agent = never_learning(env, learning_starts=learning_starts, gradient_steps=0).learn(6, look)
    assert agent.last_obs.data_ptr() == env.obs.data_ptr()
    with Waits() as waits:
        step = take_step(agent, agent.choose(), [{}] * agent.n_envs)
    assert not step.dones.any()
    assert waits.count == 2  # what was chosen, before the step, and what came of it; at once where that is on a GPU
    assert env.info.read == {"final_obs"}
    with Waits() as waits:
        step = take_step(agent, agent.choose(), [{}] * agent.n_envs)
    assert step.dones.any()
    assert waits.count < 6  # not one for every number of every row that ended
    assert env.info.read == {"final_obs", "episode"}
    assert [bool(info) for info in step.infos] == step.dones.tolist()


def test_what_a_gpu_sends_is_unpacked() -> None:
    class Elsewhere(Tensor):
        """Says that it is not on the CPU."""

        device = torch.device("cuda")

    rewards, ended = torch.tensor([0.25, -3.0, 1e9]), torch.tensor([False, True, False])
    for finite in (True, False):
        given = rewards.as_subclass(Elsewhere), ended, torch.tensor(finite)
        got = [part.tolist() if isinstance(part, np.ndarray) else part for part in _read(*given)]  # type: ignore[arg-type]
        assert got == [rewards.tolist(), ended.tolist(), finite]
    assert _read(rewards, ended, torch.tensor(True))[0].ctypes.data == rewards.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_the_gpu_once() -> None:
    agent = never_learning(Clocks(64, "cuda"), device="cuda", learning_starts=0, gradient_steps=0).learn(64)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step = take_step(agent, agent.choose(), [{}] * agent.n_envs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not step.dones.any()
    assert len([w for w in caught if "synchroniz" in str(w.message)]) == 1
    assert agent.learn(64 * 5)._episode_num > 0


def test_many_rows_that_end_together_are_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = never_learning(Clocks(100))
    lines: list[int] = []
    monkeypatch.setattr(agent, "dump_logs", lambda: lines.append(agent._episode_num))
    agent.learn(100 * 5, log_interval=4)
    assert lines == [20, 40, 60]  # after steps 3, 4 and 5
    agent._episode_num = 0
    lines.clear()
    agent.learn(100 * 5, log_interval=50)
    assert lines == [60]


# -- how much is learnt ------------------------------------------------------------------------------------------------


def test_warming_up_draws_for_all_rows_at_once() -> None:
    env = Clocks(9)
    agent = never_learning(env, learning_starts=30, gradient_steps=0)
    generator = copy.deepcopy(agent.generators["collect"].get_state())
    agent.learn(9 * 6)
    stream = torch.Generator().set_state(generator)
    for actions in env.actions[:4]:  # 0, 9, 18 and 27 steps before
        expected = 2 * torch.rand((9, 1), generator=stream) - 1
        assert torch.equal(actions, 2 * expected)  # the space reaches from -2 to 2
    assert torch.equal(agent.store.state()["data.actions"][:36].view(4, 9, 1) * 2, torch.stack(env.actions[:4]))  # type: ignore[index]
    assert not torch.equal(env.actions[4], 2 * (2 * torch.rand((9, 1), generator=stream) - 1))


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize(
    ("hyper", "per_step"),
    [({}, 1), ({"gradient_steps": 2}, 2), ({"train_freq": 4}, 0.25), ({"train_freq": 4, "gradient_steps": -1}, 1)],
    ids=str,
)
def test_updates_per_environment_step_do_not_depend_on_rows(rows: int, hyper: dict[str, Any], per_step: float) -> None:
    agent = TD3("MlpPolicy", Clocks(rows), **TINY, learning_starts=0, **hyper).learn(64)
    assert (agent.num_timesteps, agent._n_updates) == (64, 64 * per_step)


def test_more_rows_than_the_run_needs() -> None:
    """Everything counts steps over all rows: the run ends with the step, or the round, that reaches its length."""
    agent = SAC("MlpPolicy", Clocks(1024), **TINY, learning_starts=1500, buffer_size=3000, gradient_steps=0)
    agent.learn(4000)
    assert (agent.num_timesteps, agent.remaining_timesteps) == (4096, 0)
    assert agent.store.capacity_per_env == 2
    assert len(agent.store) == 2048
    assert agent.learn(1, reset_num_timesteps=False).num_timesteps == 5120
    warm = [torch.equal(actions, agent.batched_env.actions[0]) for actions in agent.batched_env.actions]  # type: ignore[attr-defined]
    assert warm == [True, False, False, False, False]
    few = SAC("MlpPolicy", Clocks(1024), **TINY, learning_starts=100, buffer_size=10, train_freq=64, gradient_steps=0)
    assert few.learn(100).num_timesteps == 64 * 1024
    assert len(few.store) == 1024


def test_learning_starts_within_a_step_of_many_rows() -> None:
    agent = SAC("MlpPolicy", Clocks(256), **TINY, learning_starts=300)
    agent.learn(256)
    assert agent._n_updates == 0
    agent.learn(256, reset_num_timesteps=False)
    assert agent._n_updates == 256


# -- MuJoCo's batch ----------------------------------------------------------------------------------------------------


def cheetahs(num_envs: int = 16, length: int = 9) -> MujocoBatch:
    return MujocoBatch(HalfCheetah(), num_envs, max_episode_steps=length, num_threads=1)


def same(first: SAC, second: SAC) -> None:
    assert (first.num_timesteps, first._n_updates) == (second.num_timesteps, second._n_updates)
    for ours, theirs in (
        (first.modules.state(), second.modules.state()),
        (first.store.state(), second.store.state()),
        (first.batched_env.state(), second.batched_env.state()),
    ):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name
    assert list(first.ep_info_buffer or ()) == list(second.ep_info_buffer or ()) != []


SIXTEEN = {**TINY, "learning_starts": 100, "batch_size": 16}
"""With sixteen rows, updates begin in the seventh step."""


@pytest.fixture(scope="module")
def straight() -> SAC:
    """Fifteen steps of sixteen rows, in one go."""
    return SAC("MlpPolicy", cheetahs(), **SIXTEEN).learn(16 * 15)


@pytest.mark.parametrize("step", [3, 9, 13])  # before the first update, at the end of an episode, inside one
def test_sixteen_rows_resume_exactly(straight: SAC, tmp_path: Path, step: int) -> None:
    agent = SAC("MlpPolicy", cheetahs(), **SIXTEEN).learn(16 * 15, Stop(16 * step))
    assert agent.num_timesteps == 16 * step
    agent.save_checkpoint(tmp_path)
    resumed = SAC.resume(tmp_path, cheetahs(), device="cpu")
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    same(straight, resumed)
    assert straight._n_updates == 16 * 9


def test_stopping_between_two_of_sixteen_updates_resumes_exactly(straight: SAC, tmp_path: Path) -> None:
    agent = SAC("MlpPolicy", cheetahs(), **SIXTEEN)
    add = agent.metrics.add

    def stopping(values: Mapping[str, Tensor]) -> None:
        """What the loop calls once per update."""
        add(values)
        if agent._n_updates == 42:  # this one is counted next
            agent.request_stop()

    agent.metrics.add = stopping  # type: ignore[method-assign]
    agent.learn(16 * 15)
    assert agent._n_updates == 43  # of 48
    agent.save_checkpoint(tmp_path)
    resumed = SAC.resume(tmp_path, cheetahs(), device="cpu")
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    same(straight, resumed)


def test_one_row_of_a_batch_is_learnt_from_as_gymnasiums_own() -> None:
    hyper = {**TINY, "learning_starts": 20}
    batch = SAC("MlpPolicy", cheetahs(1), **hyper).learn(60)
    single = SAC("MlpPolicy", gym.make("HalfCheetah-v5", max_episode_steps=9), **hyper).learn(60)
    for ours, theirs in ((batch.modules.state(), single.modules.state()), (batch.store.state(), single.store.state())):
        for name, value in ours.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name
    lengths = [[info["l"] for info in agent.ep_info_buffer or ()] for agent in (batch, single)]
    returns = [[info["r"] for info in agent.ep_info_buffer or ()] for agent in (batch, single)]
    assert lengths[0] == lengths[1] == [9] * 6
    np.testing.assert_allclose(*returns, atol=1e-6)  # a Monitor rounds to six digits


def test_a_policy_moves_between_a_batch_and_gymnasiums_own(tmp_path: Path) -> None:
    """Their observation spaces differ in precision alone."""
    agent = SAC("MlpPolicy", cheetahs(4), **TINY, learning_starts=20).learn(60)
    agent.save(tmp_path / "agent")
    single = gym.make("HalfCheetah-v5", max_episode_steps=9)
    assert single.observation_space != agent.observation_space
    loaded = SAC.load(tmp_path / "agent", env=single, device="cpu")
    returns = [
        evaluate_policy(loaded, env, n_eval_episodes=3, return_episode_rewards=True, warn=False)[0]
        for env in (_seeded(BatchedVecEnv(cheetahs(1))), _seeded(loaded.get_env()))
    ]
    np.testing.assert_allclose(*returns, atol=1e-4)  # a VecEnv's rewards are float32
    narrow = gym.make("HalfCheetah-v5", exclude_current_positions_from_observation=False)
    with pytest.raises(ValueError, match="observation space is Box"):
        SAC.load(tmp_path / "agent", env=narrow, device="cpu")
    bounded = gym.wrappers.TransformObservation(single, lambda obs: obs, spaces.Box(-1, 1, (17,), np.float64))
    with pytest.raises(ValueError, match="observation space is Box"):
        SAC.load(tmp_path / "agent", env=bounded, device="cpu")


def _seeded(env: Any) -> Any:
    env.seed(11)
    return env


def test_a_normaliser_goes_around_a_batch() -> None:
    agent = SAC("MlpPolicy", VecNormalize(BatchedVecEnv(cheetahs(4))), **TINY, learning_starts=20).learn(4 * 30)
    raw = SAC("MlpPolicy", cheetahs(4), **TINY, learning_starts=20).learn(4 * 30)
    assert torch.equal(agent.store.state()["data.obs"][:24], raw.store.state()["data.obs"][:24])  # type: ignore[index]
    assert not torch.equal(agent.last_obs, agent.last_raw_obs)
