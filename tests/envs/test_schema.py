"""Checks of data from files, and generators put back from them."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from headway.envs.generators import write_global_numpy, write_numpy, write_numpy_legacy, write_python, write_torch
from headway.envs.schema import array, by_name, each, either, flag, group, maybe, real, row, text, whole

RECORD = group(
    {
        "steps": whole(0, 9),
        "law": maybe(text("gamma", "wifi")),
        "share": real(0, 1),
        "rows": each(row(text(), whole())),
        "sums": by_name(array((None, 2), "float32", low=-1)),
        "on": either(flag, whole()),
    },
    optional=("on",),
)
SOUND: dict[str, Any] = {"steps": 3, "law": "wifi", "share": 0.5, "rows": [("a", 1)], "sums": {"x": torch.zeros(3, 2)}}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"steps": np.int64(9), "law": None, "share": 1, "on": False},
        {"rows": [], "sums": {}, "on": 5},
        {"sums": {"x": np.zeros((0, 2), np.float32)}, "share": np.float32(0.25)},
    ],
)
def test_what_fits_passes(change: dict[str, Any]) -> None:
    RECORD(SOUND | change, "the record")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 10}, r"the record\['steps'\] must be a whole number from 0 to 9, got 10"),
        ({"steps": True}, "whole number"),
        ({"steps": 3.0}, "whole number"),
        ({"steps": "3"}, "got '3'"),
        ({"law": "wife"}, "must be one of gamma, wifi, got 'wife'"),
        ({"share": math.nan}, "got nan"),
        ({"share": math.inf}, "finite number from 0 to 1"),
        ({"share": 10**400}, "finite number"),
        ({"rows": [("a", 1), ("b",)]}, r"\['rows'\]\[1\] must be a list of 2"),
        ({"rows": "ab"}, "must be a list, got 'ab'"),
        ({"sums": {"x": torch.zeros(3)}}, r"float32 of shape \('\*', 2\), got float32 of shape \(3,\)"),
        ({"sums": {"x": torch.zeros(3, 2, dtype=torch.int32)}}, "got int32"),
        ({"sums": {"x": torch.full((3, 2), math.nan)}}, "holds NaN or infinity"),
        ({"sums": {"x": torch.full((3, 2), -2.0)}}, "must lie from -1 to inf, it reaches from -2 to -2"),
        ({"sums": {3: torch.zeros(3, 2)}}, "must be names and values"),
        ({"more": 1}, "has an unknown 'more'; it holds steps, law"),
        ({"on": "yes"}, "whole number"),
        ({"law": "x" * 10**6 + "\n"}, r"got 'x+\.\.\."),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        RECORD(SOUND | change, "the record")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="the record lacks 'share'"):
        RECORD({name: value for name, value in SOUND.items() if name != "share"}, "the record")


# ---- generators ------------------------------------------------------------------------------------------------------

BITS = [np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64]


def used(bits: Any, seed: int) -> np.random.Generator:
    generator = np.random.Generator(bits(seed))
    generator.normal(size=7)
    generator.integers(5, dtype=np.int32)
    generator.spawn(2)
    return generator


def state_of(generator: np.random.Generator) -> dict[str, Any]:
    bits, seeds = generator.bit_generator.__getstate__()  # type: ignore[attr-defined]
    return {"bits": bits, "seeds": seeds.state}


@pytest.mark.parametrize("bits", BITS)
def test_numpy_generators_come_back(bits: Any) -> None:
    saved, other = used(bits, 5), used(bits, 6)
    write_numpy(other, state_of(saved))
    assert other.normal() == saved.normal()
    assert other.spawn(1)[0].normal() == saved.spawn(1)[0].normal()
    legacy, twin = np.random.RandomState(bits(5)), np.random.RandomState(bits(6))
    legacy.normal()
    write_numpy_legacy(twin, legacy.get_state(legacy=False))
    assert [twin.normal() for _ in range(3)] == [legacy.normal() for _ in range(3)]


@pytest.mark.parametrize(
    ("bits", "path", "value", "message"),
    [
        (np.random.MT19937, ("bits", "state", "pos"), 10**6, "from 0 to 624"),  # NumPy would read beyond its table
        (np.random.MT19937, ("bits", "state", "key"), np.zeros(624, np.uint32), "all zeros"),
        (np.random.Philox, ("bits", "buffer_pos"), -7, "from 0 to 4"),
        (np.random.PCG64, ("bits", "state", "state"), 2**128, "whole number"),
        (np.random.PCG64, ("bits", "bit_generator"), "MT19937", "must be one of PCG64"),
        (np.random.PCG64, ("seeds", "pool_size"), 10**6, "from 4 to 1024"),  # it would mix for minutes
        (np.random.PCG64, ("seeds", "entropy"), "12", "whole number"),
        (np.random.SFC64, ("bits", "has_uint32"), 3, "from 0 to 1"),
    ],
)
def test_numpy_states_that_cannot_be_are_refused(bits: Any, path: tuple[str, ...], value: Any, message: str) -> None:
    state = state_of(used(bits, 5))
    owner = state
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    generator = used(bits, 7)
    before = generator.bit_generator.state
    with pytest.raises(ValueError, match=message):
        write_numpy(generator, state)
    np.testing.assert_equal(generator.bit_generator.state, before)


def test_python_generators_come_back_or_are_refused() -> None:
    saved, other = random.Random(1), random.Random(2)
    saved.gauss(0, 1)
    version, words, gauss = saved.getstate()
    write_python(other, [version, list(words), gauss])
    assert other.gauss(0, 1) == saved.gauss(0, 1)
    for wrong in (
        [version, words[:-1], gauss],
        [version, [0] * 625, gauss],
        [version, words, "a"],
        [2, words, gauss],
        1,
    ):
        with pytest.raises(ValueError, match="the state of a generator"):
            write_python(other, wrong)


def test_torch_generators_come_back_or_are_refused() -> None:
    for drawn in (0, 1, 5, 623, 624, 625):
        saved, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        torch.rand(drawn, generator=saved)
        torch.randn(1, generator=saved, dtype=torch.float64)
        write_torch(other, saved.get_state())
        assert torch.equal(torch.randn(40, generator=other), torch.randn(40, generator=saved))
    state = saved.get_state()
    for place, value in ((8, 100), (12, 0), (16, 255), (24 + 8 * 624 + 7, 127)):
        wrong = state.clone()
        wrong[place] = value
        if place == 24 + 8 * 624 + 7:
            wrong[place - 1] = 240  # a kept normal number of infinity
        with pytest.raises(ValueError, match=r"damaged|NaN"):
            write_torch(other, wrong)
    with pytest.raises(ValueError, match="must be uint8"):
        write_torch(other, state.float())
    with pytest.raises(ValueError, match="same kind of device"):
        write_torch(other, state[:16])


def test_the_global_stream_of_numpy_comes_back_or_is_refused() -> None:
    saved = list(np.random.get_state(legacy=True))  # noqa: NPY002
    write_global_numpy(saved, "it")
    for place, value in ((0, "PCG64"), (1, saved[1][:5]), (2, 625), (3, 2), (4, math.nan)):
        with pytest.raises(ValueError, match="it"):
            write_global_numpy([*saved[:place], value, *saved[place + 1 :]], "it")
    np.testing.assert_equal(list(np.random.get_state(legacy=True)), saved)  # noqa: NPY002
