"""Episodes that were played elsewhere, shown again as the rows of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..envs.batched import BatchedEnv, Info, Obs
from ..envs.schema import array, by_name, group, whole


class Playback(BatchedEnv):
    """E recorded episodes, N at a time: row ``i`` shows episode ``first + i``, whatever it is told to do.

    A row whose episode is over goes on showing where that led to, and ends again in every step; rows without an episode
    show the last one. See :class:`~headway.wrappers.WholeEpisodes`, which lets both rest.

    :param env: the batch in whose place it stands
    :param content: by name, on the CPU. Of all steps, episode by episode: ``obs`` (S, *O), ``chosen`` (S, A), what the
        policy chose, ``rewards`` (S,); of the episodes: ``lengths``, ``returns``, ``terminated``, ``truncated``,
        ``final_obs`` (E, *O), and ``successes``, 1 and 0, or -1 where nothing said so, (E, …) each. None: load a state
    """

    def __init__(self, env: BatchedEnv, content: dict[str, Any] | None = None) -> None:
        self.num_envs, self.device, self.metadata = env.num_envs, torch.device("cpu"), env.metadata  # type: ignore[misc]
        self.single_observation_space, self.observation_space = env.single_observation_space, env.observation_space
        self.single_action_space, self.action_space = env.single_action_space, env.action_space
        self.first = self.time = 0
        if content is not None:
            self._show(content)

    def _show(self, content: dict[str, Any]) -> None:
        self.content = content
        self._lengths: Tensor = content["lengths"]
        self._starts = self._lengths.cumsum(0) - self._lengths

    def begin(self, first: int) -> None:
        """Go to other episodes.

        :param first: number of the one that row 0 shows after the next reset
        """
        self.first, self.time = first, 0

    @property
    def _rows(self) -> Tensor:
        return torch.arange(self.first, self.first + self.num_envs).clamp(max=len(self._lengths) - 1)

    def _steps(self, rows: Tensor) -> Tensor:
        steps: Tensor = self._starts[rows] + (self._lengths[rows] - 1).clamp(max=self.time)
        return steps

    @property
    def chosen(self) -> Tensor:
        """What the policy chose to do next, (N, A)."""
        return self.content["chosen"][self._steps(self._rows)]  # type: ignore[no-any-return]

    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """See :meth:`BatchedEnv.reset`; what it is told means nothing here."""
        self.time = 0
        steps = self._steps(self._rows)
        return _each(lambda part: part[steps], self.content["obs"]), {}

    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """See :meth:`BatchedEnv.step`; ``info`` says of an episode what it has earned, and whether it succeeded."""
        held, rows = self.content, self._rows
        steps, over = self._steps(rows), self.time + 1 >= self._lengths[rows]
        self.time += 1
        after = torch.where(over, steps, steps + 1)

        def shown(obs: Tensor, final: Tensor) -> Tensor:
            return torch.where(over.view(-1, *[1] * (obs.ndim - 1)), final[rows], obs[after])

        obs = _each(shown, held["obs"], held["final_obs"])
        info: Info = {"final_obs": obs, "episode": {"r": held["returns"][rows], "l": self._lengths[rows]}}
        successes = held["successes"][rows]
        if (successes >= 0).any():
            info |= {"is_success": successes > 0, "_is_success": successes >= 0}
        return obs, held["rewards"][steps], over & held["terminated"][rows], over & held["truncated"][rows], info

    def state(self) -> Any:
        """See :meth:`BatchedEnv.state`; all of the episodes, those that were shown included."""
        return {"first": self.first, "time": self.time, "content": dict(self.content)}

    def load_state(self, state: Any) -> None:
        """See :meth:`BatchedEnv.load_state`; the episodes become those of the state."""
        group({"first": whole(), "time": whole(), "content": by_name(lambda *_: None)})(state, "recorded episodes")
        held = state["content"]
        group({"lengths": array((None,), "int64", low=1)}, others=True)(held, "recorded episodes")
        episodes, steps = len(held["lengths"]), int(held["lengths"].sum())
        sizes = {"obs": steps, "chosen": steps, "rewards": steps, "final_obs": episodes, "successes": episodes}
        sizes |= dict.fromkeys(("lengths", "returns", "terminated", "truncated"), episodes)
        for name, size in sizes.items():
            parts = held[name].values() if isinstance(held[name], dict) else [held[name]]
            if not parts or any(not isinstance(part, Tensor) or part.shape[:1] != (size,) for part in parts):
                raise ValueError(f"{name!r} of recorded episodes must have {size} rows")
        self._show(held)
        self.first, self.time = state["first"], state["time"]


def _each(change: Callable[..., Tensor], *parts: Any) -> Any:
    """:return: a change to tensors, or by name to dicts of them"""
    if isinstance(parts[0], dict):
        return {key: change(*(part[key] for part in parts)) for key in parts[0]}
    return change(*parts)
