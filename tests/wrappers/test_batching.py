"""Every way into a batch, against environments stepped and reset by hand."""

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
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)
from toys import HIGH, LOW, Counter, Labelled, Transition, episodes, flat, real_steps, truth

# Python 3.12 and later warn of forks in a process with threads; the workers here do nothing with them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

Build = Callable[..., Any]

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
    gym.register("Labelled-v0", entry_point="toys:Labelled", kwargs={"form": form})
    return "Labelled-v0"


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
    "VecCheckNan around NEXT_STEP": partial(delayed_behind, VecCheckNan),
    "Gymnasium's wrappers around NEXT_STEP": lambda form: gym.wrappers.vector.RecordEpisodeStatistics(
        gym.wrappers.vector.ClipReward(
            SyncVectorEnv(rows(form), autoreset_mode=AutoresetMode.NEXT_STEP), max_reward=1e6
        )
    ),
    "Gymnasium's wrappers around SAME_STEP": lambda form: gym.wrappers.vector.RecordEpisodeStatistics(
        SyncVectorEnv(rows(form), autoreset_mode=AutoresetMode.SAME_STEP)
    ),
    **{
        f"{cls.__name__} {mode.name}": partial(gymnasium_vector, cls, mode)
        for cls in (SyncVectorEnv, AsyncVectorEnv)
        for mode in AutoresetMode
    },
}
PATHS = pytest.mark.parametrize("path", BUILDERS)


@pytest.fixture
def build() -> Iterator[Build]:
    """Build environments that are closed afterwards."""
    made = []

    def make(path: str, form: str = "box") -> Any:
        gym.registry.pop("Labelled-v0", None)
        env = BUILDERS[path](form)
        made.append(env)
        return env

    yield make
    gym.registry.pop("Labelled-v0", None)
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
def test_every_transition_of_every_row(path: str, form: str, build: Build) -> None:
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
                Transition(
                    at(before, row), actions[row].tolist(), float(rewards[row]), *flags, at(info["final_obs"], row)
                )
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
    fields["action"] = agent.actions.to_env(state["data.actions"])
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


def steps_of(agent: SAC, path: str) -> int:
    """How often the environments were stepped for what counts as steps: rows that only did a reset do not."""
    rows = range(agent.n_envs)
    return next(
        steps
        for steps in itertools.count(1)
        if sum(real_steps(row, steps, is_delayed(path)) for row in rows) == agent.num_timesteps
    )


def assert_memory(agent: SAC, path: str, form: str) -> None:
    steps = steps_of(agent, path)
    columns = stored_columns(agent)
    for row, column in enumerate(columns):
        assert len(column) == real_steps(row, steps, is_delayed(path))
        actions = np.array([transition.action for transition in column], np.float32)
        assert_transitions(column, list(truth(row, form, SEED + row, actions)), path)
    assert len(agent.store) == sum(map(len, columns))


@PATHS
def test_what_an_agent_remembers(path: str, build: Build) -> None:
    agent = make_agent(build(path, "box"))
    agent.learn(60)
    assert_memory(agent, path, "box")
    assert agent._n_updates == 0
    returns = [info["r"] for info in agent.ep_info_buffer or ()]
    ends = [real_steps(row, steps_of(agent, path), is_delayed(path)) for row in range(agent.n_envs)]
    counted = []
    for row, steps in enumerate(ends):  # whole episodes within that many steps
        lengths = itertools.accumulate(length for _, length in episodes(row))
        whole = sum(1 for _ in itertools.takewhile(lambda total, steps=steps: total <= steps, lengths))
        counted += [total for total, _ in itertools.islice(episodes(row), whole)]
    assert sorted(returns) == sorted(counted)


@pytest.mark.parametrize("path", ["DummyVecEnv", "VecNormalize", "SyncVectorEnv NEXT_STEP", "native"])
def test_what_an_agent_remembers_of_dicts(path: str, build: Build) -> None:
    agent = make_agent(build(path, "dict"), "dict")
    agent.learn(60)
    assert_memory(agent, path, "dict")


