"""The replay store against a reference of plain Python lists."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from headway.agents.core.data import ReplayStore, Transitions
from headway.agents.core.spaces import FieldSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

FIELDS = {
    "obs": FieldSpec((3,), torch.float32),
    "actions": FieldSpec((2,), torch.float32),
    "rewards": FieldSpec((), torch.float32),
    "terminated": FieldSpec((), torch.bool),
    "truncated": FieldSpec((), torch.bool),
    "next_obs": FieldSpec((3,), torch.float32),
}
# Seeds are fixed, so a chi-square test passes always or never; a right store would fail one in a thousand seeds.
SIGNIFICANCE = 1e-3


def make_store(capacity: int = 12, n_envs: int = 2, seed: int = 0, device: str = "cpu") -> ReplayStore[Transitions]:
    generator = torch.Generator(device).manual_seed(seed)
    return ReplayStore(Transitions, FIELDS, capacity=capacity, n_envs=n_envs, device=device, generator=generator)


def make_rows(uids: list[int], flags: list[int] | None = None, device: str = "cpu") -> dict[str, Tensor]:
    """One step of all environments whose every value tells the row's number; flag bits: 1 terminated, 2 truncated."""
    uid = torch.tensor(uids, dtype=torch.float32, device=device)
    flag = torch.tensor(flags or [0] * len(uids), device=device)
    return {
        "obs": torch.stack([uid, uid + 0.25, -uid], 1),
        "actions": torch.stack([2 * uid, 3 * uid], 1),
        "rewards": uid,
        "terminated": flag % 2 == 1,
        "truncated": flag >= 2,
        "next_obs": torch.stack([uid + 1, uid + 1.25, -uid - 1], 1),
    }


@dataclass(frozen=True)
class Step:
    flags: list[int]
    mask: list[bool] | None


Operation = Step | str  # "cut", "clear" or a step


