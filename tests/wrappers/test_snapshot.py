"""Restoring a snapshot must make the past repeat itself, bit for bit, in the same object and in a new one."""

import copy
import enum
import functools
import io
import math
import random
import socket
import threading
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import (
    DelayObservation,
    FrameStackObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    StickyAction,
    TimeAwareObservation,
)
from headway.wrappers.snapshot import Snapshot, StateNotSavable, capture, restore
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

MUJOCO = [
    *("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5", "InvertedDoublePendulum-v5"),
    *("InvertedPendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5"),
]
CLASSIC = ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "Acrobot-v1", "MountainCar-v0"]
TOY = ["FrozenLake-v1", "Blackjack-v1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """MuJoCo appends HalfCheetah's deprecation warning to MUJOCO_LOG.TXT in the working directory."""
    monkeypatch.chdir(tmp_path)


def same(a, b):
    """Equality without tolerance, through containers; durations apart, which come from the clock."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a if key not in ("t", "time"))
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and a.dtype == object:
        return a.shape == b.shape and same(a.ravel().tolist(), b.ravel().tolist())
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return a == b or (a != a and b != b)


def assert_plain(state):
    if isinstance(state, dict):
        assert all(type(key) is str for key in state)
        state = list(state.values())
    if type(state) in (list, tuple):
        for part in state:
            assert_plain(part)
    elif type(state) is np.ndarray:
        assert state.dtype.kind in "biufc"
        assert state.flags.owndata
    else:
        assert state is None or isinstance(state, (bool, int, float, str, bytes, np.generic, torch.Tensor))


def sample(space, count, seed=0):
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def play(env, actions):
    """Everything that an environment of any kind answers; a single one is reset whenever its episode ends."""
    answers = []
    for action in actions:
        answer = env.step(action)
        # VecFrameStack, for one, goes on writing into what it answered.
        answers.append(copy.deepcopy(answer))
        if len(answer) == 5 and np.ndim(answer[2]) == 0 and (answer[2] or answer[3]):
            answers.append(env.reset())
    return answers


def assert_replays(make, actions, *, prepare=lambda env: env.reset(seed=3), ends=lambda answers: True):
    """30 steps, capture, 50 steps; the same 50 again after a disturbance, and in a new object that was never reset."""
    env = make()
    prepare(env)
    play(env, actions[:30])
    state = capture(env)
    assert_plain(state)
    kept = copy.deepcopy(state)
    expected = play(env, actions[30:80])
    assert same(state, kept), "the captured state shares memory with the environment"
    assert ends(expected), "no episode ends in the replay"
    play(env, actions[80:87])
    restore(env, state)
    assert same(play(env, actions[30:80]), expected)
    fresh = make()
    restore(fresh, state)
    assert same(play(fresh, actions[30:80]), expected)
    assert same(state, kept), "the restored environment shares memory with the state"
    env.close()
    fresh.close()


def single(env_id, steps=40, **kwargs):
    return Monitor(gym.make(env_id, max_episode_steps=steps, **kwargs))


def episodes(answers):
    return [answer[4]["episode"] for answer in answers if len(answer) == 5 and "episode" in answer[4]]


@pytest.mark.parametrize("env_id", [*MUJOCO, *CLASSIC, *TOY])
def test_single_environments_replay(env_id):
    actions = sample(single(env_id).action_space, 87)
    assert_replays(lambda: single(env_id), actions, ends=episodes)


@pytest.mark.parametrize("env_id", ["Ant-v5", "Humanoid-v5"])
def test_positions_and_velocities_alone_do_not_replay(env_id):
    env = single(env_id, steps=200, terminate_when_unhealthy=False)
    data = env.unwrapped.data
    actions = sample(env.action_space, 80)
    env.reset(seed=3)
    play(env, actions[:30])
    state, qpos, qvel = capture(env), data.qpos.copy(), data.qvel.copy()
    expected = play(env, actions[30:])
    play(env, actions[:7])
    restore(env, state)
    assert same(play(env, actions[30:]), expected)
    restore(env, state)
    play(env, actions[:7])
    env.unwrapped.set_state(qpos, qvel)
    assert not same(play(env, actions[30:]), expected)


def test_the_derived_arrays_of_mujoco_are_part_of_the_state():
    env = gym.make("Reacher-v5")
    env.reset(seed=3)
    env.step(np.ones(2, np.float32))
    state, target = capture(env), env.unwrapped.data.xpos.copy()
    env.step(-np.ones(2, np.float32))
    assert not same(env.unwrapped.data.xpos, target)
    restore(env, state)
    assert same(env.unwrapped.data.xpos, target)


def test_gymnasium_wrappers_replay():
    def make():
        env = RecordEpisodeStatistics(gym.make("Pendulum-v1", max_episode_steps=20))
        env = StickyAction(env, 0.3, repeat_action_duration=(1, 3))
        env = NormalizeReward(NormalizeObservation(DelayObservation(env, 2)))
        return Snapshot(FrameStackObservation(TimeAwareObservation(env), 3))

    assert_replays(make, sample(make().action_space, 87), ends=episodes)


class Pixels(gym.Env):
    """An image environment that draws from its generator."""

    observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return self._draw(), {}

    def step(self, action):
        self.age += 1
        return self._draw(), float(action), bool(self.np_random.random() < 0.1), self.age >= 15, {}

    def _draw(self):
        return self.np_random.integers(0, 256, (36, 36, 3), np.uint8)


def dummy(env_id, count=3):
    return DummyVecEnv([lambda: single(env_id, 20) for _ in range(count)])


VEC_ENVS = {
    "normalize, stack": lambda: VecFrameStack(VecNormalize(dummy("Pendulum-v1")), 3),
    "mujoco": lambda: VecNormalize(dummy("Hopper-v5")),
    "monitor": lambda: VecMonitor(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3)),
    "transpose": lambda: VecFrameStack(VecTransposeImage(DummyVecEnv([Pixels, Pixels])), 2),
    "snapshots": lambda: DummyVecEnv([lambda: Snapshot(single("Acrobot-v1", 20))] * 2),
}


def reset_vec(venv):
    venv.seed(3)
    venv.reset()


def batches(space, num_envs, count=87):
    flat = sample(space, count * num_envs)
    return [np.stack(flat[i : i + num_envs]) for i in range(0, count * num_envs, num_envs)]


@pytest.mark.parametrize("name", VEC_ENVS)
def test_sb3_vec_envs_replay(name):
    probe = VEC_ENVS[name]()
    actions = batches(probe.action_space, probe.num_envs)
    assert_replays(
        VEC_ENVS[name], actions, prepare=reset_vec, ends=lambda answers: any(dones.any() for _, _, dones, _ in answers)
    )


class MaskedReset:
    """A vector environment without autoreset, and the caller's part: resetting the rows that ended."""

    def __init__(self, env):
        self.env = env
        self.close = env.close
        self.reset = env.reset

    def step(self, actions):
        answer = copy.deepcopy(self.env.step(actions))
        done = answer[2] | answer[3]
        return answer, self.env.reset(options={"reset_mask": done}) if done.any() else None


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_sync_vector_env_replays_in_every_autoreset_mode(mode):
    def make():
        env = SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=20)] * 3, autoreset_mode=mode)
        return MaskedReset(env) if mode is AutoresetMode.DISABLED else env

    assert_replays(make, batches(gym.spaces.Discrete(2), 3))


