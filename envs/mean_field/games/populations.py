"""Games between populations on a grid, and two one-shot games with known equilibria."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from ..game import MFGame
from ..library import Compat
from .crowds import TINY
from .parameters import Cells, Number, Numbers, Parts, check_whole, read_cells, spread

Geometry = Literal["square", "torus"]
MOVES = ((0, 0), (1, 0), (0, 1), (0, -1), (-1, 0))
"""On a grid, in OpenSpiel's order; the first is neutral."""
CHASES = {
    3: ((0, -1, 1), (1, 0, -1), (-1, 1, 0)),
    4: ((0, 1, 0, -1), (-1, 0, 1, 0), (0, -1, 0, 1), (1, 0, -1, 0)),
}
"""OpenSpiel's reward matrices, by number of populations: what a row's population gets from the presence of another."""
CORNERS = {3: ((0, 0), (1, 0), (0, 1)), 4: ((0, 0), (0, 1), (1, 1), (1, 0))}
"""Where populations start there, in units of the greatest x and y."""
TWO_ROOMS = tuple((x, y) for x in range(7) for y in range(7) if {x, y} & {0, 6} or (x == 3 and y % 2))
"""Walls of the crowds that avoid each other (OpenSpiel's)."""
TWO_CROWDS = (((1, 2, 0.4), (2, 2, 0.4), (1, 4, 0.2)), ((5, 2, 0.2), (4, 4, 0.4), (5, 4, 0.4)))
"""Where they start: x, y and share (OpenSpiel's)."""


