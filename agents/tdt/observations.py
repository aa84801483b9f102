"""What an observation holds: a state, and a mission, in words or as a number."""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor

from ..core.spaces import Obs, ObservationCodec, map_obs, shown

TOKENS, TASK = "mission_tokens", "mission_task"
"""Keys of the mission in a Dict space: its words (W,) int64, and the number of its task. Either may be missing."""

MOST_TASKS = 65_536
"""Above this, a number counts no tasks."""


class ObservationParts:
    """Takes encoded observations apart.

    :param codec: by which they were encoded
    :param task_id: the mission is the number of the task, not the words
    :raises ValueError: words or number are in another form, or there is nothing else to see
    """

    def __init__(self, codec: ObservationCodec, task_id: bool = False) -> None:
        self.whole, self.state_codec, self.task_id = codec, codec, task_id
        leaves = codec.space.spaces if isinstance(codec.space, spaces.Dict) else {}
        self.words = _count_words(leaves[TOKENS]) if TOKENS in leaves else None
        """W; None without words."""
        self.first_task, self.tasks = _count_tasks(leaves[TASK]) if TASK in leaves else (0, 0)
        """The least number of a task, and how many there are; 0 without such a number."""
        if TOKENS in leaves or TASK in leaves:
            seen = {key: part for key, part in leaves.items() if key not in (TOKENS, TASK)}
            if not seen:
                raise ValueError(f"observations need something besides the mission, got {shown(codec.space)}")
            self.state_codec = ObservationCodec(spaces.Dict(seen))
        if task_id and not self.tasks:
            raise ValueError(
                f"mode='tdt_task_id' reads the number of the task, and observations have no {TASK!r}: record it as a "
                "Discrete, or choose mode='tdt'"
            )
        in_vector = [key for key in codec.parts if key == TASK]
        start = sum(codec.sizes[: list(codec.parts).index(TASK)]) if in_vector else 0
        self._one_hot = slice(start, start + self.tasks * len(in_vector))
        """Columns of the vector that are the number of the task."""
        kept = self.state_codec.kept
        self.images = [name for name, part in kept.items() if is_image_space(part)]
        """Fields of the state that are images."""

    def state(self, obs: Obs) -> Obs:
        """:return: what is no mission, as the codec of states would encode it, (…, *O), by name where it is several"""
        if self.state_codec is self.whole:
            return obs
        fields = self._fields(obs)
        seen = {name: fields[name] for name in self.state_codec.kept}
        if self.state_codec.parts:
            vector, (start, stop) = fields[self.whole.vector], (self._one_hot.start, self._one_hot.stop)
            seen[self.state_codec.vector] = torch.cat((vector[..., :start], vector[..., stop:]), -1)
        return seen if len(seen) > 1 else next(iter(seen.values()))

    def mission(self, obs: Obs) -> Tensor:
        """:return: of rows: words (B, W), without any (B, 0); or numbers of tasks from 0, (B, 1) int64

        :raises ValueError: there is no such task
        """
        fields = self._fields(obs)
        if not self.task_id:
            tokens = fields[TOKENS] if self.words is not None else next(iter(fields.values())).flatten(1)[:, :0]
            return tokens.long()
        if TASK in self.whole.parts:
            return fields[self.whole.vector][:, self._one_hot].argmax(1, keepdim=True)
        tasks = fields[TASK].long().view(-1, 1) - self.first_task
        if bool(((tasks < 0) | (tasks >= self.tasks)).any()):
            least, most = self.first_task, self.first_task + self.tasks - 1
            odd = int((tasks.min() if tasks.min() < 0 else tasks.max()) + self.first_task)
            raise ValueError(f"{TASK} must lie in [{least}, {most}], the bounds of its space, got {odd}")
        return tasks

    def _fields(self, obs: Obs) -> dict[str, Tensor]:
        return {next(iter(self.whole.fields)): obs} if isinstance(obs, Tensor) else obs


def missions_apart(obs: Any) -> Tensor | None:
    """Number the missions of some observations.

    :param obs: as they were recorded, (E, *O), by key where they are several
    :return: equal numbers where the tasks are the same, or without these the words, (E,); None where neither is there
    """
    key = next((key for key in (TASK, TOKENS) if not isinstance(obs, Tensor) and key in obs), None)
    return None if key is None else torch.unique(obs[key], dim=0, return_inverse=True)[1]


def first_steps(obs: Any, lengths: Tensor) -> Obs:
    """:return: what episodes of these lengths (E,) began with, of all steps (R, *O), (E, *O)"""
    starts = lengths.cumsum(0) - lengths
    return map_obs(lambda part: part[starts], obs)


def _count_words(space: spaces.Space[Any]) -> int:
    if not isinstance(space, spaces.Box) or space.dtype.kind not in "iu" or len(space.shape) != 1:
        raise ValueError(f"{TOKENS} must be a Box of integers, (words,), got {shown(space)}")
    return int(space.shape[0])


def _count_tasks(space: spaces.Space[Any]) -> tuple[int, int]:
    """:return: the least number of a task, and how many there are"""
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.n)
    whole = isinstance(space, spaces.Box) and space.dtype.kind in "iu" and space.low.size == 1
    count = int(space.high.item()) - int(space.low.item()) + 1 if whole else 0  # type: ignore[attr-defined]
    if not 1 <= count <= MOST_TASKS:
        raise ValueError(
            f"{TASK} must be a Discrete, or one integer of at most {MOST_TASKS} values, got {shown(space)}"
        )
    return int(space.low.item()), count  # type: ignore[attr-defined]
