"""Benchmark games: figures measured in OpenSpiel 2.0.2, figures of the correct games, definitions in plain loops."""

import inspect
from importlib import import_module
from math import cos, erf, log, pi, sin, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from headway.envs.mean_field import (
    GAMES,
    MFGame,
    best_response,
    exploitability,
    flow,
    make_game,
    policy_value,
    solve,
)
from headway.envs.mean_field.games.networks import Demand, Link, Network
from torch import Tensor
from torch.testing import assert_close

NAMES = [
    "crowd_avoidance",
    "crowd_modelling",
    "crowd_modelling_2d",
    "dynamic_routing",
    "four_rooms",
    "garnet",
    "left_right",
    "linear_quadratic",
    "maze",
    "periodic_aversion",
    "predator_prey",
    "predator_prey_4",
    "rock_paper_scissors",
    "sis",
]
OMD, PLAY = "online_mirror_descent", "fictitious_play"
FIRST = {"tie": "first"}
VARIANT = {
    "initial_distribution": "[2|5]",
    "initial_distribution_value": "[1.0]",
    "with_congestion": True,
    "noise_intensity": 0.4,
    "crowd_aversion_coef": 0.7,
    "forbidden_states": "[4|4;4|5;5|4]",
}


def takes_compat(name: str) -> bool:
    module, _, function = str(GAMES[name]).partition(":")
    return "compat" in inspect.signature(getattr(import_module(module), function)).parameters


BUILT = [(name, None) for name in NAMES] + [(name, "openspiel") for name in NAMES if takes_compat(name)]


def waves(game: MFGame) -> Tensor:
    """A policy that prefers other actions everywhere, with states counted as OpenSpiel does, y + x * size on grids."""
    states = torch.arange(game.S)
    if game.grid is not None:
        width, height = game.grid
        states = states // width + states % width * height
    p, t, x, a = torch.meshgrid(
        *(torch.arange(n) for n in (game.n_pop, game.H)), states, torch.arange(game.A), indexing="ij"
    )
    p, t, x, a = (part.to(torch.float64) for part in (p, t, x, a))
    logits = torch.sin(0.7 + 1.3 * x + 2.1 * a + 0.5 * t + 0.9 * p)
    return logits.masked_fill(~game.legal, -torch.inf).softmax(-1)


def crowd(game: MFGame, seed: int = 0) -> Tensor:
    """Somewhere a crowd could be, (n_pop, S)."""
    return torch.rand(game.n_pop, game.S, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(
        -1
    )


def loop(game: MFGame, reward: Any) -> Tensor:
    """A reward of population and state, or of these and an action, in a loop over all."""
    sizes = [game.n_pop, game.S, *([game.A] if len(inspect.signature(reward).parameters) > 2 else [])]
    return torch.tensor([reward(*map(int, index)) for index in np.ndindex(*sizes)], dtype=torch.float64).view(sizes)


def same(part: Tensor, wanted: Any, atol: float = 1e-12) -> None:
    wanted = torch.as_tensor(wanted, dtype=part.dtype)
    assert_close(part.expand(wanted.shape), wanted, rtol=0.0, atol=atol)


# -- OpenSpiel's figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "value", "best", "gain"),
    [
        ("crowd_modelling", {}, 26.73303930323722, 31.664951096669785, 4.931911793432565),
        ("crowd_modelling_2d", {}, 55.189984611878884, 60.65501549858924, 5.465030886710359),
        ("crowd_modelling_2d", VARIANT, 36.265915709763455, 57.58423524863566, 21.318319538872203),
        ("four_rooms", {}, 143.15920603639285, 320.5433148107654, 177.38410877437258),
        ("linear_quadratic", {}, -51.21371670281468, -29.708577320224748, 21.50513938258993),
        ("predator_prey", {}, 22.868253996612612, 38.0181232726592, 44.793557364886894),
    ],
)
def test_openspiel_values_a_policy_the_same(
    name: str, parameters: dict[str, Any], value: float, best: float, gain: float
) -> None:
    game = make_game(name, "openspiel", **parameters)
    policy = waves(game)
    responses = (game.mu0 * best_response(game, flow(game, policy)).values[..., 0, :]).sum(-1)
    same(policy_value(game, policy)[0], value, 1e-9)
    same(responses[0], best, 1e-9)
    same(exploitability(game, policy), gain, 1e-9)


def test_openspiel_tests_value_the_uniform_policy_the_same() -> None:
    game = make_game("crowd_modelling", "openspiel")
    policy = game.uniform_policy()
    same(policy_value(game, policy), [27.215850929940448], 1e-9)
    same(policy_value(game, policy) + exploitability(game, policy), [30.029387484327486], 1e-9)


