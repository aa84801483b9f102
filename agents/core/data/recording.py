"""Data sets made here: recorded from a batch, or taken from what an agent has stored."""

from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from ....envs.batched import BatchedEnv
from ..spaces import Actions, ObservationCodec, map_obs
from .dataset import Dataset, join
from .episodes import Act, Episodes, run_episodes
from .store import ReplayStore


def record(
    env: BatchedEnv,
    act: Act,
    *,
    steps: int,
    seed: int,
    observation_space: spaces.Space[Any] | None = None,
    done: Callable[[Dataset], object] = lambda part: None,
) -> Dataset:
    """Record whole episodes until there are so many steps.

    Episode ``i`` starts as that of an environment seeded ``seed + i``, and episodes are taken by their number: those
    that end first would be the short ones.

    :param env: the batch
    :param act: the policy, as for :func:`run_episodes`; what it gives beside ``actions`` is recorded with each step
    :param steps: at least so many; what is more is the rest of the last episode
    :param seed: of the first episode
    :param observation_space: of what is recorded, where the batch shows it normalised
    :param done: told what each round of episodes gave
    :return: the data set, without a name
    :raises DatasetError: (a ``ValueError``) the environment or the policy returned something that is not finite
    """
    parts, total, first = [], 0, 0
    space = observation_space or env.single_observation_space
    while total < steps:
        round_ = run_episodes(env, act, seed=seed + first, keep=True)
        parts.append(_recorded(round_, space, env.single_action_space))
        total, first = total + len(parts[-1]), first + env.num_envs
        done(parts[-1])
    data = join(parts)
    needed = int(torch.searchsorted(data.lengths.cumsum(0), steps)) + 1
    return data.select(range(needed))


def _recorded(episodes: Episodes, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Dataset:
    assert episodes.steps is not None
    assert episodes.final_obs is not None
    steps = {name: value if name == "obs" else value.cpu() for name, value in episodes.steps.items()}
    obs, actions, rewards = (steps.pop(name) for name in ("obs", "actions", "rewards"))
    return Dataset(
        observation_space=observation_space,
        action_space=action_space,
        obs=map_obs(Tensor.cpu, obs),
        final_obs=map_obs(Tensor.cpu, episodes.final_obs),
        actions=actions,
        rewards=rewards.double(),
        lengths=episodes.lengths.cpu(),
        terminated=episodes.terminated.cpu(),
        extras=steps,
    )


def stored_episodes(
    store: ReplayStore[Any],
    codec: ObservationCodec,
    actions: Actions,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
) -> Dataset:
    """Take the whole episodes of a replay store, environment by environment, in the order of time.

    Dropped are episodes whose first steps the ring has overwritten, and those that were not over.

    :param store: of transitions
    :param codec: by which its observations are encoded
    :param actions: by which its actions were the environment's
    :param observation_space: the environment's
    :param action_space: the environment's
    :return: the data set, without a name
    :raises ValueError: there is no whole episode
    """
    state: dict[str, Any] = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in store.state().items()}
    rows, starts = _in_time(state)
    ended = (state["data.terminated"] | state["data.truncated"])[rows]
    first = starts.nonzero().squeeze(1)
    after = torch.cat((first[1:], torch.tensor([len(rows)])))  # of each stretch the row behind its last
    whole = (state["runs"][rows][first] == 1) & ended[after - 1]
    if not whole.any():
        raise ValueError(
            f"the store holds {len(rows):,} steps and no whole episode: train longer, or raise buffer_size"
        )
    first, after = first[whole], after[whole]
    kept = rows[torch.cat([torch.arange(a, b) for a, b in zip(first.tolist(), after.tolist(), strict=True)])]
    last = rows[after - 1]

    def observed(name: str, which: Tensor) -> Any:
        prefix = f"data.{name}"
        parts = {key.removeprefix(f"{prefix}."): part[which] for key, part in state.items() if key.startswith(prefix)}
        return codec.decode(parts.get(prefix, parts))

    return Dataset(
        observation_space=observation_space,
        action_space=action_space,
        obs=observed("obs", kept),
        final_obs=observed("next_obs", last),
        actions=actions.to_env(state["data.actions"][kept].to(store.device)).cpu(),
        rewards=state["data.rewards"][kept].double(),
        lengths=after - first,
        terminated=state["data.terminated"][last],
    )


def _in_time(state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Order what a store holds.

    :param state: of it; its rows are ordered by slot and then by environment
    :return: its rows, environment by environment, in the order of time (R,); and which of them the one before does not
        continue into (R,) bool
    """
    sizes, heads, limit = state["sizes"], state["heads"], state["capacity_per_env"]
    slots = torch.arange(int(sizes.max())).unsqueeze(1)
    held = slots < sizes  # (S, N)
    place = held.flatten().cumsum(0).view_as(held) - 1
    rows, starts = [], []
    for column, (size, head) in enumerate(zip(sizes.tolist(), heads.tolist(), strict=True)):
        rows.append(place[:size, column].roll(-head if size == limit else 0))
        runs = state["runs"][rows[-1]]
        starts.append(torch.cat((torch.ones(min(size, 1), dtype=torch.bool), runs[1:] != runs[:-1] + 1)))
    return torch.cat(rows), torch.cat(starts)