def test_what_an_agent_remembers_of_images(build: Build) -> None:
    # SB3 turns images over to channels first with a wrapper around the batch, behind which dummy rows are marked.
    for path in ("DummyVecEnv", "SyncVectorEnv NEXT_STEP"):
        agent = make_agent(build(path, "image"), "image", buffer_size=90)
        agent.learn(60)
        assert agent.store.state()["data.obs"].dtype is torch.uint8
        assert agent.codec.spec.shape == (3, 36, 40)
        assert_memory(agent, path, "image")


def test_images_under_a_reward_normalizer_are_stored_as_they_are_acted_on() -> None:
    agent = make_agent(VecNormalize(DummyVecEnv(rows("image")), norm_obs=False), "image", buffer_size=90)
    agent.learn(60)
    assert_memory(agent, "DummyVecEnv", "image")


def test_an_agent_acts_on_normalised_observations(build: Build) -> None:
    env = build("VecNormalize", "box")
    agent = make_agent(env, learning_starts=0, train_freq=20)
    acted_on, shown = [], []

    def explore(obs: torch.Tensor) -> dict[str, torch.Tensor]:
        acted_on.append(obs.clone())
        return {"actions": torch.zeros(3, 2)}

    agent.explore = explore  # type: ignore[method-assign]
    stepped = env.step_wait
    env.step_wait = lambda: shown.append(env.normalize_obs(env.get_original_obs())) or stepped()
    agent.learn(60)
    # What the statistics of each moment made of it, which later ones would make something else of.
    assert len(acted_on) == 20
    np.testing.assert_array_equal(np.stack(acted_on), np.stack(shown))
    assert not np.allclose(shown[5], env.normalize_obs(agent.store.state()["data.obs"].view(-1, 3, 5)[5].numpy()))


def test_final_observations_are_those_of_the_episode_that_ended(build: Build) -> None:
    batched = as_batched(build("SyncVectorEnv SAME_STEP", "dict"))
    batched.reset(seed=SEED)
    for _ in range(3):
        obs, _, terminated, _, info = batched.step(torch.zeros(3, 2))
    assert terminated.tolist() == [True, False, False]
    assert info["final_obs"]["place"][0].tolist() == [0, 0, 3]
    assert obs["place"][0].tolist() == [0, 1, 0]


def test_a_single_environment_has_one_monitor() -> None:
    for env in (Labelled(), Monitor(Labelled()), gym.wrappers.ClipAction(Monitor(Labelled()))):
        (single,) = as_batched(env).env.envs  # type: ignore[attr-defined]
        monitors = 0
        while isinstance(single, gym.Wrapper):
            monitors += isinstance(single, Monitor)
            single = single.env
        assert monitors == 1


def test_a_monitors_account_of_an_episode_has_precedence() -> None:
    # It saw the rewards of the task; agents are given what a wrapper further out makes of them.
    env = gym.wrappers.TransformReward(Monitor(Labelled(1)), lambda reward: -reward)
    for inner, total in ((env, 3.5), (gym.wrappers.TransformReward(Labelled(1), lambda reward: -reward), -3.5)):
        batched = as_batched(DummyVecEnv([lambda inner=inner: inner]))
        batched.reset(seed=0)
        steps = [batched.step(torch.zeros(1, 2)) for _ in range(2)]
        assert [step[1].tolist() for step in steps] == [[-1.25], [-2.25]]
        assert steps[1][4]["episode"]["r"].tolist() == [total]
        assert steps[1][4]["episode"]["l"].tolist() == [2]


@pytest.mark.parametrize("path", ["DummyVecEnv", "SyncVectorEnv NEXT_STEP", "AsyncVectorEnv SAME_STEP", "native"])
def test_seeds(path: str, build: Build) -> None:
    batched = as_batched(build(path))

    def draws(seed: Any) -> list[float]:
        return batched.reset(seed=seed)[0][:, 4].tolist()

    def single(seed: int) -> float:
        return float(Labelled().reset(seed=seed)[0][4])

    assert draws(5) == [single(5), single(6), single(7)]
    assert draws([5, 6, 7]) == [single(5), single(6), single(7)]
    assert draws([9, 5, 20]) == [single(9), single(5), single(20)]
    streams = [np.random.default_rng(seed) for seed in (9, 5, 20)]
    for stream in streams:
        stream.integers(200)
    continued = [int(stream.integers(200)) for stream in streams]
    assert draws(None) == continued
    draws([9, 5, 20])
    assert draws([1, None, 1]) == [single(1), continued[1], single(1)]