@pytest.mark.parametrize(
    ("name", "uniform", "algorithm", "parameters", "gains"),
    [
        ("crowd_modelling", 2.8135365544, OMD, {}, {1: 2.2317319462, 10: 0.4211496840, 50: 0.1124583294}),
        ("crowd_modelling", 2.8135365544, PLAY, {"temperature": 1.0}, {1: 0.9438848727, 10: 1.0615882204}),
        (
            "crowd_modelling",
            2.8135365544,
            PLAY,
            FIRST,
            {1: 4.2171527964, 10: 0.9908032627, 50: 0.0868815069, 100: 0.0332795312},
        ),
        ("crowd_modelling", 2.8135365544, OMD, {"learning_rate": 0.01}, {10: 2.2736633464}),
        ("crowd_modelling", 2.8135365544, "boltzmann_policy_iteration", {"learning_rate": 0.01}, {10: 2.7542845018}),
        ("crowd_modelling", 2.8135365544, "fixed_point", FIRST, {1: 42.96707, 10: 55.74510181475, 11: 45.33189}),
        ("crowd_modelling", 2.8135365544, "fixed_point", {"temperature": 10.0}, {10: 2.4210468152}),
        (
            "crowd_modelling",
            2.8135365544,
            "fixed_point",
            {"temperature": 1.0},
            {1: 1.5286559, 10: 42.10848, 50: 43.31172},
        ),
        ("crowd_modelling_2d", 5.4428533233, OMD, {}, {1: 4.2408704016, 10: 0.7670178905, 50: 0.1710612144}),
        ("crowd_modelling_2d", 5.4428533233, PLAY, {"temperature": 1.0}, {1: 1.0121727040, 10: 1.7171274555}),
        ("four_rooms", 167.6604464714, OMD, {}, {1: 34.0144830699, 10: 5.2395820341, 50: 1.3089643510}),
        ("four_rooms", 167.6604464714, PLAY, {"temperature": 1.0}, {1: 90.6521450086, 10: 8.3334042416}),
        ("linear_quadratic", 21.4981815996, OMD, {}, {1: 17.9381845581, 10: 4.4810069455, 50: 0.7197225664}),
        ("linear_quadratic", 21.4981815996, PLAY, {"temperature": 1.0}, {1: 13.6333066671, 10: 6.1280646634}),
        ("linear_quadratic", 21.4981815996, PLAY, FIRST, {1: 11.7123594514, 10: 2.9482055429}),
        ("predator_prey", 36.9683839252, OMD, {}, {1: 27.1398313859, 10: 3.0795554208, 50: 0.4258706870}),
        ("predator_prey", 36.9683839252, PLAY, {}, {1: 40.0062351139, 10: 3.0938284037}),
        ("predator_prey_4", 67.8987623734, OMD, {}, {1: 42.3081981859}),
        ("periodic_aversion", 4.3333913092, OMD, {}, {1: 4.2987191260, 5: 4.1585808210}),
        ("periodic_aversion", 4.3333913092, PLAY, {}, {1: 2.0882770158}),
        ("maze", 2019.5033302327, OMD, {}, {1: 210.3196560759}),
        ("crowd_avoidance", 6.2765434524, OMD, {}, {1: 6.2667189739}),
    ],
)
def test_openspiel_solvers_get_as_far(
    name: str, uniform: float, algorithm: str, parameters: dict[str, Any], gains: dict[int, float]
) -> None:
    game = make_game(name, "openspiel")
    history = solve(game, algorithm, max(gains), **parameters).history
    same(history.exploitability[0], uniform, 1e-6)
    for iteration, gain in gains.items():
        digits = len(f"{gain}".partition(".")[2])
        same(history.exploitability[iteration], gain, max(1e-6, 0.6 * 10.0**-digits))


@pytest.mark.parametrize(("algorithm", "gain"), [(OMD, 8.8764680099), (PLAY, 138.3579648808)])
def test_openspiel_agrees_on_a_long_ring(algorithm: str, gain: float) -> None:
    game = make_game("crowd_modelling", "openspiel", size=100, horizon=100)
    same(solve(game, algorithm, 1).history.exploitability, [40.2607069433, gain], 1e-6)


def routes() -> Network:
    """Two destinations, departures at two times, and roads that slow down with the square of traffic."""
    links = {
        "O->A": (0.0, 0.0),
        "A->B": (1.0, 1.0),
        "A->C": (1.6, 0.5),
        "B->D": (1.3, 0.3),
        "B->C": (0.4, 0.0),
        "C->D": (0.9, 1.0),
        "D->E": (0.0, 0.0),
        "D->F": (0.0, 0.0),
    }
    return Network(
        {name: Link(time, a=a, b=2.0, capacity=3.0) for name, (time, a) in links.items()},
        (Demand("O->A", "D->E", 0.0, 3.0), Demand("O->A", "D->F", 0.5, 2.0)),
        max_num_time_step=40,
        time_step_length=0.25,
    )


