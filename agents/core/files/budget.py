"""A limit to what may be allocated while something is built to a file's specification, before its content is looked at.

A file of a few kilobytes can name layers of 30,000 units. What is built by its word has its size checked against the
numbers that it really holds, tensor by tensor and before the memory is asked for, whatever class builds it.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = 1 << 22
"""Numbers that may be allocated whatever a file holds (16 MB of float32); our choice."""

FACTOR = 8
"""How many numbers may be allocated for each that a file holds. It holds targets and moments too; agents of ours take
one to two, with what initialises them; our choice."""

CALLS = 5_000, 50
"""How many operations may be, whatever a file holds, and for each of its tensors; ours take five; our choice."""

_RANGES = {"arange", "linspace", "logspace"}


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this context is entered, tensors may be made up to a limit.

    :param held: the tensors that the file holds
    :raises ValueError: from whatever would allocate more
    """

    def __init__(self, held: Collection[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = FREE + FACTOR * sum(tensor.numel() for tensor in held)
        self.calls = CALLS[0] + CALLS[1] * len(held)

    def _spend(self, numbers: float) -> None:
        self.left -= int(numbers)
        self.calls -= 1
        if self.left < 0 or self.calls < 0:
            raise ValueError("it asks for more memory, or more tensors, than its own content could fill")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchDispatchMode``: called with every operation."""
        kwargs = kwargs or {}
        schema = func._schema
        names = [argument.name for argument in schema.arguments]
        if "size" in names and not schema.name.endswith(("view", "expand", "as_strided")):
            size = [*args, *kwargs.values()][names.index("size")] if len(args) > names.index("size") else kwargs["size"]
            self._spend(math.prod(size))
        elif schema.name.partition("::")[2] in _RANGES:
            self._spend(_length(args))
        else:
            made = func(*args, **kwargs)
            new = not any(output.alias_info for output in schema.returns)
            self._spend(sum(part.numel() for part in tree_leaves(made) if isinstance(part, Tensor)) if new else 0)
            return made
        return func(*args, **kwargs)


def _length(args: tuple[Any, ...]) -> float:
    """:return: at least the length of what arange, linspace and logspace make."""
    numbers = [abs(float(arg)) for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, torch.dtype)]
    step = numbers[2] if len(numbers) == 3 and 0 < numbers[2] < 1 else 1
    return min(sum(numbers[:2]) / step + (numbers[2] if len(numbers) == 3 else 0), 2.0**62)