def test_seeds_in_a_row_suit_an_environment_that_takes_one_number(build: Build) -> None:
    first = as_batched(build("VectorEnv of its own")).reset(seed=[5, 6, 7])[0]
    assert first[:, 4].tolist() == [float(Labelled().reset(seed=seed)[0][4]) for seed in (5, 6, 7)]


@pytest.mark.parametrize("path", ["DummyVecEnv", "VecNormalize", "SyncVectorEnv DISABLED"])
def test_options_reach_the_environments(path: str, build: Build) -> None:
    env = build(path)
    batched = as_batched(env)
    batched.reset(options={"way": "up"})
    inner = env.envs if isinstance(env, SyncVectorEnv) else env.unwrapped.envs
    assert [row.options for row in inner] == [{"way": "up"}] * 3
    for _ in range(2):
        batched.step(torch.zeros(3, 2))
    assert inner[1].episode == 1
    assert not inner[1].options  # the automatic reset takes none


def test_a_reset_forgets_the_episodes_that_it_cuts_off(build: Build) -> None:
    # Row 1 ends just before: its delayed reset is then due, and an immediate one has begun another episode already.
    for path, second in (("SyncVectorEnv NEXT_STEP", 11.25), ("DummyVecEnv", 21.25), ("native", 21.25)):
        batched = as_batched(build(path))
        batched.reset(seed=0)
        for _ in range(2):
            batched.step(torch.zeros(3, 2))
        batched.reset(seed=0)
        info = batched.step(torch.zeros(3, 2))[4]
        assert not info.get("dummy", torch.zeros(3)).any()
        assert info["episode"]["l"].tolist() == [1, 1, 1]
        assert info["episode"]["r"].tolist() == [11.0, second, 11.5]


def record(step: Any) -> list[Any]:
    """Everything that a step returned, comparable."""
    obs, rewards, terminated, truncated, info = step
    kept = {key: info.get(key) for key in ("final_obs", "episode", "dummy", "raw")}
    return [*map(plain, (obs, rewards, terminated, truncated, kept))]


def plain(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: plain(value) for key, value in part.items()}
    return [plain(x) for x in part] if isinstance(part, tuple) else part.tolist() if hasattr(part, "tolist") else part


def assert_plain(state: Any) -> None:
    """Nothing in it but what a file of arrays and JSON can hold."""
    if isinstance(state, dict):
        assert all(type(key) is str for key in state)
        state = list(state.values())
    if isinstance(state, (list, tuple)):
        for part in state:
            assert_plain(part)
    else:
        plain_types = (type(None), bool, int, float, str, bytes, np.generic, np.ndarray, torch.Tensor)
        assert isinstance(state, plain_types)
        assert not isinstance(state, np.ndarray) or state.dtype.kind in "biufc"


SAVABLE = [p for p in BUILDERS if not p.startswith("AsyncVectorEnv") or p.endswith("SAME_STEP")]


@pytest.mark.parametrize("path", SAVABLE)
def test_a_state_can_be_gone_back_to_from_any_step(path: str, build: Build) -> None:
    batched, other = as_batched(build(path)), as_batched(build(path))
    actions = draw_actions(12, batched.num_envs)
    batched.reset(seed=SEED)
    other.reset(seed=SEED + 50)
    states, future = [], []
    for action in actions:
        states.append(batched.state())
        future.append(record(batched.step(action)))
    assert_plain(states[3])
    if is_delayed(path):  # row 1 ends at the second step; state 2 lies between that end and its reset
        assert future[1][3][1]
        assert future[2][4]["dummy"][1]
    for start in (11, 4, 2, 0, 7):
        for target in (batched, other):
            target.load_state(states[start])
            assert [record(target.step(action)) for action in actions[start : start + 4]] == future[start : start + 4]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_states_out_of_reach_are_refused(mode: AutoresetMode, build: Build) -> None:
    batched = as_batched(build(f"AsyncVectorEnv {mode.name}"))
    batched.reset(seed=0)
    with pytest.raises(StateNotSavable, match="SAME_STEP"):
        batched.state()


