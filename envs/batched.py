"""The protocol that every agent steps: many environments at once, tensors in, tensors out, on one device."""

from abc import abstractmethod
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
