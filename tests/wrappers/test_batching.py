"""Every way into a batch, against environments stepped and reset by hand."""

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from headway.agents import SAC
from headway.envs import BatchedEnv
from headway.wrappers import BatchedVecEnv, Snapshot, StateNotSavable, as_batched, capture, restore
from labelled import ENDS, HIGH, LOW, Labelled, Transition, episodes, flat, real_steps, truth
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

# Python 3.12 and later warn of forks in a process with threads; the workers here do nothing with them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

STEPS = 30
SEED = 7


class VectorOfItsOwn(VectorEnv[Any, Any, Any]):
    """A SAME_STEP environment that returns its own buffers, final observations as a batch, and takes one seed only."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (Gymnasium's own spelling)

    def __init__(self, rows: int, form: str) -> None:
        self.rows, self.num_envs = [Labelled(row, form) for row in range(rows)], rows
        self.single_observation_space = self.rows[0].observation_space
        self.single_action_space = self.rows[0].action_space
        self.observation_space = batch_space(self.single_observation_space, rows)
        self.action_space = batch_space(self.single_action_space, rows)
        self.obs, self.final = (create_empty_array(self.single_observation_space, rows) for _ in range(2))
        self.rewards, self.flags = np.zeros(rows), np.zeros((2, rows), bool)

    def _write(self, obs: list[Any], out: Any) -> Any:
        return concatenate(self.single_observation_space, obs, out)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is None or type(seed) is int
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        return self._write([env.reset(seed=s)[0] for env, s in zip(self.rows, seeds, strict=True)], self.obs), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        results = [env.step(action) for env, action in zip(self.rows, actions, strict=True)]
        self.rewards[:] = [result[1] for result in results]
        self.flags[:] = [[result[i] for result in results] for i in (2, 3)]
        next_obs = [result[0] for result in results]
        self._write(next_obs, self.final)
        ended = self.flags.any(0)
        obs = [env.reset()[0] if end else o for env, end, o in zip(self.rows, ended, next_obs, strict=True)]
        info = {"final_obs": self.final} if ended.any() else {}
        return self._write(obs, self.obs), self.rewards, *self.flags, info


class NativeBatch(BatchedEnv):
    """The protocol at its plainest."""

    def __init__(self, rows: int, form: str) -> None:
        self.rows, self.num_envs, self.device = [Labelled(r, form) for r in range(rows)], rows, torch.device("cpu")
        self.single_observation_space = self.rows[0].observation_space
        self.single_action_space = self.rows[0].action_space
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        self.returns = torch.zeros(rows, dtype=torch.float64)

    def _stack(self, obs: list[Any]) -> Any:
        if isinstance(obs[0], dict):
            return {key: torch.tensor(np.stack([o[key] for o in obs])) for key in obs[0]}
        return torch.tensor(np.stack(obs))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        seeds = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(self.num_envs)]
        self.lengths.zero_()
        self.returns.zero_()
        return self._stack([env.reset(seed=s)[0] for env, s in zip(self.rows, seeds, strict=True)]), {}

    def step(self, actions: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        results = [env.step(action.numpy()) for env, action in zip(self.rows, actions, strict=True)]
        rewards, terminated, truncated = (torch.tensor([result[i] for result in results]) for i in (1, 2, 3))
        truncated &= ~terminated
        ended = terminated | truncated
        self.lengths += 1
        self.returns += rewards
        episode = {"r": self.returns.clone(), "l": self.lengths.clone()}
        self.lengths[ended], self.returns[ended] = 0, 0
        obs = [env.reset()[0] if e else r[0] for env, e, r in zip(self.rows, ended, results, strict=True)]
        info = {"final_obs": self._stack([result[0] for result in results]), "episode": episode}
        return self._stack(obs), rewards, terminated, truncated, info

    def state(self) -> Any:
        return [[capture(env) for env in self.rows], self.lengths.clone(), self.returns.clone()]

    def load_state(self, state: Any) -> None:
        for env, part in zip(self.rows, state[0], strict=True):
            restore(env, part)
        self.lengths, self.returns = state[1].clone(), state[2].clone()


def rows(form: str, n: int = 3, wrap: Callable[[Any], Any] = lambda env: env) -> list[Callable[[], Any]]:
    return [lambda row=row: wrap(Labelled(row, form)) for row in range(n)]


def gymnasium_vector(cls: type, mode: AutoresetMode, form: str) -> Any:
    if cls is SyncVectorEnv:
        return SyncVectorEnv(rows(form), autoreset_mode=mode)
    return AsyncVectorEnv(rows(form, wrap=Snapshot), autoreset_mode=mode, context="fork")


def registered(form: str) -> str:
    if "Labelled-v0" not in gym.registry:
        gym.register("Labelled-v0", entry_point="labelled:Labelled")
        gym.register("LabelledDict-v0", entry_point="labelled:Labelled", kwargs={"form": "dict"})
    return {"box": "Labelled-v0", "dict": "LabelledDict-v0"}[form]


def delayed_behind(wrapper: Callable[[Any], Any], form: str) -> Any:
    """A wrapper of Stable-Baselines3's around an environment with delayed resets."""
    return wrapper(BatchedVecEnv(as_batched(SyncVectorEnv(rows(form), autoreset_mode=AutoresetMode.NEXT_STEP))))