def test_custom_vector_env_replays():
    def make():
        env = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point", max_episode_steps=20)
        return gym.wrappers.vector.NormalizeObservation(env)

    assert_replays(make, batches(gym.spaces.Discrete(2), 3), ends=lambda answers: any(a[3].any() for a in answers))


forks = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning"
)  # starts quickly, and no thread is at work


@forks
def test_workers_of_sb3_replay():
    def make():
        return VecNormalize(SubprocVecEnv([lambda: Snapshot(single("Pendulum-v1", 20))] * 2, start_method="fork"))

    assert_replays(make, batches(gym.make("Pendulum-v1").action_space, 2), prepare=reset_vec)


@forks
def test_workers_of_sb3_that_cannot_be_saved_are_refused_and_live_on():
    makers = [lambda: Snapshot(gym.make("CartPole-v1")), lambda: Monitor(Snapshot(gym.make("CartPole-v1")))]
    venv = SubprocVecEnv(makers, start_method="fork")
    try:
        with pytest.raises(
            StateNotSavable, match=r"^env is a .*SubprocVecEnv.*headway\.wrappers\.Snapshot.* outermost"
        ):
            capture(venv)
        venv.reset()
        venv.step_async(np.zeros(2, int))
        with pytest.raises(StateNotSavable, match="middle of a step"):
            capture(venv)
        assert venv.step_wait()[0].shape == (2, 4)
    finally:
        venv.close()