class Reference:
    """What the store should hold: per environment the newest (number, flags, run) triples, oldest first."""

    def __init__(self, capacity: int, n_envs: int) -> None:
        self.columns: list[deque[tuple[int, int, int]]] = [
            deque(maxlen=max(capacity // n_envs, 1)) for _ in range(n_envs)
        ]
        self.run = [0] * n_envs
        self.uid = 0

    def apply(self, operation: Operation, store: ReplayStore[Transitions]) -> None:
        if isinstance(operation, str):
            getattr(store, operation)()
            self.run = [run + 1 for run in self.run]
            if operation == "clear":
                for column in self.columns:
                    column.clear()
            return
        uids = list(range(self.uid, self.uid + len(self.columns)))
        self.uid += len(uids)
        device = str(store.device)
        mask = None if operation.mask is None else torch.tensor(operation.mask, device=device)
        store.add(make_rows(uids, operation.flags, device), mask)
        for i, column in enumerate(self.columns):
            stored = operation.mask is None or operation.mask[i]
            if stored:
                column.append((uids[i], operation.flags[i], self.run[i]))
            if not stored or operation.flags[i]:
                self.run[i] += 1

    def windows(self, length: int) -> list[tuple[int, ...]]:
        """All sequences of row numbers of one run that are ``length`` long."""
        found = []
        for column in self.columns:
            rows = list(column)
            for start in range(len(rows) - length + 1):
                window = rows[start : start + length]
                if window[0][2] == window[-1][2]:
                    found.append(tuple(uid for uid, _, _ in window))
        return found

    def flags(self) -> dict[int, int]:
        return {uid: flags for column in self.columns for uid, flags, _ in column}

    def longest(self) -> int:
        return max(max(Counter(run for _, _, run in column).values(), default=0) for column in self.columns)


def stored_columns(store: ReplayStore[Transitions]) -> list[list[int]]:
    """Row numbers by environment, oldest first, read off the state."""
    state = store.state()
    sizes, heads = state["sizes"].tolist(), state["heads"].tolist()
    uids = iter(state["data.rewards"].tolist())
    columns: list[list[int]] = [[] for _ in sizes]
    for slot in range(max(sizes)):
        for column, size in zip(columns, sizes, strict=True):
            if slot < size:
                column.append(int(next(uids)))
    full = store.capacity_per_env
    return [
        column[head:] + column[:head] if size == full else column
        for column, head, size in zip(columns, heads, sizes, strict=True)
    ]


def check_batch(batch: Transitions, flags: dict[int, int]) -> list[int]:
    """Each row of the batch is whole and one of the reference's; returns the numbers."""
    uids = [int(uid) for uid in batch.rewards.flatten().tolist()]
    expected = make_rows(uids, [flags[uid] for uid in uids], str(batch.rewards.device))
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        assert value.dtype is FIELDS[field.name].dtype
        assert torch.equal(value.reshape(expected[field.name].shape), expected[field.name])
    return uids


def check_against(store: ReplayStore[Transitions], reference: Reference) -> None:
    assert stored_columns(store) == [[uid for uid, _, _ in column] for column in reference.columns]
    flags = reference.flags()
    assert len(store) == len(flags)
    rows, ended = store.chronological()
    stored = [step for column in reference.columns for step in column]
    assert check_batch(store.at(rows), flags) == [uid for uid, _, _ in stored]
    lasts = [column[-1][0] for column in reference.columns if column]
    assert ended.tolist() == [uid in lasts or run != stored[place + 1][2] for place, (uid, _, run) in enumerate(stored)]
    if not flags:
        with pytest.raises(ValueError, match="empty store"):
            store.sample(1)
        with pytest.raises(ValueError, match="empty store"):
            store.sample_windows(1, 1)
        return
    batch = store.sample(5)
    assert batch.obs.shape == (5, 3)
    assert batch.rewards.shape == (5,)
    check_batch(batch, flags)
    for length in range(1, reference.longest() + 1):
        # One window: rejection where the store is big enough. Seven: more often all by enumeration.
        for count in (1, 7):
            batch = store.sample_windows(count, length)
            assert batch.obs.shape == (count, length, 3)
            assert batch.terminated.shape == (count, length)
            check_batch(batch, flags)
            windows = [tuple(int(uid) for uid in row) for row in batch.rewards.tolist()]
            assert set(windows) <= set(reference.windows(length))
    too_long = reference.longest() + 1
    with pytest.raises(ValueError, match=f"no window of {too_long} .* longest has {reference.longest()}:"):
        store.sample_windows(3, too_long)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[Operation]]:
    """A capacity, a number of environments and what happens; episode ends and masks are common, cuts are rare."""
    n_envs = draw(st.integers(1, 3))
    capacity = draw(st.integers(1, 14))
    flags = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 3]), min_size=n_envs, max_size=n_envs)
    mask = st.none() | st.lists(st.booleans(), min_size=n_envs, max_size=n_envs)
    step = st.builds(Step, flags, mask)
    operations = st.lists(st.one_of(step, step, step, step, step, step, st.sampled_from(["cut", "clear"])), max_size=30)
    return capacity, n_envs, draw(operations)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(histories(), st.integers(1, 6))
def test_contents_samples_and_windows_equal_the_reference(
    history: tuple[int, int, list[Operation]], every: int
) -> None:
    capacity, n_envs, operations = history
    store, reference = make_store(capacity, n_envs), Reference(capacity, n_envs)
    for i, operation in enumerate(operations):
        reference.apply(operation, store)
        if i % every == 0:
            check_against(store, reference)
    check_against(store, reference)


def next_samples(store: ReplayStore[Transitions]) -> list[Tensor]:
    if len(store) == 0:
        return []
    batches = [store.sample(4), store.sample_windows(3, 1)]
    with contextlib.suppress(ValueError):  # there may be no window of two
        batches += [store.sample_windows(1, 2), store.sample_windows(9, 2)]
    return [getattr(batch, field.name) for batch in batches for field in dataclasses.fields(batch)]


def assert_same_state(a: ReplayStore[Transitions], b: ReplayStore[Transitions]) -> None:
    left, right = a.state(), b.state()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]) if isinstance(value, Tensor) else value == right[name]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(histories(), st.integers(0, 30))