# clip_obs: nothing is cut, so that final observations can be compared.
normalize = partial(VecNormalize, clip_obs=1e6)
BUILDERS: dict[str, Callable[[str], Any]] = {
    "id": registered,
    "env": lambda form: Labelled(0, form),
    "monitored env": lambda form: Monitor(Labelled(0, form)),
    "DummyVecEnv": lambda form: DummyVecEnv(rows(form)),
    "DummyVecEnv of Monitors": lambda form: DummyVecEnv(rows(form, wrap=Monitor)),
    "VecMonitor": lambda form: VecMonitor(DummyVecEnv(rows(form))),
    "SubprocVecEnv": lambda form: SubprocVecEnv(rows(form, wrap=lambda env: Snapshot(Monitor(env))), "fork"),
    "VecNormalize": lambda form: normalize(DummyVecEnv(rows(form))),
    "VectorEnv of its own": lambda form: VectorOfItsOwn(3, form),
    "native": lambda form: NativeBatch(3, form),
    "BatchedVecEnv": lambda form: BatchedVecEnv(NativeBatch(3, form)),
    "VecNormalize around NEXT_STEP": partial(delayed_behind, normalize),
    **{
        f"{cls.__name__} {mode.name}": partial(gymnasium_vector, cls, mode)
        for cls in (SyncVectorEnv, AsyncVectorEnv)
        for mode in AutoresetMode
    },
}
PATHS = pytest.mark.parametrize("path", BUILDERS)


@pytest.fixture
def build() -> Iterator[Callable[[str, str], Any]]:
    """Build environments that are closed afterwards."""
    made = []

    def make(path: str, form: str = "box") -> Any:
        env = BUILDERS[path](form)
        made.append(env)
        return env

    yield make
    for env in made:
        if not isinstance(env, str):
            env.close()


def is_delayed(path: str) -> bool:
    return "NEXT_STEP" in path


def draw_actions(steps: int, n: int) -> torch.Tensor:
    noise = torch.rand(steps, n, 2, generator=torch.Generator().manual_seed(3))
    return torch.from_numpy(LOW) + noise * torch.from_numpy(HIGH - LOW)


def at(obs: Any, row: int) -> list[float]:
    return flat({k: v[row].numpy() for k, v in obs.items()} if isinstance(obs, dict) else obs[row].numpy())