class Locked(Pixels):
    """Cannot be saved, and its worker only finds out when asked."""

    def __init__(self):
        self.lock = threading.Lock()


def gymnasium_workers(makers):
    return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP, context="fork")


@forks
@pytest.mark.parametrize("workers", [lambda makers: SubprocVecEnv(makers, start_method="fork"), gymnasium_workers])
@pytest.mark.parametrize(
    ("maker", "act", "message"),
    [
        (Locked, capture, r"^env, in worker 0: env\.lock is a _thread\.lock"),
        (Pixels, lambda venv: restore(venv, foreign_state(venv)), r"^env, in worker 0: env was saved from a"),
    ],
    ids=["capture", "restore"],
)
def test_workers_say_what_they_cannot_copy_and_live_on(workers, maker, act, message):
    venv = workers([lambda: Snapshot(maker())])
    with pytest.raises(ValueError, match=message):
        act(venv)
    venv.reset()
    assert len(venv.step(np.zeros(1, int))) in (4, 5)
    venv.close()


@forks
def test_the_end_of_a_worker_is_reported():
    venv = SubprocVecEnv([lambda: Dying(Pixels())], start_method="fork")
    with pytest.raises(StateNotSavable, match=r"^env: a worker ended in attempt\(\)"):
        capture(venv)
    for process, remote in zip(venv.processes, venv.remotes, strict=True):
        process.join()
        remote.close()


class Dying(Snapshot):
    def attempt(self, method, *arguments):
        raise SystemExit


def foreign_state(venv):
    return {**capture(venv), "states": [capture(gym.make("CartPole-v1"))]}


def make_async(mode=AutoresetMode.SAME_STEP, wrapper=Snapshot):
    return AsyncVectorEnv(
        [lambda: wrapper(gym.make("CartPole-v1", max_episode_steps=20))] * 2, autoreset_mode=mode, context="fork"
    )


@forks
def test_workers_of_gymnasium_replay():
    assert_replays(make_async, batches(gym.spaces.Discrete(2), 2))


@forks
def test_a_state_of_other_workers_is_refused():
    env = make_async()
    state = capture(env)
    with pytest.raises(ValueError, match=r"^env was saved from a AsyncVectorEnv"):
        restore(dummy("CartPole-v1"), state)
    state["states"].pop()
    with pytest.raises(ValueError, match=r"^env was saved with 1 environments, but has 2"):
        restore(env, state)
    env.close()


@forks
@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ((AutoresetMode.NEXT_STEP,), "AutoresetMode.SAME_STEP"),
        ((AutoresetMode.SAME_STEP, Monitor), "wrappers.Snapshot"),
    ],
)
def test_workers_of_gymnasium_that_cannot_be_saved_are_refused(arguments, remedy):
    env = make_async(*arguments)
    try:
        with pytest.raises(StateNotSavable, match=remedy):
            capture(env)
    finally:
        env.close()


class Mood(enum.Enum):
    CALM = "calm"
    CROSS = "cross"


class Place(NamedTuple):
    x: float
    y: float


class Slotted:
    __slots__ = ("__hidden", "count", "never")

    def __init__(self):
        self.count = 0
        self.__hidden = [0]

    def tick(self):
        self.count += 1
        self.__hidden.append(self.count)
        return sum(self.__hidden)


