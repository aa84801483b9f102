"""The compile switch: losses are free functions over fixed shapes, and a gradient step is a function of a batch."""

import gc
import shutil
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from .config import Config
from .nets import TrackedModules

P = ParamSpec("P")
R = TypeVar("R")

WARM_UP = 3
"""Times that a step runs as it is before it is recorded: libraries get their handles and workspaces meanwhile."""


def compiled(function: Callable[P, R], mode: str, device: torch.device) -> Callable[P, R]:
    """Compile a loss, or leave it as it is.

    :param function: a function of tensors, modules and constants
    :param mode: "off", or a mode of ``torch.compile``; on a GPU, "reduce-overhead" is left to :func:`captured`
    :param device: where it will run
    :return: the function to call
    :raises RuntimeError: no C++ compiler is found for a CPU
    """
    if mode == "off" or (mode == "reduce-overhead" and device.type == "cuda"):
        return function
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise RuntimeError(
            f"compile={mode!r} needs a C++ compiler on the CPU, none found: install g++ or use compile='off'"
        )
    if mode == "max-autotune" and device.type == "cuda":
        mode = "max-autotune-no-cudagraphs"  # a graph of the whole step holds the losses too
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)


def captured(
    step: Callable[..., R], mode: str, modules: TrackedModules, generator: torch.Generator
) -> Callable[..., R]:
    """Record a gradient step as a CUDA graph where the mode asks for it, or leave it as it is.

    :param step: see :class:`Captured`
    :param mode: of ``compile``
    :param modules: the networks that it trains
    :param generator: the only one that it draws from
    :return: the function to call
    """
    if modules.device.type != "cuda" or mode not in ("reduce-overhead", "max-autotune"):
        return step
    return Captured(step, modules, generator)


class Captured(Generic[R]):
    """A gradient step that is recorded once and replayed from then on, its hundred small kernels in one launch.

    The kernels are those of the step itself, in the same order, so that it computes the same bits. Arguments that are
    tensors, or dataclasses, tuples and dicts of them, are copied into the recording's own; all others are constants,
    with a recording for each of their combinations. Where a network's or an optimiser's tensors were exchanged, all is
    recorded anew.

    :param step: takes a batch, trains networks, and returns tensors; it waits for nothing that the GPU computes
    :param modules: the networks that it trains
    :param generator: the only one that it draws from
    """

    def __init__(self, step: Callable[..., R], modules: TrackedModules, generator: torch.Generator) -> None:
        self.step, self.modules, self.generator = step, modules, generator
        self._forget(())

    def _forget(self, places: tuple[float, ...]) -> None:
        self._places = places
        self._calls: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, tuple[list[Tensor], Callable[[], None], R]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copied and pickled without recordings."""
        return {name: getattr(self, name) for name in ("step", "modules", "generator")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, *args: Any) -> R:
        """Take the step.

        :param args: of the step; constants must be hashable
        :return: what the step returns; its tensors are overwritten by the next call
        :raises RuntimeError: the step waits for the GPU, or does something else that cannot be recorded
        """
        places = tuple(self.modules.places())
        if places != self._places:
            self._forget(places)
        given = [leaf for leaf in _leaves(args) if isinstance(leaf, Tensor)]
        key = tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in _leaves(args))
        if key in self._recordings:
            own, replay, results = self._recordings[key]
            torch._foreach_copy_(own, given)
            replay()
            return results
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] <= WARM_UP:
            return self._warm_up(args)
        kept = _mapped(torch.clone, args)
        replay, results = self._record(kept)
        self._recordings[key] = [leaf for leaf in _leaves(kept) if isinstance(leaf, Tensor)], replay, results
        replay()  # recording computed nothing
        return results

    def _warm_up(self, args: Any) -> R:
        """Take the step as it is, in a stream beside the default one, as torch asks for what will be recorded."""
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            results = self.step(*args)
        here.wait_stream(beside)
        return results

    def _record(self, args: Any) -> tuple[Callable[[], None], R]:
        """:return: what repeats the step, and its results, which every repetition overwrites."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        # A forgotten agent's graph that Python frees in the middle of a recording breaks it off.
        gc.collect()
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                # Without the graph of autograd, whose nodes would bind later steps to the stream of the recording.
                results = _mapped(torch.Tensor.detach, self.step(*args))
        except RuntimeError as cause:
            raise RuntimeError(
                f"this gradient step cannot be recorded as a CUDA graph ({str(cause).splitlines()[0]}): "
                "use compile='off' or compile='default'"
            ) from cause
        finally:
            if collects:
                gc.enable()
        return graph.replay, results


def _leaves(value: Any) -> Iterator[Any]:
    """Tensors and constants of nested containers, in a fixed order."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    elif _is_batch(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name))
    else:
        yield value


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same containers around other tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [_mapped(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if _is_batch(value):
        return type(value)(**{field.name: _mapped(function, getattr(value, field.name)) for field in fields(value)})
    return value


def _is_batch(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, Config)  # which is a constant
