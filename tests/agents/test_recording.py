"""Data sets made here: whole episodes of a batch, and of a replay store."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents.core.data import DatasetError, ReplayStore, Transitions, Turn, transition_fields
from headway.agents.core.data.recording import record, stored_episodes
from headway.agents.core.spaces import FieldSpec, ObservationCodec, actions_of
from headway.envs.batched import Obs
from headway.wrappers import as_batched
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor
from toys import FORMS, Point

CPU = torch.device("cpu")


def outwards(obs: Obs, turn: Turn) -> Mapping[str, Tensor]:
    """Away from the origin, so that the farther a start, the sooner the end."""
    assert isinstance(obs, Tensor)
    return {"actions": 0.3 * obs.sign(), "behavior_logp": -obs.abs().squeeze(1)}


@pytest.mark.parametrize("rows", [1, 4])
def test_episodes_are_taken_by_number(rows: int) -> None:
    """Those that end first are the short ones, and a data set of them would say that all are."""
    alone = record(as_batched(Point()), outwards, steps=60, seed=5)
    env = as_batched(DummyVecEnv([lambda: Monitor(Point())] * rows))
    told: list[int] = []
    data = record(env, outwards, steps=60, seed=5, done=lambda part: told.append(len(part)))
    assert len(data) - int(data.lengths[-1]) < 60 <= len(data) <= sum(told)
    assert data.lengths.tolist() == alone.lengths.tolist()
    assert len(set(data.lengths.tolist())) > 2
    for name in ("obs", "final_obs", "actions", "rewards", "terminated"):
        assert torch.equal(getattr(data, name), getattr(alone, name)), name
    torch.testing.assert_close(data.extras["behavior_logp"], -data.obs.abs().squeeze(1))  # type: ignore[union-attr]
    assert isinstance(data.next_obs, Tensor)
    torch.testing.assert_close(data.next_obs, data.obs + data.actions)
    torch.testing.assert_close(data.rewards, -data.next_obs.double().square().squeeze(1), rtol=1e-6, atol=0)
    assert torch.equal(data.terminated, data.final_obs.abs().squeeze(1) > 2)  # type: ignore[union-attr]


def test_behind_a_normaliser_what_the_environment_shows_is_recorded() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Monitor(Point())] * 2), training=False)
    env.obs_rms.mean += 5  # type: ignore[operator, union-attr]
    data = record(as_batched(env), outwards, steps=20, seed=0, observation_space=FORMS["box"])
    assert isinstance(data.obs, Tensor)
    assert data.obs.abs().max() <= 3
    assert data.observation_space == FORMS["box"]


def test_what_is_not_finite_is_not_recorded() -> None:
    class Sick(Point):
        def step(self, action: object) -> tuple[object, float, bool, bool, dict[str, object]]:
            obs, _, terminated, truncated, info = super().step(action)
            return obs, np.nan if self.t == 3 else 0.0, terminated, truncated, info

    with pytest.raises(DatasetError, match="rewards are not finite at episode 0, step 2"):
        record(as_batched(Sick()), outwards, steps=20, seed=0)


# -- a replay store --------------------------------------------------------------------------------------------------

SPACE, MOVES = spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Box(-4.0, 4.0, (1,), np.float32)
LENGTHS = {0: [2, 3, 4, 2, 5], 1: [3, 1, 6, 1, 5]}
"""Of the episodes of each environment; each of the same sum."""


def filled(steps: int, capacity: int, *, cut_at: int = -1, dummies: bool = False) -> ReplayStore[Transitions]:
    """A store of steps that say which episode of which environment they are, and which step of it."""
    fields = transition_fields(FieldSpec((2,), torch.float32), FieldSpec((1,), torch.float32))
    store = ReplayStore(Transitions, fields, capacity=2 * capacity, n_envs=2, device=CPU, generator=torch.Generator())
    places = {
        env: [(10 * env + k, t, n) for k, n in enumerate(lengths) for t in range(n)] for env, lengths in LENGTHS.items()
    }
    at = [0, 0]
    for step in range(steps):
        if step == cut_at:  # somebody resets both in the midst of their third episodes, which begin again
            store.cut()
            at = [5, 4]
        dummy = dummies and step == 2  # environment 0 only resets
        now = [places[env][at[env]] for env in (0, 1)]
        ended = torch.tensor([t == n - 1 for _, t, n in now])
        terminates = torch.tensor([episode % 2 == 1 for episode, _, _ in now])
        obs = torch.tensor([[float(episode), float(t)] for episode, t, _ in now])
        rows = {
            "obs": obs,
            "actions": obs[:, 1:] / 8,
            "rewards": obs[:, 1],
            "terminated": ended & terminates,
            "truncated": ended & ~terminates,
            "next_obs": obs + torch.tensor([0.0, 1.0]),
        }
        store.add(rows, torch.tensor([not dummy, True]) if dummies else None)
        at = [at[0] + (not dummy), at[1] + 1]
    return store


def episodes_of(store: ReplayStore[Transitions]) -> list[tuple[int, int]]:
    """Number and length of each whole episode, after a look at every step of it."""
    data = stored_episodes(store, ObservationCodec(SPACE), actions_of(MOVES, CPU, squashes=True), SPACE, MOVES)
    found = []
    for k, length in enumerate(data.lengths.tolist()):
        one = data.select([k])
        assert isinstance(one.obs, Tensor)
        assert isinstance(one.final_obs, Tensor)
        assert one.obs.dtype is torch.float64
        number = int(one.obs[0, 0])
        assert one.obs.tolist() == [[number, t] for t in range(length)]
        assert one.final_obs.tolist() == [[number, length]]
        assert one.rewards.tolist() == list(range(length))
        assert one.actions.squeeze(1).tolist() == [t / 2 for t in range(length)]  # in the environment's unit
        assert bool(one.terminated) == (number % 2 == 1)
        found.append((number, length))
    return found


def test_whole_episodes_of_every_environment_in_the_order_of_time() -> None:
    first, second = ([(10 * env + k, n) for k, n in enumerate(lengths)] for env, lengths in LENGTHS.items())
    assert episodes_of(filled(16, 16)) == first + second
    assert episodes_of(filled(14, 20)) == first[:4] + second[:4]  # the last ones are not over


def test_what_the_ring_has_overwritten_is_dropped() -> None:
    # of 16 steps the last 10 are left, from the middle of both environments' third episodes on
    assert episodes_of(filled(16, 10)) == [(3, 2), (4, 5), (13, 1), (14, 5)]


def test_an_episode_that_was_cut_is_dropped() -> None:
    kept = [(0, 2), (1, 3), (2, 4), (3, 2), (4, 5), (10, 3), (11, 1), (12, 6), (13, 1)]
    assert episodes_of(filled(17, 20, cut_at=6)) == kept


def test_rows_that_are_no_steps_leave_no_trace() -> None:
    kept = [(0, 2), (1, 3), (2, 4), (3, 2), (10, 3), (11, 1), (12, 6), (13, 1), (14, 5)]
    assert episodes_of(filled(16, 16, dummies=True)) == kept
    assert episodes_of(filled(16, 10, dummies=True)) == [(2, 4), (3, 2), (13, 1), (14, 5)]  # one is a step behind


def test_no_whole_episode() -> None:
    with pytest.raises(ValueError, match="2 steps and no whole episode: train longer, or raise buffer_size"):
        episodes_of(filled(1, 4))