def test_cartpole_in_numpy() -> None:
    """Gymnasium's own vector environment: whole actions, one stream for all rows, delayed resets."""
    env = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point", max_episode_steps=12)
    batched = as_batched(env)
    obs, _ = batched.reset(seed=0)
    lengths, seen = torch.zeros(3, dtype=torch.int64), set()
    for step in range(80):
        previous, waiting = obs, lengths == -1
        if step == 40:
            state, resumed = batched.state(), []
        obs, rewards, terminated, truncated, info = batched.step(torch.tensor([1, step % 2, 0]))
        if step >= 40:
            resumed.append(record((obs, rewards, terminated, truncated, info)))
        assert info["dummy"].tolist() == waiting.tolist()
        lengths += 1
        for row in range(3):
            final = info["final_obs"][row]
            if waiting[row]:
                assert obs[row].abs().max() <= 0.05
                assert rewards[row] == 0
                continue
            assert float(final[0]) == pytest.approx(float(previous[row, 0] + 0.02 * previous[row, 1]), abs=1e-6)
            assert terminated[row] == (final[2].abs() > 12 * 2 * np.pi / 360)
            assert truncated[row] == (lengths[row] == 12 and not terminated[row])
            if terminated[row] or truncated[row]:
                assert [info["episode"][key][row] for key in "rl"] == [lengths[row], lengths[row]]
                seen.add("terminated" if terminated[row] else "truncated")
                lengths[row] = -1
    assert seen == {"terminated", "truncated"}
    batched.load_state(state)
    assert [record(batched.step(torch.tensor([1, step % 2, 0]))) for step in range(40, 80)] == resumed
    batched.close()


def test_what_is_returned_is_not_written_into_again(build: Build) -> None:
    for path in ("VectorEnv of its own", "DummyVecEnv", "SyncVectorEnv NEXT_STEP"):
        batched = as_batched(build(path, "dict"))
        reset = batched.reset(seed=0)[0]
        first = plain(reset)
        steps = [batched.step(action) for action in draw_actions(1, 3)]
        before = [record(step) for step in steps]
        for action in draw_actions(8, 3):
            batched.step(action)
        assert plain(reset) == first
        assert [record(step) for step in steps] == before


def test_spaces_and_what_is_already_a_batch(build: Build) -> None:
    for path in ("env", "DummyVecEnv", "SyncVectorEnv NEXT_STEP"):
        batched = as_batched(build(path, "dict"))
        single = Labelled(0, "dict")
        assert batched.single_observation_space == single.observation_space
        assert batched.single_action_space == single.action_space
        assert batched.action_space == batch_space(single.action_space, batched.num_envs)
        assert batched.observation_space == batch_space(single.observation_space, batched.num_envs)
        assert batched.device == torch.device("cpu")
    native = NativeBatch(2, "box")
    assert as_batched(native) is native
    assert as_batched(BatchedVecEnv(native)) is native


def test_frames_are_given_by_row() -> None:
    for env in (
        DummyVecEnv([partial(Labelled, row, render_mode="rgb_array") for row in range(3)]),
        SyncVectorEnv([partial(Labelled, row, render_mode="rgb_array") for row in range(3)]),
    ):
        batched = as_batched(env)
        batched.reset(seed=0)
        assert batched.render_mode == "rgb_array"
        assert [frame.tolist() for frame in batched.render()] == [np.full((4, 6, 3), r + 1).tolist() for r in range(3)]
        batched.close()


