"""A copy is stepped beside the original: what is exact is called so, what is not is named."""

import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from headway.envs import make_batched
from headway.envs.mujoco import scale
from headway.wrappers import RandomDelay, Snapshot, as_batched, verify_snapshot
from headway.wrappers.random_delay import BatchedRandomDelay
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from tests import toys
from tests.toys import HIDING, Hiding, Point, vec

EXACT = [
    *("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"),
    *("FrozenLake-v1", "CliffWalking-v1"),
    *("Hopper-v5", "HalfCheetah-v5", "Reacher-v5", "headway/Ant-v5", "headway/Pusher-v5"),
]
BUILT = {
    "batch": lambda: make_batched("headway/Hopper-v5", 3),
    "randomised": lambda: make_batched("headway/Hopper-v5", 2, randomise={"body_mass": scale(0.8, 1.2)}),
    "delays": lambda: RandomDelay(gym.make("Pendulum-v1"), "uniform:0-3", "constant:1"),
    "delays of a batch": lambda: BatchedRandomDelay(
        make_batched("headway/Hopper-v5", 2), "uniform:0-2", "constant:1", terminal_delivery="immediate"
    ),
    "normalised and stacked": lambda: VecNormalize(VecFrameStack(vec(2), 3)),
    "sync": lambda: gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"),
    "written as a batch": lambda: gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes its log into the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("env", [*EXACT, *BUILT], ids=str)
def test_what_is_exact_is_called_so(env: str) -> None:
    report = verify_snapshot(BUILT.get(env, env))
    assert report.exact, report
    assert (report.stage, report.steps, report.problem) == ("exact", 20, "")
    assert "20 steps" in str(report)


@pytest.mark.parametrize("world", HIDING)
def test_what_python_can_see_is_exact(world: type[Hiding]) -> None:
    report = verify_snapshot(lambda: world(length=9), warmup=23)
    assert report.exact, report
    report = verify_snapshot(world(length=9), warmup=23)  # in place, beyond the state that was saved
    assert report.exact, report


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("LunarLanderContinuous-v3", "env.*SwigPyObject"),
        ("BipedalWalker-v3", "env.*SwigPyObject"),
        ("CarRacing-v3", "env.*SwigPyObject"),
    ],
)
def test_what_lies_in_a_library_is_named(env_id: str, said: str) -> None:
    pytest.importorskip("Box2D")
    report = verify_snapshot(env_id, steps=2, warmup=2)
    assert report.stage == "save"
    assert not report.exact
    assert re.search(said, report.problem)


@pytest.mark.parametrize(
    "env_id",
    ["gymnasium_robotics:AdroitHandDoor-v1", "gymnasium_robotics:PointMaze_UMaze-v3", "highway_env:parking-v0"],
)
def test_foreign_environments_are_exact(env_id: str) -> None:
    pytest.importorskip(env_id.partition(":")[0])
    report = verify_snapshot(env_id)
    assert report.exact, report


class InItsClass(Hiding):
    """Counts in a class attribute, which all objects of it share."""

    count = 0

    def _extra(self) -> float:
        type(self).count += 1
        return float(self.count)


HOW_OFTEN = [0]


class InItsModule(Hiding):
    """Counts in its module."""

    def _extra(self) -> float:
        HOW_OFTEN[0] += 1
        return float(HOW_OFTEN[0])


class Unseen(Hiding):
    """Drifts apart without showing it, in what its copy is not told."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 0

    def _extra(self) -> float:
        HOW_OFTEN[0] += 1
        self.hidden = HOW_OFTEN[0]
        return 0.0


class Forgets(Hiding):
    """Says of its engine less than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()

    def _extra(self) -> float:
        self.engine.speed += 1
        return float(self.engine.speed)


class Engine:
    speed = 0

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Do nothing with it."""


@pytest.mark.parametrize(
    ("world", "said"),
    [
        (InItsClass, "step 1 of a copy differs in rewards.*state elsewhere: in a class, in a module"),
        (InItsModule, "step 1 of a copy differs in rewards.*state elsewhere"),
        (Forgets, "step 1 of a copy differs in rewards.*state elsewhere"),
        (Unseen, r"after 20 steps of a copy these differ, though nothing was observed of it: env\.envs\[0\].*hidden"),
    ],
)
def test_what_is_not_exact_is_named(world: type[Hiding], said: str) -> None:
    report = verify_snapshot(world)
    assert report.stage == "replay"
    assert not report.exact
    assert re.search(said, report.problem), report


class Refuses(Hiding):
    """Cannot be put back."""

    def state(self) -> dict[str, Any]:
        return {"x": self.x}

    def load_state(self, state: dict[str, Any]) -> None:
        raise KeyError("gone")


def test_what_cannot_be_put_back_is_named() -> None:
    report = verify_snapshot(Refuses)
    assert report.stage == "restore"
    assert "(KeyError: 'gone')" in report.problem
    assert "restarts its episode" in str(report)


def test_it_starts_from_a_state_that_is_given() -> None:
    batched = as_batched(DummyVecEnv([lambda: Snapshot(toys.Grows(length=1000))]))
    batched.reset(seed=0)
    for _ in range(50):
        batched.step(torch.zeros(1, 1))
    seen = []

    def make() -> Any:
        seen.append(toys.Grows(length=1000))
        return DummyVecEnv([lambda: Snapshot(seen[-1])])

    assert verify_snapshot(make, steps=3, state=batched.state()).exact
    assert [len(one.trail) for one in seen] == [53, 53]
    assert verify_snapshot(lambda: vec(1), state=batched.state()).stage == "restore"


def test_global_streams_count_and_are_left_alone() -> None:
    class Global(Hiding):
        def _extra(self) -> float:
            return np.random.rand() + random.random() + torch.rand(()).item()  # noqa: NPY002

    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)
    expected = [np.random.rand(), random.random(), torch.rand(()).item()]  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)
    assert verify_snapshot(Global).exact
    assert [np.random.rand(), random.random(), torch.rand(()).item()] == expected  # noqa: NPY002


@pytest.mark.parametrize(("steps", "warmup"), [(0, 1), (1, -1)])
def test_numbers_of_steps_are_checked(steps: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps} and warmup {warmup}"):
        verify_snapshot("CartPole-v1", steps, warmup=warmup)


def test_its_environments_are_closed_and_a_given_one_is_left_reset() -> None:
    closed = SimpleNamespace(count=0)

    class Closes(Point):
        def close(self) -> None:
            closed.count += 1

    assert verify_snapshot(Closes).exact
    assert closed.count == 2
    env = Closes()
    assert verify_snapshot(env).exact
    assert (closed.count, env.t) == (2, 0)
