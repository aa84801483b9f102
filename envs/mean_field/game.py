"""Finite mean field games in discrete time: what the members of a crowd can do, where it takes them, what they earn."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .regularisers import Regulariser

StateReward = Callable[[Any, Tensor], Tensor]
ActionReward = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class MFGame:
    """A mean field game with ``n_pop`` populations, S states, A actions and H decisions.

    At each time t = 0..H-1 a member of population p in state x chooses an action, earns

        r_state(t, mu_t)[p, x] + r_action(t, mu_t)[p, x, action] + regulariser.bonus(its probabilities)

    where mu_t holds the distributions of all populations, and moves. At time H, it earns ``terminal(mu_H)[p, x]``.

    Members move in one of two ways. *Two stages*: to y = ``post[x, a]``, then by noise, to ``noise_idx[y, k]`` with
    probability ``noise_p[y, k]``. Or by *successors*: to ``succ_idx[x, a, k]`` with probability
    ``succ_p[x, a, k]``, or ``transition(t, mu_t)[x, a, k]`` where that depends on the crowd.

    **Batches.** Any number of games that differ in their numbers is one game with a ``batch`` of leading dimensions:
    ``mu0``, ``noise_p``, ``succ_p`` and whatever the rewards return may have them. Where what is said of p or x is
    the same for all, 1 in its dimension does.

    **Functions of time.** Rewards and transitions are called as ``f(t, mu)`` for one time, t an int and mu
    (…, n_pop, S), or for many at once, t a tensor (T, 1, …, 1) with as many dimensions as mu, (T, …, n_pop, S). They
    return tensors that broadcast to (…, n_pop, S), (…, n_pop, S, A) and (…, n_pop, S, A, K), in the game's dtype: what
    passes through float32 is no longer equal where it should be. Quotients of an integer tensor are float32: where t
    enters a product, take ``torch.as_tensor(t, dtype=mu.dtype, device=mu.device)``.

    What is given as a NumPy array or as nested lists becomes a tensor.

    :param name: for messages and titles
    :param S: number of states
    :param A: number of actions
    :param H: number of decisions
    :param mu0: initial distributions, (…, n_pop, S)
    :param r_state: reward of being somewhere
    :param r_action: reward of doing something there; None: 0
    :param terminal: reward at time H, of mu_H; None: 0
    :param legal: actions that exist in a state, (S, A) bool; by default all
    :param post: (S, A) int64
    :param noise_idx: (S, K) int64; None: no noise
    :param noise_p: (S, K), or (…, n_pop, S, K)
    :param succ_idx: (S, A, K) int64
    :param succ_p: (S, A, K), or (…, n_pop, S, A, K)
    :param transition: see above
    :param regulariser: a bonus on the policy, as in games whose members pay for certainty
    :param labels: names of the states
    :param grid: (width, height), where state x + width * y stands for cell (x, y) of a picture
    :param info: whatever else is to be known of it
    :raises ValueError: a shape, index or probability that cannot be; the message says which and where
    """

    name: str
    S: int
    A: int
    H: int
    mu0: Tensor
    r_state: StateReward
    r_action: ActionReward | None = None
    terminal: Callable[[Tensor], Tensor] | None = None
    legal: Tensor = None  # type: ignore[assignment]
    post: Tensor | None = None
    noise_idx: Tensor | None = None
    noise_p: Tensor | None = None
    succ_idx: Tensor | None = None
    succ_p: Tensor | None = None
    transition: Callable[[Any, Tensor], Tensor] | None = None
    regulariser: Regulariser | None = None
    labels: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _make_tensors(self)
        if cast(Tensor | None, self.legal) is None:
            object.__setattr__(self, "legal", torch.ones(self.S, self.A, dtype=torch.bool, device=self.mu0.device))
        _check_sizes(self)
        _check_moves(self)
        _check_rewards(self)

    @property
    def n_pop(self) -> int:
        """Number of populations."""
        return self.mu0.shape[-2]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.mu0.device

    @property
    def dtype(self) -> torch.dtype:
        """Of rewards, masses and probabilities; float64 unless made otherwise."""
        return self.mu0.dtype

    @cached_property
    def batch(self) -> tuple[int, ...]:
        """Leading dimensions that the game itself has."""
        crowd = self._somewhere
        _check_tensors(self, crowd)
        shapes = [crowd.shape[:-2], self.r_state(0, crowd).shape[:-2]]
        shapes += [] if self.r_action is None else [self.r_action(0, crowd).shape[:-3]]
        shapes += [] if self.terminal is None else [self.terminal(crowd).shape[:-2]]
        shapes += [] if self.transition is None else [self.transition(0, crowd).shape[:-4]]
        for part, own in ((self.noise_p, 2), (self.succ_p, 3)):
            shapes += [] if part is None or part.ndim == own else [part.shape[: -own - 1]]
        try:
            return np.broadcast_shapes(*map(tuple, shapes))
        except ValueError:
            found = ", ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(f"{self.name}: leading dimensions do not broadcast with each other: {found}") from None

    @cached_property
    def dynamic(self) -> bool:
        """Whether the ways of a member depend on where the others are."""
        return self.transition is not None

    @property
    def _somewhere(self) -> Tensor:
        """A crowd to try functions on: everybody as at the start, with somebody everywhere."""
        return (self.mu0 + 1 / self.S) / 2

    def uniform_policy(self) -> Tensor:
        """:return: every legal action equally likely, (*batch, n_pop, H, S, A)."""
        rows = self.legal.to(self.dtype)
        rows = rows / rows.sum(-1, keepdim=True)
        return rows.expand(*self.batch, self.n_pop, self.H, self.S, self.A).clone()

    def check_policy(self, policy: Tensor) -> Tensor:
        """See that something is a policy of this game.

        :param policy: (…, n_pop, H, S, A)
        :return: it, on the game's device and of its type
        :raises ValueError: its shape is another, or a row is no distribution over legal actions
        """
        policy = torch.as_tensor(policy, dtype=self.dtype, device=self.device)
        wanted = (self.n_pop, self.H, self.S, self.A)
        if tuple(policy.shape[-4:]) != wanted:
            raise ValueError(
                f"a policy of {self.name} is (…, n_pop, H, S, A) = (…, {_listed(wanted)}), got {_shape(policy)}"
            )
        _check_distributions(policy, "the policy", ("population", "time", "state"))
        illegal = (policy != 0) & ~self.legal
        if illegal.any():
            *_, population, time, state, action = (int(i) for i in illegal.nonzero()[0])
            raise ValueError(
                f"the policy takes action {action} in state {state}, at time {time} in population {population}: "
                f"it is not legal there; legal are {self.legal[state].nonzero().flatten().tolist()}"
            )
        return policy

    def check_flow(self, flow: Tensor) -> Tensor:
        """See that something is a flow of this game.

        :param flow: (…, n_pop, H + 1, S)
        :return: it, on the game's device and of its type
        :raises ValueError: its shape is another, or at some time it is no distribution
        """
        flow = torch.as_tensor(flow, dtype=self.dtype, device=self.device)
        wanted = (self.n_pop, self.H + 1, self.S)
        if tuple(flow.shape[-3:]) != wanted:
            raise ValueError(
                f"a flow of {self.name} is (…, n_pop, H + 1, S) = (…, {_listed(wanted)}), got {_shape(flow)}"
            )
        _check_distributions(flow, "the flow", ("population", "time"))
        return flow


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))


def _shape(part: Tensor) -> str:
    return f"({_listed(tuple(part.shape))})"


def _make_tensors(game: MFGame) -> None:
    """Turn arrays and nested lists into tensors."""
    device = game.mu0.device if isinstance(game.mu0, Tensor) else None
    for dtype, names in (
        (torch.float64, ("mu0", "noise_p", "succ_p")),
        (torch.int64, ("post", "noise_idx", "succ_idx")),
        (torch.bool, ("legal",)),
    ):
        for name in names:
            if (part := getattr(game, name)) is None or isinstance(part, Tensor):
                continue
            try:
                tensor = torch.tensor(part, dtype=None if isinstance(part, np.ndarray) else dtype, device=device)
            except (TypeError, ValueError, RuntimeError) as cause:
                raise ValueError(f"{game.name}: {name} must become a tensor, got {part!r} ({cause})") from None
            object.__setattr__(game, name, tensor)


def _check_tensors(game: MFGame, crowd: Tensor) -> None:
    """See that every function returns a tensor."""
    calls: dict[str, tuple[Any, ...]] = {
        "r_state": (0, crowd),
        "r_action": (0, crowd),
        "terminal": (crowd,),
        "transition": (0, crowd),
    }
    for name, arguments in calls.items():
        if (function := getattr(game, name)) is not None:
            found = _called(game, name, function, *arguments)
            if not isinstance(found, Tensor):
                raise ValueError(f"{game.name}: {name} must return a tensor, it returned {found!r}")


def _called(game: MFGame, name: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (RuntimeError, IndexError, TypeError) as cause:
        many = isinstance(arguments[0], Tensor) and len(arguments) == 2
        hint = "; t is a tensor of times there, (T, 1, …, 1): see MFGame, 'Functions of time'" if many else ""
        raise ValueError(f"{game.name}: {name} failed when it was tried: {cause}{hint}") from cause


def _check_sizes(game: MFGame) -> None:
    for name in ("S", "A", "H"):
        if not isinstance(size := getattr(game, name), Integral):
            raise ValueError(f"{game.name}: {name} must be a whole number, got {size!r}")
        if size < 1:
            raise ValueError(f"{game.name}: {name} must be at least 1, got {size}")
    if game.grid is not None and math.prod(game.grid) != game.S:
        raise ValueError(f"{game.name}: grid must be (width, height) of S = {game.S} cells, got {game.grid}")
    if game.labels and len(game.labels) != game.S:
        raise ValueError(f"{game.name}: there must be S = {game.S} labels, got {len(game.labels)}")
    if game.mu0.ndim < 2 or game.mu0.shape[-1] != game.S:
        raise ValueError(f"{game.name}: mu0 must be (…, n_pop, S = {game.S}), got {_shape(game.mu0)}")
    if not game.mu0.dtype.is_floating_point:
        raise ValueError(f"{game.name}: mu0 must hold floating-point numbers, got {game.mu0.dtype}")
    _check_distributions(game.mu0, f"{game.name}: mu0", ("population",))
    if tuple(game.legal.shape) != (game.S, game.A) or game.legal.dtype != torch.bool:
        raise ValueError(
            f"{game.name}: legal must be (S, A) = ({game.S}, {game.A}) of bool, "
            f"got {_shape(game.legal)} of {game.legal.dtype}"
        )
    if not game.legal.any(1).all():
        raise ValueError(f"{game.name}: state {int((~game.legal.any(1)).nonzero()[0])} has no legal action")


def _check_moves(game: MFGame) -> None:
    _check_parts(game)
    for name, sizes in (("post", "SA"), ("noise_idx", "SK"), ("succ_idx", "SAK")):
        if (part := getattr(game, name)) is not None:
            _check_index(game, name, part, sizes)
    for name, index in (("noise_p", game.noise_idx), ("succ_p", game.succ_idx)):
        if (part := getattr(game, name)) is not None and index is not None:
            if tuple(part.shape[-index.ndim :]) != tuple(index.shape):
                raise ValueError(f"{game.name}: {name} must end like its indices, {_shape(index)}, got {_shape(part)}")
            if part.ndim > index.ndim and part.shape[-index.ndim - 1] not in (1, game.n_pop):
                raise ValueError(f"{game.name}: {name} must be (…, n_pop = {game.n_pop}, …), got {_shape(part)}")
            _check_distributions(part, f"{game.name}: {name}", ("state", "action")[: index.ndim - 1])


def _check_parts(game: MFGame) -> None:
    given = [
        name
        for name in ("post", "noise_idx", "noise_p", "succ_idx", "succ_p", "transition")
        if getattr(game, name) is not None
    ]
    ways = (["post"], ["post", "noise_idx", "noise_p"], ["succ_idx", "succ_p"], ["succ_idx", "transition"])
    if given not in ways:
        known = ", or ".join(" and ".join(way) for way in ways)
        raise ValueError(
            f"{game.name}: how members move is said by {known}; got {' and '.join(given) or 'none of them'}"
        )


def _check_index(game: MFGame, name: str, part: Tensor, sizes: str) -> None:
    wanted = tuple({"S": game.S, "A": game.A}[size] for size in sizes if size != "K")
    if (
        not part.numel()
        or part.ndim != len(sizes)
        or tuple(part.shape[: len(wanted)]) != wanted
        or part.dtype != torch.int64
    ):
        raise ValueError(
            f"{game.name}: {name} must be ({', '.join(sizes)}) of int64 with S = {game.S}, A = {game.A}, "
            f"got {_shape(part)} of {part.dtype}"
        )
    low, high = map(int, part.aminmax())
    if low < 0 or high >= game.S:
        raise ValueError(f"{game.name}: {name} names states {low} to {high}, there are 0 to {game.S - 1}")


def _check_rewards(game: MFGame) -> None:
    """Call every function once, with one time and with many."""
    crowd = game._somewhere.expand(*game.batch, game.n_pop, game.S)
    many = crowd.expand(2, *crowd.shape)
    times = torch.arange(2, device=game.device).clamp(max=game.H - 1).view(2, *[1] * crowd.ndim)
    calls: list[tuple[str, StateReward, tuple[int, ...]]] = [("r_state", game.r_state, (game.n_pop, game.S))]
    if game.r_action is not None:
        calls.append(("r_action", game.r_action, (game.n_pop, game.S, game.A)))
    if game.transition is not None:
        assert game.succ_idx is not None
        calls.append(("transition", game.transition, (game.n_pop, *game.succ_idx.shape)))
    for name, function, wanted in calls:
        alone = [_called(game, name, function, t, crowd) for t in times.flatten().tolist()]
        together = _called(game, name, function, times, many)
        for part in (*alone, together):
            _check_returned(game, name, part, wanted)
        _check_times(game, name, alone, together, (2, *game.batch, *wanted))
    if game.terminal is not None:
        _check_returned(game, "terminal", game.terminal(crowd), (game.n_pop, game.S))
    if game.transition is not None:
        for t in range(game.H):
            what = f"{game.name}: what transition returns at t = {t}"
            _check_distributions(game.transition(t, crowd), what, ("state", "action"))


def _check_times(game: MFGame, name: str, alone: list[Tensor], together: Tensor, full: tuple[int, ...]) -> None:
    """See that a function says the same of a time whether it is asked for it alone or together with another."""
    rtol, atol = (1e-10, 1e-12) if game.dtype == torch.float64 else (1e-5, 1e-6)
    sizes = zip(together.shape[::-1], full[::-1], strict=False)
    if together.ndim > len(full) or any(size not in (1, most) for size, most in sizes):
        raise ValueError(
            f"{game.name}: asked for two times at once, {name} must return what broadcasts to ({_listed(full)}), "
            f"it returned {_shape(together)}"
        )
    for part, by_itself in zip(together.to(game.dtype).expand(full), alone, strict=True):
        if not torch.allclose(part, by_itself.to(game.dtype).expand(full[1:]), rtol=rtol, atol=atol):
            raise ValueError(
                f"{game.name}: asked for two times at once, {name} returns other values than for each alone; "
                "t is an integer tensor then, whose quotients are float32: t.to(mu.dtype) is not"
            )


def _check_returned(game: MFGame, name: str, part: Tensor, wanted: tuple[int, ...]) -> None:
    found = tuple(part.shape[-len(wanted) :])
    if any(size not in (1, full) for size, full in zip(found[::-1], wanted[::-1], strict=False)):
        raise ValueError(f"{game.name}: {name} must return (…, {_listed(wanted)}), it returned {_shape(part)}")
    if not part.isfinite().all():
        raise ValueError(
            f"{game.name}: {name} returned {float(part[~part.isfinite()][0])} for a crowd that is everywhere"
        )


def _check_distributions(part: Tensor, what: str, dims: tuple[str, ...]) -> None:
    """See that the last dimension is a distribution everywhere; ``dims`` name the ones before it."""
    tolerance = 1e-9 if part.dtype == torch.float64 else 1e-5
    sums = part.sum(-1)
    wrong = ~((sums - 1).abs() <= tolerance) | (part < 0).any(-1)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        row = part[tuple(place)]
        where = ", ".join(f"{name} {index}" for name, index in zip(dims, place[-len(dims) :], strict=False))
        fault = (
            f"has a negative entry, {float(row.min())}" if (row < 0).any() else f"sums to {float(row.sum())}, not to 1"
        )
        raise ValueError(f"{what} must hold distributions; at {where} it {fault}")