def test_closing_the_batch_closes_the_environment() -> None:
    for env in (DummyVecEnv(rows("box")), SyncVectorEnv(rows("box"))):
        closed = []
        for row in env.envs:
            row.close = partial(closed.append, row)
        batched = as_batched(env)
        batched.close()
        batched.close()
        assert closed == env.envs


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_vector_environment_must_say_how_it_resets() -> None:
    env = VectorOfItsOwn(2, "box")
    for metadata in ({}, {"autoreset_mode": None}):
        env.metadata = metadata
        with pytest.raises(ValueError, match=r"VectorOfItsOwn does not say how it resets.*AutoresetMode$") as error:
            as_batched(env)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["box", "dict"])
@pytest.mark.parametrize("info", [{}, {"final_obs": np.array([None, None], object)}])
def test_final_observations_must_be_there(form: str, info: dict[str, Any]) -> None:
    class Forgetful(VectorOfItsOwn):
        def step(self, actions: Any) -> Any:
            return *super().step(actions)[:4], info

    batched = as_batched(Forgetful(2, form))
    batched.reset(seed=0)
    batched.step(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"rows \[1\] ended, .* no 'final_obs' for them"):
        batched.step(torch.zeros(2, 2))


def test_terminal_observations_must_be_there() -> None:
    class Forgetful(DummyVecEnv):
        def step_wait(self) -> Any:
            *results, infos = super().step_wait()
            return *results, [{key: i[key] for key in i if key != "terminal_observation"} for i in infos]

    batched = as_batched(Forgetful(rows("box")))
    batched.reset(seed=0)
    batched.step(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"rows \[1\] ended, .* no 'terminal_observation' for them"):
        batched.step(torch.zeros(3, 2))


@pytest.mark.parametrize("env", [None, 3, object(), spaces.Discrete(2), Labelled])
def test_what_is_no_environment_is_refused(env: Any) -> None:
    with pytest.raises(TypeError, match=r"is no environment: give an id, a gymnasium\.Env, an SB3 VecEnv or"):
        as_batched(env)


def test_ids_that_are_unknown_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean Pendulum-v1"):
        as_batched("Pendulm-v1")


# -- environments that reuse their array, and rewards that are several numbers -----------------------------------------

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


def in_processes(make: Build) -> SubprocVecEnv:
    return SubprocVecEnv([make, make], start_method="fork")


REUSING: dict[str, Build] = {
    "single": lambda make: make(),
    "monitored": lambda make: Monitor(make()),
    "dummy": lambda make: DummyVecEnv([make, make]),
    "monitored by rows": lambda make: VecMonitor(DummyVecEnv([make, make])),
    "normalised": lambda make: VecNormalize(DummyVecEnv([make, make]), clip_obs=1e9),
    "processes": in_processes,
    "normalised processes": lambda make: VecNormalize(in_processes(make), clip_obs=1e9),
    **{
        mode.value: partial(lambda mode, make: SyncVectorEnv([make, make], autoreset_mode=mode), mode) for mode in MODES
    },
    "views": lambda make: SyncVectorEnv([make, make], copy=False, autoreset_mode=AutoresetMode.SAME_STEP),
    "snapshots": lambda make: AsyncVectorEnv(
        [lambda: Snapshot(make())] * 2, autoreset_mode=AutoresetMode.SAME_STEP, context="fork"
    ),
}


@pytest.mark.parametrize("form", ["box", "dict", "image"])
@pytest.mark.parametrize("kind", REUSING)
def test_what_an_episode_led_to_outlives_the_reset(kind: str, form: str) -> None:
    if form == "image" and "normalised" in kind:
        return  # its numbers are rounded
    env = as_batched(REUSING[kind](partial(Counter, form, reuses=True, length=3)))
    shown = [first_number(env.reset(seed=0)[0])]
    led_to = []
    for _ in range(10):
        obs, _, _, _, info = env.step(torch.zeros(env.num_envs, 1))
        dummy = info.get("dummy", torch.zeros(env.num_envs, dtype=torch.bool))
        final = info["final_obs"]
        led_to += [round(x) for x, no in zip(first_number(final), dummy.tolist(), strict=True) if not no]
        shown.append(first_number(info["raw"][0] if "raw" in info else obs))
    env.close()
    rows = env.num_envs
    assert [led_to[i] for i in range(0, len(led_to), rows)][:8] == [1, 2, 3, 1, 2, 3, 1, 2]
    restart = 4 if kind == AutoresetMode.NEXT_STEP.value else 3
    assert shown[restart][0] == 0


