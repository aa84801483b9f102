"""Episodes that were played elsewhere, shown again."""

from typing import Any

import pytest
import torch
from headway.agents.core.data import run_episodes
from headway.wrappers import Playback, WholeEpisodes, as_batched
from headway.wrappers.sb3 import row_infos
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import Point


class Told(Point):
    """A point that says at the right hand side that it has succeeded or not, and at the left nothing."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info | ({"is_success": self.t % 5 == 0} if self.x > 0 else {})


def batch(rows: int, form: str = "box") -> Any:
    return as_batched(DummyVecEnv([lambda: Monitor(Told(6, form)) for _ in range(rows)]))


def recorded(form: str = "box") -> dict[str, Any]:
    def act(obs: Any, turn: Any) -> Any:
        place = obs["place"] if isinstance(obs, dict) else obs
        moves = 0.6 * torch.sin(9 * place.double() + turn.episodes.unsqueeze(1)).float()
        return {"actions": moves, "chosen": moves}

    played = run_episodes(batch(2, form), act, episodes=5, horizon=5, seed=3, keep=True)
    assert played.steps is not None
    names = ("lengths", "returns", "terminated", "truncated", "final_obs", "successes")
    return {n: played.steps[n] for n in ("obs", "chosen", "rewards")} | {n: getattr(played, n) for n in names}


def stepped(env: WholeEpisodes, actions: list[torch.Tensor] | None = None) -> list[Any]:
    """All that a round of whole episodes gives of the rows that do not rest: what was done, tensors, ends as told."""
    seen: list[Any] = []
    while env.running.any():
        running = env.running
        chosen = env.playback.chosen if env.playback is not None else (actions or [])[len(seen)]
        _, rewards, terminated, truncated, info = env.step(chosen)
        dones = (terminated | truncated).numpy()
        infos = row_infos(info, dones, truncated & ~terminated)
        final = info["final_obs"] if isinstance(info["final_obs"], dict) else {"": info["final_obs"]}
        tensors = [part[running] for part in (rewards, terminated, truncated, *final.values())]
        ends = [
            (said.get("is_success"), said["episode"]["r"], said["episode"]["l"]) for said in infos if "episode" in said
        ]
        cuts = [said["TimeLimit.truncated"] for said, done in zip(infos, dones, strict=True) if done]
        seen.append((chosen, tensors, ends, cuts))
    return seen


@pytest.mark.parametrize("form", ["box", "dict"])
def test_it_is_as_if_they_were_played_here(form: str) -> None:
    shown, played = WholeEpisodes(batch(3, form), 5), WholeEpisodes(batch(3, form), 5)
    shown.playback = Playback(shown.env, recorded(form))
    outcomes = set()
    for first in (0, 3):
        shown.playback.begin(first)
        for env in (shown, played):
            env.reset(seed=[3 + first + row for row in range(3)])
            env.rest(5 - first)
        again = stepped(shown)
        original = stepped(played, [chosen for chosen, *_ in again])
        for (_, tensors, *ends), (_, others, *other_ends) in zip(again, original, strict=True):
            assert all(map(torch.equal, tensors, others))
            assert ends == other_ends
            outcomes |= {success for success, *_ in ends[0]}
        assert torch.equal(shown.returns[: 5 - first], played.returns[: 5 - first])
    assert {True, None} <= outcomes


def test_a_state_in_their_midst() -> None:
    one, other = WholeEpisodes(batch(3), 5), WholeEpisodes(batch(3), 5)
    one.playback = Playback(one.env, recorded())
    one.playback.begin(2)
    one.reset()
    one.step(one.playback.chosen)
    other.load_state(one.state())
    for (_, tensors, *ends), (_, others, *other_ends) in zip(stepped(one), stepped(other), strict=True):
        assert all(map(torch.equal, tensors, others))
        assert ends == other_ends
    fresh = WholeEpisodes(batch(3), 5)
    fresh.reset(seed=0)
    other.load_state(fresh.state())
    assert other.playback is None


@pytest.mark.parametrize("change", [{"lengths": torch.ones(5, dtype=torch.int64)}, {"rewards": None}, {"obs": {}}])
def test_a_state_that_does_not_fit(change: dict[str, Any]) -> None:
    state = Playback(batch(3), recorded()).state()
    state["content"] |= change
    with pytest.raises(ValueError, match=r"must have \d+ rows"):
        Playback(batch(3)).load_state(state)
