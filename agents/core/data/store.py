"""Replay storage: named tensors on the agent's device, sampled by steps or by windows of consecutive steps."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from ....envs.generators import write_torch
from ....envs.schema import array
from ..spaces.fields import Fields, FieldSpec, Obs, map_obs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BatchT = TypeVar("BatchT", bound="DataclassInstance")

GIB = 2**30

_FLOATS = {torch.float32, torch.float64}


Stored = Tensor | Mapping[str, Tensor]
"""Values of a field; by name where it is several tensors, as observations can be."""


@dataclass(frozen=True, slots=True)
class Transitions:
    """The standard batch: B environment steps, or windows of T steps with (B, T) in the place of (B,).

    :param obs: observation before the step, (B, D); images, integers or several tensors by name keep their shapes.
    :param actions: action taken, (B, A), or (B,) int64 of discrete ones.
    :param rewards: reward received, (B,).
    :param terminated: the step ended the episode for good, (B,) bool; do not bootstrap.
    :param truncated: the step was the last one recorded of an episode that could have gone on, (B,) bool; bootstrap.
    :param next_obs: observation after the step, (B, D); at an episode end its final observation.
    """

    obs: Obs
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    next_obs: Obs


def joined(one: Transitions, other: Transitions, dim: int = 0) -> Transitions:
    """:return: the rows of two batches in one, along an axis of rows"""
    names = [field.name for field in dataclasses.fields(one)]
    return Transitions(**{name: torch.cat((getattr(one, name), getattr(other, name)), dim) for name in names})


def transition_fields(obs: Fields, actions: FieldSpec) -> dict[str, Fields]:
    """:return: what a store of :class:`Transitions` holds, with these observations and actions."""
    scalar, flag = FieldSpec((), torch.float32), FieldSpec((), torch.bool)
    flags = {"terminated": flag, "truncated": flag}
    return {"obs": obs, "actions": actions, "rewards": scalar, **flags, "next_obs": obs}


class ReplayStore(Generic[BatchT]):
    """A ring of the newest environment steps, one ring per environment, drawn from uniformly.

    Each environment is a column with a write head and a size of its own, so a row that is masked out (the dummy step
    by which Gymnasium's next-step autoreset announces a reset) leaves no hole: every stored row is a real transition.
    While no row is masked all columns advance together, and then nothing waits for the device.

    :param batch_type: frozen dataclass that :meth:`sample` returns; each of its fields must be stored.
    :param fields: shape and dtype of every stored field, or several by name for one that is several tensors;
        ``terminated`` and ``truncated`` must be bool scalars.
    :param capacity: total number of rows (SB3's ``buffer_size``), ``max(capacity // n_envs, 1)`` per environment.
    :param n_envs: number of environments N.
    :param device: where rows are stored and batches are returned; rows of other devices are copied over.
    :param generator: the only source of randomness, on the same kind of device.
    :raises ValueError: if an argument is out of range, the fields do not fit ``batch_type``, or the machine's memory
        cannot hold the rows.
    """

    def __init__(
        self,
        batch_type: type[BatchT],
        fields: Mapping[str, Fields],
        *,
        capacity: int,
        n_envs: int,
        device: torch.device | str,
        generator: torch.Generator,
    ) -> None:
        _check_at_least_one("capacity (buffer_size)", capacity)
        _check_at_least_one("n_envs", n_envs)
        _check_fields(batch_type, fields)
        self.device = torch.device(device)
        if generator.device.type != self.device.type:
            raise ValueError(
                f"the generator is on {generator.device}, the store on {self.device}: "
                f"make it with torch.Generator(device={str(self.device)!r})"
            )
        self.fields = by_path(fields)
        self.n_envs = n_envs
        self.capacity_per_env = max(capacity // n_envs, 1)
        self.generator = generator
        self._ring = self.capacity_per_env * n_envs
        if self.device.type == "cpu":
            _check_memory(self._ring, self.fields)

        self._make: Callable[..., BatchT] = batch_type
        self._grouping = {f.name: fields[f.name] for f in dataclasses.fields(batch_type)}
        self._open_runs = torch.zeros(n_envs, dtype=torch.int32, device=self.device)

        # Write positions live on the host. While the columns are level the integers below are the truth and these
        # tensors are stale, see _positions; otherwise the tensors are.
        self._head = self._size = self._rows = 0
        self._heads = torch.zeros(n_envs, dtype=torch.int64)
        self._sizes = torch.zeros(n_envs, dtype=torch.int64)
        self._settle()

    # Rows are allocated when the first are stored or looked for: an agent that is loaded to act needs none, and its
    # file could ask for any number of them.

    @functools.cached_property
    def _data(self) -> dict[str, Tensor]:
        # Slot-major, so pages are first touched as slots fill. The flat views share the storage: flat index =
        # slot * N + column, and a step back in time is minus N modulo the ring, whatever the column.
        lead = (self.capacity_per_env, self.n_envs)
        return {k: torch.empty(*lead, *f.shape, dtype=f.dtype, device=self.device) for k, f in self.fields.items()}

    @functools.cached_property
    def _flat(self) -> dict[str, Tensor]:
        return {k: data.view(self._ring, *data.shape[2:]) for k, data in self._data.items()}

    @functools.cached_property
    def _drawn(self) -> list[tuple[str, Obs]]:
        return [(name, self._grouped(name, spec)) for name, spec in self._grouping.items()]

    @functools.cached_property
    def _runs(self) -> Tensor:
        # A row's run is the number of consecutive rows of its episode up to and with it, overwritten ones included;
        # it makes the validity of a window a comparison at its last row.
        return torch.empty(self.capacity_per_env, self.n_envs, dtype=torch.int32, device=self.device)

    @functools.cached_property
    def _flat_runs(self) -> Tensor:
        return self._runs.view(self._ring)

    def __len__(self) -> int:
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without views: each would come back with memory of its own."""
        return {k: v for k, v in vars(self).items() if k not in ("_flat", "_flat_runs", "_drawn")}

    @torch.no_grad()
    def add(self, rows: Mapping[str, Stored], mask: Tensor | None = None) -> None:
        """Store one step of all environments, by copy.

        :param rows: a tensor (N, *shape) for every stored field; float64 may stand for float32 and float32 for float64.
        :param mask: (N,) bool, False for environments whose row is not to be stored, and whose rows before and after
            it no window joins; None stores all of them.
        :raises ValueError: if a field is missing, unknown, or of another shape or dtype; nothing is stored then.
        """
        flat = by_path(rows)
        check_row_shapes(flat, self.fields, (self.n_envs,))
        columns = None if mask is None else self._masked_columns(mask)
        if columns is None and self._level:
            self._add_level(flat)
        else:
            self._add_scattered(flat, torch.arange(self.n_envs) if columns is None else columns)

    @torch.no_grad()
    def extend(self, steps: Mapping[str, Stored]) -> None:
        """Store many steps at once, as so many calls of :meth:`add` would; of more than fit, the last.

        :param steps: a tensor (T, N, *shape) for every stored field
        :raises ValueError: as :meth:`add`, or after rows were masked out, since columns then differ in length
        """
        flat = by_path(steps)
        count = len(next(iter(flat.values())))
        check_row_shapes(flat, self.fields, (count, self.n_envs))
        if not self._level:
            raise ValueError("extend needs columns of one length, and rows of this store were masked out: use add")
        if count == 0:
            return
        ended = (flat["terminated"] | flat["truncated"]).to(self.device)
        at = torch.arange(1, count + 1, device=self.device).unsqueeze(1)  # (T, 1)
        ends = torch.where(ended, at, 0).cummax(0).values  # the last end up to and with each row, (T, N)
        before = torch.cat((torch.zeros_like(ends[:1]), ends[:-1]))
        runs = (at - before + torch.where(before == 0, self._open_runs, 0)).to(torch.int32)
        self._open_runs.copy_(runs[-1].masked_fill(ended[-1], 0))
        kept = min(count, self.capacity_per_env)
        slots = torch.arange(self._head + count - kept, self._head + count, device=self.device) % self.capacity_per_env
        for name, values in flat.items():
            data = self._data[name]
            data.index_copy_(0, slots, values[count - kept :].to(self.device, data.dtype))
        self._runs.index_copy_(0, slots, runs[count - kept :])
        self._head = (self._head + count) % self.capacity_per_env
        self._size = min(self._size + count, self.capacity_per_env)
        self._rows = self._size * self.n_envs

    def cut(self) -> None:
        """Let no window join the rows stored so far to the coming ones.

        For environments reset in mid-episode, by a new ``learn()`` or ``set_env``, which no stored flag shows.
        """
        self._open_runs.zero_()

    def sample(self, batch_size: int) -> BatchT:
        """Draw rows uniformly over all stored ones, with replacement.

        :param batch_size: number of rows B.
        :return: the batch, each field a fresh tensor (B, *shape).
        :raises ValueError: if nothing is stored or ``batch_size`` is below one.
        """
        rows = self.draw(batch_size)
        return self._batch(lambda flat: flat.index_select(0, rows))

    def draw(self, batch_size: int) -> Tensor:
        """Draw rows as :meth:`sample` does, and say where they are.

        :param batch_size: number of rows B.
        :return: rows to be given to :meth:`at`, (B,) int64
        :raises ValueError: if nothing is stored or ``batch_size`` is below one.
        """
        self._check_draw(batch_size)
        return self._draw(batch_size, 1)

    def sample_windows(self, batch_size: int, length: int) -> BatchT:
        """Draw windows of consecutive steps of one environment, uniformly over all there are, with replacement.

        No window continues past an episode end (only its last row may be one), a :meth:`cut` or the write head.

        :param batch_size: number of windows B.
        :param length: steps per window T.
        :return: the batch, each field a fresh tensor (B, T, *shape), oldest step first.
        :raises ValueError: if no window is that long, nothing is stored, or an argument is below one.
        """
        self._check_draw(batch_size)
        _check_at_least_one("length", length)
        ends = self._draw_window_ends(batch_size, length)
        back = torch.arange(length - 1, -1, -1, device=self.device) * self.n_envs
        rows = _wrap(ends.unsqueeze(1) - back, self._ring).view(-1)  # (B * T,)
        return self._batch(lambda flat: flat.index_select(0, rows).view(batch_size, length, *flat.shape[1:]))

    def _batch(self, pick: Callable[[Tensor], Tensor]) -> BatchT:
        return self._make(**{name: map_obs(pick, field) for name, field in self._drawn})

    def _grouped(self, name: str, spec: Fields) -> Obs:
        """A field's flat views: one, or several by name."""
        if isinstance(spec, FieldSpec):
            return self._flat[name]
        return {part: self._flat[f"{name}.{part}"] for part in spec}

    def draw_around(self, batch_size: int, before: int, after: int) -> tuple[Tensor, Tensor]:
        """Draw rows uniformly, with replacement, and say where their neighbours are.

        Once a column is full, the first ``before`` rows of every column are not drawn: their episodes may have begun
        before them.

        :param batch_size: number of rows B
        :param before: how many steps before a drawn one to look for
        :param after: how many steps from a drawn one on, itself included, at least one
        :return: rows to :meth:`take`, (B, before + after) int64 in the order of time, the drawn one at column
            ``before``; and which of them are stored and of the same episode, (B, before + after) bool. The others'
            rows are any.
        :raises ValueError: if nothing is stored or an argument is out of range
        """
        self._check_draw(batch_size)
        _check_at_least_one("after", after)
        if before < 0:
            raise ValueError(f"before must be at least 0, got {before}")
        full = self._size == self.capacity_per_env  # its oldest rows may belong to an episode that began before them
        if full and before >= self.capacity_per_env:
            raise ValueError(
                f"windows of {before} earlier steps need a buffer_size of more than {before * self.n_envs}, "
                f"got {self.capacity_per_env * self.n_envs}"
            )
        drawn = self._draw(batch_size, before + 1 if full else 1)  # (B,)
        offsets = torch.arange(-before, after, device=self.device)
        rows = (drawn.unsqueeze(1) + offsets * self.n_envs) % self._ring  # (B, before + after)
        # A neighbour belongs to the episode if its run is the drawn row's, so many steps on. A row beyond the write
        # head is an old one, or was never written: its rank in its column tells.
        runs = self._flat_runs.index_select(0, drawn).unsqueeze(1)
        present = self._flat_runs.index_select(0, rows.view(-1)).view_as(rows) == runs + offsets
        ranks, counts = self._ranks(drawn)
        present &= (ranks.unsqueeze(1) + offsets < counts.unsqueeze(1)) & (runs + offsets >= 1)
        return rows, present

    def chronological(self) -> tuple[Tensor, Tensor]:
        """Say where all rows are in the order of time, one environment after the other.

        :return: rows to be given to :meth:`at`, (R,) int64, and those after which the next one is no continuation,
            since the episode, or what is stored of it, ends there, (R,) bool
        """
        heads, sizes = (positions.to(self.device) for positions in self._positions())
        first = torch.where(sizes == self.capacity_per_env, heads, 0)
        slots = torch.arange(self._size, device=self.device)
        ordered = (first.unsqueeze(1) + slots) % self.capacity_per_env * self.n_envs  # (N, S)
        columns = torch.arange(self.n_envs, device=self.device).unsqueeze(1)
        rows = (ordered + columns)[slots < sizes.unsqueeze(1)]
        runs = self._flat_runs.index_select(0, rows)
        ended = torch.ones_like(rows, dtype=torch.bool)
        ended[:-1] = runs[1:] != runs[:-1] + 1
        ended[sizes.cumsum(0)[sizes > 0] - 1] = True
        return rows, ended

    def at(self, rows: Tensor) -> BatchT:
        """:return: the batch of given rows, (…) -> (…, *shape)"""
        flat_rows = rows.reshape(-1)
        return self._batch(lambda flat: flat.index_select(0, flat_rows).view(*rows.shape, *flat.shape[1:]))

    def take(self, name: str, rows: Tensor) -> Tensor:
        """:return: a field at rows that :meth:`draw_around` gave, (…) -> (…, *shape)."""
        flat = self._flat[name]
        return flat.index_select(0, rows.reshape(-1)).view(*rows.shape, *flat.shape[1:])

    def _ranks(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """How many older rows each row's column holds, and how many rows in all, (B,) each."""
        slots, columns = rows // self.n_envs, rows % self.n_envs
        if self._level:
            oldest: Tensor | int = self._head if self._size == self.capacity_per_env else 0
            counts = torch.full_like(rows, self._size)
        else:
            heads, sizes = (positions.to(self.device) for positions in self._positions())
            oldest = torch.where(sizes == self.capacity_per_env, heads, 0).index_select(0, columns)
            counts = sizes.index_select(0, columns)
        return (slots - oldest) % self.capacity_per_env, counts

    def clear(self) -> None:
        """Forget all rows; the generator goes on from where it is."""
        self._heads.zero_()
        self._sizes.zero_()
        self._open_runs.zero_()
        self._settle()

    def state(self) -> dict[str, Tensor | int]:
        """Copy everything that :meth:`load_state` needs, generator included.

        :return: integers ``capacity_per_env`` and ``n_envs``, and tensors: ``heads`` and ``sizes`` (N,), ``open_runs``
            (N,), ``runs`` (R,), ``data.<field>`` (R, *shape) and ``generator``. R is ``len(self)``: only stored rows,
            ordered by slot and then by environment.
        """
        heads, sizes = self._positions()
        rows = self._stored_rows(sizes)
        return {
            "capacity_per_env": self.capacity_per_env,
            "n_envs": self.n_envs,
            "heads": heads.clone(),
            "sizes": sizes.clone(),
            "open_runs": self._open_runs.clone(),
            "runs": self._flat_runs.index_select(0, rows),
            "generator": self.generator.get_state(),
            **{f"data.{name}": flat.index_select(0, rows) for name, flat in self._flat.items()},
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor | int]) -> None:
        """Continue bit for bit where :meth:`state` was taken.

        :param state: what :meth:`state` returned in a store of the same fields, capacity and number of environments;
            its tensors may be on any device.
        :raises ValueError: if a name, size, shape or dtype does not fit, or a number is impossible; the store is then
            as it was before.
        """
        heads, sizes = self._check_state(state)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        write_torch(self.generator, state["generator"], "the state's 'generator'")
        rows = self._stored_rows(sizes)
        for name, flat in self._flat.items():
            flat.index_copy_(0, rows, tensors[f"data.{name}"].to(self.device))
        self._flat_runs.index_copy_(0, rows, tensors["runs"].to(self.device))
        self._open_runs.copy_(tensors["open_runs"])
        self._heads.copy_(heads)
        self._sizes.copy_(sizes)
        self._settle()

    def _settle(self) -> None:
        """Derive the host integers from the position tensors, and from nothing else, so a loaded store draws alike."""
        self._level = bool((self._heads == self._heads[0]).all() and (self._sizes == self._sizes[0]).all())
        self._head = int(self._heads[0])  # of every column, while level
        self._size = int(self._sizes.max())  # of the fullest column
        self._rows = int(self._sizes.sum())

    def _positions(self) -> tuple[Tensor, Tensor]:
        """Each column's write head and size, (N,) and (N,) on the host, current."""
        if self._level:
            self._heads.fill_(self._head)
            self._sizes.fill_(self._size)
        return self._heads, self._sizes

    def _stored_rows(self, sizes: Tensor) -> Tensor:
        """Flat indices of all stored rows, (R,): a ring fills from slot 0, so a column's rows are its first slots."""
        slots = torch.arange(int(sizes.max()), device=self.device).unsqueeze(1)
        return (slots < sizes.to(self.device)).view(-1).nonzero().squeeze(1)

    def _add_level(self, rows: Mapping[str, Tensor]) -> None:
        head = self._head
        for name, row in rows.items():
            self._data[name][head] = row
        runs = torch.add(self._open_runs, 1, out=self._runs[head])
        ended = self._data["terminated"][head] | self._data["truncated"][head]
        self._open_runs.copy_(runs).masked_fill_(ended, 0)
        self._head = (head + 1) % self.capacity_per_env
        if self._size < self.capacity_per_env:
            self._size += 1
            self._rows += self.n_envs

    def _add_scattered(self, rows: Mapping[str, Tensor], columns: Tensor) -> None:
        heads, sizes = self._positions()
        at = heads[columns]
        flat_at, picked = (at * self.n_envs + columns).to(self.device), columns.to(self.device)
        for name, row in rows.items():
            flat = self._flat[name]
            flat.index_copy_(0, flat_at, row.to(self.device, flat.dtype).index_select(0, picked))
        runs = self._open_runs.index_select(0, picked) + 1
        self._flat_runs.index_copy_(0, flat_at, runs)
        ended = self._flat["terminated"].index_select(0, flat_at) | self._flat["truncated"].index_select(0, flat_at)
        self._open_runs.zero_()  # a column left out has a gap here
        self._open_runs.index_copy_(0, picked, runs.masked_fill(ended, 0))
        heads[columns] = (at + 1) % self.capacity_per_env
        sizes[columns] = (sizes[columns] + 1).clamp_(max=self.capacity_per_env)
        self._settle()

    def _masked_columns(self, mask: Tensor) -> Tensor | None:
        """The columns to store, on the host, or None for all of them."""
        if mask.shape != (self.n_envs,) or mask.dtype is not torch.bool:
            raise ValueError(
                f"mask: expected torch.bool of shape {(self.n_envs,)}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        mask = mask.cpu()
        return None if mask.all() else mask.nonzero().squeeze(1)

    def _randint(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self.generator, device=self.device)

    def _draw(self, count: int, length: int) -> Tensor:
        """Flat indices of last rows, uniform over the rows that have ``length - 1`` older ones in their column."""
        if length == 1 and self._rows == self._size * self.n_envs:
            return self._randint(self._rows, count)  # columns equally full: the stored rows are the first flat indices
        if self._level:
            oldest = self._head if self._size == self.capacity_per_env else 0
            ranks = self._randint((self._size - length + 1) * self.n_envs, count)
            return _wrap(ranks + ((oldest + length - 1) * self.n_envs - self._ring), self._ring)
        heads, sizes = self._positions()
        counts = (sizes - (length - 1)).clamp_(min=0)
        bounds = counts.cumsum(0)
        # Column c owns the ranks [bounds - counts, bounds); rank + first[c] is the slot, once round the ring at most.
        first = torch.where(sizes == self.capacity_per_env, heads, 0) + (length - 1) - (bounds - counts)
        ranks = self._randint(int(bounds[-1]), count)
        columns = torch.searchsorted(bounds.to(self.device), ranks, right=True)
        slots = ranks + first.to(self.device).index_select(0, columns)
        return _wrap(slots * self.n_envs + columns - self._ring, self._ring)

    def _draw_window_ends(self, count: int, length: int) -> Tensor:
        """Flat indices of the last rows of valid windows, (count,).

        Rejection, with twice the candidates each round, until a round would cost as much as a look at every row.
        Which candidates are kept does not depend on the rows already kept, so mixing both ways stays uniform.
        """
        kept, missing, factor = [], count, 2
        while missing > 0 and length <= self._size and missing * factor <= self._rows:
            ends = self._draw(missing * factor, length)
            ends = ends[self._flat_runs.index_select(0, ends) >= length][:missing]
            kept.append(ends)
            missing -= len(ends)
            factor *= 2
        if missing > 0:
            ends = self._all_window_ends(length)
            kept.append(ends.index_select(0, self._randint(len(ends), missing)))
        return torch.cat(kept)

    def _all_window_ends(self, length: int) -> Tensor:
        """Flat indices of the last rows of all valid windows, (W,)."""
        heads, sizes = (positions.to(self.device) for positions in self._positions())
        slots = torch.arange(self._size, device=self.device).unsqueeze(1)  # (S, 1)
        older = (slots - torch.where(sizes == self.capacity_per_env, heads, 0)) % self.capacity_per_env  # (S, N)
        spans = torch.where(slots < sizes, torch.minimum(older + 1, self._runs[: self._size]), 0)
        ends = (spans >= length).view(-1).nonzero().squeeze(1)
        if len(ends) == 0:
            raise ValueError(
                f"no window of {length} consecutive steps is stored, the longest has {int(spans.max())}: "
                "collect more steps, raise buffer_size or ask for shorter windows"
            )
        return ends

    def _check_draw(self, batch_size: int) -> None:
        _check_at_least_one("batch_size", batch_size)
        if self._rows == 0:
            raise ValueError("cannot sample from an empty store: add steps first (raise learning_starts)")

    def _check_state(self, state: Mapping[str, Tensor | int]) -> tuple[Tensor, Tensor]:
        names = ["capacity_per_env", "n_envs", "heads", "sizes", "open_runs", "runs", "generator"]
        names += [f"data.{name}" for name in self.fields]
        if not isinstance(state, Mapping) or state.keys() != set(names):
            found = state if isinstance(state, Mapping) else {}
            raise ValueError(f"state: {_name_difference(found, dict.fromkeys(names))}")
        for name, value in (("capacity_per_env", self.capacity_per_env), ("n_envs", self.n_envs)):
            if type(state[name]) is not int or state[name] != value:
                raise ValueError(
                    f"the state has {name} {state[name]}, this store {value}: build the store with the saved value"
                )
        limit = self.capacity_per_env
        for name, most in (("heads", limit - 1), ("sizes", limit)):
            array((self.n_envs,), "int64", low=0, high=most)(state[name], f"the state's {name!r}")
        heads, sizes = (torch.as_tensor(state[name]).cpu() for name in ("heads", "sizes"))
        # A column that never came round has its head at its size.
        if not ((sizes == limit) | (sizes == heads)).all():
            raise ValueError(
                f"the state's write positions are impossible (heads {heads.tolist()}, sizes {sizes.tolist()}, limit "
                f"{limit} rows per environment): load an intact checkpoint"
            )
        rows = int(sizes.sum())
        array((self.n_envs,), "int32", low=0)(state["open_runs"], "the state's 'open_runs'")
        array((rows,), "int32", low=1)(state["runs"], "the state's 'runs'")
        for name, field in self.fields.items():
            field.check(state[f"data.{name}"], f"the state's 'data.{name}'", (rows,))
        return heads, sizes


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are several, each under a name of its own: ``obs.image`` and ``obs.vector``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return flat


def check_row_shapes(rows: Mapping[str, Any], fields: Mapping[str, FieldSpec], lead: tuple[int, ...]) -> None:
    """See that rows are what a store holds.

    :param rows: by name
    :param fields: what it holds
    :param lead: the axes before those of one row
    :raises ValueError: a field is missing, unknown, or of another shape or dtype; float64 and float32 may stand for
        each other
    """
    if rows.keys() != fields.keys():
        raise ValueError(f"rows: {_name_difference(rows, fields)}")
    for name, row in rows.items():
        if not isinstance(row, Tensor):
            raise ValueError(f"rows[{name!r}]: expected a tensor, got {type(row).__name__}")
        expected = fields[name].dtype
        if row.dtype is not expected and not {row.dtype, expected} <= _FLOATS:
            raise ValueError(f"rows[{name!r}]: expected dtype {expected}, got {row.dtype}")
        shape = (*lead, *fields[name].shape)
        if row.shape != shape:
            raise ValueError(f"rows[{name!r}]: expected shape {shape}, got {tuple(row.shape)}")


def _wrap(flat: Tensor, ring: int) -> Tensor:
    """Bring indices of [-ring, ring) into [0, ring); several times faster than an integer remainder."""
    return flat + (flat < 0) * ring


def _name_difference(got: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    missing, unknown = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    return f"expected exactly the fields {sorted(expected)}; missing {missing}, unknown {unknown}"


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_fields(batch_type: type[DataclassInstance], fields: Mapping[str, Fields]) -> None:
    params = getattr(batch_type, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise ValueError(f"batch_type must be a frozen dataclass, got {batch_type!r}")
    missing = [field.name for field in dataclasses.fields(batch_type) if field.name not in fields]
    if missing:
        raise ValueError(
            f"{batch_type.__name__} has fields {missing} that are not stored: declare a FieldSpec for each"
        )
    for name in ("terminated", "truncated"):
        if fields.get(name) != FieldSpec((), torch.bool):
            raise ValueError(f"field {name!r} must be stored as FieldSpec((), torch.bool), got {fields.get(name)}")


def _check_memory(rows: int, fields: Mapping[str, FieldSpec]) -> None:
    """Refuse what cannot be held before a lazily committed allocation fails in the middle of a run."""
    row_bytes = torch.int32.itemsize + sum(math.prod(field.shape) * field.dtype.itemsize for field in fields.values())
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if rows * row_bytes > present:
        raise ValueError(
            f"a replay store of {rows} rows needs {rows * row_bytes / GIB:.1f} GiB, this machine has "
            f"{present / GIB:.1f} GiB of memory: use a buffer_size of at most {present // row_bytes}"
        )
