"""Crowds that spread out: on a ring, on a torus, in four rooms and in a maze (arXiv 2007.03458, OpenSpiel's games)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..game import MFGame
from ..library import Compat
from .compat import arrival_table
from .parameters import (
    Cells,
    Number,
    Numbers,
    Parts,
    Values,
    along,
    check_whole,
    even_start,
    read_cells,
    read_values,
    spread,
)

TINY = 1e-25
"""Added to masses in logarithms (OpenSpiel's)."""
MOVES = ((0, -1), (-1, 0), (0, 0), (1, 0), (0, 1))
"""On the torus, in OpenSpiel's order."""
NEUTRAL = 2
FOUR_ROOMS = 13
MAZE = (
    "3fffff 204105 204105 3f0965 200945 200975 27f911 215311 215057 215055 3f5fd5 "
    "240115 25b915 3509f5 354815 217805 2f2ff1 20245d 24a545 2fa141 200101 3fffff"
)
"""Rows from y = 0, in hexadecimal; the highest of 22 bits is x = 0, a set one is a wall (OpenSpiel's maze)."""


def crowd_modelling(
    *,
    size: int = 10,
    horizon: int = 10,
    crowd_aversion_coef: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build the beach bar: on a ring, members want to be near the bar, away from others, and to walk little.

        r = 1 - |x - c| / c - |a| / size - crowd_aversion_coef log mu(x),    c = size // 2

    for moves a of -1, 0 and 1, after which noise moves by -1, 0 or 1 too. The last move is free: OpenSpiel collects the
    cost of a move with the next reward. With ``compat="openspiel"``, moves are charged as :mod:`.compat` says.

    :param size: S
    :param horizon: H
    :param crowd_aversion_coef: always 1 in OpenSpiel; (*batch)
    :return: the game
    :raises ValueError: a parameter out of range
    """
    check_whole(low=2, size=size)
    check_whole(horizon=horizon)
    aversion = spread(Numbers(device, dtype)("crowd_aversion_coef", crowd_aversion_coef), 2)
    states = torch.arange(size, device=device)
    post = torch.stack([(states + move) % size for move in (-1, 0, 1)], 1)
    ways: Parts = {"post": post, "noise_idx": post, "noise_p": torch.full((size, 3), 1 / 3, dtype=dtype, device=device)}
    bar = 1 - (states - size // 2).abs().to(dtype) / (size // 2)
    costs = torch.tensor([1 / size, 0.0, 1 / size], dtype=dtype, device=device)
    mu0 = even_start(size, device, dtype)
    charged = None if compat is None else arrival_table(horizon, mu0, ways, costs, 1)
    rewards = _rewards(bar, costs, aversion, horizon, charged)
    return MFGame(name="crowd_modelling", S=size, A=3, H=horizon, mu0=mu0, **ways, **rewards)


def crowd_modelling_2d(
    *,
    size: int = 10,
    horizon: int = 10,
    only_distribution_reward: bool = False,
    forbidden_states: Cells = (),
    initial_distribution: Cells = (),
    initial_distribution_value: Values = (),
    positional_reward: Cells = (),
    positional_reward_value: Values = (),
    with_congestion: bool = False,
    noise_intensity: Number = 1.0,
    crowd_aversion_coef: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build the beach bar on a torus, perhaps with walls.

        r = (1 - 2 |x - c| / size) + (1 - 2 |y - c| / size) - (|dx| + |dy|) / size - crowd_aversion_coef log mu(x, y)

    with c = size // 2. There are no moves into walls. Noise goes to any of the cells that a move could go to. The last
    move is free: OpenSpiel collects the cost of a move with the next reward. With ``compat="openspiel"``, moves are
    charged as :mod:`.compat` says, rewards take the crowd to be everywhere at t = 0, and x and y of
    ``initial_distribution`` are swapped.

    :param size: width and height
    :param horizon: H
    :param only_distribution_reward: pay for the distance from others alone
    :param forbidden_states: walls
    :param initial_distribution: where members start; none: anywhere but in walls
    :param initial_distribution_value: shares of those cells; none: equal ones
    :param positional_reward: cells (x_k, y_k) to be near, not the bar: 1 - sum_k 2 v_k |x - x_k| / size, and for y
    :param positional_reward_value: weights v_k of those cells; none: 1
    :param with_congestion: moves cost more where there are more: times mu(x, y)
    :param noise_intensity: probability that there is noise, in [0, 1]; (*batch)
    :param crowd_aversion_coef: (*batch)
    :return: the game; ``info["walls"]`` is (S,) bool
    :raises ValueError: a parameter out of range
    """
    check_whole(low=2, size=size)
    check_whole(horizon=horizon)
    numbers = Numbers(device, dtype)
    aversion = spread(numbers("crowd_aversion_coef", crowd_aversion_coef), 2)
    walls = torch.zeros(size, size, dtype=torch.bool, device=device)  # by y, then x
    for x, y in read_cells("forbidden_states", forbidden_states, size, size):
        walls[y, x] = True
    mu0 = _start(initial_distribution, initial_distribution_value, walls, dtype, compat)
    ways = _torus(walls, spread(numbers("noise_intensity", noise_intensity, 0, 1), 3))
    pays = 0 if only_distribution_reward else 1
    place = pays * _nearness(positional_reward, positional_reward_value, size).to(device, dtype)
    costs = pays * torch.tensor([(abs(dx) + abs(dy)) / size for dx, dy in MOVES], dtype=dtype, device=device)
    charged = None if compat is None else arrival_table(horizon, mu0, ways, costs, NEUTRAL)
    rewards = _rewards(place, costs, aversion, horizon, charged, with_congestion)
    sizes: Parts = {"S": size**2, "A": len(MOVES), "H": horizon, "grid": (size, size)}
    return MFGame(name="crowd_modelling_2d", mu0=mu0, info={"walls": walls.flatten()}, **sizes, **ways, **rewards)


def four_rooms(
    *,
    horizon: int = 40,
    only_distribution_reward: bool = True,
    initial_distribution: Cells = ((1, 1),),
    initial_distribution_value: Values = (),
    noise_intensity: Number = 1.0,
    crowd_aversion_coef: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build :func:`crowd_modelling_2d` in four rooms of 5 x 5 with four doors, where a crowd in a corner spreads out.

    Parameters are the same.

    :return: the game
    :raises ValueError: a parameter out of range
    """
    last, middle, doors = FOUR_ROOMS - 1, FOUR_ROOMS // 2, (3, 9)
    walls = [
        (x, y)
        for x in range(FOUR_ROOMS)
        for y in range(FOUR_ROOMS)
        if {x, y} & {0, last} or (x == middle and y not in doors) or (y == middle and x not in doors)
    ]
    game = crowd_modelling_2d(
        size=FOUR_ROOMS,
        horizon=horizon,
        only_distribution_reward=only_distribution_reward,
        forbidden_states=walls,
        initial_distribution=initial_distribution,
        initial_distribution_value=initial_distribution_value,
        noise_intensity=noise_intensity,
        crowd_aversion_coef=crowd_aversion_coef,
        device=device,
        dtype=dtype,
        compat=compat,
    )
    return replace(game, name="four_rooms")


def maze(
    *,
    horizon: int = 100,
    only_distribution_reward: bool = True,
    initial_distribution: Cells = ((1, 1),),
    initial_distribution_value: Values = (),
    noise_intensity: Number = 1.0,
    crowd_aversion_coef: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build :func:`crowd_modelling_2d` in a maze of 22 x 22 cells, where a crowd in a corner spreads out.

    Parameters are the same.

    :return: the game
    :raises ValueError: a parameter out of range
    """
    rows = [int(row, 16) for row in MAZE.split()]
    size = len(rows)
    game = crowd_modelling_2d(
        size=size,
        horizon=horizon,
        only_distribution_reward=only_distribution_reward,
        forbidden_states=[(x, y) for y, row in enumerate(rows) for x in range(size) if row >> (size - 1 - x) & 1],
        initial_distribution=initial_distribution,
        initial_distribution_value=initial_distribution_value,
        noise_intensity=noise_intensity,
        crowd_aversion_coef=crowd_aversion_coef,
        device=device,
        dtype=dtype,
        compat=compat,
    )
    return replace(game, name="maze")


def _rewards(
    place: Tensor,
    costs: Tensor,
    aversion: Tensor,
    horizon: int,
    charged: Tensor | None,
    with_congestion: bool = False,
) -> Parts:
    """:return: rewards of places (S,), less costs of moves (A,), or in OpenSpiel less what is ``charged`` (T, S)."""

    def openspiel(t: Any, mu: Tensor) -> Tensor:
        assert charged is not None
        mu = torch.where(torch.as_tensor(t, device=mu.device) == 0, 1 / mu.shape[-1], mu)
        return alone(t, mu) - along(charged, t) * (mu if with_congestion else 1)

    def alone(t: Any, mu: Tensor) -> Tensor:
        return place - aversion * (mu + TINY).log()

    def walking(t: Any, mu: Tensor) -> Tensor:
        cost = torch.where(torch.as_tensor(t, device=mu.device).unsqueeze(-1) < horizon - 1, -costs, 0)
        return cost * mu.unsqueeze(-1) if with_congestion else cost

    if charged is not None:
        return {"r_state": openspiel}
    return {"r_state": alone, "r_action": walking if bool(costs.any()) else None}


def _torus(walls: Tensor, noise: Tensor) -> Parts:
    """:return: where moves and noise lead; walls can only be stayed in."""
    size = len(walls)
    states = torch.arange(size * size, device=walls.device)
    x, y = states % size, states // size
    post = torch.stack([(x + dx) % size + (y + dy) % size * size for dx, dy in MOVES], 1)
    legal = ~walls.flatten()[post] & ~walls.flatten().unsqueeze(1)
    legal[:, NEUTRAL] = True
    post = torch.where(legal, post, states.unsqueeze(1))
    still = (torch.arange(len(MOVES), device=walls.device) == NEUTRAL).to(noise.dtype)
    noise_p = (1 - noise) * still + noise * legal.to(noise.dtype) / legal.sum(1, keepdim=True)
    return {"legal": legal, "post": post, "noise_idx": post, "noise_p": noise_p}


def _start(cells: Cells, shares: Values, walls: Tensor, dtype: torch.dtype, compat: Compat | None) -> Tensor:
    """:return: mu0, (1, S)."""
    size = len(walls)
    starts = read_cells("initial_distribution", cells, size, size)
    if not starts:
        if compat is not None and walls.any():
            raise ValueError(
                "OpenSpiel lets a part of the crowd start inside walls where no initial_distribution is given: give one"
            )
        return ((~walls).to(dtype) / (~walls).sum()).view(1, -1)
    mu0 = torch.zeros(size, size, dtype=dtype, device=walls.device)
    values = read_values("initial_distribution_value", shares, "initial_distribution", len(starts), 1 / len(starts))
    if min(values) < 0 or abs(sum(values) - 1) > 1e-9:
        raise ValueError(f"initial_distribution_value must hold shares of at least 0 that sum to 1, got {values}")
    for (x, y), value in zip(starts, values, strict=True):
        row, column = (y, x) if compat is None else (x, y)
        if walls[row, column]:
            raise ValueError(
                f"initial_distribution puts members into the wall at ({column}, {row}): choose a free cell"
            )
        mu0[row, column] += value
    return mu0.view(1, -1)


def _nearness(cells: Cells, weights: Values, size: int) -> Tensor:
    """:return: what places pay, (S,) float64."""
    centres = read_cells("positional_reward", cells, size, size)
    values = read_values("positional_reward_value", weights, "positional_reward", len(centres), 1.0)
    if not centres:
        centres, values = [(size // 2, size // 2)], [1.0]
    states = torch.arange(size * size)
    pay = torch.full((size * size,), 2.0, dtype=torch.float64)
    for (x, y), value in zip(centres, values, strict=True):
        pay -= 2 * value / size * ((states % size - x).abs() + (states // size - y).abs()).to(torch.float64)
    return pay
