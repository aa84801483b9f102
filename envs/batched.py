"""The protocol that every agent steps: many environments at once, tensors in, tensors out, on one device."""

from abc import abstractmethod
from collections.abc import Mapping
from operator import index
from typing import Any, ClassVar

import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

Obs = Tensor | dict[str, Tensor]
Info = dict[str, Any]


class BatchedEnv(VectorEnv[Obs, Tensor, Tensor]):
    """``N`` environments that step together.

    It is a Gymnasium vector environment whose arrays are tensors on :attr:`device`. Rows that end are reset within the
    same step, so every row of every step is a real transition unless ``info["dummy"]`` says otherwise.

    What ``step`` returns:

    - ``obs``: what to act on next, (N, *O); of the new episode where a row ended
    - ``rewards`` (N,) float32, ``terminated`` (N,) bool, ``truncated`` (N,) bool
    - ``info["final_obs"]``: what the transition led to, (N, *O); differs from ``obs`` only where a row ended. A
      truncated row bootstraps from it, a terminated one does not.
    - ``info["episode"]``: ``{"r": (N,), "l": (N,)}``, return and length in steps, meaningful where a row ended
    - ``info["dummy"]`` (N,) bool, optional: rows that only did a delayed reset and are no transition

    What a step returned stays as it is: the next step writes into tensors of its own.

    Row ``i`` of a batch reset with seed ``s`` draws what a single environment reset with ``s + i`` draws.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]
    device: torch.device

    @abstractmethod
    def reset(self, *, seed: int | list[int | None] | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """Start new episodes in every row.

        :param seed: row ``i`` is seeded with ``seed + i``, or with the i-th entry of a list; None goes on with the
            random streams as they are
        :param options: passed on to the environments
        :return: observations (N, *O) and info
        """

    @abstractmethod
    def step(self, actions: Tensor) -> tuple[Obs, Tensor, Tensor, Tensor, Info]:
        """Step every row.

        :param actions: (N, *A), within the bounds of ``single_action_space``
        :return: obs, rewards, terminated, truncated, info, as described for the class
        """

    @abstractmethod
    def state(self) -> Any:
        """Copy the whole simulation, random streams included.

        :return: nested plain data: numbers, strings, arrays, tensors, lists and dicts of them
        :raises headway.wrappers.StateNotSavable: something in it cannot be copied; the message says what
        """

    @abstractmethod
    def load_state(self, state: Any) -> None:
        """Go back to what :meth:`state` copied; the future is then the same, bit for bit.

        :param state: a state of an environment built the same way
        :raises ValueError: it does not fit
        """


def check_batch(num_envs: int, autoreset_mode: AutoresetMode | str) -> AutoresetMode:
    """See that a batch can have so many rows, and restart them that way.

    :param num_envs: N
    :param autoreset_mode: how rows that end are restarted
    :return: the mode
    :raises ValueError: no rows, or another mode than SAME_STEP and DISABLED
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}: a batch needs at least one row")
    mode = AutoresetMode(autoreset_mode)
    if mode is AutoresetMode.NEXT_STEP:
        raise ValueError("autoreset_mode is NEXT_STEP: take SAME_STEP, or DISABLED to reset rows yourself")
    return mode


def row_seeds(seed: int | list[int | None], num_envs: int) -> list[int | None]:
    """Seed each row.

    :param seed: see :meth:`BatchedEnv.reset`
    :param num_envs: N
    :return: a seed per row; None: the row's stream goes on
    :raises ValueError: a list of another length
    """
    if not isinstance(seed, (list, tuple)):
        return [index(seed) + row for row in range(num_envs)]
    seeds = list(seed)
    if len(seeds) != num_envs:
        raise ValueError(f"{len(seeds)} seeds for {num_envs} rows")
    return seeds


def check_actions(env: BatchedEnv, actions: Tensor) -> None:
    """See that a batch can take actions; their values are not looked at.

    :param env: the batch
    :param actions: what its ``step`` was given
    :raises ValueError: no tensor, or one of another shape or on another kind of device
    """
    if not isinstance(actions, Tensor) or actions.shape != env.action_space.shape:
        shape = getattr(actions, "shape", None)
        raise ValueError(
            f"actions are a {type(actions).__name__} of shape {shape if shape is None else tuple(shape)}, "
            f"step takes a tensor of shape {env.action_space.shape}"
        )
    if actions.device.type != env.device.type:
        raise ValueError(f"actions are on {actions.device}, the batch is on {env.device}: move them there first")


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """See that a state has the parts that a batch needs.

    :param state: by name
    :param shapes: that they must have
    :raises ValueError: a part is missing, of another shape, or unknown
    """
    for name in sorted(shapes.keys() | state.keys()):
        wanted, found = shapes.get(name), tuple(state[name].shape) if name in state else None
        if found != wanted:
            raise ValueError(
                f"the state does not fit this batch: {name!r} is {found}, expected {wanted} "
                "(None: it is not there); restore into the same environment with the same options"
            )