def test_a_loaded_state_continues_bit_for_bit(history: tuple[int, int, list[Operation]], stop: int) -> None:
    capacity, n_envs, operations = history
    store, reference = make_store(capacity, n_envs, seed=1), Reference(capacity, n_envs)
    for operation in operations[:stop]:
        reference.apply(operation, store)
        next_samples(store)
    twin, twin_reference = make_store(capacity, n_envs, seed=2), copy.deepcopy(reference)
    twin.add(make_rows([999] * n_envs))  # what was there before must leave no trace
    twin.load_state(store.state())
    assert_same_state(store, twin)
    for operation in operations[stop:]:
        reference.apply(operation, store)
        twin_reference.apply(operation, twin)
        for left, right in zip(next_samples(store), next_samples(twin), strict=True):
            assert torch.equal(left, right)
    check_against(twin, twin_reference)
    check_against(store, reference)
    assert_same_state(store, twin)


def test_columns_that_became_level_again_draw_as_in_a_loaded_store() -> None:
    store, reference = make_store(20, 2), Reference(20, 2)
    for mask in ([True, False], [True, False], [False, True], [False, True], None, None, None):
        reference.apply(Step([0, 0], mask), store)
    twin = make_store(20, 2, seed=1)
    twin.load_state(store.state())
    check_against(store, reference)
    check_against(twin, reference)
    assert torch.equal(store.sample_windows(2, 3).rewards, twin.sample_windows(2, 3).rewards)


def test_a_cleared_store_is_as_new_but_for_its_generator() -> None:
    store, new = make_store(), make_store()
    store.add(make_rows([1, 2]), torch.tensor([False, True]))
    store.sample(3)
    store.clear()
    new.generator.set_state(store.generator.get_state())
    assert len(store) == 0
    assert_same_state(store, new)


def test_an_unending_episode_crosses_the_ring_several_times() -> None:
    store, reference = make_store(10, 2), Reference(10, 2)
    for _ in range(23):
        reference.apply(Step([0, 0], None), store)
        check_against(store, reference)
    assert reference.longest() == 5


def uneven_history(steps: int) -> list[Step]:
    """Three environments that lose rows at different rates and end episodes of different lengths."""
    return [
        Step([2 * (t % 7 == 6), int(t % 11 == 10), 0], None if t % 5 == 0 else [True, t % 3 != 0, t % 4 == 0])
        for t in range(steps)
    ]


def even_history(steps: int) -> list[Step]:
    return [Step([2 * (t % 7 == 6), int(t % 5 == 1), 3 * (t % 13 == 4)], None) for t in range(steps)]


def assert_uniform(counts: Counter[tuple[int, ...]], expected: list[tuple[int, ...]]) -> None:
    assert set(counts) <= set(expected)
    assert chisquare([counts[key] for key in expected]).pvalue > SIGNIFICANCE


HISTORIES = [
    pytest.param(60, even_history(13), id="even, partly filled"),
    pytest.param(60, even_history(31), id="even, gone round"),
    pytest.param(60, uneven_history(15), id="uneven, partly filled"),
    pytest.param(60, uneven_history(30), id="uneven, some columns full"),
    pytest.param(60, uneven_history(97), id="uneven heads, all columns full"),
]


@pytest.mark.parametrize(("capacity", "history"), HISTORIES)
def test_sample_is_uniform_over_stored_rows(capacity: int, history: list[Step]) -> None:
    store, reference = make_store(capacity, 3, seed=3), Reference(capacity, 3)
    for step in history:
        reference.apply(step, store)
    counts = Counter((int(uid),) for uid in store.sample(400 * len(store)).rewards.tolist())
    assert_uniform(counts, reference.windows(1))


