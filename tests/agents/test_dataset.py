"""Recorded steps as flat tensors: what they must be, and what is said of those that are not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents.core.data import DatasetError, join
from toys import FORMS, MOVES, recorded


def test_flat_steps_and_episodes_fit_each_other() -> None:
    data = recorded(lengths=(1, 3))
    assert (len(data), data.episodes) == (4, 2)
    assert data.ends.tolist() == [0, 3]
    assert data.episode_of_step.tolist() == [0, 1, 1, 1]
    assert data.returns.tolist() == [data.rewards[0].item(), pytest.approx(data.rewards[1:].sum().item())]
    assert isinstance(data.obs, torch.Tensor)
    assert isinstance(data.final_obs, torch.Tensor)
    assert isinstance(data.next_obs, torch.Tensor)
    assert torch.equal(data.next_obs, torch.cat((data.final_obs[:1], data.obs[2:], data.final_obs[1:])))


def test_statistics_are_those_of_what_steps_started_from() -> None:
    data = recorded(form="dict", lengths=(2, 5))
    assert isinstance(data.obs, dict)
    mean, std = data.observation_statistics()
    assert isinstance(mean, dict)
    assert isinstance(std, dict)
    for key, part in data.obs.items():
        np.testing.assert_allclose(mean[key], np.mean(part.numpy(), 0, np.float64), rtol=1e-12)
        np.testing.assert_allclose(std[key], np.std(part.numpy(), 0, np.float64), rtol=1e-12)


def test_normalised_scores_name_what_is_missing() -> None:
    data = recorded(ref_min_score=-2.0, ref_max_score=2.0)
    assert data.normalised(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0, 50, 125]
    for low, high in ((None, 1.0), (1.0, None), (1.0, 1.0)):
        with pytest.raises(ValueError, match="two different ones are needed"):
            recorded(ref_min_score=low, ref_max_score=high).normalised(torch.zeros(1))


def test_joined_data_are_one_behind_the_other() -> None:
    one, other = recorded(form="dict", lengths=(2, 3)), recorded(form="dict", lengths=(4,), seed=1)
    both = join([one, other], name="both")
    assert both.name == "both"
    assert both.lengths.tolist() == [2, 3, 4]
    assert torch.equal(both.returns, torch.cat((one.returns, other.returns)))
    assert torch.equal(both.select([2]).actions, other.actions)
    assert join([one, recorded(form="dict", extras={})]).extras == {}
    with pytest.raises(ValueError, match="cannot be put together: one has the observation space Dict"):
        join([one, recorded()])


def spoilt(values: torch.Tensor, row: int, number: float = torch.nan) -> torch.Tensor:
    values = values.clone()
    values.flatten(1)[row, -1] = number
    return values


DATA = recorded(lengths=(2, 3))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no episodes": ({"lengths": torch.zeros(0, dtype=torch.int64)}, "it has no episodes"),
    "int32": ({"lengths": DATA.lengths.int()}, r"lengths must be \(E,\) int64, got \(2,\) int32"),
    "an empty episode": ({"lengths": torch.tensor([5, 0])}, "episode 1 has no steps"),
    "too short": ({"lengths": torch.tensor([2, 2])}, "its episodes have 4 steps in all, and there are 5 rewards"),
    "NaN": ({"obs": spoilt(DATA.obs, 3)}, "obs are not finite at episode 1, step 1"),
    "infinite": (
        {"final_obs": spoilt(DATA.final_obs, 1, torch.inf)},
        "final_obs are .* at the end of episode 1",
    ),
    "no final": ({"final_obs": DATA.final_obs[:1]}, r"final_obs: expected \(2, 1\) float32, got \(1, 1\) float32"),
    "another shape": ({"actions": DATA.actions.repeat(1, 2)}, r"actions: expected \(5, 1\) float32, got \(5, 2\)"),
    "whole numbers": ({"actions": DATA.actions.long()}, r"actions: expected \(5, 1\) float32, got \(5, 1\) int64"),
    "float32": ({"rewards": DATA.rewards.float()}, r"rewards: expected \(5,\) float64, got \(5,\) float32"),
    "flags": ({"terminated": torch.zeros(2)}, r"terminated: expected \(2,\) bool, got \(2,\) float32"),
    "a choice": (
        {"action_space": spaces.Discrete(3), "actions": torch.tensor([0, 1, 2, 3, 0])},
        r"actions are not in Discrete\(3\) at episode 1, step 1",
    ),
    "choices": (
        {"action_space": spaces.MultiDiscrete([2, 3], start=[1, 0]), "actions": torch.tensor([[1, 2]] * 4 + [[0, 0]])},
        "actions are not in MultiDiscrete.* at episode 1, step 2",
    ),
    "by key": ({"obs": {"x": DATA.obs}}, "obs: they must be those of Box.*, got by 'x'"),
    "no key": ({"observation_space": FORMS["dict"]}, "obs: they must be those of Dict.*, got Tensor"),
    "extras": ({"extras": {"policy_id": torch.zeros(4)}}, r"extras\['policy_id'\]: expected \(5, …\), got \(4,\)"),
}


@pytest.mark.parametrize("what", BAD)
def test_the_place_of_what_is_wrong_is_named(what: str) -> None:
    changes, message = BAD[what]
    with pytest.raises(DatasetError, match=f"^data set toys/recorded-v0: {message}"):
        replace(DATA, **changes)


def test_all_problems_are_kept() -> None:
    with pytest.raises(DatasetError, match=r"obs are not finite.*\(and 1 more") as caught:
        replace(DATA, obs=spoilt(DATA.obs, 0), final_obs=spoilt(DATA.final_obs, 0))
    assert [problem.split()[0] for problem in caught.value.problems] == ["obs", "final_obs"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("moves", MOVES)
def test_every_kind_of_space(form: str, moves: str) -> None:
    data = recorded(form=form, moves=moves, lengths=(1, 1, 4))  # episodes of one step are episodes
    assert data.select([2, 0]).lengths.tolist() == [4, 1]
