"""The protocol that every agent steps: many environments at once, tensors in, tensors out, on one device."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from operator import index
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from .schema import check_numbers

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
    - ``info["goes_on"]`` (N,) bool, optional: rows that ended for who learns in them, while the episode that is
      accounted for goes on, as where a game costs a life; ``info["episode"]`` means nothing there
    - ``info["is_success"]`` (N,) bool, optional: whether the episode succeeded, meaningful where a row ended; only in
      the rows of ``info["_is_success"]`` (N,) bool, if that is there

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

    def lacks(self, ability: type[Any]) -> str | None:
        """Say what keeps a batch from an ability; a wrapper, which has the methods, asks what it wraps.

        :param ability: :class:`RowSnapshots` or :class:`Resettable`
        :return: the reason, with a remedy where there is one; None: it has the ability
        """
        if isinstance(self, ability):
            return None
        methods: dict[type[Any], str] = {
            RowSnapshots: "copy_rows and like, and state and load_state by rows",
            Resettable: "reset_rows",
        }
        return f"{type(self).__name__} would need {methods[ability]}"


# ---- what some batches can do besides --------------------------------------------------------------------------------


@runtime_checkable
class RowSnapshots(Protocol):
    """The ability to copy rows: within a batch, and between batches of the same environment, whatever their sizes.

    A row that was copied into goes on as the row it is a copy of, random numbers and account of the episode included;
    rows that are not named keep every bit. Ask for it with :func:`require`.
    """

    def state(self, rows: Tensor | None = None) -> Any:
        """Copy rows, as plain data.

        :param rows: row numbers (K,) int64; None: the batch as a whole, see :meth:`BatchedEnv.state`
        :return: for :meth:`load_state`
        """

    def load_state(self, state: Any, rows: Tensor | None = None) -> None:
        """Write a copy of K rows into K rows.

        :param state: what :meth:`state` returned for K rows, here or in another batch of the same environment
        :param rows: row numbers (K,) int64, each at most once, in any order; None: all
        :raises ValueError: it does not fit
        """

    def copy_rows(self, src: Tensor, dst: Tensor) -> None:
        """Make rows ``dst`` go on as rows ``src`` will; all are read before any is written.

        :param src: row numbers (K,) int64
        :param dst: row numbers (K,) int64, each at most once
        """

    def like(self, num_envs: int) -> BatchedEnv:
        """Make another batch of the same environment, with the same options.

        :param num_envs: its rows; reset or load them before the first step
        :return: a batch with this ability too
        :raises ValueError: it cannot be made; the message says why
        """


@runtime_checkable
class Resettable(Protocol):
    """The ability to start new episodes in some rows while the others go on. Ask for it with :func:`require`."""

    def reset_rows(self, mask: Tensor, *, seed: int | list[int | None] | None = None) -> tuple[Obs, Info]:
        """Start new episodes in some rows; the others keep every bit.

        :param mask: which, (N,) bool
        :param seed: as for :meth:`BatchedEnv.reset`, of which only these rows' part is used
        :return: observations of all rows (N, *O), and info
        """


A = TypeVar("A")

_PURPOSE: dict[type[Any], str] = {RowSnapshots: "copy rows", Resettable: "reset some of its rows"}


# Not type[A]: there mypy refuses protocols, which have no instances of their own.
def require(env: BatchedEnv, ability: Callable[..., A]) -> A:
    """See that a batch has an ability before it is used.

    :param env: the batch
    :param ability: :class:`RowSnapshots` or :class:`Resettable`
    :return: the batch, by the type of its ability
    :raises TypeError: it has not; the message says why, and what has
    """
    assert isinstance(ability, type)
    reason = env.lacks(ability)
    if reason is not None:
        raise TypeError(
            f"{type(env).__name__} cannot {_PURPOSE[ability]} ({ability.__name__}): {reason}. MujocoBatch, the batches "
            "of mean field games and what as_batched makes of a DummyVecEnv or a SyncVectorEnv can, and so can "
            "BatchedRandomDelay around them"
        )
    return env  # type: ignore[return-value]


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


def check_state(
    state: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
    rows: int,
    *,
    common: Mapping[str, Tensor] | None = None,
    whole: bool = False,
) -> None:
    """See that a state has the parts that a batch needs, of its shapes and kinds of numbers.

    :param state: by name
    :param parts: tensors as they must be, but for the number of their rows
    :param rows: that there must be
    :param common: tensors without that axis, as they must be
    :param whole: the state is of a whole batch, from a file perhaps: see that its numbers are finite, too
    :raises ValueError: a part is missing, of another shape or kind, or unknown
    """
    like = {**parts, **(common or {})}
    shapes = {name: (rows, *part.shape[1:]) for name, part in parts.items()}
    shapes |= {name: tuple(part.shape) for name, part in (common or {}).items()}
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"the state does not fit this batch: it must hold {', '.join(shapes)} by name")
    for name in sorted(shapes.keys() | state.keys()):
        wanted, found = shapes.get(name), _shape(state[name]) if name in state else None
        if found != wanted:
            raise ValueError(
                f"the state does not fit this batch: {name!r} is {found}, "
                f"expected {wanted} (None: it is not there); restore into the same environment with the same options"
            )
        value, live = state[name], like[name]
        floats = live.is_floating_point() and isinstance(value, Tensor) and value.is_floating_point()
        if not floats and getattr(value, "dtype", None) != live.dtype:
            raise ValueError(f"the state does not fit this batch: {name!r} must hold {live.dtype}")
        if floats and whole:
            check_numbers(value, f"{name!r} of the state")


def _shape(value: Any) -> Any:
    """:return: a tensor's shape, or what stands there instead of one"""
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