def assert_transitions(got: list[Transition], expected: list[Transition], path: str) -> None:
    """Equal without tolerance, but for final observations that VecNormalize has normalised and that are turned back."""
    assert len(got) == len(expected)
    for ours, true in zip(got, expected, strict=True):
        if "VecNormalize" in path and (true.terminated or true.truncated):
            # float32 has 24 bits, and turning back multiplies by a deviation and adds a mean, both below 250.
            np.testing.assert_allclose(ours.next_obs, true.next_obs, atol=250 * 2**-22)
            ours = ours._replace(next_obs=true.next_obs)
        assert ours == true


@PATHS
@pytest.mark.parametrize("form", ["box", "dict"])
def test_every_transition_of_every_row(path: str, form: str, build: Callable[[str, str], Any]) -> None:
    batched = as_batched(build(path, form))
    n = batched.num_envs
    assert n == (1 if path in ("id", "env", "monitored env") else 3)
    obs, info = batched.reset(seed=SEED)
    found: list[list[Transition]] = [[] for _ in range(n)]
    ended: list[list[tuple[float, int]]] = [[] for _ in range(n)]
    dummies = 0
    for actions in draw_actions(STEPS, n):
        before = info["raw"][0] if "raw" in info else obs
        obs, rewards, terminated, truncated, info = batched.step(actions)
        rewards = info["raw"][1] if "raw" in info else rewards
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (torch.float32, torch.bool, torch.bool)
        dummy = info.get("dummy", torch.zeros(n, dtype=torch.bool))
        dummies += int(dummy.sum())
        for row in (~dummy).nonzero().flatten().tolist():
            flags = bool(terminated[row]), bool(truncated[row])
            found[row].append(
                Transition(at(before, row), actions[row].tolist(), float(rewards[row]), *flags, at(info["final_obs"], row))
            )
            if any(flags):
                ended[row].append((float(info["episode"]["r"][row]), int(info["episode"]["l"][row])))
        assert not (terminated | truncated)[dummy].any()
        after = info["raw"][0] if "raw" in info else obs
        running = ~(terminated | truncated | dummy)
        assert all(at(after, row) == at(info["final_obs"], row) for row in running.nonzero().flatten().tolist())
    assert dummies == (sum(STEPS - real_steps(row, STEPS, True) for row in range(n)) if is_delayed(path) else 0)
    for row in range(n):
        taken = [transition.action for transition in found[row]]
        expected = list(truth(row, form, SEED + row, np.array(taken, np.float32)))
        assert len(expected) == real_steps(row, STEPS, is_delayed(path))
        assert_transitions(found[row], expected, path)
        if path != "VecMonitor around NEXT_STEP":
            assert ended[row] == list(itertools.islice(episodes(row), len(ended[row])))
        assert len(ended[row]) >= 4
        assert {flag for step in expected for flag in ("terminated", "truncated") if getattr(step, flag)} == {
            *("terminated", "truncated")
        }


def stored_columns(agent: SAC) -> list[list[Transition]]:
    """What the agent remembers, by environment, oldest first."""
    state: Any = agent.store.state()
    assert (state["sizes"] < agent.store.capacity_per_env).all()  # not come round: slots are in the order of time
    mask = torch.arange(int(state["sizes"].max())).unsqueeze(1) < state["sizes"]
    fields = {name: state[f"data.{name}"] for name in Transition._fields if f"data.{name}" in state}
    fields["action"] = agent.scaler.to_env(state["data.actions"])
    fields["reward"] = state["data.rewards"]
    columns: list[list[Transition]] = [[] for _ in range(agent.n_envs)]
    for flat_index, (_, column) in enumerate(mask.nonzero().tolist()):
        values = {name: fields[name][flat_index].flatten().tolist() for name in Transition._fields}
        single = {name: values[name][0] for name in ("reward", "terminated", "truncated")}
        columns[column].append(Transition(**(values | single)))
    return columns


