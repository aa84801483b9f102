"""Random generators put back from files. Their libraries believe a state, and may read beyond their tables."""

import random
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, RandomState, SeedSequence

from .schema import Check, array, check_numbers, each, either, group, maybe, real, row, text, whole

_WORD, _LONG = whole(0, 2**32 - 1), whole(0, 2**128 - 1)
_WORDS = 624
"""Of a Mersenne Twister."""


def _nonzero(check: Check) -> Check:
    def check_both(value: Any, where: str) -> None:
        check(value, where)
        if not np.any(value):
            raise ValueError(f"{where} is all zeros, a state that no generator reaches")

    return check_both


_TWISTER = group({"key": _nonzero(array((_WORDS,), "uint32", "uint64", high=2**32 - 1)), "pos": whole(0, _WORDS)})
_PCG = {"state": group({"state": _LONG, "inc": _LONG})}
_HALVES = {"has_uint32": whole(0, 1), "uinteger": _WORD}
_QUADS = array((4,), "uint64")
_PHILOX = {"state": group({"counter": _QUADS, "key": array((2,), "uint64")})}
_PHILOX |= {"buffer": _QUADS, "buffer_pos": whole(0, 4)}
_BITS: dict[str, dict[str, Check]] = {
    "MT19937": {"state": _TWISTER},
    "PCG64": _PCG | _HALVES,
    "PCG64DXSM": _PCG | _HALVES,
    "Philox": _PHILOX | _HALVES,
    "SFC64": {"state": group({"state": _nonzero(_QUADS)})} | _HALVES,
}
_LEGACY = {"has_gauss": whole(0, 1), "gauss": real()}
_SEEDS = group(
    {
        "entropy": maybe(either(each(whole(0, 2**64 - 1)), whole(0, 2**4096))),
        "spawn_key": each(whole(0, 2**64 - 1)),
        "pool_size": whole(4, 1024),  # mixing takes its square
        "n_children_spawned": whole(),
    }
)
_PYTHON = row(whole(3, 3), row(*[_WORD] * _WORDS, whole(0, _WORDS)), maybe(real()))


def _check_bits(state: Any, kind: str, where: str, more: Mapping[str, Check]) -> None:
    group({"bit_generator": text(kind), **_BITS[kind], **more})(state, where)


def read_numpy(generator: Generator) -> dict[str, Any]:
    """:return: for :func:`write_numpy`; with what its seed sequence has spawned, which decides what ``spawn`` gives"""
    held: Any = generator.bit_generator
    bits, seeds = held.__getstate__()
    return {"bits": bits, "seeds": seeds.state if type(seeds) is SeedSequence else None}


def write_numpy(generator: Generator, state: Any, where: str = "the state of a generator") -> None:
    """Put a NumPy generator back, with what its seeds have spawned, which decides what it spawns next.

    :param generator: written into
    :param state: ``bits`` and ``seeds``, the states of its bit generator and seed sequence (None: it has none)
    :param where: what errors call it
    :raises ValueError: it is not a state of such a generator
    """
    group({"bits": lambda *_: None, "seeds": maybe(_SEEDS)})(state, where)
    bits: Any = generator.bit_generator
    _check_bits(state["bits"], type(bits).__name__, where, {})
    bits.__setstate__((state["bits"], None if state["seeds"] is None else SeedSequence(**state["seeds"])))


def write_numpy_legacy(generator: RandomState, state: Any, where: str = "the state of a generator") -> None:
    """Put a ``RandomState`` back.

    :param generator: written into
    :param state: what its ``get_state(legacy=False)`` gave
    :param where: what errors call it
    :raises ValueError: it is not a state of such a generator
    """
    kind = str(generator.get_state(legacy=False)["bit_generator"])
    _check_bits(state, kind, where, _LEGACY)
    generator.set_state(state)


def write_global_numpy(state: Any, where: str) -> None:
    """Put NumPy's process-wide generator back.

    :param state: what ``numpy.random.get_state(legacy=True)`` gave; a list may stand for the tuple
    :param where: what errors call it
    :raises ValueError: it is not a state of that generator
    """
    row(text("MT19937"), array((_WORDS,), "uint32"), whole(0, _WORDS), whole(0, 1), real())(state, where)
    _TWISTER({"key": state[1], "pos": state[2]}, where)
    np.random.set_state(tuple(state))  # noqa: NPY002


def write_python(
    generator: random.Random | types.ModuleType, state: Any, where: str = "the state of a generator"
) -> None:
    """Put a generator of Python's back.

    :param generator: written into; the module ``random`` for the process-wide one
    :param state: what its ``getstate()`` gave; lists may stand for tuples
    :param where: what errors call it
    :raises ValueError: it is not a state of such a generator
    """
    _PYTHON(state, where)
    if not any(state[1][:-1]):
        raise ValueError(f"{where} is all zeros, a state that no generator reaches")
    generator.setstate((state[0], tuple(state[1]), state[2]))


def write_torch(generator: torch.Generator, state: Any, where: str = "the state of a generator") -> None:
    """Put a generator of torch's back.

    :param generator: written into
    :param state: what its ``get_state()`` gave
    :param where: what errors call it
    :raises ValueError: it is not a state of a generator on this kind of device
    """
    array((None,), "uint8")(state, where)
    if (size := len(generator.get_state())) != len(state):
        raise ValueError(f"{where} must have {size} bytes, got {len(state)}: load it on the same kind of device")
    state = state.cpu()
    if generator.device.type == "cpu":
        raw = state.numpy().tobytes()
        head = np.frombuffer(raw, np.int32, 2, 8)  # after the seed: words left, seeded
        place = int(np.frombuffer(raw, np.uint64, 1, 16)[0])
        words = np.frombuffer(raw, np.uint64, _WORDS, 24)
        # The next word and the number of words left go together; torch would read on beyond the table.
        fits = int(head[0]) + place == _WORDS + 1 or (int(head[0]), place) == (1, 0)
        if not (fits and place <= _WORDS and int(head[1]) == 1 and words.any() and int(words.max()) < 2**32):
            raise ValueError(f"{where} is damaged: its place in its table of random words is impossible")
        end = 24 + 8 * _WORDS  # from here on: normal numbers kept for later
        check_numbers(np.frombuffer(raw, np.float64, 3, end), where)
        check_numbers(np.frombuffer(raw, np.float32, 1, end + 32), where)
    try:
        generator.set_state(state)
    except RuntimeError as cause:
        raise ValueError(f"{where} is damaged ({' '.join(str(cause).split())})") from cause