@pytest.mark.parametrize(
    ("name", "parameters", "values", "gains"),
    [
        ("crowd_modelling", {"size": 7, "horizon": 5}, [11.38261196976636], (1.165700848240533, 1.0525935442835844)),
        (
            "crowd_modelling_2d",
            {
                "size": 6,
                "horizon": 4,
                "noise_intensity": 0.5,
                "positional_reward": "[1|0;2|3]",
                "positional_reward_value": "[1.5;0.5]",
                "with_congestion": True,
                "forbidden_states": "[0|0;3|2]",
                "initial_distribution": "[1|4;5|2]",
                "initial_distribution_value": "[0.25;0.75]",
            },
            [9.780221604549764],
            (4.5440467449434365, 3.6003984869172783),
        ),
        (
            "crowd_modelling_2d",
            {
                "size": 5,
                "horizon": 4,
                "noise_intensity": 0.0,
                "forbidden_states": "[1|2;0|3]",
                "initial_distribution": "[0|2;3|3]",
                "initial_distribution_value": "[0.25;0.75]",
            },
            [15.256817632786488],
            (2.577252684527549,),
        ),
        (
            "linear_quadratic",
            {
                "size": 8,
                "horizon": 4,
                "dt": 0.5,
                "n_actions_per_side": 2,
                "volatility": 1.5,
                "cross_q": 0.3,
                "kappa": 0.7,
            },
            [-13.215625000000003],
            (3.073462922804996, 2.9961042442941075),
        ),
        (
            "periodic_aversion",
            {
                "size": 11,
                "horizon": 4,
                "dt": 0.02,
                "n_actions_per_side": 4,
                "volatility": 0.8,
                "coef_aversion": 1.5,
                "xmin": 0.1,
                "xmax": 1.3,
            },
            [-15.793946898372036],
            (5.0527526229010125, 4.830956840305735),
        ),
        (
            "predator_prey",
            {"geometry": 1, "horizon": 4, "noise_probability": 0.3, "congestion_coeff": 0.7},
            [5.625918065269817, 45.959109586073815, 45.883204799257406],
            (3.7442168303262173, 3.3649928645681024),
        ),
        ("predator_prey", {}, [23.53635433944508, 81.22635443854861, 80.97560889004383], (36.968383925225865,)),
        (
            "crowd_avoidance",
            {"coef_congestion": 2.0, "proba_noise": 0.3, "coef_target": 0.5, "horizon": 6},
            [-0.07547939492036611] * 2,
            (0.28247021572600106, 0.27867287472959845),
        ),
        ("dynamic_routing", {}, [-3.5], (0.5, 0.4905488601774004)),
        ("dynamic_routing", {"network": routes()}, [-6.69375], (4.043749999999999, 2.815201990123468)),
    ],
)
def test_openspiel_agrees_on_other_parameters(
    name: str, parameters: dict[str, Any], values: list[float], gains: tuple[float, ...]
) -> None:
    """The value of the uniform policy, its gain, and that after one iteration of mirror descent."""
    game = make_game(name, "openspiel" if takes_compat(name) else None, **parameters)
    same(policy_value(game, game.uniform_policy()), values, 1e-9)
    same(solve(game, OMD, len(gains) - 1).history.exploitability, gains, 1e-9)


def test_openspiel_charges_the_first_path() -> None:
    ours, theirs = make_game("crowd_modelling"), make_game("crowd_modelling", "openspiel")
    mu = ours.mu0
    for t, free in ((0, range(10)), (1, (1,)), (2, (9,))):
        charge = [0.0 if x in free else -0.1 for x in range(10)]
        same(theirs.r_state(t, mu) - ours.r_state(t, mu), [charge])
    assert theirs.r_action is None
    assert theirs.terminal is None


def test_openspiel_swaps_the_start_and_takes_the_first_crowd_to_be_everywhere() -> None:
    parameters: dict[str, Any] = {"size": 5, "initial_distribution": [(1, 3)], "only_distribution_reward": True}
    ours, theirs = (make_game("crowd_modelling_2d", compat, **parameters) for compat in (None, "openspiel"))
    assert int(ours.mu0.argmax()) == 1 + 5 * 3
    assert int(theirs.mu0.argmax()) == 3 + 5 * 1
    mu = crowd(ours)
    same(theirs.r_state(0, mu), [[log(25.0)] * 25])
    same(theirs.r_state(1, mu), ours.r_state(1, mu))


def test_openspiel_never_pays_the_end_of_the_linear_quadratic_game() -> None:
    ours, theirs = make_game("linear_quadratic", horizon=1), make_game("linear_quadratic", "openspiel", horizon=1)
    free = make_game("linear_quadratic", horizon=1, terminal_cost=0.0, cross_q=0.0)
    still = torch.zeros_like(ours.uniform_policy())
    still[..., 3] = 1
    same(policy_value(theirs, still), policy_value(free, still))
    assert policy_value(ours, still) < policy_value(theirs, still) - 1


# -- the correct games' figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "uniform", "wavy"),
    [
        ("crowd_modelling", 2.7866824163, 4.884954384895),
        ("crowd_modelling_2d", 5.3547772452, 5.368474153068),
        ("linear_quadratic", 34.7273400516, None),
    ],
)
def test_what_leaving_a_policy_gains(name: str, uniform: float, wavy: float | None) -> None:
    game = make_game(name)
    same(exploitability(game, game.uniform_policy()), uniform, 1e-9)
    if wavy is not None:
        same(exploitability(game, waves(game)), wavy, 1e-9)


