"""Making environments from ids, and what is said about each way of getting an id wrong."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium import error
from headway.envs import is_batched, make, make_batched, register_mujoco_task, supports_rgb
from headway.envs.mujoco.tasks import TASKS, Reacher

MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

class Blind(PendulumEnv):
    metadata = {"render_modes": []}

gym.register("Elsewhere-v0", entry_point=PendulumEnv, max_episode_steps=5)
gym.register("ElsewhereBlind-v0", entry_point=Blind)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write importable modules; what they registered is forgotten afterwards."""
    registered, loaded = dict(gym.registry), set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str = MODULE) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - loaded:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]
    gym.registry.clear()
    gym.registry.update(registered)


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Register environments for one test."""
    made: list[str] = []

    def add(entry_point: Any) -> str:
        made.append(f"ForOneTest{len(made)}-v0")
        gym.register(made[-1], entry_point=entry_point)
        return made[-1]

    yield add
    for env_id in made:
        del gym.registry[env_id]


def complaint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(ValueError, match=r"^.{1,400}$") as caught:
        function(*args, **kwargs)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_an_id_alone() -> None:
    env = make("Pendulum-v1", g=3.5)
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps, env.render_mode) == ("Pendulum-v1", 200, None)
    assert env.unwrapped.g == 3.5  # type: ignore[attr-defined]
    assert make("Pendulum-v1", render_mode="rgb_array").render_mode == "rgb_array"


def test_an_id_in_a_module(module: Callable[..., str]) -> None:
    name = module("elsewhere_ok")
    assert "Elsewhere-v0" not in gym.registry
    env = make(f"{name}:Elsewhere-v0", g=2.0)
    assert name in sys.modules
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps) == ("Elsewhere-v0", 5)
    assert make("Elsewhere-v0").spec.id == "Elsewhere-v0"  # type: ignore[union-attr]


def test_an_id_in_a_module_of_a_package(module: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere_package").mkdir()
    (tmp_path / "elsewhere_package" / "tasks.py").write_text(MODULE)
    assert make("elsewhere_package.tasks:Elsewhere-v0").spec.id == "Elsewhere-v0"  # type: ignore[union-attr]
    del sys.modules["elsewhere_package.tasks"], sys.modules["elsewhere_package"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("Pendulm-v1", "Pendulum-v1"),
        ("Pendulum-v99", "Pendulum-v1"),
        ("pendulum-v1", "Pendulum-v1"),
        ("PENDULUM-v1", "Pendulum-v1"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
    ],
)
def test_an_unknown_id_names_the_nearest(wrong: str, named: str) -> None:
    assert complaint(make, wrong).startswith(f"there is no environment {wrong!r}: did you mean ")
    assert named in complaint(make, wrong)


@pytest.mark.parametrize("wrong", ["Qwqwqwqwqwqw-v0", "nowhere/Qwqwqwqwqwqw-v0"])
def test_an_id_near_to_none_points_to_the_list(wrong: str) -> None:
    assert complaint(make, wrong) == f"there is no environment {wrong!r}: `headway envs` lists what is registered"


def test_an_unknown_id_in_a_module_names_what_the_module_registered(module: Callable[..., str]) -> None:
    name = module("elsewhere_near")
    message = complaint(make, f"{name}:Elsewere-v0")
    assert message.startswith(f"there is no environment '{name}:Elsewere-v0': did you mean Elsewhere-v0")


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize(
    ("wrong", "why"), [("", "Malformed"), ("Pendulum v1", "Malformed"), ("Pendulum-v0", "use `Pendulum-v1`")]
)
def test_ids_that_gymnasium_itself_refuses(wrong: str, why: str) -> None:
    message = complaint(make, wrong)
    assert message.startswith(f"environment {wrong!r} cannot be made: ")
    assert why in message


@pytest.mark.parametrize("function", [make, supports_rgb, is_batched, make_batched])
def test_modules_that_are_missing_or_broken(function: Callable[..., Any], module: Callable[..., str]) -> None:
    assert complaint(function, "elsewhere_none:A-v0") == (
        "environment 'elsewhere_none:A-v0': there is no module 'elsewhere_none': "
        "install it, or run from the folder that holds it with PYTHONPATH=."
    )
    needy = module("elsewhere_needy", "import elsewhere_needed")
    assert "there is no module 'elsewhere_needed': install it" in complaint(function, f"{needy}:A-v0")
    for text, why in {
        "from gymnasium import elsewhere": "ImportError: cannot import name 'elsewhere'",
        "def (": "SyntaxError: invalid syntax",
        "raise RuntimeError('no\\nluck')": "RuntimeError: no luck",
        "import sys; sys.exit('bye')": "SystemExit: bye",
    }.items():
        broken = module("elsewhere_broken", text)
        message = complaint(function, f"{broken}:A-v0")
        assert message.startswith(
            f"environment 'elsewhere_broken:A-v0': module 'elsewhere_broken' cannot be imported: {why}"
        )
    assert "cannot be imported: TypeError" in complaint(function, ".relative:A-v0")


def test_packages_that_are_missing(register: Callable[..., str]) -> None:
    def needs_gymnasium_extra(**_: Any) -> Any:
        raise error.DependencyNotInstalled("Box is not\ninstalled, run `pip install box`")

    def needs_module(**_: Any) -> Any:
        import elsewhere_not_installed  # noqa: F401

    for entry_point, why in (
        (needs_gymnasium_extra, "Box is not installed, run `pip install box`"),
        (needs_module, "No module named 'elsewhere_not_installed'"),
        ("elsewhere_not_installed:Env", "No module named 'elsewhere_not_installed'"),
    ):
        env_id = register(entry_point)
        assert complaint(make, env_id) == f"environment {env_id!r} needs a package that is not installed: {why}"


def test_wrong_keywords(register: Callable[..., str]) -> None:
    message = complaint(make, "Pendulum-v1", gravity=3)
    assert message.startswith("environment 'Pendulum-v1' cannot be made: TypeError: ")
    assert "unexpected keyword argument 'gravity'" in message
    # A value that the environment itself refuses, in whatever way.
    assert "cannot be made: KeyError: 'no_such_map'" in complaint(make, "FrozenLake-v1", map_name="no_such_map")
    assert "cannot be made: TypeError" in complaint(make, register(lambda **_: object()))


def test_an_interrupt_is_no_complaint(register: Callable[..., str]) -> None:
    def interrupted(**_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(register(interrupted))


def test_supports_rgb(module: Callable[..., str], register: Callable[..., str]) -> None:
    assert supports_rgb("Pendulum-v1")
    assert supports_rgb("HalfCheetah-v5")
    assert not supports_rgb("Nowhere-v0")
    assert not supports_rgb("")
    name = module("elsewhere_rgb")
    assert supports_rgb(f"{name}:Elsewhere-v0")  # at the first time of asking: the module is imported for it
    assert not supports_rgb(f"{name}:ElsewhereBlind-v0")
    for entry_point in (lambda **_: None, "elsewhere_none:Env", "gymnasium.envs.classic_control:NoSuchEnv"):
        assert not supports_rgb(register(entry_point))


def test_what_supports_rgb_promises_holds() -> None:
    env = make("MountainCarContinuous-v0", render_mode="rgb_array")
    assert supports_rgb("MountainCarContinuous-v0")
    with warnings.catch_warnings():  # the drawing library's own
        warnings.simplefilter("ignore")
        env.reset(seed=0)
        frame: Any = env.render()
    assert frame.ndim == 3
    env.close()


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_registered(name: str) -> None:
    env_id = f"headway/{name}-v5"
    assert env_id in gym.registry
    assert is_batched(env_id)
    assert supports_rgb(env_id)
    assert not is_batched(f"{name}-v5")
    assert make_batched(env_id, 2).num_envs == 2


FRESH = """
import sys
import gymnasium
env = gymnasium.make("headway.envs:headway/Ant-v5")
assert env.reset(seed=0)[0].shape == (105,)
assert gymnasium.make_vec("headway.envs:headway/Ant-v5", num_envs=3).reset(seed=0)[0].shape == (3, 105)
assert sum(env_id.startswith("headway/") and env_id.endswith("-v5") for env_id in gymnasium.registry) == 11
assert not {"warp", "stable_baselines3"} & sys.modules.keys(), "imported by who only simulates"
"""


def test_tasks_are_registered_in_a_new_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH], cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError, match=r"^.{1,400}$") as caught:
        make_batched(*args, **kwargs)
    return str(caught.value)


def test_batches_that_cannot_be_made(register: Callable[..., str]) -> None:
    assert refusal("headway/Hoper-v5").startswith(
        "there is no environment 'headway/Hoper-v5': did you mean headway/Hopper-v5"
    )
    assert refusal("Qwqwqwqwqwqw-v0").endswith("`headway envs` lists what is registered")
    assert refusal("Hopper-v5").startswith("environment 'Hopper-v5' has no batched form: step several with headway.wr")
    with_another_vector_form = "CartPole-v1"
    assert gym.spec(with_another_vector_form).vector_entry_point is not None
    assert "has no batched form" in refusal(with_another_vector_form)
    assert "has no batched form" in refusal(register(lambda **_: None))
    assert "TypeError: Hopper has no option 'num_thread': did you mean num_threads" in refusal(
        "headway/Hopper-v5", 2, num_thread=1
    )
    assert "num_envs is 0: a batch needs at least one row" in refusal("headway/Hopper-v5", 0)
    assert "rows take about" in refusal("headway/Hopper-v5", 10**10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_that_is_not_there() -> None:
    for refused in (make_batched, gym.make_vec, gym.make):
        with pytest.raises(ValueError, match=r"device is cuda.*: PyTorch finds no CUDA device"):
            refused("headway/Hopper-v5", device="cuda")  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Nudge(Reacher):
    """A task of this module."""

    frame_skip: int = 3


def test_register_mujoco_task(module: Callable[..., str]) -> None:
    register_mujoco_task("mine/Nudge-v0", Nudge)
    spec = gym.spec("mine/Nudge-v0")
    assert (spec.max_episode_steps, spec.reward_threshold) == (Reacher.max_episode_steps, Reacher.reward_threshold)
    assert make("mine/Nudge-v0").unwrapped.batch.task == Nudge()  # type: ignore[attr-defined]
    register_mujoco_task("Nudge-v3", Nudge, max_episode_steps=7, reward_threshold=1.0, frame_skip=9)
    spec = gym.spec("Nudge-v3")
    assert (spec.max_episode_steps, spec.reward_threshold) == (7, 1.0)
    batch: Any = make_batched("Nudge-v3", 2)
    assert (batch.task, batch.max_episode_steps) == (Nudge(frame_skip=9), 7)
    assert make_batched("Nudge-v3", 2, frame_skip=4, max_episode_steps=8).task == Nudge(frame_skip=4)  # type: ignore[attr-defined]

    @dataclass(frozen=True, kw_only=True)
    class Inner(Nudge):
        pass

    register_mujoco_task("Inner-v0", Inner)  # nobody can import it by name
    assert type(make("Inner-v0").unwrapped.batch.task) is Inner  # type: ignore[attr-defined]
    assert type(make_batched("Inner-v0").task) is Inner  # type: ignore[attr-defined]


def test_an_environment_that_fails_without_a_word_says_where(register: Callable[..., str]) -> None:
    def make_nothing() -> None:
        raise AssertionError

    with pytest.raises(ValueError, match=r"AssertionError in test_registration.py:\d+, raise AssertionError"):
        make(register(make_nothing))