@pytest.mark.parametrize("batch_size", [1, 6, 20_000], ids=["rejection", "rejection, then the rest", "enumeration"])
@pytest.mark.parametrize(("capacity", "history"), HISTORIES)
def test_windows_are_uniform_over_all_there_are(capacity: int, history: list[Step], batch_size: int) -> None:
    store, reference = make_store(capacity, 3, seed=4), Reference(capacity, 3)
    for step in history:
        reference.apply(step, store)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(max(3000 // batch_size, 1)):
        batch = store.sample_windows(batch_size, 3)
        counts.update(tuple(int(uid) for uid in window) for window in batch.rewards.tolist())
    assert_uniform(counts, reference.windows(3))


# -- rows and their neighbours -----------------------------------------------------------------------------------------


def neighbours(reference: Reference, before: int, after: int) -> dict[int, list[int | None]]:
    """What may be drawn: row numbers, and for each those around it, None where the episode has none stored.

    As soon as a column is full, its oldest rows may belong to an episode whose beginning is lost, so the first
    ``before`` rows of every column are left out.
    """
    full = any(len(column) == column.maxlen for column in reference.columns)
    found = {}
    for column in reference.columns:
        rows = list(column)
        for rank in range(before if full else 0, len(rows)):
            around = []
            for other in range(rank - before, rank + after):
                there = 0 <= other < len(rows) and rows[other][2] == rows[rank][2]
                around.append(rows[other][0] if there else None)
            found[rows[rank][0]] = around
    return found


def drawn_around(store: ReplayStore[Transitions], count: int, before: int, after: int) -> list[list[int | None]]:
    rows, present = store.draw_around(count, before, after)
    assert rows.shape == present.shape == (count, before + after)
    assert bool(((rows >= 0) & (rows < store.capacity_per_env * store.n_envs)).all())
    uids, obs = store.take("rewards", rows), store.take("obs", rows)
    assert obs.shape == (count, before + after, 3)
    assert torch.equal(obs[present][:, 0], uids[present])
    return [
        [int(uid) if there else None for uid, there in zip(*pair, strict=True)]
        for pair in zip(uids.tolist(), present.tolist(), strict=True)
    ]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(histories(), st.integers(0, 5), st.integers(1, 5))
def test_rows_around_a_drawn_one_are_of_its_episode(
    history: tuple[int, int, list[Operation]], before: int, after: int
) -> None:
    capacity, n_envs, operations = history
    store, reference = make_store(capacity, n_envs), Reference(capacity, n_envs)
    for array in store._flat.values():  # memory that was never written may hold anything
        array.fill_(1)
    store._flat_runs.copy_(torch.arange(store._ring).remainder(7))
    for i, operation in enumerate(operations):
        reference.apply(operation, store)
        if i % 3 and i < len(operations) - 1:
            continue
        if len(store) == 0:
            with pytest.raises(ValueError, match="empty store"):
                store.draw_around(1, before, after)
        elif any(len(column) == column.maxlen for column in reference.columns) and before >= store.capacity_per_env:
            with pytest.raises(ValueError, match=f"buffer_size of more than {before * n_envs}"):
                store.draw_around(1, before, after)
        else:
            expected = neighbours(reference, before, after)
            for around in drawn_around(store, 25, before, after):
                assert around == expected[around[before]]  # type: ignore[index]


@pytest.mark.parametrize(("capacity", "history"), HISTORIES)
def test_rows_with_neighbours_are_drawn_uniformly(capacity: int, history: list[Step]) -> None:
    store, reference = make_store(capacity, 3, seed=4), Reference(capacity, 3)
    for step in history:
        reference.apply(step, store)
    expected = neighbours(reference, 3, 2)
    drawn = drawn_around(store, 400 * len(expected), 3, 2)
    assert all(around == expected[around[3]] for around in drawn)  # type: ignore[index]
    assert_uniform(Counter((around[3],) for around in drawn), [(uid,) for uid in expected])  # type: ignore[misc]


def test_neighbours_survive_a_saved_state() -> None:
    store = make_store(20, 2, seed=1)
    for t in range(17):
        mask = None if t % 4 else torch.tensor([True, t % 8 == 0])
        store.add(make_rows([2 * t, 2 * t + 1], [int(t % 6 == 5), 0]), mask)
    twin = make_store(20, 2, seed=9)
    twin.load_state(store.state())
    assert all(torch.equal(*pair) for pair in zip(store.draw_around(50, 3, 4), twin.draw_around(50, 3, 4), strict=True))


def test_draws_around_check_their_arguments() -> None:
    store = make_store()
    store.add(make_rows([1, 2]))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        store.draw_around(0, 1, 1)
    with pytest.raises(ValueError, match="after must be at least 1, got 0"):
        store.draw_around(1, 1, 0)


def test_windows_need_few_looks_where_valid_ones_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(4000, 1)
    for t in range(4000):
        store.add(make_rows([t], [2 * (t % 4 == 3 and t < 3990)]))
    rounds = []
    draw = store._draw
    monkeypatch.setattr(store, "_draw", lambda count, length: rounds.append(count) or draw(count, length))
    batch = store.sample_windows(100, 10)  # one valid window: 3988 to 3997 is the first of three
    assert set(batch.rewards[:, 0].tolist()) <= {3988.0, 3989.0, 3990.0}
    assert len(rounds) <= 12  # twice the candidates each time, at most 4000
    assert max(rounds) <= 4000


def test_windows_are_oldest_first_and_end_flags_only_last() -> None:
    store = make_store(40, 1)
    for t in range(30):
        store.add(make_rows([t], [[0, 0, 0, 1, 0, 2][t % 6]]))
    batch = store.sample_windows(64, 2)
    assert torch.equal(batch.rewards[:, 1], batch.rewards[:, 0] + 1)
    assert torch.equal(batch.obs[:, 1], batch.next_obs[:, 0] * torch.ones(3))
    assert not (batch.terminated | batch.truncated)[:, 0].any()
    assert batch.terminated[:, 1].any()
    assert batch.truncated[:, 1].any()


def test_truncated_rows_stay_apart_from_terminated_ones() -> None:
    store = make_store(8, 1)
    for uid, flags in enumerate([0, 1, 2, 3]):
        store.add(make_rows([uid], [flags]))
    batch = store.sample(200)
    assert torch.equal(batch.terminated, (batch.rewards == 1) | (batch.rewards == 3))
    assert torch.equal(batch.truncated, batch.rewards >= 2)
    assert {int(uid) for uid in batch.rewards} == {0, 1, 2, 3}


def test_draws_depend_on_the_given_generator_alone() -> None:
    stores = [make_store(seed=seed) for seed in (5, 5, 6)]
    for t in range(8):
        for store in stores:
            store.add(make_rows([2 * t, 2 * t + 1]))
    same, other = [], []
    for i in range(5):
        torch.manual_seed(i)  # of no influence
        a, b, c = (torch.cat([s.sample(9).rewards, s.sample_windows(9, 2).rewards.view(-1)]) for s in stores)
        same.append(torch.equal(a, b))
        other.append(torch.equal(a, c))
    assert all(same)
    assert not any(other)
    before = torch.get_rng_state()
    stores[0].sample(4)
    stores[0].sample_windows(4, 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mask", [None, [True, False]], ids=["all rows", "masked"])
def test_nothing_aliases_the_storage(mask: list[bool] | None) -> None:
    store = make_store()
    rows = make_rows([1, 2])
    store.add(rows, None if mask is None else torch.tensor(mask))
    saved = store.state()
    for value in rows.values():
        value.zero_()
    for batch in (store.sample(6), store.sample_windows(6, 1)):
        for field in dataclasses.fields(batch):
            getattr(batch, field.name).zero_()
    for name, value in saved.items():
        if name.startswith("data."):
            value.zero_()
    flags = {1: 0, 2: 0}
    assert set(check_batch(store.sample(20), flags)) == ({1, 2} if mask is None else {1})


@pytest.mark.parametrize("mask", [None, [True, False]], ids=["all rows", "masked"])
def test_neither_gradients_nor_inference_mode_stick(mask: list[bool] | None) -> None:
    store = make_store()
    keep = None if mask is None else torch.tensor(mask)
    rows = make_rows([1, 2])
    rows["actions"] = rows["actions"].requires_grad_() * 2
    store.add(rows, keep)
    assert not store.sample(2).actions.requires_grad
    with torch.inference_mode():
        store.add(make_rows([3, 4]), keep)
        store.sample(2)
    store.cut()
    store.add(make_rows([5, 6]), keep)
    weight = torch.ones(3, requires_grad=True)
    (store.sample(4).obs @ weight).sum().backward()
    assert weight.grad is not None


def test_float64_is_stored_as_float32_and_other_conversions_are_refused() -> None:
    store = make_store()
    rows = make_rows([1, 2])
    store.add({k: v.double() if v.is_floating_point() else v for k, v in rows.items()})
    store.add({k: v.double() if v.is_floating_point() else v for k, v in rows.items()}, torch.tensor([False, True]))
    check_batch(store.sample(9), {1: 0, 2: 0})
    for name, dtype in (("obs", torch.float16), ("rewards", torch.int64), ("terminated", torch.uint8)):
        with pytest.raises(ValueError, match=rf"rows\['{name}'\]: expected dtype {FIELDS[name].dtype}, got {dtype}"):
            store.add(rows | {name: rows[name].to(dtype)})
    assert len(store) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": torch.zeros(2, 4)}, r"rows\['obs'\]: expected shape \(2, 3\), got \(2, 4\)"),
        ({"rewards": torch.zeros(2, 1)}, r"rows\['rewards'\]: expected shape \(2,\), got \(2, 1\)"),
        ({"obs": torch.zeros(3)}, r"rows\['obs'\]: expected shape"),
        ({"actions": torch.zeros(2, 2).numpy()}, r"rows\['actions'\]: expected a tensor, got ndarray"),
        ({"ages": torch.zeros(2)}, r"missing \[\], unknown \['ages'\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    store = make_store()
    with pytest.raises(ValueError, match=message):
        store.add(make_rows([1, 2]) | change)
    assert len(store) == 0


def test_missing_rows_and_wrong_masks_are_refused() -> None:
    store = make_store()
    rows = make_rows([1, 2])
    with pytest.raises(ValueError, match=r"missing \['truncated'\], unknown \[\]"):
        store.add({k: v for k, v in rows.items() if k != "truncated"})
    with pytest.raises(ValueError, match=r"mask: expected torch.bool of shape \(2,\), got torch.bool of shape \(3,\)"):
        store.add(rows, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"got torch\.float32"):
        store.add(rows, torch.ones(2))
    assert len(store) == 0


@dataclass(frozen=True)
class Delayed:
    """A batch of an agent that stores more, and samples less, than the standard one."""

    images: Tensor
    ages: Tensor
    truncated: Tensor


def test_agents_declare_fields_of_their_own() -> None:
    fields = {
        "images": FieldSpec((2, 4, 4), torch.uint8),
        "ages": FieldSpec((), torch.int64),
        "terminated": FieldSpec((), torch.bool),
        "truncated": FieldSpec((), torch.bool),
    }
    store = ReplayStore(Delayed, fields, capacity=9, n_envs=2, device="cpu", generator=torch.Generator())
    assert store.capacity_per_env == 4
    for t in range(6):
        ages = torch.tensor([t, 10 + t])
        images = ages.to(torch.uint8).view(2, 1, 1, 1).expand(2, 2, 4, 4)
        flags = torch.zeros(2, dtype=torch.bool)
        store.add({"images": images, "ages": ages, "terminated": flags, "truncated": flags})
    batch = store.sample_windows(30, 3)
    assert isinstance(batch, Delayed)
    assert batch.images.shape == (30, 3, 2, 4, 4)
    assert torch.equal(batch.images[..., 0, 0, 0].long(), batch.ages)
    assert set(store.sample(200).ages.tolist()) == {2, 3, 4, 5, 12, 13, 14, 15}


def test_capacity_is_shared_out_and_never_below_one_row() -> None:
    assert make_store(10, 3).capacity_per_env == 3
    assert make_store(2, 3).capacity_per_env == 1


@pytest.mark.parametrize(("capacity", "n_envs", "message"), [(0, 1, "buffer_size"), (5, 0, "n_envs"), (-1, 1, "-1")])
def test_sizes_below_one_are_refused(capacity: int, n_envs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_store(capacity, n_envs)


def test_draws_below_one_are_refused() -> None:
    store = make_store()
    store.add(make_rows([1, 2]))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        store.sample(0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -2"):
        store.sample_windows(-2, 1)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        store.sample_windows(1, 0)


@dataclass(frozen=True)
class OnlyObs:
    obs: Tensor


@dataclass
class Thawed:
    obs: Tensor


def test_batch_types_and_fields_that_do_not_fit_are_refused() -> None:
    def build(batch_type: type, fields: dict[str, FieldSpec]) -> None:
        ReplayStore(batch_type, fields, capacity=4, n_envs=1, device="cpu", generator=torch.Generator())

    with pytest.raises(ValueError, match=r"Delayed has fields \['images', 'ages'\] that are not stored"):
        build(Delayed, FIELDS)
    with pytest.raises(ValueError, match="frozen dataclass, got <class 'dict'>"):
        build(dict, FIELDS)
    with pytest.raises(ValueError, match="frozen dataclass"):
        build(Thawed, FIELDS)
    with pytest.raises(ValueError, match="'truncated' must be stored as"):
        build(Transitions, FIELDS | {"truncated": FieldSpec((), torch.float32)})
    with pytest.raises(ValueError, match=r"'terminated' must be stored as .* got None"):
        build(OnlyObs, {"obs": FIELDS["obs"]})
    with pytest.raises(ValueError, match="the generator is on cpu, the store on meta"):
        ReplayStore(Transitions, FIELDS, capacity=4, n_envs=1, device="meta", generator=torch.Generator())


def test_a_store_larger_than_the_machine_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"needs 39115\.5 GiB, .* has \d+\.\d GiB .* buffer_size of at most \d+"):
        make_store(10**12, 1)  # 42 bytes a row, run length included


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
def test_memory_is_taken_up_only_as_rows_come() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    store = make_store(10_000_000, 1)  # 420 MB
    store.add(make_rows([1]))
    store.sample(10)
    store.state()
    assert resident() - before < 50e6


def test_a_state_holds_only_what_is_stored_and_later_steps_leave_it_alone() -> None:
    store = make_store(1000, 2)
    for t in range(3):
        store.add(make_rows([2 * t, 2 * t + 1]), None if t < 2 else torch.tensor([False, True]))
    state = store.state()
    assert state["data.obs"].shape == (5, 3)
    assert all(len(state[name]) == 5 for name in state if name.startswith("data.") or name == "runs")
    kept = copy.deepcopy(state)
    store.add(make_rows([8, 9]))
    store.sample(3)
    store.clear()
    assert all(torch.equal(state[k], v) if isinstance(v, Tensor) else state[k] == v for k, v in kept.items())


def shifted(state: Tensor) -> Tensor:
    """A generator that stands at the end of its table, with hundreds of its words left to come."""
    state = state.clone()
    state[8:16] = torch.tensor([100, 0, 0, 0, 1, 0, 0, 0])
    state[16:24] = torch.tensor([112, 2, 0, 0, 0, 0, 0, 0])  # 624
    return state


STATE_CHANGES = {
    "capacity": (lambda s: s | {"capacity_per_env": 7}, "capacity_per_env 7, this store 6"),
    "envs": (lambda s: s | {"n_envs": 3}, "n_envs 3, this store 2"),
    "missing": (lambda s: {k: v for k, v in s.items() if k != "data.obs"}, r"missing \['data.obs'\]"),
    "unknown": (lambda s: s | {"data.ages": torch.zeros(4)}, r"unknown \['data.ages'\]"),
    "dtype": (lambda s: s | {"data.obs": s["data.obs"].double()}, "'data.obs' must be float32 .* float64"),
    "shape": (lambda s: s | {"data.obs": torch.zeros(4, 2)}, r"'data.obs' must .* \(4, 3\), got .* \(4, 2\)"),
    "rows": (lambda s: s | {"runs": s["runs"][:3]}, r"'runs' must .* \(4,\), got .* \(3,\)"),
    "open runs": (lambda s: s | {"open_runs": torch.zeros(3, dtype=torch.int32)}, "'open_runs' must"),
    "kind": (lambda s: s | {"heads": 2}, "'heads' must be int64 .* got 2"),
    "sizes": (lambda s: s | {"sizes": torch.tensor([2, 7])}, "'sizes' must lie from 0 to 6"),
    "negative": (lambda s: s | {"heads": torch.tensor([2, -1])}, "'heads' must lie from 0 to 5"),
    "head": (lambda s: s | {"heads": torch.tensor([2, 1])}, "write positions are impossible"),
    "generator": (lambda s: s | {"generator": s["generator"][:16]}, "'generator' must .* same kind of device"),
    "text": (lambda s: s | {"n_envs": "2"}, "n_envs 2, this store 2"),
    "no mapping": (lambda s: [1], "missing"),
    "no numbers": (lambda s: s | {"data.rewards": s["data.rewards"] * torch.nan}, "'data.rewards' holds NaN"),
    "negative runs": (lambda s: s | {"runs": s["runs"] - 5}, "'runs' must lie from 1"),
    "beyond its table": (lambda s: s | {"generator": shifted(s["generator"])}, "'generator' is damaged"),
    "noise": (lambda s: s | {"generator": torch.full_like(s["generator"], 255)}, "'generator' is damaged"),
}


@pytest.mark.parametrize("case", STATE_CHANGES)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(case: str) -> None:
    change, message = STATE_CHANGES[case]
    store, twin = make_store(seed=7), make_store(seed=7)
    for t in range(2):
        for target in (store, twin):
            target.add(make_rows([2 * t, 2 * t + 1]))
    other = make_store(seed=8)
    for t in range(2):
        other.add(make_rows([50 + 2 * t, 51 + 2 * t]))
    with pytest.raises(ValueError, match=message):
        store.load_state(change(other.state()))
    assert_same_state(store, twin)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # it calls itself a prototype
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_path_equals_the_reference_and_waits_for_nothing() -> None:
    store, reference = make_store(30, 3, device="cuda"), Reference(30, 3)
    for step in even_history(17) + uneven_history(23):
        reference.apply(step, store)
        check_against(store, reference)
    twin = make_store(30, 3, seed=9, device="cuda")
    twin.load_state(store.state())
    assert_same_state(store, twin)
    for left, right in zip(next_samples(store), next_samples(twin), strict=True):
        assert left.is_cuda
        assert torch.equal(left, right)
    twin.add(make_rows([1000, 1001, 1002]))  # rows of the CPU are copied over

    level, rows = make_store(30, 3, device="cuda"), make_rows([1, 2, 3], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(15):
            level.add(rows)
            level.sample(8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(level) == 30


@pytest.mark.parametrize("count", [1, 3, 7, 12, 40])
def test_many_steps_at_once_are_so_many_steps(count: int) -> None:
    one_by_one, at_once = make_store(capacity=24), make_store(capacity=24)
    random = torch.Generator().manual_seed(count)
    uid = 0
    for _ in range(3):  # from an empty store, a partly filled one, and round the ring
        flags = torch.randint(4, (count, 2), generator=random).clamp(min=0) * (
            torch.rand(count, 2, generator=random) < 0.3
        )
        steps = [make_rows([uid + 2 * t, uid + 2 * t + 1], row) for t, row in enumerate(flags.tolist())]
        uid += 2 * count
        for rows in steps:
            one_by_one.add(rows)
        at_once.extend({name: torch.stack([rows[name] for rows in steps]) for name in FIELDS})
        ours, theirs = at_once.state(), one_by_one.state()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(value)), name


def test_a_million_rows_are_stored_in_one_call() -> None:
    count = 1_000_000
    store = make_store(capacity=count, n_envs=1)
    rows = {name: torch.zeros(count, 1, *field.shape, dtype=field.dtype) for name, field in FIELDS.items()}
    store.extend(rows)
    assert len(store) == count


def test_a_field_of_several_tensors_is_sampled_as_such() -> None:
    several = {"eye": FieldSpec((2, 2), torch.uint8), "words": FieldSpec((3,), torch.int64)}
    store = ReplayStore(
        Transitions,
        {**FIELDS, "obs": several, "next_obs": several},
        capacity=8,
        n_envs=2,
        device="cpu",
        generator=torch.Generator().manual_seed(0),
    )
    for t in range(3):
        number = 2**24 + 1 + t
        obs = {"eye": torch.full((2, 2, 2), t, dtype=torch.uint8), "words": torch.full((2, 3), number)}
        rows = {**make_rows([2 * t, 2 * t + 1]), "obs": obs, "next_obs": obs}
        store.add(rows)
    batch = store.sample(64)
    assert isinstance(batch.obs, dict)
    assert {name: (part.shape, part.dtype) for name, part in batch.obs.items()} == {
        "eye": ((64, 2, 2), torch.uint8),
        "words": ((64, 3), torch.int64),
    }
    assert torch.equal(batch.obs["words"][:, 0] - 2**24 - 1, batch.obs["eye"][:, 0, 0].long())
    windows = store.sample_windows(5, 2)
    assert windows.next_obs["words"].shape == (5, 2, 3)  # type: ignore[call-overload]
    copied = ReplayStore(
        Transitions,
        {**FIELDS, "obs": several, "next_obs": several},
        capacity=8,
        n_envs=2,
        device="cpu",
        generator=torch.Generator().manual_seed(1),
    )
    copied.load_state(store.state())
    assert torch.equal(copied.sample(9).obs["words"], store.sample(9).obs["words"])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"missing \['obs.words'\]"):
        store.add({**rows, "obs": {"eye": obs["eye"]}})