@pytest.mark.parametrize(
    ("name", "compat", "algorithm", "parameters", "gains"),
    [
        ("linear_quadratic", None, OMD, {}, {1: "27.7101649097", 10: "4.4932568748", 50: ".3917593261"}),
        ("linear_quadratic", None, PLAY, {}, {1: "17.3636700258", 10: "3.1570309138", 50: ".6809282363"}),
        (
            "crowd_modelling",
            None,
            PLAY,
            {},
            {
                1: "2.8647",
                2: "1.464",
                4: ".38373",
                8: ".28014",
                16: ".11435",
                32: ".058741",
                64: ".030644",
                128: ".014635",
                256: ".0075333",
            },
        ),
        ("four_rooms", "openspiel", PLAY, {}, {1: "117.294", 10: "22.670", 20: "6.464", 50: "1.474", 100: ".869"}),
        ("crowd_modelling_2d", "openspiel", PLAY, {}, {10: "1.659"}),
        ("four_rooms", "openspiel", PLAY, FIRST, {20: "12.94"}),
    ],
)
def test_how_far_solvers_get(
    name: str, compat: Any, algorithm: str, parameters: dict[str, Any], gains: dict[int, str]
) -> None:
    history = solve(make_game(name, compat), algorithm, max(gains), **parameters).history
    for iteration, gain in gains.items():
        digits = len(gain.partition(".")[2])
        same(history.exploitability[iteration], float(gain), 0.6 * 10.0**-digits)


@pytest.mark.parametrize(
    ("name", "shares", "value"),
    [("left_right", [2 / 3, 1 / 3], -2 / 3), ("rock_paper_scissors", [26 / 77, 20 / 77, 31 / 77], 6 / 11)],
)
def test_one_choice_has_a_known_equilibrium(name: str, shares: list[float], value: float) -> None:
    game = make_game(name)
    policy = torch.tensor(shares, dtype=torch.float64).expand(game.uniform_policy().shape)
    same(exploitability(game, policy), 0.0)
    same(policy_value(game, policy), [value])
    same(flow(game, policy)[0, 1, 1:], shares)
    assert float(exploitability(game, game.uniform_policy())) > 0.1


# -- definitions, in loops --------------------------------------------------------------------------------------------


def test_the_torus_pays_for_places_and_charges_for_moves() -> None:
    size, horizon, weights, centres = 5, 4, (1.5, 0.5), ((1, 0), (2, 3))
    game = make_game(
        "crowd_modelling_2d",
        size=size,
        horizon=horizon,
        positional_reward=centres,
        positional_reward_value=weights,
        with_congestion=True,
        crowd_aversion_coef=0.7,
    )
    assert game.r_action is not None
    mu = crowd(game)

    def place(p: int, s: int) -> float:
        x, y = s % size, s // size
        far = sum(2 * v / size * (abs(x - u) + abs(y - w)) for v, (u, w) in zip(weights, centres, strict=True))
        return 2 - far - 0.7 * log(float(mu[p, s]))

    def move(p: int, s: int, a: int) -> float:
        return -(0.0 if a == 2 else 1 / size) * float(mu[p, s])

    same(game.r_state(1, mu), loop(game, place))
    same(game.r_action(horizon - 2, mu), loop(game, move))
    same(game.r_action(horizon - 1, mu), torch.zeros(1, size * size, 5))


