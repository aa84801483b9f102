"""Finding out, when a batch is made, whether a task's functions are what they should be."""

import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from mujoco.batch import MODEL_FIELDS
from torch import Tensor

from ..streams import Bound, Draws
from .engine import Engine, Sim
from .task import MujocoTask


class _Rows(Tensor):
    """Values of all rows. Whatever is computed from them is of this class too, and none of it can be asked for a value
    that Python would decide by: all rows would follow one."""

    def _asked(self, *args: Any) -> NoReturn:
        ours = (__file__, torch.__path__[0])
        place = next(f for f in reversed(traceback.extract_stack()) if not f.filename.startswith(ours))
        raise _BranchError(
            f"asks for single values in `{place.line}` (line {place.lineno}), as a Python branch does, and so all rows "
            "would follow one: compute with whole tensors, and choose by torch.where"
        )

    __bool__ = __int__ = __float__ = __index__ = _asked
    item = tolist = _asked

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # to print them is no branch
        return repr(self.as_subclass(Tensor))

    def __format__(self, how: str) -> str:
        return format(self.as_subclass(Tensor), how)


class _BranchError(TypeError):
    pass


class Watched(Sim):
    """A simulation that does not let a task's functions branch on the values of rows."""

    def __getattr__(self, name: str) -> Tensor:
        field = super().__getattr__(name)
        if name not in MODEL_FIELDS or name in self._engine.varied:  # else one value, which all rows have
            field = self.__dict__[name] = field.as_subclass(_Rows)
        return field


class _WatchedDraws(Draws):
    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def uniform(self, low: Bound, high: Bound, size: int, accept: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return self._draws.uniform(low, high, size, accept).as_subclass(_Rows)

    def normal(self, size: int) -> Tensor:
        return self._draws.normal(size).as_subclass(_Rows)


def try_functions(task: MujocoTask, sim: Sim, random: Draws) -> None:
    """Call every function of a task once, and check what it returns.

    :param task: the task
    :param sim: what its functions see; a :class:`Watched` one to find branches as well
    :param random: draws for ``reset``
    :raises TypeError: a function returns what it should not, or branches on the values of rows
    """
    try:
        _call_functions(task, sim, random)
    except _BranchError as cause:
        raise TypeError(f"{type(task).__name__} {cause}") from None


def _call_functions(task: MujocoTask, sim: Sim, random: Draws) -> None:
    count, width = sim.num_envs, sim.model.nu
    actions = torch.zeros(count, width, dtype=torch.float32, device=sim.device)
    if isinstance(sim, Watched):
        actions, random = actions.as_subclass(_Rows), _WatchedDraws(random)
    for field, value in task.reset(sim, random).items():
        _check(task, f"reset's {field!r}", value, sim, (count, *getattr(sim, field).shape[1:]))
    for name, value in task.reset_info(sim).items():
        _check(task, f"reset_info's {name!r}", value, sim, (count, ...))
    before = task.before(sim)
    judged = task.reward(sim, actions, before)
    reward, parts = judged if isinstance(judged, tuple) else (judged, {})
    _check(task, "reward", reward, sim, (count,))
    for name, value in parts.items():
        _check(task, f"reward's part {name!r}", value, sim, (count, ...))
    terminated = task.terminated(sim)
    if terminated is not None:
        _check(task, "terminated", terminated, sim, (count,), torch.bool)
    _check(task, "observation", task.observation(sim), sim, (count, None))


def _check(
    task: MujocoTask, what: str, value: Any, sim: Sim, shape: tuple[Any, ...], dtype: torch.dtype | None = None
) -> None:
    def fail(problem: str) -> None:
        raise TypeError(f"{type(task).__name__}: {what} {problem}")

    if not isinstance(value, Tensor):
        fail(f"is a {type(value).__name__}, expected a tensor")
    if shape[-1] is ...:
        fits = value.ndim > 0 and value.shape[0] == shape[0]
    else:
        fits = value.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, value.shape, strict=True))
    if not fits:
        expected = str(shape).replace("None", "D").replace("Ellipsis", "…")
        fail(f"has shape {tuple(value.shape)}, expected {expected}: the leading axis is the rows")
    if value.device != sim.device and value.device.type != sim.device.type:
        fail(f"is on {value.device}, expected {sim.device}: make new tensors with device=sim.device")
    if dtype is not None and value.dtype != dtype:
        fail(f"is of {value.dtype}, expected {dtype}")
    storages = {field.untyped_storage().data_ptr() for field in vars(sim).values() if isinstance(field, Tensor)}
    if not what.startswith("reset's") and value.untyped_storage().data_ptr() in storages:
        fail("is a view of the simulation, which the next step overwrites: return a clone() of it")
    if what == "observation" and not value.is_floating_point():
        fail(f"is of {value.dtype}, expected a floating-point type")


def check_rows_apart(task: MujocoTask, engine: Engine) -> None:
    """See that what a task's functions say of a row does not depend on other rows.

    :param task: the task
    :param engine: of two worlds, free to be used
    :raises TypeError: it does
    """
    one, other = (_of_first_row(task, engine, pushed) for pushed in (1.0, -0.9))
    for what, value in one.items():
        if not torch.equal(value.nan_to_num(), other[what].nan_to_num()):
            raise TypeError(
                f"{type(task).__name__}: {what} of one row depends on what another row does: reduce over the axes of a "
                "row (dim=1), not over all, and choose by torch.where, not by a Python branch"
            )


def _of_first_row(task: MujocoTask, engine: Engine, pushed: float) -> dict[str, Tensor]:
    """:return: what is said of world 0, while world 1 starts from another seed, is pushed, and acts otherwise."""
    sim, both = Sim(engine), torch.tensor([True, True])
    streams = engine.streams()
    streams.seed([0, int(100 * abs(pushed))])
    said = {f"reset's {name!r}": part for name, part in task.reset(sim, streams.draw(both)).items()}
    push = torch.zeros(2, engine.model.nv, dtype=engine.dtype)
    push[1] = pushed
    engine.reset(both, {"qvel": push})
    said |= {f"reset_info's {name!r}": part.clone() for name, part in task.reset_info(sim).items()}
    before = task.before(sim)
    actions = torch.zeros(2, engine.model.nu)
    actions[1] = pushed
    engine.step(actions)
    judged = task.reward(sim, actions, before)
    reward, parts = judged if isinstance(judged, tuple) else (judged, {})
    terminated = task.terminated(sim)
    said |= {"reward": reward, "observation": task.observation(sim)} | {f"{n!r}": part for n, part in parts.items()}
    said |= {} if terminated is None else {"terminated": terminated}
    return {name: value[0].clone() for name, value in said.items()}
