"""No environment ends a run: what cannot be copied is told once, what was written is put back or begun again."""

import ctypes
import string
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from headway.agents import PPO, SAC, TD3
from headway.agents.core.files import list_checkpoints, read_archive, write_archive
from headway.wrappers import Snapshot
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from tests import toys
from tests.toys import HIDING, Ball, Hiding, Point, vec

SMALL: dict[str, Any] = {"seed": 0, "learning_starts": 999, "buffer_size": 200, "device": "cpu", "net_arch": (4,)}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("headway")]


def experience(agent: Any) -> dict[str, torch.Tensor]:
    return {name: part for name, part in agent.store.state().items() if isinstance(part, torch.Tensor)}


# -- resumed exactly -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", HIDING)
def test_state_in_odd_places_is_resumed_exactly(
    world: type[Hiding], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = SAC("MlpPolicy", world(length=6), **SMALL)
    agent.learn(15)
    agent.save_checkpoint(tmp_path)
    again = SAC.resume(tmp_path, world(length=6), device="cpu")
    for one in (agent, again):
        one.learn(15, reset_num_timesteps=False)
    first, second = experience(agent), experience(again)
    assert all(torch.equal(part, second[name]) for name, part in first.items())
    assert told(caplog) == []


def randomised(seed: int | None = None) -> gym.Env[Any, Any]:
    """Hopper on other legs, friction, gravity and a motor in each episode."""

    class Randomised(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, **kwargs: Any) -> Any:
            shown = self.env.reset(**kwargs)
            model, draw = self.unwrapped.model, self.unwrapped.np_random  # type: ignore[attr-defined]
            model.body_mass[:] *= draw.uniform(0.9, 1.1)
            model.geom_friction[:, 0] = draw.uniform(0.5, 2)
            model.opt.gravity[2] = -draw.uniform(8, 11)
            model.opt.timestep = 0.002 * draw.uniform(0.9, 1)
            model.actuator_gear[:, 0] *= draw.uniform(0.9, 1.1)
            return shown

    return Randomised(gym.make("Hopper-v5", max_episode_steps=12))


def test_a_model_that_was_edited_in_a_reset_is_resumed_exactly(tmp_path: Path) -> None:
    agent = TD3("MlpPolicy", randomised(), **SMALL)
    agent.learn(20)
    agent.save_checkpoint(tmp_path)
    again = TD3.resume(tmp_path, randomised(), device="cpu")
    for one in (agent, again):
        one.learn(30, reset_num_timesteps=False)
    first, second = experience(agent), experience(again)
    assert all(torch.equal(part, second[name]) for name, part in first.items())


def test_meshes_and_pictures_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    agent = SAC("MlpPolicy", gym.make("Ant-v5"), **SMALL)
    agent.learn(3)
    agent.save_checkpoint(tmp_path)
    other = gym.make("Ant-v5")
    other.unwrapped.model.tex_data[:9] += 1  # type: ignore[attr-defined]
    SAC.resume(tmp_path, other, device="cpu")
    assert "other meshes, textures or skins" in told(caplog)[0]


# -- what cannot be copied -------------------------------------------------------------------------------------------


class Raises:
    """Its state is a mistake."""

    def state(self) -> Any:
        raise ZeroDivisionError("by zero")

    def load_state(self, state: Any) -> None:
        """Nothing."""


class Pretends:
    """Whoever asks what it is gets no answer."""

    @property
    def __class__(self) -> Any:
        raise AttributeError("no class")


def dead_proxy() -> Any:
    return weakref.proxy(set())


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


def deep_tuple(levels: int) -> tuple[Any, ...]:
    nested: tuple[Any, ...] = ()
    for _ in range(levels):
        nested = (nested, [])
    return nested


ODDITIES: dict[str, Callable[[], Any]] = {
    "longdouble": lambda: np.longdouble(1),
    "array of longdouble": lambda: np.zeros(2, np.longdouble),
    "array of clongdouble": lambda: np.zeros(2, np.clongdouble),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "sparse rows": lambda: torch.eye(2).to_sparse_csr(),
    "tensor without memory": lambda: torch.zeros(2, device="meta"),
    "quantised tensor": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    "dead proxy": dead_proxy,
    "proxy in a list": lambda: [dead_proxy()],
    "ctypes array": lambda: (ctypes.c_float * 3)(),
    "NumPy array of ctypes": lambda: np.ctypeslib.as_array((ctypes.c_int * 3)()),
    "state that raises": Raises,
    "no class": Pretends,
    "lists in one another": lambda: deep(900),
    "tuples in one another": lambda: deep_tuple(900),
    "a long list of lists": lambda: [[i] for i in range(1500)],
    "huge integer": lambda: 10**5000,
    "lock": threading.Lock,
    "bytearray": lambda: bytearray(3),
    "memoryview": lambda: memoryview(b"abc"),
    "record": lambda: np.zeros(2, [("a", "f4")]),
    "void": lambda: np.void(b"abc"),
    "dates": lambda: np.array(["2020-01-01"], "datetime64[D]"),
    "lone surrogate": lambda: "\ud800",
    "weak dictionary": weakref.WeakValueDictionary,
    "property that raises": lambda: SimpleNamespace(a=Raises()),
    "half precision": lambda: torch.zeros(2, dtype=torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore:.*Sparse CSR|.*quantized tensor creation:UserWarning")
@pytest.mark.parametrize("thing", ODDITIES)
def test_odd_things_do_not_end_a_run(thing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    env = Point()
    env.thing = ODDITIES[thing]()  # type: ignore[attr-defined]
    agent = SAC("MlpPolicy", env, **SMALL)
    agent.learn(9)
    agent.save_checkpoint(tmp_path)
    agent.learn(2, reset_num_timesteps=False)
    agent.save_checkpoint(tmp_path)
    said = told(caplog)
    assert len(said) <= 1  # once, or not at all where it can be saved
    assert all(text.startswith("a resumed run will restart its episode: env.envs[0].env.thing") for text in said)
    again = Point()
    again.thing = ODDITIES[thing]()  # type: ignore[attr-defined]
    resumed = SAC.resume(tmp_path, again, device="cpu")
    resumed.learn(5, reset_num_timesteps=False)
    assert resumed.num_timesteps == 16


class BadBatch(Hiding):
    """Its state is no plain data, or too much of it."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def state(self) -> Any:
        return {"what": self.what}

    def load_state(self, state: Any) -> None:
        self.what = state["what"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({1: 2}, "which is not plain data"),
        ("a" * 9_000_000, "bytes of the 8,388,608 that a file has"),
        (deep(80), "nested over 64 deep"),
    ],
    ids=["integer keys", "too long", "too deep"],
)
def test_a_state_that_no_file_can_hold_is_left_out(
    what: Any, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = SAC("MlpPolicy", BadBatch(what), **SMALL)
    agent.learn(3)
    agent.save_checkpoint(tmp_path)
    (text,) = told(caplog)
    assert text.startswith("a resumed run will restart its episode")
    assert said in text
    assert len(text) < 1100


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_live_on_when_they_cannot_be_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def build() -> gym.Env[Any, Any]:
        env = Point()
        env.thing = threading.Lock()  # type: ignore[attr-defined]
        return Snapshot(Monitor(env))

    env = SubprocVecEnv([build, build], start_method="fork")
    agent = SAC("MlpPolicy", env, **SMALL)
    agent.learn(8)
    agent.save_checkpoint(tmp_path)
    agent.learn(8, reset_num_timesteps=False)
    assert "in worker 0: env.env.thing is a _thread.lock" in told(caplog)[0]
    again = SAC.resume(tmp_path, env, device="cpu")
    again.learn(4, reset_num_timesteps=False)
    assert again.num_timesteps == 12
    env.close()


# -- what cannot be put back -----------------------------------------------------------------------------------------


class MakesLocal(Hiding):
    """An object of a class that nobody can find."""

    def _extra(self) -> float:
        class Local(Ball):
            pass

        self.ball = Local(1.0)
        return 0.0


class MakesForeign(Hiding):
    """An object of another library's class, made in a step."""

    def _extra(self) -> float:
        self.other = string.Formatter()
        return 0.0


class Refuses(BadBatch):
    def load_state(self, state: Any) -> None:
        raise RuntimeError("not today\nnor tomorrow")


@pytest.mark.parametrize("world", [MakesLocal, MakesForeign, lambda: Refuses(1)])
@pytest.mark.parametrize("cls", [SAC, PPO])
def test_what_cannot_be_put_back_is_begun_again(
    cls: Any, world: Callable[[], Hiding], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = SMALL if cls is SAC else {"seed": 0, "device": "cpu", "n_steps": 8, "batch_size": 4}
    agent = cls("MlpPolicy", VecNormalize(DummyVecEnv([world])), **kwargs)
    agent.learn(11 if cls is SAC else 16)
    steps = agent.num_timesteps
    agent.save_checkpoint(tmp_path)
    again = cls.resume(tmp_path, VecNormalize(DummyVecEnv([world])), device="cpu")
    (said,) = told(caplog)
    assert said.startswith("the environment's state cannot be put back, and the episode it was saved in is restarted: ")
    assert "\n" not in said
    assert again.get_vec_normalize_env().obs_rms.count == agent.get_vec_normalize_env().obs_rms.count
    again.learn(8, reset_num_timesteps=False)
    assert again.num_timesteps == steps + 8


def test_another_environment_with_the_same_spaces_begins_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = SAC("MlpPolicy", Point(), **SMALL)
    agent.learn(9)
    agent.save_checkpoint(tmp_path)
    SAC.resume(tmp_path, toys.Grows(), device="cpu").learn(3, reset_num_timesteps=False)
    assert "was saved from a Point, but there is a tests.toys.Grows" in told(caplog)[0]


# -- what a file names -----------------------------------------------------------------------------------------------


class Dangerous:
    """Does something when it goes."""

    gone = 0

    def __del__(self) -> None:
        Dangerous.gone += 1


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("this", "Ball"),  # which a test must not import: it prints a poem
        ("tempfile", "_TemporaryFileCloser"),
        ("subprocess", "Popen"),
        ("gymnasium.wrappers", "RecordVideo"),
        (__name__, "Dangerous"),
        ("tests.toys", "Point"),
        ("tests.toys", "twice"),
        ("tests.toys", "HIDING"),
    ],
)
def test_a_file_makes_no_object_but_plain_ones_of_the_environments_own(
    module: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = SAC("MlpPolicy", toys.Grows(), **SMALL)
    agent.learn(3)
    path = agent.save_checkpoint(tmp_path)
    content = read_archive(path)
    text = repr(content.manifest["parts"])
    forged = text.replace("'module': 'tests.toys', 'type': 'Ball'", f"'module': {module!r}, 'type': {name!r}")
    assert forged != text
    manifest = content.manifest | {"parts": eval(forged)}  # of our own repr
    path.unlink()
    write_archive(path, manifest, content.members)
    import sys

    SAC.resume(tmp_path, toys.Grows(), device="cpu").learn(3, reset_num_timesteps=False)
    assert "cannot be put back" in told(caplog)[0]
    assert "this" not in sys.modules
    assert Dangerous.gone == 0


# -- whose a checkpoint is -------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_a_second_run_in_a_folder_is_the_one_that_is_resumed(tmp_path: Path) -> None:
    first = SAC("MlpPolicy", vec(), **SMALL)
    first.learn(30)
    first.save_checkpoint(tmp_path)
    second = SAC("MlpPolicy", vec(), **(SMALL | {"seed": 1}))
    second.learn(10)
    path = second.save_checkpoint(tmp_path, keep=1)
    assert path.name == "checkpoint-000000000010-run2.zip"
    assert names(tmp_path) == ["checkpoint-000000000010-run2.zip", "checkpoint-000000000030.zip"]
    again = SAC.resume(tmp_path, vec(), device="cpu")
    assert (again.num_timesteps, again.seed) == (10, 1)
    again.learn(5, reset_num_timesteps=False)
    again.save_checkpoint(tmp_path, keep=1)
    assert names(tmp_path) == ["checkpoint-000000000015-run2.zip", "checkpoint-000000000030.zip"]


def test_an_agent_that_begins_anew_is_another_run(tmp_path: Path) -> None:
    agent = SAC("MlpPolicy", vec(), **SMALL)
    agent.save_checkpoint(tmp_path)  # of nothing yet: the run is the first that comes
    agent.learn(40)
    agent.save_checkpoint(tmp_path, keep=1)
    agent.learn(20)
    assert agent.save_checkpoint(tmp_path, keep=1).exists()
    agent.learn(5, reset_num_timesteps=False)
    assert agent.save_checkpoint(tmp_path, keep=1).exists()
    assert names(tmp_path) == ["checkpoint-000000000025-run2.zip", "checkpoint-000000000040.zip"]
    assert SAC.resume(tmp_path, vec(), device="cpu").num_timesteps == 25


def test_a_loaded_policy_is_another_run(tmp_path: Path) -> None:
    agent = SAC("MlpPolicy", vec(), **SMALL)
    agent.learn(20)
    agent.save(tmp_path / "policy")
    agent.save_checkpoint(tmp_path)
    loaded = SAC.load(tmp_path / "policy", vec())
    loaded.learn(5, reset_num_timesteps=False)
    loaded.save_checkpoint(tmp_path)
    assert names(tmp_path) == ["checkpoint-000000000025-run2.zip", "checkpoint-000000000020.zip"]


def test_a_run_that_was_overtaken_branches_off(tmp_path: Path) -> None:
    agent = SAC("MlpPolicy", vec(), **SMALL)
    agent.learn(10)
    agent.save_checkpoint(tmp_path)
    branch = SAC.resume(tmp_path, vec(), device="cpu")
    agent.learn(20, reset_num_timesteps=False)
    agent.save_checkpoint(tmp_path)
    branch.learn(5, reset_num_timesteps=False)
    assert branch.save_checkpoint(tmp_path, keep=1).name == "checkpoint-000000000015-run2.zip"
    assert names(tmp_path)[1:] == ["checkpoint-000000000030.zip", "checkpoint-000000000010.zip"]


def test_a_broken_checkpoint_is_no_reason_to_go_on_with_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        agent = SAC("MlpPolicy", vec(), **(SMALL | {"seed": seed}))
        agent.learn(10)
        path = agent.save_checkpoint(tmp_path)
    agent.learn(5, reset_num_timesteps=False)
    newest = agent.save_checkpoint(tmp_path)
    newest.write_bytes(b"broken")
    assert SAC.resume(tmp_path, vec(), device="cpu").seed == 1
    path.write_bytes(b"broken")
    with pytest.raises(FileNotFoundError, match="none of the 2 checkpoints can be read"):
        SAC.resume(tmp_path, vec(), device="cpu")
