"""Imagined steps: who moves which row, what is kept of it, how long rollouts are."""

from typing import Any

import pytest
import torch
from headway.agents.mbpo import Dynamics
from headway.agents.mbpo.imagination import ImaginedStore, by_any_elite, by_own_member, rollout_length
from headway.envs.terminations import never
from support import same_tree
from torch import Tensor
from toys import planted

CPU = torch.device("cpu")


def rows(agents: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    obs, actions = (torch.randn(agents, count, 1, generator=generator) for _ in range(2))
    return obs, actions, torch.randn(agents, count, 2, generator=generator)


@pytest.mark.parametrize("target", ["delta", "absolute"])
def test_a_perfect_model_steps_as_the_environment_does(target: Any) -> None:
    obs, actions, noise = rows(2, 5)
    model = planted(0.25, 0.25, target=target)
    for _ in range(10):
        step = by_own_member(model, obs, actions, noise, lambda o: o[..., 0] > 1)
        expected = obs + 0.25 + 0.5 * actions
        torch.testing.assert_close(step.next_obs, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(step.rewards, 10 * obs[..., 0], atol=1e-4, rtol=1e-5)
        assert torch.equal(step.terminated, step.next_obs[..., 0] > 1)
        obs = step.next_obs


def test_swapped_columns_are_noticed() -> None:
    """The check above fails of a model that has learnt reward and change the wrong way round."""
    model, (obs, actions, noise) = planted(0.25, 0.25), rows(2, 5)
    with torch.no_grad():
        for part in (model.mlp.weights[0], model.mlp.biases[0]):
            part.copy_(part[..., [1, 0, 2, 3]])
    step = by_own_member(model, obs, actions, noise, never)
    assert float((step.next_obs - (obs + 0.25 + 0.5 * actions)).abs().max()) > 0.1


def test_an_agent_stays_with_its_member_and_mbpo_mixes() -> None:
    model, still = planted(1.0, -1.0), torch.zeros(4, 6, 1)
    obs = mixed = torch.zeros(4, 6, 1)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 5):
        noise = torch.randn(4, 6, 2, generator=generator)
        obs = by_own_member(model, obs, still, noise, never).next_obs
        torch.testing.assert_close(obs[:2], torch.full((2, 6, 1), float(step)), atol=1e-5, rtol=0)
        torch.testing.assert_close(obs[2:], torch.full((2, 6, 1), -float(step)), atol=1e-5, rtol=0)
        chosen = torch.randint(2, (4, 6), generator=generator)
        before = mixed
        mixed = by_any_elite(model, mixed, still, noise, never, chosen).next_obs
        torch.testing.assert_close(mixed - before, 1.0 - 2.0 * chosen.unsqueeze(2), atol=1e-5, rtol=0)
    assert len(mixed.round().unique()) > 2


def test_members_asked_for_their_rows_say_what_they_say_to_all() -> None:
    torch.manual_seed(0)
    model = Dynamics(3, 2, members=4, net_arch=(16, 16), prior_scale=1.0, scales_targets=True)
    obs, actions, noise = torch.randn(2, 9, 3), torch.randn(2, 9, 2), torch.randn(2, 9, 4)
    chosen = torch.randint(4, (2, 9))
    step = by_any_elite(model, obs, actions, noise, never, chosen)
    every = model.predict(obs.flatten(0, 1), actions.flatten(0, 1), noise.flatten(0, 1))
    rows, picked = torch.arange(18), chosen.flatten()
    torch.testing.assert_close(step.rewards.flatten(), every.rewards[picked, rows], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(step.next_obs.flatten(0, 1), every.next_obs[picked, rows], atol=1e-6, rtol=1e-5)


def filled(store: ImaginedStore, first: int, alive: Tensor) -> None:
    agents, count = alive.shape
    numbers = torch.arange(first, first + count).float().expand(agents, count)
    store.add(
        {
            "obs": numbers.unsqueeze(2),
            "actions": -numbers.unsqueeze(2),
            "rewards": numbers + 0.5,
            "terminated": numbers % 2 == 0,
            "next_obs": numbers.unsqueeze(2) + 1,
        },
        alive,
    )


def kept(store: ImaginedStore) -> list[list[float]]:
    every = store.sample((torch.arange(4000) + 0.5).expand(store.agents, 4000) / 4000)
    return [sorted(set(rewards.tolist())) for rewards in every.rewards]


def test_only_rows_that_go_on_are_kept_and_the_newest_stay() -> None:
    store = ImaginedStore(2, 5, 1, 1, CPU)
    filled(store, 0, torch.tensor([[True, False, True], [False, False, True]]))
    assert store.sizes.tolist() == [2, 1]
    assert kept(store) == [[0.5, 2.5], [2.5]]
    filled(store, 3, torch.tensor([[True] * 3, [False] * 3]))
    assert kept(store) == [[0.5, 2.5, 3.5, 4.5, 5.5], [2.5]]
    filled(store, 6, torch.tensor([[True, True], [True, False]]))
    assert kept(store) == [[3.5, 4.5, 5.5, 6.5, 7.5], [2.5, 6.5]]
    assert store.heads.tolist() == [2, 2]
    batch = store.sample(torch.rand(2, 50, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(batch.next_obs, batch.obs + 1)  # type: ignore[operator]
    assert torch.equal(batch.actions, -batch.obs)  # type: ignore[operator]
    assert torch.equal(batch.terminated, batch.rewards % 2 == 0.5)
    assert not batch.truncated.any()


def test_a_share_of_one_is_still_a_row() -> None:
    store = ImaginedStore(1, 7, 1, 1, CPU)
    filled(store, 0, torch.ones(1, 7, dtype=torch.bool))
    assert float(store.sample(torch.full((1, 1), 1.0)).rewards) == 6.5


def test_rings_can_become_longer_and_shorter() -> None:
    store = ImaginedStore(2, 4, 1, 1, CPU)
    filled(store, 0, torch.tensor([[True] * 4, [True, True, False, False]]))
    filled(store, 4, torch.tensor([[True, True], [False, False]]))
    store.resize(6)
    assert kept(store) == [[2.5, 3.5, 4.5, 5.5], [0.5, 1.5]]
    filled(store, 6, torch.tensor([[True, True], [True, True]]))
    assert kept(store) == [[2.5, 3.5, 4.5, 5.5, 6.5, 7.5], [0.5, 1.5, 6.5, 7.5]]
    store.resize(3)
    assert kept(store) == [[5.5, 6.5, 7.5], [1.5, 6.5, 7.5]]


def test_what_is_kept_can_be_saved() -> None:
    store, other = ImaginedStore(2, 5, 1, 1, CPU), ImaginedStore(2, 3, 1, 1, CPU)
    filled(store, 0, torch.tensor([[True] * 4, [True, False, True, False]]))
    other.load_state(store.state())
    same_tree(store.state(), other.state())
    for one in (store, other):
        filled(one, 4, torch.tensor([[True] * 3, [True] * 3]))
    same_tree(store.state(), other.state())
    with pytest.raises(ValueError, match="the imagined steps"):
        other.load_state({**store.state(), "sizes": torch.tensor([9, 1])})


def test_too_many_rows_are_refused_before_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"1,000,000,000,000 imagined rows for each of 5 agents need .* GiB"):
        ImaginedStore(5, 10**12, 17, 6, CPU)


@pytest.mark.parametrize(
    ("schedule", "lengths"),
    [
        ((20, 150, 1, 15), {0: 1, 20: 1, 29: 1, 30: 2, 60: 5, 100: 9, 150: 15, 400: 15}),
        ((20, 100, 1, 25), {30: 4, 60: 13, 100: 25}),
        ((20, 300, 1, 25), {160: 13}),
        ((1, 15, 1, 1), {0: 1, 99: 1}),
    ],
)
def test_rollouts_become_longer(schedule: tuple[int, int, int, int], lengths: dict[int, int]) -> None:
    assert {epoch: rollout_length(epoch, schedule) for epoch in lengths} == lengths