def make_agent(env: Any, form: str = "box", **options: Any) -> SAC:
    policy = {"box": "MlpPolicy", "dict": "MultiInputPolicy", "image": "CnnPolicy"}[form]
    sizes = {"net_arch": (4,), "buffer_size": 3000, "learning_starts": 1000, "seed": SEED, "device": "cpu"}
    return SAC(policy, env, **(sizes | options))


def assert_memory(agent: SAC, path: str, form: str) -> None:
    steps = agent.num_timesteps // agent.n_envs
    columns = stored_columns(agent)
    for row, column in enumerate(columns):
        assert len(column) == real_steps(row, steps, is_delayed(path))
        actions = np.array([transition.action for transition in column], np.float32)
        assert_transitions(column, list(truth(row, form, SEED + row, actions)), path)
    assert len(agent.store) == sum(map(len, columns))


@PATHS
def test_what_an_agent_remembers(path: str, build: Callable[[str, str], Any]) -> None:
    agent = make_agent(build(path, "box"))
    agent.learn(60)
    assert_memory(agent, path, "box")
    assert agent._n_updates == 0
    returns = [info["r"] for info in agent.ep_info_buffer or ()]
    ends = [real_steps(row, 60 // agent.n_envs, is_delayed(path)) for row in range(agent.n_envs)]
    counted = []
    for row, steps in enumerate(ends):  # whole episodes within that many steps
        lengths = itertools.accumulate(length for _, length in episodes(row))
        whole = sum(1 for _ in itertools.takewhile(lambda total, steps=steps: total <= steps, lengths))
        counted += [total for total, _ in itertools.islice(episodes(row), whole)]
    assert sorted(returns) == sorted(counted)


@pytest.mark.parametrize("path", ["DummyVecEnv", "VecNormalize", "SyncVectorEnv NEXT_STEP", "native"])
def test_what_an_agent_remembers_of_dicts(path: str, build: Callable[[str, str], Any]) -> None:
    agent = make_agent(build(path, "dict"), "dict")
    agent.learn(60)
    assert_memory(agent, path, "dict")


def test_what_an_agent_remembers_of_images(build: Callable[[str, str], Any]) -> None:
    # SB3 turns images over to channels first with a wrapper around the batch, behind which dummy rows are marked.
    for path in ("DummyVecEnv", "SyncVectorEnv NEXT_STEP"):
        agent = make_agent(build(path, "image"), "image", buffer_size=90)
        agent.learn(60)
        assert agent.store.state()["data.obs"].dtype is torch.uint8
        assert agent.codec.shape == (3, 36, 40)
        assert_memory(agent, path, "image")


def test_images_under_a_reward_normalizer_are_stored_as_they_are_acted_on() -> None:
    agent = make_agent(VecNormalize(DummyVecEnv(rows("image")), norm_obs=False), "image", buffer_size=90)
    agent.learn(60)
    assert_memory(agent, "DummyVecEnv", "image")


def test_under_vec_normalize_the_agent_acts_on_normalised_observations(build: Callable[[str, str], Any]) -> None:
    env = build("VecNormalize", "box")
    agent = make_agent(env)
    seen = []
    agent.explore = lambda obs: seen.append(obs) or torch.zeros(3, 2)  # type: ignore[method-assign]
    agent.config = copy.replace(agent.config, learning_starts=0) if hasattr(copy, "replace") else _started(agent.config)
    agent.collector._step = _checked_step(agent, env, seen)  # type: ignore[method-assign]
    agent.learn(30)
    assert len(seen) == 10


def test_final_observations_are_those_of_the_episode_that_ended(build: Callable[[str, str], Any]) -> None:
    batched = as_batched(build("SyncVectorEnv SAME_STEP", "dict"))
    batched.reset(seed=SEED)
    for _ in range(3):
        obs, _, terminated, _, info = batched.step(torch.zeros(3, 2))
    assert terminated.tolist() == [True, False, False]
    assert info["final_obs"]["place"][0].tolist() == [0, 0, 3]
    assert obs["place"][0].tolist() == [0, 1, 0]
