"""Ends of episodes, told from observations, against the simulators that decide them."""

import math
from collections.abc import Callable

import gymnasium as gym
import pytest
import torch
from headway.envs.terminations import (
    TERMINATIONS,
    base_name,
    check_termination,
    find_termination,
    inverted_double_pendulum,
    register_termination,
)
from torch import Tensor

SLIM = {"Ant-v5": {"include_cfrc_ext_in_observation": False}}
SLIM["Humanoid-v5"] = dict.fromkeys(
    (f"include_{part}_in_observation" for part in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")), False
)


def tip(obs: Tensor) -> Tensor:
    first, second = (torch.atan2(obs[..., 1 + pole], obs[..., 3 + pole]) for pole in range(2))
    return 0.6 * (first.cos() + (first + second).cos())


def near(obs: Tensor) -> Tensor:
    return (tip(obs) - 1).abs() < 0.02


@pytest.mark.parametrize(
    ("env_id", "least", "most"),
    [
        ("Hopper-v5", 0.1, 0.9),
        ("Walker2d-v5", 0.1, 0.9),
        ("InvertedPendulum-v5", 0.2, 0.9),
        ("InvertedDoublePendulum-v5", 0.2, 0.9),
        ("Humanoid-v5", 0.1, 0.9),
        ("HalfCheetah-v5", 0, 0),
        ("Swimmer-v5", 0, 0),
        ("Reacher-v5", 0, 0),
        ("headway/Trap-v0", 0, 0),
    ],
)
def test_they_agree_with_the_simulators(env_id: str, least: float, most: float) -> None:
    leave_out = near if "Double" in env_id else None
    report = check_termination(env_id, steps=400, leave_out=leave_out)
    assert report.mismatches == 0, str(report)
    assert least <= report.ended / report.rows <= most
    assert "no mismatch" in str(report)


@pytest.mark.parametrize("env_id", SLIM)
def test_they_agree_where_less_is_observed(env_id: str) -> None:
    with gym.make(env_id, **SLIM[env_id]) as env:
        assert check_termination(env, steps=300).mismatches == 0


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [*SLIM, "Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5"])
def test_they_agree_for_long(env_id: str) -> None:
    assert check_termination(env_id, steps=6000).mismatches == 0


def test_a_wrong_one_is_found_out() -> None:
    report = check_termination("Hopper-v5", lambda obs: obs[..., 0] < 1.0, steps=200)
    assert report.mismatches > 0
    assert "terminated is" in str(report)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "InvertedPendulum-v5"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_ends(env_id: str, bad: float) -> None:
    obs = torch.full((3, 2, 12), bad)
    assert find_termination(env_id)(obs).all()
    assert find_termination(env_id)(obs).shape == (3, 2)


def test_mountain_cars_and_pendulums() -> None:
    car = find_termination("MountainCarContinuous-v0")
    assert car(torch.tensor([[0.46, 0.0], [0.46, -0.01], [0.44, 0.05]])).tolist() == [True, False, False]
    upright = torch.tensor([0.0, 0, 0, 1, 1, 0, 0, 0, 0])
    assert not inverted_double_pendulum(upright)


def test_those_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.envs.terminations.TERMINATIONS", dict(TERMINATIONS))
    with pytest.raises(ValueError, match=r"when episodes of my/Hoper-v3 end .*did you mean Hopper") as error:
        find_termination("my/Hoper-v3")
    assert "register_termination" in str(error.value)
    function: Callable[[Tensor], Tensor] = lambda obs: obs[..., 0] > 0  # noqa: E731
    register_termination("my/Hoper-v3", function)
    assert find_termination("module:my/Hoper-v4") is function


def test_names() -> None:
    assert [base_name(name) for name in ("headway/Hopper-v5", "a.b:x/My-Env-v0", "Plain", "Odd-vx")] == [
        "Hopper",
        "My-Env",
        "Plain",
        "Odd-vx",
    ]
