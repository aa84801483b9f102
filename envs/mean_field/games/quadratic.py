"""Games of moving with effort on a ring: linear-quadratic, and with aversion to crowds (both OpenSpiel's)."""

import math
from typing import Any

import torch
from torch import Tensor

from ..game import MFGame
from ..library import Compat
from .compat import arrival_table
from .parameters import Number, Numbers, Parts, along, check_positive, check_whole, even_start, spread

PERIODIC_TINY = 1e-15
"""Added to densities in logarithms (OpenSpiel's)."""


def linear_quadratic(
    *,
    size: int = 10,
    horizon: float = 10,
    dt: float = 1.0,
    n_actions_per_side: int = 3,
    volatility: float = 1.0,
    mean_revert: Number = 0.0,
    cross_q: Number = 0.01,
    kappa: Number = 0.5,
    terminal_cost: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build the linear-quadratic game on a ring (arXiv 2007.03458, section 4.1): stay near the crowd's mean m at ease.

        r = dt / 2 (-a² + 2 q a (m - x) - kappa (m - x)²),    at the end -c / 2 (m - x)²

    Moves are to x + round((a + K (m - x)) dt). Noise is a normal number, of standard deviation ``volatility``, rounded
    to a whole one of at most ``n_actions_per_side``, times volatility sqrt(dt), rounded again. With
    ``compat="openspiel"``, a is the action that led to the state, as :mod:`.compat` says, and the end costs nothing.

    :param size: S
    :param horizon: in time; H is ``horizon / dt``, rounded up
    :param dt: time between decisions
    :param n_actions_per_side: greatest a, and number in noise; A is twice that and one
    :param volatility: above 0
    :param mean_revert: K, how much the mean draws members; (*batch)
    :param cross_q: q; (*batch)
    :param kappa: (*batch)
    :param terminal_cost: c; (*batch)
    :return: the game
    :raises ValueError: a parameter out of range, or OpenSpiel's game with a K other than 0
    """
    check_whole(low=2, size=size)
    check_whole(n_actions_per_side=n_actions_per_side)
    check_positive(horizon=horizon, dt=dt, volatility=volatility)
    decisions = math.ceil(round(horizon / dt, 9))  # a quotient that should be whole may lack a little
    numbers = Numbers(device, dtype)
    revert = numbers("mean_revert", mean_revert)
    efforts = torch.arange(-n_actions_per_side, n_actions_per_side + 1, dtype=torch.float64, device=device)
    ways = _driven(size, efforts, dt, volatility, dtype)
    mu0 = even_start(size, device, dtype)
    charged = None
    if compat is not None:
        if bool((revert != 0).any()):
            raise ValueError("OpenSpiel's game with a mean_revert depends on the order of its searches: leave it at 0")
        charged = arrival_table(decisions, mu0, ways, efforts.to(dtype), n_actions_per_side)
    if bool((revert != 0).any()):
        ways = _drawn(ways, efforts.to(dtype), spread(revert, 3), dt)
    coefficients = (numbers("cross_q", cross_q), numbers("kappa", kappa), numbers("terminal_cost", terminal_cost))
    rewards = _quadratic(efforts.to(dtype), size, dt, coefficients, charged)
    return MFGame(name="linear_quadratic", S=size, A=len(efforts), H=decisions, mu0=mu0, **ways, **rewards)


def periodic_aversion(
    *,
    size: int = 21,
    horizon: int = 20,
    dt: float = 0.01,
    xmin: float = 0.0,
    xmax: float = 1.0,
    n_actions_per_side: int = 10,
    volatility: float = 1.0,
    coef_aversion: Number = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    compat: Compat | None = None,
) -> MFGame:
    """Build the game of aversion to crowds on a circle (Almulla, Ferreira and Gomes 2017).

        r = dt (-v² / 2 - coef_aversion log density(x) + 2 pi² s sin 2 pi x - 2 pi² cos² 2 pi x + 2 / s² sin 2 pi x)

    for the velocity v and the volatility s. Positions are ``size`` points from xmin to xmax; moves and noise go by up
    to ``n_actions_per_side`` of them, noise with the weights of a normal number of standard deviation s sqrt(dt). With
    ``compat="openspiel"``, v is the velocity that led to the state, as :mod:`.compat` says.

    :param size: S
    :param horizon: H
    :param dt: time between decisions
    :param xmin: position of the first state
    :param xmax: position of the last
    :param n_actions_per_side: A is twice that and one
    :param volatility: s, above 0
    :param coef_aversion: (*batch)
    :return: the game
    :raises ValueError: a parameter out of range
    """
    check_whole(low=2, size=size)
    check_whole(horizon=horizon, n_actions_per_side=n_actions_per_side)
    check_positive(dt=dt, volatility=volatility, **{"xmax - xmin": xmax - xmin})
    aversion = spread(Numbers(device, dtype)("coef_aversion", coef_aversion), 2)
    dx = (xmax - xmin) / (size - 1)
    moves = torch.arange(-n_actions_per_side, n_actions_per_side + 1, device=device)
    post = (torch.arange(size, device=device).unsqueeze(1) + moves) % size
    steps = moves.to(torch.float64) * dx
    noise = (-(steps / volatility).square() / (2 * dt)).softmax(0).to(dtype).repeat(size, 1)
    ways: Parts = {"post": post, "noise_idx": post, "noise_p": noise}
    angle = 2 * math.pi * (xmin + dx * torch.arange(size, dtype=torch.float64, device=device))
    place = 2 * math.pi**2 * (volatility * angle.sin() - angle.cos().square()) + 2 / volatility**2 * angle.sin()
    place, costs = place.to(dtype), ((steps / dt).square() / 2).to(dtype)
    mu0 = even_start(size, device, dtype)
    charged = None if compat is None else arrival_table(horizon, mu0, ways, costs, n_actions_per_side)

    def r_state(t: Any, mu: Tensor) -> Tensor:
        reward = place - aversion * (mu / dx + PERIODIC_TINY).log()
        return dt * (reward if charged is None else reward - along(charged, t))

    r_action = (lambda t, mu: -dt * costs) if compat is None else None
    sizes: Parts = {"S": size, "A": len(moves), "H": horizon}
    return MFGame(name="periodic_aversion", mu0=mu0, r_state=r_state, r_action=r_action, **sizes, **ways)


def _quadratic(
    efforts: Tensor, size: int, dt: float, coefficients: tuple[Tensor, Tensor, Tensor], charged: Tensor | None
) -> Parts:
    """:return: the linear-quadratic rewards; of the efforts ``charged`` (T, S) as in OpenSpiel, if given."""
    q, kappa, terminal_cost = coefficients
    places = torch.arange(size, dtype=efforts.dtype, device=efforts.device)

    def gap(mu: Tensor) -> Tensor:
        return (mu * places).sum(-1, keepdim=True) - places

    def distance(t: Any, mu: Tensor) -> Tensor:
        return -dt / 2 * spread(kappa, 2) * gap(mu).square()

    def effort(t: Any, mu: Tensor) -> Tensor:
        return dt / 2 * (2 * spread(q, 3) * efforts * gap(mu).unsqueeze(-1) - efforts.square())

    def openspiel(t: Any, mu: Tensor) -> Tensor:
        assert charged is not None
        last = along(charged, t)
        return distance(t, mu) + dt / 2 * (2 * spread(q, 2) * last * gap(mu) - last.square())

    def terminal(mu: Tensor) -> Tensor:
        return -spread(terminal_cost, 2) / 2 * gap(mu).square()

    if charged is not None:
        return {"r_state": openspiel}
    return {"r_state": distance, "r_action": effort, "terminal": terminal}


def _driven(size: int, efforts: Tensor, dt: float, volatility: float, dtype: torch.dtype) -> Parts:
    """:return: where efforts and noise lead."""
    states = torch.arange(size, dtype=torch.float64, device=efforts.device).unsqueeze(1)
    below = (1 + torch.erf((efforts[1:] - 0.5) / (volatility * math.sqrt(2)))) / 2
    noise = torch.cat([below, below.new_ones(1)]) - torch.cat([below.new_zeros(1), below])
    return {
        "post": ((states + (efforts * dt).round()) % size).to(torch.int64),
        "noise_idx": ((states + efforts * (math.sqrt(dt) * volatility)).round() % size).to(torch.int64),
        "noise_p": noise.to(dtype).repeat(size, 1),
    }


def _drawn(ways: Parts, efforts: Tensor, revert: Tensor, dt: float) -> Parts:
    """:return: the same for members whom the mean draws."""
    size, actions = ways["post"].shape
    noise = efforts.new_zeros(size, size).scatter_add_(1, ways["noise_idx"], ways["noise_p"])  # (from, to)
    places = torch.arange(size, dtype=efforts.dtype, device=efforts.device).unsqueeze(-1)

    def transition(t: Any, mu: Tensor) -> Tensor:
        mean = (mu * places.squeeze(-1)).sum(-1)[..., None, None]
        after = (places + ((efforts + revert * (mean - places)) * dt).round()) % size  # (…, n_pop, S, A)
        return noise[after.to(torch.int64)]

    successors = torch.arange(size, device=efforts.device).expand(size, actions, size)
    return {"succ_idx": successors.contiguous(), "transition": transition}