class Robot:
    def __init__(self, world):
        self.world = world  # a cycle
        self.gears = Slotted()
        self.rng = None
        self.mood = Mood.CALM
        self.place = None
        self.table = {(0, 1): 2.0, 3: "three", Mood.CROSS: np.zeros(2)}
        self.visited = set()
        self.rule = lambda x: x + 1


class World(gym.Env):
    """State of many sorts, some of it made only by reset(), with one object reachable on two ways."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self):
        self.robot = Robot(self)
        self.shared = self.robot.table
        self.board = np.zeros((2, 2))
        self.row = self.board[0]
        self.weights = torch.nn.Linear(2, 1)
        self.span = slice(0, 2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        robot = self.robot
        robot.rng = np.random.RandomState(self.np_random.integers(1000))
        robot.place, robot.names = Place(0.0, 0.0), np.array(["a", "bc"], dtype=object)
        self.dice, self.noise = random.Random(4), torch.Generator().manual_seed(5)
        self.queue = deque(maxlen=3)
        self.board[:] = 0
        with torch.no_grad():
            self.weights.weight.fill_(0.5)
        return self._look(), {}

    def _look(self):
        return np.array([*self.board[0], *self.robot.place])

    def step(self, action):
        robot = self.robot
        self.row += action  # through the view
        self.shared[Mood.CROSS][0] += robot.gears.tick()
        robot.table[robot.gears.count] = self.dice.random()
        robot.mood = Mood.CROSS if self.np_random.random() < 0.5 else Mood.CALM
        robot.place = Place(robot.place.x + robot.rng.normal(), float(robot.mood is Mood.CROSS))
        robot.visited.add(round(robot.place.x))
        robot.names[0] = f"{len(robot.visited)}"
        self.queue.append(torch.rand(1, generator=self.noise).item())
        with torch.no_grad():
            self.weights.weight += 0.1
        info = {"table": dict(robot.table), "queue": list(self.queue), "names": list(robot.names), "mood": robot.mood}
        value = self.weights(torch.tensor(self.board[0, self.span], dtype=torch.float32)).item()
        return self._look(), value, self.np_random.random() < 0.1, False, info


def test_environments_of_many_sorts_of_python_replay():
    assert_replays(lambda: Monitor(World()), sample(World.action_space, 87), prepare=lambda env: env.reset(seed=3))


def holder(**attributes):
    """A minimal object to save."""
    return SimpleNamespace(**attributes)


@pytest.mark.parametrize(
    "make", [threading.Lock, socket.socket, io.StringIO, lambda: iter([1]), lambda: (i for i in ())]
)
def test_what_cannot_be_read_is_refused_with_its_path(make):
    env = Monitor(Pixels())
    env.env.parts = [holder(sim=make())]
    with pytest.raises(StateNotSavable, match=r"^env\.env\.parts\[0\]\.sim is a .*load_state\(state\)"):
        capture(env)
    if hasattr(env.env.parts[0].sim, "close"):
        env.env.parts[0].sim.close()


class Nameless(type):
    """What SWIG makes of Box2D's handles: their types have no module."""

    @property
    def __module__(cls):
        raise AttributeError("__module__")


class Handle(metaclass=Nameless):
    __slots__ = ("x",)


def test_types_without_a_module_are_copied_or_refused_like_others():
    env = Pixels()
    env.handle = Handle()
    env.handle.x = 3
    state = capture(env)
    env.handle.x = 4
    restore(env, state)
    assert env.handle.x == 3
    env.handle.x = iter(())
    with pytest.raises(StateNotSavable, match=r"env\.handle\.x is a builtins\.tuple_iterator"):
        capture(env)