def predator_prey(
    *,
    size: int = 5,
    horizon: int = 10,
    players: int = 3,
    reward_matrix: Any = None,
    geometry: Geometry | int = "square",
    init_distrib: Any = None,
    noise_probability: Number = 0.8,
    congestion_coeff: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build the game of populations that chase one another in a ring (arXiv 2103.00623, section 5.4).

        r_p = -congestion_coeff log mu_p(x) + sum_q M_pq mu_q(x)

    Moves are to a neighbour or none, and so is noise; on a square, those across the border are not made.
    ``compat="openspiel"`` mixes up cells and populations of the crowd at t = 0, which moves values, not gains.

    :param size: width and height
    :param horizon: H
    :param players: n_pop
    :param reward_matrix: M, (*batch, n_pop, n_pop), or numbers in a text; None: OpenSpiel's for 3 or 4 populations
    :param geometry: "square" or "torus"; OpenSpiel's 0 and 1
    :param init_distrib: (*batch, n_pop, S), or numbers in a text; None: in a corner each, with 3 or 4 populations
    :param noise_probability: of a noisy step, equally likely in each direction; (*batch)
    :param congestion_coeff: (*batch)
    :return: the game
    :raises ValueError: a parameter out of range or of another size
    """
    check_whole(low=2, size=size)
    check_whole(horizon=horizon, players=players)
    numbers = Numbers(device, dtype)
    matrix = _matrix(numbers, "reward_matrix", CHASES.get(players) if reward_matrix is None else reward_matrix, players)
    congestion = spread(numbers("congestion_coeff", congestion_coeff), 2)
    if init_distrib is None and players in CORNERS:
        ends = [[(x * (size - 1), y * (size - 1), 1.0)] for x, y in CORNERS[players]]
        init_distrib = _placed(ends, size)
    mu0 = _distribution(init_distrib, players, size, device, dtype)
    free = torch.zeros(size * size, dtype=torch.bool)
    parts = _grid(size, geometry, free, numbers("noise_probability", noise_probability, 0, 1))
    seen = _seen(mu0, size, compat)

    def r_state(t: Any, mu: Tensor) -> Tensor:
        mu = seen(t, mu)
        return matrix @ mu - congestion * (mu + TINY).log()

    name = "predator_prey" if players == 3 else f"predator_prey_{players}"
    return MFGame(name=name, H=horizon, mu0=mu0, r_state=r_state, **parts)


def predator_prey_4(
    *,
    size: int = 5,
    horizon: int = 20,
    reward_matrix: Any = None,
    geometry: Geometry | int = "square",
    init_distrib: Any = None,
    noise_probability: Number = 0.8,
    congestion_coeff: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build :func:`predator_prey` with 4 populations, for 20 steps.

    :return: the game
    :raises ValueError: a parameter out of range or of another size
    """
    return predator_prey(
        size=size,
        horizon=horizon,
        players=4,
        reward_matrix=reward_matrix,
        geometry=geometry,
        init_distrib=init_distrib,
        noise_probability=noise_probability,
        congestion_coeff=congestion_coeff,
        device=device,
        dtype=dtype,
        compat=compat,
    )


def crowd_avoidance(
    *,
    size: int = 7,
    horizon: int = 10,
    congestion_matrix: Any = ((0, 1), (1, 0)),
    geometry: Geometry | int = "square",
    init_distrib: Any = None,
    proba_noise: Number = 0.5,
    coef_congestion: Number = 0.0,
    forbidden_states: Cells = TWO_ROOMS,
    coef_target: Number = 1.0,
    target_positions: Cells = ((5, 3), (1, 3)),
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build the game of two crowds that are to change places through narrow doors (OpenSpiel's).

        r_p = coef_target [x is p's target] - coef_congestion sum_q C_pq mu_q(x)

    Moves as in :func:`predator_prey`; those into walls are not made. ``compat="openspiel"`` does what it does there.

    :param size: width and height
    :param horizon: H
    :param congestion_matrix: C, (*batch, 2, 2), or numbers in a text
    :param geometry: "square" or "torus"; OpenSpiel's 0 and 1
    :param init_distrib: (*batch, 2, S), or numbers in a text; None: OpenSpiel's, for size 7
    :param proba_noise: of a noisy step, equally likely in each direction; (*batch)
    :param coef_congestion: 0 by default, as in OpenSpiel: then the crowds do not matter; (*batch)
    :param forbidden_states: walls; OpenSpiel's fit size 7
    :param coef_target: (*batch)
    :param target_positions: a cell for each population, fixed in OpenSpiel
    :return: the game; ``info["walls"]`` is (S,) bool
    :raises ValueError: a parameter out of range or of another size
    """
    check_whole(low=2, size=size)
    check_whole(horizon=horizon)
    numbers = Numbers(device, dtype)
    weight = spread(numbers("coef_congestion", coef_congestion), 2)
    matrix = _matrix(numbers, "congestion_matrix", congestion_matrix, 2)
    walls = _marked("forbidden_states", forbidden_states, size).sum(0) > 0
    targets = _marked("target_positions", target_positions, size).to(device, dtype)
    if len(targets) != 2:
        raise ValueError(f"target_positions must hold one cell for each of the 2 populations, got {len(targets)}")
    prize = spread(numbers("coef_target", coef_target), 2) * targets
    crowds = _placed(TWO_CROWDS, size) if init_distrib is None and size == 7 else init_distrib
    mu0 = _distribution(crowds, 2, size, device, dtype)
    if (mu0[..., walls] > 0).any():
        raise ValueError("init_distrib puts members into walls: choose free cells")
    parts = _grid(size, geometry, walls, numbers("proba_noise", proba_noise, 0, 1))
    seen = _seen(mu0, size, compat)

    def r_state(t: Any, mu: Tensor) -> Tensor:
        return prize - weight * (matrix @ seen(t, mu))

    return MFGame(name="crowd_avoidance", H=horizon, mu0=mu0, r_state=r_state, **parts)


def left_right(*, horizon: int = 1, device: torch.device, dtype: torch.dtype) -> MFGame:
    """Build the game of turning left or right, where it is twice as bad to be many on the right (arXiv 2102.01585).

    Where a choice led, it pays -mu(left) or -2 mu(right). At the equilibrium of one choice, 2/3 turn left.

    :param horizon: number of choices
    :return: the game
    :raises ValueError: horizon is below 1
    """
    pays = torch.diag(torch.tensor((0, -1, -2), dtype=dtype, device=device))
    return _choices("left_right", ("start", "left", "right"), horizon, pays)


def rock_paper_scissors(*, horizon: int = 1, device: torch.device, dtype: torch.dtype) -> MFGame:
    """Build rock, paper, scissors with prizes that differ, against the crowd (arXiv 2102.01585).

    What was chosen pays 2 m_S - m_P for rock, 4 m_R - 2 m_S for paper, and 6 m_P - 3 m_R for scissors, by the masses of
    those who chose. At the equilibrium of one choice, 26, 20 and 31 of 77 take them, and everybody gets 6/11.

    :param horizon: number of choices
    :return: the game
    :raises ValueError: horizon is below 1
    """
    rows = ((0, 0, 0, 0), (0, 0, -1, 2), (0, 4, 0, -2), (0, -3, 6, 0))
    pays = torch.tensor(rows, dtype=dtype, device=device)
    return _choices("rock_paper_scissors", ("start", "rock", "paper", "scissors"), horizon, pays)


def _choices(name: str, labels: tuple[str, ...], horizon: int, pays: Tensor) -> MFGame:
    """:return: a game whose actions lead to the states after the first; states pay ``pays`` (S, S) times masses."""
    check_whole(horizon=horizon)
    states = len(labels)
    return MFGame(
        name=name,
        S=states,
        A=states - 1,
        H=horizon,
        mu0=torch.eye(states, dtype=pays.dtype, device=pays.device)[:1],
        r_state=lambda t, mu: mu @ pays.T,
        terminal=lambda mu: mu @ pays.T,
        post=torch.arange(1, states, device=pays.device).repeat(states, 1),
        labels=labels,
    )


def _grid(size: int, geometry: Geometry | int, walls: Tensor, noise: Tensor) -> Parts:
    """:return: sizes, and where moves and noise lead; those into walls or across a border lead nowhere."""
    if geometry not in ("square", "torus", 0, 1):
        raise ValueError(f"geometry is {geometry!r}: it can be 'square' (0) or 'torus' (1)")
    states = torch.arange(size * size)
    columns = []
    for dx, dy in MOVES:
        x, y = states % size + dx, states // size + dy
        x, y = (x % size, y % size) if geometry in ("torus", 1) else (x.clamp(0, size - 1), y.clamp(0, size - 1))
        after = x + size * y
        columns.append(torch.where(walls[after] | walls, states, after))
    post = torch.stack(columns, 1).to(noise.device)
    neutral = torch.arange(len(MOVES), device=noise.device) == 0
    legal = ~walls.to(noise.device).unsqueeze(1) | neutral
    each = spread(noise, 3) / (len(MOVES) - 1)
    noise_p = torch.where(neutral, 1 - spread(noise, 3), each)
    noise_p = noise_p.expand(*noise_p.shape[:-2], size * size, len(MOVES)).contiguous()
    ways = {"legal": legal, "post": post, "noise_idx": post, "noise_p": noise_p}
    info = {"walls": walls.to(noise.device)}
    return {"S": size * size, "A": len(MOVES), "grid": (size, size), "info": info, **ways}


def _seen(mu0: Tensor, size: int, compat: Compat | None) -> Callable[[Any, Tensor], Tensor]:
    """:return: the crowd that rewards see.

    At t = 0 OpenSpiel reads a list sorted by population, row and column as if by column, row and population.
    """
    if compat is None:
        return lambda t, mu: mu
    n_pop = mu0.shape[-2]
    mixed = mu0.reshape(*mu0.shape[:-2], size, size, n_pop).movedim(-1, -3).transpose(-1, -2).flatten(-2)
    return lambda t, mu: torch.where(torch.as_tensor(t, device=mu.device) == 0, mixed, mu)


def _floats(name: str, given: Any) -> Any:
    """:return: the numbers of a text, as OpenSpiel has them; anything else as it is."""
    if not isinstance(given, str):
        return given
    try:
        return [float(part) for part in given.split()]
    except ValueError:
        raise ValueError(f"{name} must be numbers between spaces, got {given!r}") from None


def _matrix(numbers: Numbers, name: str, given: Any, players: int) -> Tensor:
    """:return: (*batch, n_pop, n_pop)."""
    if given is None:
        raise ValueError(f"{name} is only known for {' or '.join(map(str, CHASES))} players: give one for {players}")
    matrix = torch.as_tensor(_floats(name, given), dtype=numbers.dtype, device=numbers.device)
    if matrix.ndim == 1 and len(matrix) == players**2:
        matrix = matrix.view(players, players)
    if tuple(matrix.shape[-2:]) != (players, players):
        raise ValueError(f"{name} must be {players} x {players}, a row per population, got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError(f"{name} must be finite, got {float(matrix[~matrix.isfinite()][0])}")
    return matrix


def _distribution(given: Any, players: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """:return: mu0, (*batch, n_pop, S)."""
    if given is None:
        raise ValueError(f"init_distrib is not known for {players} populations and size {size}: give one")
    mu0 = torch.as_tensor(_floats("init_distrib", given), dtype=dtype, device=device)
    if mu0.numel() == players * size**2:
        mu0 = mu0.reshape(players, size**2)
    if tuple(mu0.shape[-2:]) != (players, size**2):
        raise ValueError(
            f"init_distrib must hold {players} populations x {size**2} cells, row by row, got {tuple(mu0.shape)}"
        )
    return mu0


def _marked(name: str, cells: Cells, size: int) -> Tensor:
    """:return: 1 in the one cell that each row is about, (cells, S) float64."""
    marks = [x + size * y for x, y in read_cells(name, cells, size, size)]
    return torch.eye(size * size, dtype=torch.float64)[marks]


def _placed(crowds: Iterable[Iterable[tuple[int, int, float]]], size: int) -> Tensor:
    """:return: distributions (n_pop, S) from cells x, y and shares, float64."""
    rows = []
    for crowd in crowds:
        row = torch.zeros(size * size, dtype=torch.float64)
        for x, y, share in crowd:
            row[x + size * y] = share
        rows.append(row)
    return torch.stack(rows)