def first_number(obs: Any) -> list[float]:
    part = obs["count"] if isinstance(obs, dict) else obs
    return [float(row.flatten()[0]) for row in part]


def test_vector_environments_out_of_reach_are_suspected(caplog: pytest.LogCaptureFixture) -> None:
    for reuses in (False, True):
        make = partial(Counter, reuses=reuses, length=2)
        env = as_batched(AsyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP, context="fork"))
        env.reset(seed=0)
        for _ in range(8):
            env.step(torch.zeros(2, 1))
        env.close()
        assert ("reuse their arrays" in caplog.text) == reuses
    assert caplog.text.count("Snapshot") == 1


@pytest.mark.parametrize("reward", [np.ones(2), [1.0, 2.0], np.ones((1, 2))])
@pytest.mark.parametrize("kind", ["single", "dummy", "processes", *(mode.value for mode in MODES)])
def test_rewards_of_several_numbers_are_refused(kind: str, reward: Any) -> None:
    env = as_batched(REUSING[kind](partial(Counter, reward=reward)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="maximise one number"):
        env.step(torch.zeros(env.num_envs, 1))
    env.close()


@pytest.mark.parametrize("kind", ["dummy", "processes", *(mode.value for mode in MODES)])
def test_rewards_in_arrays_of_one_are_numbers(kind: str) -> None:
    env = as_batched(REUSING[kind](partial(Counter, reward=np.array([2.5]))))
    env.reset(seed=0)
    rewards = env.step(torch.zeros(env.num_envs, 1))[1]
    env.close()
    assert rewards.tolist() == [2.5] * env.num_envs


class Pool(SyncVectorEnv, gym.Env[Any, Any]):  # type: ignore[misc]
    """A vector environment and a single one at once, whose spaces are those of a row, as EnvPool's are."""

    def __init__(self) -> None:
        SyncVectorEnv.__init__(self, [Counter, Counter])
        self.observation_space, self.action_space = self.single_observation_space, self.single_action_space

    def step(self, actions: Any) -> Any:
        self.action_space = batch_space(self.single_action_space, 2)
        try:
            return super().step(actions)
        finally:
            self.action_space = self.single_action_space


def test_what_is_a_vector_environment_and_a_single_one() -> None:
    env = as_batched(Pool())
    assert (env.num_envs, env.reset(seed=0)[0].shape) == (2, (2, 2))
    agent = SAC("MlpPolicy", Pool(), seed=0, learning_starts=99, buffer_size=100, net_arch=(4,), device="cpu")
    agent.learn(20)
    assert len(agent.store) == agent.num_timesteps == 20


@pytest.mark.parametrize("mode", MODES)
def test_successes_of_vector_environments_are_told(mode: AutoresetMode) -> None:
    lengths = iter((3, 4))
    envs = SyncVectorEnv([lambda: Counter(length=next(lengths))] * 2, autoreset_mode=mode)
    agent = SAC("MlpPolicy", envs, seed=0, learning_starts=99, buffer_size=100, net_arch=(4,), device="cpu")
    agent.learn(24)
    assert agent.ep_success_buffer is not None
    assert agent.ep_info_buffer is not None
    assert list(agent.ep_success_buffer) == [True] * len(agent.ep_info_buffer)
    assert {info["l"] for info in agent.ep_info_buffer} == {3, 4}


class Bare(VecEnvWrapper):
    """Like a vector environment of somebody's own, that tells neither time limits nor takes seeds."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info.pop("TimeLimit.truncated", None)
        return obs, rewards, dones, infos

    @property
    def unwrapped(self) -> Any:
        return self


def test_ends_that_are_not_told_apart_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    env = as_batched(Bare(DummyVecEnv([Counter])))
    env.reset(seed=0)
    for _ in range(12):
        env.step(torch.zeros(1, 1))
    assert caplog.text.count("TimeLimit.truncated") == 1