@pytest.mark.parametrize(
    "value",
    [
        type("Tagged", (dict,), {})(),
        np.ma.array([1.0]),
        np.zeros(2, [("a", int)]),
        np.datetime64("2020"),
        {object(): 1},
        type("Pair", (tuple,), {"__slots__": ()})((1, 2)),
        np.random.Generator(type("Odd", (np.random.PCG64,), {})()),
        random.SystemRandom(),
        threading.Event(),
        mujoco.MjData(
            mujoco.MjModel.from_xml_string('<mujoco><option><flag sleep="enable"/></option><worldbody/></mujoco>')
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_half_readable_things_are_refused(value):
    if isinstance(value, dict) and not value:
        value.tag = 1
    with pytest.raises(StateNotSavable, match=r"^(a key in )?env\.value"):
        capture(holder(value=value))


def test_a_log_file_is_left_alone(tmp_path):
    with (tmp_path / "log").open("w") as file:
        env, _ = Monitor(Pixels(), filename=str(tmp_path / "monitor")), None
        env.file = file
        state = capture(env)
        restore(env, state)
        assert env.file is file
        assert env.results_writer is not None
        env.close()


class Asked:
    """Knows its own state, part of which Python cannot see."""

    def __init__(self):
        self.lock = threading.Lock()
        self.values = np.arange(3.0)

    def state(self):
        return {"values": self.values, "nested": [(1, None)]}

    def load_state(self, state):
        self.values = state["values"]


def test_a_class_with_state_and_load_state_is_asked():
    env = holder(sim=Asked())
    state = capture(env)
    env.sim.values += 1
    restore(env, state)
    assert same(env.sim.values, np.arange(3.0))
    env.sim.values += 1  # must not reach the state
    restore(env, state)
    assert same(env.sim.values, np.arange(3.0))


def test_what_state_returns_must_be_plain():
    env = holder(sim=Asked())
    env.sim.values = {1, 2}
    with pytest.raises(StateNotSavable, match=r"env\.sim\.state\(\)\['values'\] is a builtins\.set"):
        capture(env)


def test_a_forwarded_state_method_is_not_taken_for_the_wrappers_own():
    class Saved(DummyVecEnv):
        def state(self):
            return {"age": self.envs[0].unwrapped.age}

        def load_state(self, state):
            self.envs[0].unwrapped.age = state["age"]

    venv = VecNormalize(Saved([Pixels]), norm_obs=False)
    reset_vec(venv)
    venv.step(np.ones(1, int))
    state, variance = capture(venv), venv.ret_rms.var.copy()
    play(venv, [np.ones(1, int)] * 5)
    restore(venv, state)
    assert same(venv.ret_rms.var, variance)
    assert venv.envs[0].unwrapped.age == 1


STREAMS = {
    "PCG64": (lambda: np.random.default_rng(7), lambda rng: rng.standard_normal(3)),
    "MT19937": (lambda: np.random.Generator(np.random.MT19937(7)), lambda rng: rng.standard_normal(3)),
    "Philox": (lambda: np.random.Generator(np.random.Philox(7)), lambda rng: rng.integers(9, size=3, dtype=np.int32)),
    "SFC64": (lambda: np.random.Generator(np.random.SFC64(7)), lambda rng: rng.random(3)),
    "spawn": (lambda: np.random.default_rng(7), lambda rng: rng.spawn(1)[0].random(3)),
    "RandomState": (lambda: np.random.RandomState(7), lambda rng: rng.standard_normal(3)),
    "Random": (lambda: random.Random(7), lambda rng: rng.gauss(0, 1)),
    "torch": (lambda: torch.Generator().manual_seed(7), lambda rng: torch.rand(3, generator=rng)),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_random_streams_go_on_in_place_and_where_there_was_none(name, elsewhere):
    make, draw = STREAMS[name]
    env = holder(rng=make())
    draw(env.rng)
    state = capture(env)
    assert_plain(state)
    expected, before = [draw(env.rng) for _ in range(3)], env.rng
    env = holder(rng=np.random.Generator(np.random.PCG64DXSM())) if elsewhere else env
    restore(env, state)
    assert (env.rng is before) is not elsewhere
    assert same([draw(env.rng) for _ in range(3)], expected)


def test_shared_objects_stay_shared_and_separate_ones_separate():
    one = np.zeros(2)
    env = holder(a=one, b=one, c=[one], d={"k": [1]})
    env.self = env
    state = capture(env)
    apart = holder(a=np.ones(2), b=np.ones(2), c=[], d={}, self=None)
    restore(apart, state)
    assert apart.a is apart.b
    assert apart.c[0] is apart.a
    assert apart.self is apart

    first, second = np.random.default_rng(1), np.random.default_rng(2)
    state = capture(holder(a=np.zeros(2), b=np.ones(2), c=[1], d=[2], e=first, f=second, g=deque([random], 3)))
    both, rng = [3], np.random.default_rng(3)
    joined = holder(a=one, b=one, c=both, d=both, e=rng, f=rng, g=deque([random], 5))
    restore(joined, state)
    assert same([joined.a, joined.b, joined.c, joined.d], [np.zeros(2), np.ones(2), [1], [2]])
    assert same([joined.e.random(), joined.f.random()], [first.random(), second.random()])
    assert joined.g == deque([random])
    assert joined.g.maxlen == 3


def test_what_the_caller_holds_is_not_overwritten():
    env = gym.make("Pendulum-v1")  # its checker keeps the first observation and info
    env.reset(seed=3)
    state = capture(env)
    answer = env.step(np.ones(1, np.float32))
    kept = copy.deepcopy(answer)
    restore(env, state)
    assert same(answer, kept)
    assert same(env.step(np.ones(1, np.float32)), answer)


def test_views_stay_views():
    def make(start):
        board = np.arange(start, start + 6.0).reshape(2, 3)
        buffer = np.zeros(3)
        return holder(row=board[0], corner=board[:1, :2], board=board, buffer=buffer, tensor=torch.from_numpy(buffer))

    env, used = make(0), make(9)
    state = capture(env)
    assert_plain(state)
    restore(used, state)
    assert same(used.board, np.arange(6.0).reshape(2, 3))
    used.board[0, 0], used.buffer[0] = 7, 8
    assert used.row[0] == used.corner[0, 0] == 7
    assert used.tensor[0] == 8
    with pytest.raises(
        ValueError, match=r"^env\.row was saved from a view .* nothing to write into.*reset\(\) and step\(\)"
    ):
        restore(holder(), state)


def test_arrays_in_foreign_memory_are_written_into():
    env = gym.make("Reacher-v5").unwrapped
    env.reset(seed=3)
    env.view, env.copy = env.data.qpos, env.data.qpos.copy()
    state, start = capture(env), env.copy.copy()
    env.step(np.ones(2, np.float32))
    env.copy = env.data.qvel  # a view, where the state has a copy
    restore(env, state)
    assert env.view is env.data.qpos
    assert same([env.view, env.copy], [start, start])
    assert not np.shares_memory(env.copy, env.data.qvel)
    with pytest.raises(ValueError, match=r"^env\.view was saved from a view of memory that others use"):
        restore(gym.make("Reacher-v5").unwrapped, state)


def test_an_environment_that_draws_replays():
    def make():
        return gym.make("CartPole-v1", render_mode="rgb_array", max_episode_steps=20)

    def prepare(env):
        env.reset(seed=3)
        env.render()

    assert_replays(make, sample(make().action_space, 87), prepare=prepare)


def test_attributes_made_after_the_capture_go_and_renderers_stay():
    env = gym.make("Reacher-v5").unwrapped
    env.screen = None
    state = capture(env)
    env.reset(seed=3)
    renderer = env.screen = env.mujoco_renderer
    env.late, env.drawing = 1, np.sin
    assert env._np_random is not None
    restore(env, state)
    assert env.screen is renderer
    assert env.drawing is np.sin
    assert not hasattr(env, "late")
    assert "_np_random" not in vars(env) or env._np_random is None


def local_classes():
    """Values of classes that cannot be found by name."""

    class Local(NamedTuple):
        x: int

    class Feeling(enum.Enum):
        GOOD = 1

    return Local([1]), Feeling.GOOD  # not a tuple of leaves, which would stand for itself


@pytest.mark.parametrize(
    ("saved", "live", "message"),
    [
        (lambda: dummy("CartPole-v1", 2), lambda: dummy("CartPole-v1", 3), r"env\.envs was saved with 2 elements"),
        (lambda: single("Hopper-v5"), lambda: single("Swimmer-v5"), r"env(\.env){4} was saved from a HopperEnv"),
        (lambda: holder(sim=Slotted()), lambda: holder(sim=None), r"env\.sim was saved from a Slotted.*reset\(\)"),
        (lambda: holder(sim=Slotted()), holder, r"env\.sim was saved from a Slotted, but there is nothing"),
        (lambda: holder(sim=Asked()), lambda: holder(sim=3), r"env\.sim was saved from a Asked.*builtins\.int"),
        (lambda: holder(call=(np.sin, 1)), lambda: holder(call=None), r"env\.call\[0\] was saved from a part"),
        (lambda: [1], lambda: {}, r"env is a builtins\.dict"),
        (lambda: holder(log=defaultdict(set().copy)), lambda: holder(log={}), r"env\.log was saved from a defaultdict"),
        (
            lambda: holder(place=local_classes()[0]),
            holder,
            r"env\.place was saved from a .*Local, but there is nothing",
        ),
        (
            lambda: holder(mood=local_classes()[1]),
            holder,
            r"env\.mood was saved from a .*Feeling, but there is nothing",
        ),
    ],
    ids=range(10),
)
def test_a_state_that_does_not_fit_is_refused_with_its_path(saved, live, message):
    state = capture(saved())
    with pytest.raises(ValueError, match=f"^{message}"):
        restore(live(), state)


def test_slots_cannot_take_a_new_attribute():
    state = capture(holder(sim=Slotted()))
    state["attributes"]["sim"]["attributes"]["extra"] = 1
    with pytest.raises(ValueError, match=r"^env\.sim\.extra was saved from a builtins\.int, but there is nothing"):
        restore(holder(sim=Slotted()), state)


def test_a_mujoco_state_of_another_size_is_refused():
    hopper, walker = (gym.make(env_id).unwrapped for env_id in ("Hopper-v5", "Walker2d-v5"))
    with pytest.raises(ValueError, match=r"^env\.data\.model was saved from another MuJoCo model"):
        restore(holder(data=hopper.data), capture(holder(data=walker.data)))
    state = capture(holder(data=hopper.data))
    derived = state["attributes"]["data"]["derived"]
    derived["xpos"] = derived["xpos"][1:]
    with pytest.raises(ValueError, match=r"^env\.data\.xpos was saved with shape"):
        restore(holder(data=hopper.data), state)


@pytest.mark.parametrize("kind", ["made up", None, "check"])
def test_a_state_of_unknown_kind_is_refused(kind):
    with pytest.raises(ValueError, match=r"^env: a state of kind"):
        restore(holder(), {"kind": kind})


PCG64_OF_0 = {
    "bits": {
        "bit_generator": "PCG64",
        "state": {"state": 35399562948360463058890781895381311971, "inc": 87136372517582989555478159403783844777},
        "has_uint32": 0,
        "uinteger": 0,
    },
    "seeds": {"entropy": 0, "spawn_key": (), "pool_size": 4, "n_children_spawned": 0},
}


def in_lists(node, depth):
    for _ in range(depth):
        node = {"kind": "list", "type": "list", "items": [node]}
    return node


FORMAT = {
    "kind": "object",
    "module": "types",
    "type": "SimpleNamespace",
    "attributes": {
        "deep": in_lists({"kind": "far", "number": 0}, 7),
        "queue": {"kind": "list", "type": "deque", "maxlen": 3, "items": [1]},
        "again": {"kind": "shared", "path": "env.queue"},
        "place": {"kind": "tuple", "type": "Place", "module": __name__, "items": [1.0, 2.0]},
        "mood": {"kind": "enum", "module": __name__, "type": "Mood", "member": "CROSS"},
        "names": {"kind": "array", "dtype": "<U2", "shape": [2], "scalar": False, "items": ["a", "bc"]},
        "table": {"kind": "dict", "type": "dict", "items": [[(0, 1), {"kind": "set", "type": "set", "items": [2]}]]},
        "span": {"kind": "arguments", "type": "slice", "items": [0, 2, None]},
        "rng": {"kind": "stream", "library": "numpy", "source": "PCG64", "state": PCG64_OF_0},
        "board": {"kind": "memory", "array": np.array([0.0, 1.0])},
        "row": {"kind": "memory", "array": np.array([1.0])},
        "call": {"kind": "method", "of": {"kind": "shared", "path": "env.queue"}, "name": "append"},
        "half": {"kind": "partial", "keywords": [], "items": [{"kind": "code", "module": "math", "type": "pow"}, 2.0]},
        "space": {"kind": "space", "type": "Discrete", "streams": [None]},
        "library": {"kind": "skipped"},
    },
    "far": [{**in_lists(7, 3), "path": "env.deep" + "[0]" * 7}],
}
"""Nodes as files have held them from the first: what is written here must be read for good."""


def of_that_format(one, two, seven):
    board, queue, deep = np.array([0.0, one]), deque([one], 3), [seven]
    for _ in range(9):
        deep = [deep]
    return holder(
        **{"deep": deep, "queue": queue, "again": queue, "place": Place(float(one), float(two)), "mood": Mood.CROSS},
        **{"names": np.array(["a", "bc"]), "table": {(0, 1): {two}}, "span": slice(0, two)},
        **{"rng": np.random.default_rng(0), "board": board, "row": board[1:], "call": queue.append},
        **{"half": functools.partial(math.pow, float(two)), "space": gym.spaces.Discrete(2), "library": np},
    )


def test_the_format_of_states_stays():
    env, other = of_that_format(1, 2, 7), of_that_format(3, 4, 9)
    assert same(capture(env), FORMAT)
    other.rng.random()
    restore(other, FORMAT)
    assert same(capture(other), FORMAT)
    other.call(8)
    assert other.again is other.queue == deque([1, 8], 3)
    other.row += 4
    assert other.board[1] == 5
    assert other.rng.random() == env.rng.random()
    assert other.half(3) == 8


@pytest.mark.parametrize("number", [0, 1, -1, "0", None])
def test_what_is_far_is_written_once(number):
    """One that holds itself has no end, and a file can say so."""
    far = in_lists({"kind": "far", "number": number}, 1)
    with pytest.raises(ValueError, match=r"^the state cannot be written into types\.SimpleNamespace \(KeyError"):
        restore(holder(deep=[]), {**FORMAT, "attributes": {"deep": {"kind": "far", "number": 0}}, "far": [far]})


def test_snapshot_is_reachable_through_wrappers_and_in_the_spec():
    env = Monitor(Snapshot(gym.make("Pendulum-v1")))
    env.reset(seed=3)
    state = env.get_wrapper_attr("state")()
    first = env.step(np.ones(1, np.float32))
    env.get_wrapper_attr("load_state")(state)
    assert same(env.step(np.ones(1, np.float32)), first)
    assert env.env.spec.additional_wrappers[-1].name == "Snapshot"
    assert isinstance(gym.make(env.env.spec), Snapshot)


scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers()),
    *(hnp.from_dtype(np.dtype("f4")), st.slices(9), st.integers(0, 9).map(range), st.just(Path("a", "b"))),
)
keys = st.one_of(st.integers(), st.text(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
arrays = hnp.arrays(
    st.sampled_from(["f4", "f8", "i8", "u1", "?", "c16", "U3"]), hnp.array_shapes(min_dims=0, min_side=0)
)
data = st.recursive(
    st.one_of(scalars, arrays),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(keys, inner),
        st.sets(keys),
        st.frozensets(keys),
        st.lists(inner).map(lambda items: deque(items, maxlen=9)),
        st.dictionaries(keys, inner).map(OrderedDict),
    ),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True)
@given(value=data, other=data)
def test_plain_data_makes_the_round_trip_over_anything(value, other):
    state = capture(holder(value=value))
    assert_plain(state)
    env = holder(value=other)
    restore(env, state)
    assert same(env.value, value)
