"""Making environments from ids, and what is said about each way of getting an id wrong."""

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import error
from headway.envs import make, supports_rgb

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


@pytest.mark.parametrize("wrong", ["Xyzzyx-v0", "nowhere/Xyzzyx-v0"])
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


@pytest.mark.parametrize("function", [make, supports_rgb])
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