def test_walls_cannot_be_walked_into() -> None:
    game = make_game("four_rooms")
    walls = game.info["walls"]
    assert int((~walls).sum()) == 104
    assert game.post is not None
    assert game.noise_p is not None
    moved = game.post[~walls]
    assert bool((walls[moved] & game.legal[~walls]).any()) is False
    assert not walls[moved].any()
    assert game.legal[walls].tolist() == [[False, False, True, False, False]] * 65
    corner = 1 + 13 * 1
    assert game.legal[corner].tolist() == [False, False, True, True, True]
    same(game.noise_p[corner], [0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert int((~make_game("maze", horizon=1).info["walls"]).sum()) == 259


def test_noise_leaves_the_rest_where_it_is() -> None:
    game = make_game("crowd_modelling_2d", size=5, noise_intensity=0.4, forbidden_states=[(1, 0)])
    assert game.noise_p is not None
    same(game.noise_p[0], [0.1, 0.1, 0.7, 0, 0.1])
    same(game.noise_p[12], [0.08, 0.08, 0.68, 0.08, 0.08])


def test_linear_quadratic_rewards_and_noise() -> None:
    size, dt, q, kappa, c = 6, 0.5, 0.3, 0.7, 1.2
    game = make_game(
        "linear_quadratic",
        size=size,
        dt=dt,
        n_actions_per_side=2,
        cross_q=q,
        kappa=kappa,
        terminal_cost=c,
        volatility=1.5,
    )
    mu = crowd(game)
    mean = sum(x * float(mu[0, x]) for x in range(size))
    assert game.r_action is not None
    assert game.terminal is not None
    assert game.noise_idx is not None
    assert game.noise_p is not None
    assert game.H == 20
    same(
        game.r_action(3, mu) + game.r_state(3, mu).unsqueeze(-1),
        loop(
            game,
            lambda p, x, a: dt / 2 * (-((a - 2) ** 2) + 2 * q * (a - 2) * (mean - x) - kappa * (mean - x) ** 2),
        ),
    )
    same(game.terminal(mu), loop(game, lambda p, x: -c / 2 * (mean - x) ** 2))
    below = [(1 + erf((m + 0.5) / 1.5 / sqrt(2))) / 2 for m in (-2, -1, 0, 1)]
    same(game.noise_p[4], np.diff([0.0, *below, 1.0]))
    assert game.noise_idx[4].tolist() == [round(4 + m * sqrt(dt) * 1.5) % size for m in (-2, -1, 0, 1, 2)]


def test_the_mean_may_draw_members() -> None:
    calm, drawn = make_game("linear_quadratic"), make_game("linear_quadratic", mean_revert=0.4)
    mu = crowd(calm)
    assert calm.noise_idx is not None
    assert calm.noise_p is not None
    assert drawn.transition is not None
    mean, wanted = sum(x * float(mu[0, x]) for x in range(10)), torch.zeros(1, 10, 7, 10, dtype=torch.float64)
    for x in range(10):
        for a in range(7):
            after = (x + round(a - 3 + 0.4 * (mean - x))) % 10
            for z, p in zip(calm.noise_idx[after].tolist(), calm.noise_p[after].tolist(), strict=True):
                wanted[0, x, a, z] += p
    same(drawn.transition(0, mu), wanted)
    barely = make_game("linear_quadratic", mean_revert=1e-14)
    same(exploitability(barely, waves(barely)), exploitability(calm, waves(calm)), 1e-11)


def test_aversion_is_to_the_density() -> None:
    size, dt, dx = 11, 0.02, 0.1
    game = make_game("periodic_aversion", size=size, dt=dt, n_actions_per_side=3, volatility=0.8, coef_aversion=1.5)
    mu = crowd(game)
    assert game.r_action is not None
    assert game.noise_p is not None

    def reward(p: int, s: int, a: int) -> float:
        angle = 2 * pi * s * dx
        place = 2 * pi**2 * (0.8 * sin(angle) - cos(angle) ** 2) + 2 / 0.8**2 * sin(angle)
        return dt * (place - 1.5 * log(float(mu[p, s]) / dx) - ((a - 3) * dx / dt) ** 2 / 2)

    same(game.r_action(0, mu) + game.r_state(0, mu).unsqueeze(-1), loop(game, reward), 1e-11)
    weights = np.exp([-((m * dx) ** 2) / (2 * dt * 0.8**2) for m in range(-3, 4)])
    same(game.noise_p[5], weights / weights.sum())


@pytest.mark.parametrize("geometry", ["square", "torus"])
def test_populations_chase_one_another(geometry: str) -> None:
    size, rows = 4, ((0.0, 2.0), (-1.0, 0.5))
    start = torch.zeros(2, 16)
    start[:, 0] = 1
    game = make_game(
        "predator_prey",
        size=size,
        players=2,
        reward_matrix="0 2 -1 0.5",
        init_distrib=start,
        geometry=geometry,
        congestion_coeff=0.7,
        noise_probability=0.6,
    )
    mu = crowd(game)
    same(
        game.r_state(0, mu),
        loop(
            game,
            lambda p, s: sum(rows[p][q] * float(mu[q, s]) for q in (0, 1)) - 0.7 * log(float(mu[p, s])),
        ),
    )
    assert game.post is not None
    assert game.noise_p is not None
    assert game.post[0].tolist() == ([0, 1, 4, 0, 0] if geometry == "square" else [0, 1, 4, 12, 3])
    assert game.post[5].tolist() == [5, 6, 9, 1, 4]
    same(game.noise_p[7], [0.4, 0.15, 0.15, 0.15, 0.15])


def test_crowds_avoid_each_other_on_the_way_to_their_targets() -> None:
    game = make_game("crowd_avoidance", coef_congestion=2.0, coef_target=0.5)
    mu, targets = crowd(game), (5 + 7 * 3, 1 + 7 * 3)
    same(game.r_state(4, mu), loop(game, lambda p, s: 0.5 * (s == targets[p]) - 2.0 * float(mu[1 - p, s])))
    assert game.post is not None
    walls = game.info["walls"].view(7, 7)
    assert ["".join(".#"[cell] for cell in row) for row in walls.int().tolist()] == [
        "#######",
        "#..#..#",
        "#.....#",
        "#..#..#",
        "#.....#",
        "#..#..#",
        "#######",
    ]
    assert game.post[2 + 7 * 1].tolist() == [9, 9, 16, 9, 8]  # a wall to the right and above
    starts = {(p, s % 7, s // 7): float(game.mu0[p, s]) for p in (0, 1) for s in range(49) if game.mu0[p, s] > 0}
    assert starts == {
        (0, 1, 2): 0.4,
        (0, 2, 2): 0.4,
        (0, 1, 4): 0.2,
        (1, 5, 2): 0.2,
        (1, 4, 4): 0.4,
        (1, 5, 4): 0.4,
    }


def test_an_epidemic_spreads_among_those_who_go_out() -> None:
    game = make_game("sis", horizon=6, infection=0.5, recovery=0.2, initially_infected=0.3)
    going_out, share = 0.4, 0.3
    policy = torch.tensor([going_out, 1 - going_out], dtype=torch.float64).expand(1, 6, 2, 2)
    earned, infected = 0.0, [share]
    for _ in range(6):
        earned -= share + 0.5 * (1 - going_out)
        share = share * 0.8 + (1 - share) * going_out * 0.5 * share
        infected.append(share)
    same(flow(game, policy)[0, :, 1], infected)
    same(policy_value(game, policy), [earned])


def test_a_garnet_is_drawn_from_its_seed() -> None:
    size, branches = 200, 4
    game, again, other = (make_game("garnet", size=size, num_chance_action=branches, seed=seed) for seed in (1, 1, 2))
    for one, two, three in zip(*((g.succ_idx, g.succ_p) for g in (game, again, other)), strict=True):
        assert one is not None
        assert two is not None
        assert three is not None
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
    assert game.succ_p is not None
    assert game.r_action is not None
    mu = crowd(game)
    same(game.r_state(0, mu), -mu.log())
    same(game.succ_p.sum(-1), torch.ones(size, 3))
    assert abs(float(game.succ_p.max(-1).values.mean()) - 25 / 48) < 0.02  # the greatest of four spacings
    assert 0.45 < float(game.r_action(0, mu).mean()) < 0.55
    sparse = make_game("garnet", size=size, sparsity_factor=0.2)
    assert sparse.r_action is not None
    assert 0.15 < float((sparse.r_action(0, mu) != 0).to(torch.float64).mean()) < 0.25


def test_a_lone_driver_takes_the_fastest_way() -> None:
    links = {"O->A": Link(0), "A->B": Link(1), "A->C": Link(2), "B->C": Link(0.25), "B->D": Link(2), "C->D": Link(1)}
    network = Network({**links, "D->E": Link(0)}, (Demand("O->A", "D->E"),), 100, 0.05)
    game = make_game("dynamic_routing", network=network)
    solution = solve(game, PLAY, 1, learning_rate=1.0)
    same(policy_value(game, solution.policy), [-2.25], 1e-9)
    same(solution.exploitability, 0.0, 1e-9)
    assert {game.labels[s] for s in solution.flow[0, 21].nonzero().flatten().tolist()} == {"B->C, entering"}
    same(policy_value(make_game("dynamic_routing", network="line"), torch.ones(1, 5, 5, 1)), [-2.0])


def test_who_does_not_arrive_pays_for_one_step_more() -> None:
    network = Network(
        {"A->B": Link(), "B->C": Link(), "B->D": Link(), "D->E": Link()}, (Demand("A->B", "D->E", counts=2.0),), 6, 1.0
    )
    game = make_game("dynamic_routing", network=network)
    lost = torch.zeros(1, 6, game.S, game.A)
    lost[..., 0] = 1
    same(policy_value(game, lost), [-7.0])
    same(policy_value(game, best_response(game, flow(game, lost)).policy), [-1.0])
    assert float(flow(game, lost)[0, -1, game.labels.index("out of the network")]) == 1


# -- what holds of every game -----------------------------------------------------------------------------------------


def test_games_are_listed() -> None:
    assert set(NAMES) <= set(GAMES)


@pytest.mark.parametrize(("name", "compat"), BUILT)
def test_a_crowd_keeps_its_mass_and_stays_out_of_walls(name: str, compat: Any) -> None:
    game = make_game(name, compat)
    assert game.name == name
    assert game.dtype == torch.float64
    assert game.batch == ()
    mu = flow(game, game.uniform_policy())
    assert float((mu.sum(-1) - 1).abs().max()) < 1e-12
    assert float(mu.min()) >= 0
    if "walls" in game.info:
        assert float(mu[..., game.info["walls"]].sum()) == 0
    assert float(exploitability(game, game.uniform_policy())) >= -1e-10


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_is_close(name: str) -> None:
    parameters = {} if name != "maze" else {"horizon": 10}
    double, single = (make_game(name, dtype=dtype, **parameters) for dtype in (torch.float64, torch.float32))
    gains = exploitability(single, single.uniform_policy())
    assert gains.dtype == torch.float32
    assert_close(gains.double(), exploitability(double, double.uniform_policy()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "compat", "fixed", "varied"),
    [
        ("crowd_modelling", None, {}, {"crowd_aversion_coef": (0.1, 1.05, 2.0)}),
        ("crowd_modelling", "openspiel", {}, {"crowd_aversion_coef": (0.1, 1.05, 2.0)}),
        ("crowd_modelling_2d", None, {"with_congestion": True}, {"crowd_aversion_coef": (0.1, 1.05, 2.0)}),
        (
            "crowd_modelling_2d",
            "openspiel",
            VARIANT,
            {"crowd_aversion_coef": (1.0, 1.5, 2.0), "noise_intensity": (0.0, 0.25, 0.5)},
        ),
        ("four_rooms", None, {"horizon": 6}, {"noise_intensity": (0.2, 0.6, 1.0)}),
        ("maze", "openspiel", {"horizon": 6}, {"crowd_aversion_coef": (0.2, 0.6, 1.0)}),
        (
            "linear_quadratic",
            None,
            {},
            {"cross_q": (0.0, 0.15, 0.3), "kappa": (0.2, 0.6, 1.0), "terminal_cost": (0.0, 1.0, 2.0)},
        ),
        ("linear_quadratic", "openspiel", {}, {"cross_q": (0.0, 0.15, 0.3), "kappa": (0.2, 0.6, 1.0)}),
        ("linear_quadratic", None, {}, {"mean_revert": (0.0, 0.2, 0.4), "kappa": (0.2, 0.6, 1.0)}),
        ("periodic_aversion", "openspiel", {}, {"coef_aversion": (0.5, 1.25, 2.0)}),
        (
            "predator_prey",
            "openspiel",
            {"horizon": 4},
            {"congestion_coeff": (0.5, 1.25, 2.0), "noise_probability": (0.0, 0.3, 0.6)},
        ),
        ("predator_prey_4", None, {"horizon": 4}, {"congestion_coeff": (0.5, 1.25, 2.0)}),
        ("crowd_avoidance", "openspiel", {}, {"coef_congestion": (0.5, 1.25, 2.0), "coef_target": (1.0, 1.5, 2.0)}),
        ("crowd_avoidance", None, {}, {"proba_noise": (0.1, 0.5, 0.9)}),
        ("garnet", None, {}, {"eta": (0.5, 1.25, 2.0)}),
        (
            "sis",
            None,
            {},
            {"infection": (0.5, 0.7, 0.9), "recovery": (0.1, 0.2, 0.3), "initially_infected": (0.1, 0.3, 0.5)},
        ),
        ("sis", None, {}, {"recovery": (0.1, 0.2, 0.3), "cost_infected": (1.0, 1.5, 2.0)}),
        ("sis", None, {}, {"cost_distancing": (0.1, 0.2, 0.3)}),
    ],
)
def test_a_batch_is_as_many_games(
    name: str, compat: Any, fixed: dict[str, Any], varied: dict[str, tuple[float, ...]]
) -> None:
    numbers = {key: torch.tensor(values, dtype=torch.float64) for key, values in varied.items()}
    batch = make_game(name, compat, **{**fixed, **numbers})
    assert batch.batch == (3,)
    solution = solve(batch, OMD, 2)
    for row in range(3):
        single = make_game(name, compat, **{**fixed, **{key: values[row] for key, values in varied.items()}})
        alone = solve(single, OMD, 2)
        scale = float(alone.history.exploitability.abs().max())
        assert_close(solution.flow[row], alone.flow, rtol=0.0, atol=1e-12)
        assert_close(
            solution.history.exploitability[:, row], alone.history.exploitability, rtol=0.0, atol=1e-12 * max(1, scale)
        )


def test_matrices_and_starts_may_differ_too() -> None:
    matrices, starts = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(1)), torch.eye(9)[:4].view(2, 2, 9)
    parameters: dict[str, Any] = {"players": 2, "size": 3, "horizon": 3}
    batch = make_game("predator_prey", reward_matrix=matrices, init_distrib=starts, **parameters)
    gains = exploitability(batch, batch.uniform_policy())
    for row in range(2):
        single = make_game("predator_prey", reward_matrix=matrices[row], init_distrib=starts[row], **parameters)
        same(gains[row], exploitability(single, single.uniform_policy()))


def test_ten_thousand_games_are_one_call() -> None:
    weights = torch.linspace(0.1, 2, 10000)
    game = make_game("crowd_modelling", crowd_aversion_coef=weights)
    gains = exploitability(game, game.uniform_policy())
    assert gains.shape == (10000,)
    for row in (0, 4321, 9999):
        single = make_game("crowd_modelling", crowd_aversion_coef=float(weights[row]))
        same(gains[row], exploitability(single, single.uniform_policy()))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("crowd_modelling", {"size": 0}, "size must be a whole number of at least 2, got 0"),
        ("crowd_modelling", {"size": 10.0}, r"size must be a whole number of at least 2, got 10\.0"),
        ("crowd_modelling", {"horizon": 0}, "horizon must be a whole number of at least 1, got 0"),
        ("crowd_modelling", {"horizon": True}, "horizon must be a whole number of at least 1, got True"),
        (
            "crowd_modelling",
            {"crowd_aversion_coef": float("nan")},
            "crowd_aversion_coef must lie in .* finite, got nan",
        ),
        ("crowd_modelling", {"crowd_aversion_coef": "much"}, "crowd_aversion_coef must be a number .*, got 'much'"),
        ("crowd_modelling_2d", {"size": 1}, "size must be a whole number of at least 2, got 1"),
        ("crowd_modelling_2d", {"noise_intensity": 1.5}, r"noise_intensity must lie in \[0, 1\] .*, got 1\.5"),
        ("crowd_modelling_2d", {"forbidden_states": "[4,4]"}, r"forbidden_states must be cells as .*, got '\[4,4\]'"),
        ("crowd_modelling_2d", {"forbidden_states": 7}, "forbidden_states must be cells as .*, got 7"),
        ("crowd_modelling_2d", {"forbidden_states": "[4|10]"}, r"names cell \(4, 10\): x goes from 0 to 9"),
        (
            "crowd_modelling_2d",
            {"initial_distribution": "[1|1;2|2]", "initial_distribution_value": "[1.0]"},
            "initial_distribution_value must hold as many numbers as initial_distribution has cells, 2, got 1",
        ),
        (
            "crowd_modelling_2d",
            {"initial_distribution": "[1|1;2|2]", "initial_distribution_value": (0.5, 0.4)},
            r"must hold shares of at least 0 that sum to 1, got \[0.5, 0.4\]",
        ),
        (
            "crowd_modelling_2d",
            {"initial_distribution": "[1|1]", "initial_distribution_value": "[all]"},
            r"initial_distribution_value must be numbers .*, got '\[all\]'",
        ),
        (
            "crowd_modelling_2d",
            {"noise_intensity": torch.ones(2), "crowd_aversion_coef": torch.ones(3)},
            "parameters given per game must have sizes that broadcast",
        ),
        ("four_rooms", {"initial_distribution": "[0|1]"}, r"puts members into the wall at \(0, 1\): choose a free"),
        ("linear_quadratic", {"dt": 0.0}, r"dt must be a number in \(0, inf\), got 0\.0"),
        ("linear_quadratic", {"volatility": -1.0}, r"volatility must be a number in \(0, inf\), got -1\.0"),
        ("linear_quadratic", {"n_actions_per_side": 0}, "n_actions_per_side must be a whole number of at least 1"),
        ("linear_quadratic", {"compat": "openspiel", "mean_revert": 0.1}, "depends on the order .*: leave it at 0"),
        ("periodic_aversion", {"xmax": 0.0}, r"xmax - xmin must be a number in \(0, inf\), got 0\.0"),
        ("predator_prey", {"geometry": "sphere"}, "geometry is 'sphere': it can be 'square'"),
        ("predator_prey", {"players": 5}, "reward_matrix is only known for 3 or 4 players: give one for 5"),
        ("predator_prey", {"players": 2, "reward_matrix": "0 1 1 0"}, "init_distrib is not known for 2 populations"),
        ("predator_prey", {"reward_matrix": "0 1 2"}, r"reward_matrix must be 3 x 3, a row per population, got \(3,\)"),
        ("predator_prey", {"reward_matrix": "a b"}, "reward_matrix must be numbers between spaces, got 'a b'"),
        ("predator_prey", {"init_distrib": [1.0]}, r"init_distrib must hold 3 populations x 25 cells, .*, got \(1,\)"),
        ("predator_prey", {"noise_probability": -0.1}, r"noise_probability must lie in \[0, 1\]"),
        ("crowd_avoidance", {"size": 8}, "init_distrib is not known for 2 populations and size 8: give one"),
        ("crowd_avoidance", {"target_positions": "[1|1]"}, "one cell for each of the 2 populations, got 1"),
        ("crowd_avoidance", {"forbidden_states": "[1|2]"}, "init_distrib puts members into walls: choose free cells"),
        ("left_right", {"horizon": 0}, "horizon must be a whole number of at least 1, got 0"),
        ("garnet", {"num_chance_action": 0}, "num_chance_action must be a whole number of at least 1, got 0"),
        ("garnet", {"sparsity_factor": 2.0}, r"sparsity_factor must lie in \[0, 1\], got 2\.0"),
        ("sis", {"infection": 1.2}, r"infection must lie in \[0, 1\] and be finite, got 1\.2"),
        ("dynamic_routing", {"network": "brass"}, "there is no network 'brass': did you mean braess"),
        ("dynamic_routing", {"max_num_time_step": 0}, "max_num_time_step must be a whole number of at least 1, got 0"),
        ("dynamic_routing", {"time_step_length": 0}, r"time_step_length must be a number in \(0, inf\), got 0"),
        ("sis", {"compat": "openspiel"}, "game 'sis' has no compat='openspiel': leave it out"),
    ],
)
def test_what_cannot_be_is_said(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_game(name, **parameters)


def test_openspiel_may_not_start_in_walls() -> None:
    with pytest.raises(ValueError, match="start inside walls where no initial_distribution is given: give one"):
        make_game("crowd_modelling_2d", "openspiel", forbidden_states="[1|1]")


@pytest.mark.parametrize(
    ("links", "demand", "message"),
    [
        ({"A-B": Link()}, (Demand("A-B", "A-B"),), "links are named 'A->B', from a place to a place, got 'A-B'"),
        ({"A->B": Link(capacity=0.0)}, (Demand("A->B", "A->B"),), "A->B: .* capacity above 0, got Link"),
        ({"A->B": Link(-1.0)}, (Demand("A->B", "A->B"),), "A->B: travel time, a and b must be at least 0"),
        ({"A->B": Link()}, (), "a network needs a demand, got none"),
        ({"A->B": Link()}, (Demand("A->B", "B->C"),), "demand names link 'B->C', which does not exist"),
        ({"A->B": Link()}, (Demand("A->B", "A->B", -1.0),), "departure_time must be at least 0 and counts above 0"),
    ],
)
def test_networks_are_checked(links: dict[str, Link], demand: tuple[Demand, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(links, demand)
