"""Solvers of mean field games against loops over plain numbers, against each other, and what users see of them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from headway.envs.mean_field import (
    SOLVERS,
    Entropy,
    MFGame,
    best_response,
    exploitability,
    flow,
    make_game,
    policy_values,
    solve,
)
from headway.envs.mean_field.solvers import Solver
from torch import Tensor
from torch.testing import assert_close

from .mean_field_reference import FORMS, Array, Loops, Numbers, as_game, numbers, policies, relabelled

Reference = Callable[[Loops, Array], Iterator[Array]]

# The package's parameters, and the loops that do the same.
ALGORITHMS: dict[str, tuple[str, dict[str, Any], Reference]] = {
    "FP": ("fictitious_play", {}, lambda loops, first: loops.fictitious_play(first)),
    "FP, constant": ("fictitious_play", {"learning_rate": 0.3}, lambda loops, first: loops.fictitious_play(first, 0.3)),
    "FP, soft": ("fictitious_play", {"temperature": 0.5}, lambda loops, first: loops.fictitious_play(first, None, 0.5)),
    "OMD": ("online_mirror_descent", {"learning_rate": 0.2}, lambda loops, first: loops.mirror_descent(first, 0.2)),
    "OMD, by itself": ("online_mirror_descent", {}, lambda loops, first: loops.mirror_descent(first, 0.1)),
    "Munchausen": (
        "munchausen_mirror_descent",
        {"learning_rate": 0.2},
        lambda loops, first: loops.mirror_descent(first, 0.2),
    ),
    "BPI": ("boltzmann_policy_iteration", {"learning_rate": 0.4}, lambda loops, first: loops.boltzmann(first, 0.4)),
    "FPI": ("fixed_point", {}, lambda loops, first: loops.fixed_point(first)),
    "FPI, damped": ("fixed_point", {"damping": 0.7}, lambda loops, first: loops.fixed_point(first, 0.7)),
    "FPI, damped, soft": (
        "fixed_point",
        {"damping": 0.7, "temperature": 0.5},
        lambda loops, first: loops.fixed_point(first, 0.7, 0.5),
    ),
}
STEPS = 4
SOFT = ["FP, soft", "OMD", "Munchausen", "BPI", "FPI, damped, soft"]


def tensor(part: Any) -> Tensor:
    return torch.tensor(np.array(part), dtype=torch.float64)


def starts(law: Numbers, *sizes: int) -> Tensor:
    """:return: a policy for each of the games, of entries that are not small."""
    return tensor(policies(law, int(np.prod(sizes)), 77, spread=0.5)).view(*sizes, 2, law.H, 4, 3)


# -- against loops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_step_is_that_of_the_loops(algorithm: str, form: str) -> None:
    name, parameters, reference = ALGORITHMS[algorithm]
    law = numbers(40, form, H=3)
    game, loops = as_game(law), Loops(law)
    first = starts(law, 1)[0]
    wanted = [first.numpy(), *islice(reference(loops, first.numpy()), STEPS)]
    solution = solve(game, name, STEPS, policy=first, **parameters)
    assert_close(solution.policy, tensor(wanted[-1]), rtol=0.0, atol=1e-10)
    assert_close(solution.flow, tensor(loops.flow(wanted[-1])), rtol=0.0, atol=1e-10)
    gains = tensor([loops.nash_conv(policy) for policy in wanted])
    assert_close(solution.history.exploitability, gains, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("bonus", ["entropy", "quadratic"])
@pytest.mark.parametrize("algorithm", ["FP", "OMD", "FPI, damped"])
def test_steps_of_regularised_games_are_those_of_the_loops(algorithm: str, bonus: str) -> None:
    name, parameters, reference = ALGORITHMS[algorithm]
    law = replace(numbers(41, H=3), bonus=bonus)
    loops, first = Loops(law), starts(law, 1)[0]
    *_, wanted = islice(reference(loops, first.numpy()), STEPS)
    solution = solve(as_game(law), name, STEPS, policy=first, **parameters)
    assert_close(solution.policy, tensor(wanted), rtol=0.0, atol=1e-10)
    assert float(solution.exploitability) == pytest.approx(loops.nash_conv(wanted), abs=1e-10)


def test_the_first_policy_is_uniform_unless_given() -> None:
    law = numbers(42)
    solution = solve(as_game(law), iterations=0)
    assert_close(solution.policy, tensor(Loops(law).uniform()), rtol=0.0, atol=0.0)
    assert float(solution.exploitability) == pytest.approx(Loops(law).nash_conv(Loops(law).uniform()), abs=1e-12)
    given = starts(law, 1)[0]
    for algorithm in SOLVERS:
        assert_close(solve(as_game(law), algorithm, 0, policy=given).policy, given, rtol=0.0, atol=1e-15)


def test_fictitious_play_leaves_a_policy_alone_where_nobody_is_until_it_plays() -> None:
    law = numbers(42, P=1)
    game = as_game(replace(law, mu0=np.array([[1.0, 0, 0, 0]])))
    given = tensor(policies(law, 1, 77)[0])
    assert_close(solve(game, "fictitious_play", 0, policy=given).policy, given, rtol=0.0, atol=1e-15)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batches_are_solved_like_single_games(algorithm: str, form: str) -> None:
    name, parameters, _ = ALGORITHMS[algorithm]
    laws = [numbers(seed, form) for seed in range(3)]
    first = starts(laws[0], 2, 3)  # each game from two policies
    batch = solve(as_game(laws), name, STEPS, policy=first, **parameters)
    assert batch.policy.shape == (2, 3, 2, 4, 4, 3)
    assert batch.flow.shape == (2, 3, 2, 5, 4)
    assert batch.history.exploitability.shape == (STEPS + 1, 2, 3)
    assert batch.exploitability.shape == (2, 3)
    for row in range(2):
        for column, law in enumerate(laws):
            single = solve(as_game(law), name, STEPS, policy=first[row, column], **parameters)
            assert_close(batch.policy[row, column], single.policy, rtol=0.0, atol=1e-12)
            assert_close(batch.flow[row, column], single.flow, rtol=0.0, atol=1e-12)
            gains = batch.history.exploitability[:, row, column]
            assert_close(gains, single.history.exploitability, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("algorithm", SOLVERS)
@pytest.mark.parametrize("name", ["linear_quadratic", "garnet", "garnet, softened", "crowd_modelling"])
def test_a_single_small_game_is_solved_as_beside_another(name: str, algorithm: str) -> None:
    """One game alone takes a way of its own through the sweeps, by the Markov chain of its policy."""
    game = make_game(name.partition(",")[0], horizon=5)
    if "softened" in name:
        game = replace(game, regulariser=Entropy(0.3))
    alone = solve(game, algorithm, 6)
    twice = solve(game, algorithm, 6, policy=game.uniform_policy().expand(2, -1, -1, -1, -1))
    for row in range(2):
        assert_close(twice.policy[row], alone.policy, rtol=0, atol=1e-12)
        assert_close(twice.flow[row], alone.flow, rtol=0, atol=1e-12)
        assert_close(twice.history.exploitability[:, row], alone.history.exploitability, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", SOLVERS)
def test_solutions_say_what_their_policies_do(algorithm: str) -> None:
    for form in FORMS:
        game = as_game([numbers(seed, form) for seed in range(3)])
        solution = solve(game, algorithm, 5)
        assert_close(game.check_policy(solution.policy), solution.policy)
        assert_close(flow(game, solution.policy), solution.flow, rtol=0.0, atol=1e-12)
        assert_close(exploitability(game, solution.policy), solution.exploitability, rtol=0.0, atol=1e-11)
        assert bool((solution.policy.masked_select(~game.legal) == 0).all())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_single_precision_is_close_to_double(algorithm: str) -> None:
    name, parameters, _ = ALGORITHMS[algorithm]
    law = numbers(43)
    single, double = (solve(as_game(law, dtype), name, 5, **parameters) for dtype in (torch.float32, torch.float64))
    assert single.policy.dtype == single.exploitability.dtype == torch.float32
    assert_close(single.flow.double(), double.flow, rtol=0.0, atol=1e-4)
    assert_close(single.exploitability.double(), double.exploitability, rtol=1e-3, atol=1e-3)


def test_ties_are_split_in_single_precision_too() -> None:
    single, double = (
        solve(make_game("crowd_modelling", dtype=dtype), "fictitious_play", 8)
        for dtype in (torch.float32, torch.float64)
    )
    assert_close(single.flow.double(), double.flow, rtol=0.0, atol=1e-4)


# -- what must hold of every game -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_names_of_states_and_actions_do_not_matter(algorithm: str, form: str) -> None:
    name, parameters, _ = ALGORITHMS[algorithm]
    law = numbers(44, form)
    states, actions = np.array([2, 0, 3, 1]), np.array([1, 2, 0])
    one, other = (solve(as_game(one), name, 6, **parameters) for one in (law, relabelled(law, states, actions)))
    assert_close(other.policy, one.policy[..., states, :][..., actions], rtol=0.0, atol=1e-9)
    assert_close(other.flow, one.flow[..., states], rtol=0.0, atol=1e-9)
    assert_close(other.history.exploitability, one.history.exploitability, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("algorithm", ["FP", *SOFT])
def test_rewards_that_are_the_same_everywhere_change_no_iterate(algorithm: str) -> None:
    name, parameters, _ = ALGORITHMS[algorithm]
    game = as_game(numbers(45))

    def r_state(t: Any, mu: Tensor) -> Tensor:
        return game.r_state(t, mu) + 3 * torch.cos(torch.as_tensor(t)) - 4 * mu[..., 1:2] ** 2

    one, other = (solve(one, name, 10, **parameters) for one in (game, replace(game, r_state=r_state)))
    assert_close(other.policy, one.policy, rtol=0.0, atol=1e-9)
    assert_close(other.history.exploitability, one.history.exploitability, rtol=0.0, atol=1e-9)
    values = policy_values(game, one.policy), policy_values(replace(game, r_state=r_state), one.policy)
    assert float((values[0] - values[1]).abs().max()) > 1


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_of_mirror_descent_are_one(form: str) -> None:
    for game in (as_game(numbers(46, form)), make_game("crowd_modelling")):
        one, other = (solve(game, f"{name}_mirror_descent", 20) for name in ("online", "munchausen"))
        assert_close(one.policy, other.policy, rtol=0.0, atol=1e-9)
        assert_close(one.history.exploitability, other.history.exploitability, rtol=0.0, atol=1e-9)
        assert float(one.exploitability) < 0.7 * float(one.history.exploitability[0])


def test_the_average_policy_takes_the_crowd_where_the_average_crowd_is() -> None:
    law = numbers(47)
    game, loops = as_game(law), Loops(law)
    policy = loops.uniform()
    crowd = loops.flow(policy)
    for k in range(1, 6):
        response = loops.response(loops.flow(policy), 0)
        crowd = crowd * k / (k + 1) + loops.flow(response) / (k + 1)
        solution = solve(game, "fictitious_play", k)
        assert_close(solution.flow, tensor(crowd), rtol=0.0, atol=1e-12)
        policy = solution.policy.numpy()
        assert_close(tensor(loops.flow(policy)), tensor(crowd), rtol=0.0, atol=1e-12)


def test_where_nobody_is_the_average_policy_is_uniform() -> None:
    law = replace(numbers(48, P=1), mu0=np.array([[0.0, 0, 1, 0]]))
    game = as_game(law)
    solution = solve(game, "fictitious_play", 3)
    empty = solution.flow[0, :-1] == 0
    assert bool(empty.any())
    uniform = game.uniform_policy()[0]
    assert_close(solution.policy[0][empty], uniform[empty], rtol=0.0, atol=0.0)
    assert not torch.equal(solution.policy[0], uniform)
    assert float(exploitability(game, solution.policy)) == pytest.approx(float(solution.exploitability), abs=1e-12)


# -- how fast ---------------------------------------------------------------------------------------------------------


def test_fictitious_play_gains_as_one_over_k() -> None:
    solution = solve(make_game("crowd_modelling"), "fictitious_play", 256)
    gains = solution.history.exploitability
    for k in (2**j for j in range(9)):
        assert 1.4 <= k * float(gains[k]) <= 3.1, k
    rises = int((gains.diff() > 0).sum())
    assert 0 < rises < 128  # which is why this one is not asked for a fall in every step


def test_fictitious_play_with_small_steps_gains_in_every_one() -> None:
    solution = solve(make_game("crowd_modelling"), "fictitious_play", 100, learning_rate=0.01)
    gains = solution.history.exploitability.tolist()
    assert all(later < earlier for earlier, later in pairwise(gains[:91]))
    assert gains[0] == pytest.approx(2.787, abs=5e-4)
    assert gains[100] == pytest.approx(0.232, abs=5e-4)


def test_monotone_games_have_one_equilibrium() -> None:
    game = make_game("crowd_modelling")
    logits = torch.randn(6, 1, 10, 10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = logits.softmax(-1)
    solution = solve(game, "online_mirror_descent", 2000, policy=start, evaluate_every=2000)
    assert float(solution.exploitability.max()) < 0.01
    # greatest distance of two flows, by time
    before, apart = ((mu.unsqueeze(1) - mu).abs().amax((0, 1, 2, 4)) for mu in (flow(game, start), solution.flow))
    assert float(before[1:].min()) > 0.05
    assert float(apart[:-1].max()) < 0.005
    # nothing is earned at the end, so that no equilibrium says what to do last
    assert 0.03 < float(apart[-1]) < 0.1


def test_hard_fixed_points_of_a_ring_go_round_in_circles() -> None:
    gains = solve(make_game("crowd_modelling"), "fixed_point", 60).history.exploitability
    assert float(gains[10:].min()) > 10
    assert float((gains[40:] - gains[38:-2]).abs().max()) < 1e-9
    damped = solve(make_game("crowd_modelling"), "fixed_point", 60, damping=0.9, temperature=0.5)
    assert float(damped.exploitability) < 1


def left_right() -> MFGame:
    """From the middle, members go left or right, and pay their neighbours' share there, twice as much on the right."""
    return MFGame(
        name="left_right",
        S=3,
        A=2,
        H=1,
        mu0=tensor([[1.0, 0, 0]]),
        r_state=lambda t, mu: 0 * mu,
        terminal=lambda mu: -mu * tensor([0, 1, 2]),
        post=torch.tensor([[1, 2], [1, 1], [2, 2]]),
    )


def rock_paper_scissors() -> MFGame:
    """From a start, members choose what earns by what the others chose."""
    pays = tensor([[0, 0, 0, 0], [0, 0, -1, 2], [0, 4, 0, -2], [0, -3, 6, 0]])
    return MFGame(
        name="rock_paper_scissors",
        S=4,
        A=3,
        H=1,
        mu0=tensor([[1.0, 0, 0, 0]]),
        r_state=lambda t, mu: 0 * mu,
        terminal=lambda mu: mu @ pays.T,
        post=torch.tensor([[1, 2, 3]]).expand(4, 3).contiguous(),
    )


def test_small_games_are_at_rest_in_their_equilibria() -> None:
    for game, wanted, value in (
        (left_right(), tensor([2 / 3, 1 / 3]), -2 / 3),
        (rock_paper_scissors(), tensor([26, 20, 31]) / 77, 6 / 11),
    ):
        policy = game.uniform_policy()
        assert float(exploitability(game, policy)) > 0.05
        policy[0, 0, 0] = wanted
        assert abs(float(exploitability(game, policy))) < 1e-12
        assert_close(flow(game, policy)[0, 1, 1:], wanted, rtol=0.0, atol=1e-15)
        response = best_response(game, flow(game, policy))
        assert_close(response.values[0, 0, 0], tensor(value), rtol=0.0, atol=1e-15)
    found = solve(left_right(), "online_mirror_descent", 500, tolerance=1e-8)
    assert float(found.exploitability) < 1e-8
    assert_close(found.flow[0, 1, 1:], tensor([2 / 3, 1 / 3]), rtol=0.0, atol=1e-8)


def test_a_damped_fixed_point_converges_where_a_swift_one_cycles() -> None:
    game = MFGame(
        name="topics",
        S=3,
        A=3,
        H=4,
        mu0=tensor([[0.6, 0.3, 0.1]]),
        r_state=lambda t, mu: -mu.clamp(min=1e-30).log(),
        r_action=lambda t, mu: tensor([[0, 1, -0.5], [0.3, 0, 0.8], [-0.2, 0.4, 0]]),
        post=torch.arange(3).expand(3, 3).contiguous(),
        regulariser=Entropy(0.5),
    )
    slow, swift = (solve(game, "fixed_point", 200, damping=damping) for damping in (0.8, 0.5))
    assert abs(float(slow.exploitability)) < 1e-12
    assert float(swift.history.exploitability[100:].min()) > 1


# -- what users see ---------------------------------------------------------------------------------------------------


def test_evaluations_come_as_often_as_asked_and_at_the_end() -> None:
    game, seen = as_game([numbers(50), numbers(51)]), []
    solution = solve(
        game, iterations=10, evaluate_every=4, on_evaluation=lambda k, gain: seen.append((k, gain.tolist()))
    )
    history = solution.history
    assert history.iterations == (0, 4, 8, 10)
    assert history.exploitability.shape == (4, 2)
    assert len(history.seconds) == 4
    assert all(0 <= earlier <= later for earlier, later in pairwise(history.seconds))
    assert seen == list(zip((4, 8, 10), history.exploitability[1:].tolist(), strict=True))
    always = solve(game, iterations=10).history
    assert always.iterations == tuple(range(11))
    assert_close(always.exploitability[[0, 4, 8, 10]], history.exploitability, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_looking_seldom_changes_nothing(algorithm: str) -> None:
    name, parameters, _ = ALGORITHMS[algorithm]
    for form in FORMS:
        often, seldom = (
            solve(as_game(numbers(52, form)), name, 7, evaluate_every=every, **parameters) for every in (1, 100)
        )
        assert seldom.history.iterations == (0, 7)
        assert_close(seldom.policy, often.policy, rtol=0.0, atol=1e-12)


def test_a_tolerance_stops_when_the_last_game_of_a_batch_is_solved() -> None:
    game = make_game("crowd_modelling")
    whole = solve(game, "fictitious_play", 100).history.exploitability.tolist()
    first = next(k for k, gain in enumerate(whole) if gain <= 0.3)
    assert 2 < first < 90
    stopped = solve(game, "fictitious_play", 100, tolerance=0.3)
    assert stopped.history.iterations == tuple(range(first + 1))
    assert float(stopped.exploitability) == pytest.approx(whole[first], abs=1e-12)
    seldom = solve(game, "fictitious_play", 100, tolerance=0.3, evaluate_every=10).history.iterations
    assert seldom[-1] == next(k for k in range(0, 101, 10) if whole[k] <= 0.3)
    assert solve(game, "fictitious_play", 100, tolerance=1e3).history.iterations == (0,)
    # two starts, one of them a solution already: both go on until the other is solved too
    start = torch.stack([game.uniform_policy(), solve(game, "fictitious_play", 100).policy])
    both = solve(game, "fictitious_play", 100, policy=start, tolerance=0.3).history
    assert both.exploitability[0, 1] <= 0.3
    assert both.iterations == tuple(range(len(both.iterations)))
    assert bool((both.exploitability[-1] <= 0.3).all())
    assert not bool((both.exploitability[:-1] <= 0.3).all(-1).any())


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    game = as_game(numbers(53))
    solve(game, iterations=3)
    assert capsys.readouterr() == ("", "")
    solution = solve(game, iterations=3, progress=True)
    shown = capsys.readouterr().err
    assert "random noise, online_mirror_descent" in shown
    assert "3/3" in shown
    assert f"exploitability={float(solution.exploitability):.3g}" in shown


class Impatience:
    """Ctrl-C in the middle of a chosen iteration: between a solver's new policy and what follows from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, algorithm: str, iteration: int) -> None:
        self.calls, self.iteration = 0, iteration
        forget = SOLVERS[algorithm].forget

        def pressed(solver: Solver) -> None:
            self.calls += 1
            if self.calls == self.iteration:
                raise KeyboardInterrupt
            forget(solver)

        monkeypatch.setattr(SOLVERS[algorithm], "forget", pressed)


@pytest.mark.parametrize("algorithm", SOLVERS)
def test_an_interrupted_solver_returns_its_last_whole_iteration(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = make_game("garnet", horizon=5)
    whole = solve(game, algorithm, 3, evaluate_every=2)
    Impatience(monkeypatch, algorithm, 4)
    found = solve(game, algorithm, 9, evaluate_every=2, interruptible=True)
    assert found.interrupted
    assert not whole.interrupted
    assert found.history.iterations == whole.history.iterations == (0, 2, 3)
    assert_close(found.policy, whole.policy, rtol=0, atol=0)
    assert_close(found.flow, whole.flow, rtol=0, atol=0)
    assert_close(found.history.exploitability, whole.history.exploitability, rtol=0, atol=0)


def test_an_interruption_raises_unless_results_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Impatience(monkeypatch, "online_mirror_descent", 2)
    with pytest.raises(KeyboardInterrupt):
        solve(make_game("garnet", horizon=5), iterations=3)


def test_ties_are_broken_as_asked() -> None:
    game = replace(as_game(numbers(54)), r_state=lambda t, mu: -mu, r_action=lambda t, mu: 0 * mu[..., None])
    still = replace(
        game, post=torch.arange(4)[:, None].expand(4, 3).contiguous(), legal=torch.ones(4, 3, dtype=torch.bool)
    )
    split, first = (solve(still, "fixed_point", 1, tie=tie).policy for tie in ("split", "first"))
    assert_close(split, torch.full_like(split, 1 / 3))
    assert bool((first[..., 0] == 1).all())


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "algorithm": (
        {"algorithm": "mirror_descent"},
        r"there is no algorithm 'mirror_descent': did you mean .*mirror_desc",
    ),
    "iterations": ({"iterations": -1}, "iterations must be at least 0 .* got -1"),
    "evaluations": ({"evaluate_every": 0}, "evaluate_every at least 1, got 100 and 0"),
    "no rate": ({"learning_rate": 0.0}, r"learning_rate of online_mirror_descent must lie in \(0, inf\), got 0.0"),
    "rate below": ({"learning_rate": -0.1}, r"learning_rate of .* must lie in \(0, inf\), got -0.1"),
    "rate of nothing": ({"learning_rate": float("nan")}, r"learning_rate of .* must lie in \(0, inf\), got nan"),
    "weight above 1": (
        {"algorithm": "fictitious_play", "learning_rate": 1.5},
        r"learning_rate of fictitious_play must lie in \(0, 1\], got 1.5",
    ),
    "damping": ({"algorithm": "fixed_point", "damping": 1.0}, r"damping of fixed_point must lie in \[0, 1\), got 1.0"),
    "temperature": (
        {"algorithm": "fixed_point", "temperature": -1.0},
        r"temperature of fixed_point must lie in \[0, inf\), got -1.0",
    ),
    "tie": ({"algorithm": "fixed_point", "tie": "random"}, "tie is 'random': it can be 'split' or 'first'"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_calls_that_cannot_be_say_why(case: str) -> None:
    keywords, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        solve(as_game(numbers(55)), **keywords)


@pytest.mark.parametrize(
    ("algorithm", "parameter"),
    [("online_mirror_descent", "damping"), ("fixed_point", "learning_rate"), ("fictitious_play", "learning_rat")],
)
def test_parameters_of_other_algorithms_are_refused(algorithm: str, parameter: str) -> None:
    with pytest.raises(TypeError, match=parameter):
        solve(as_game(numbers(56)), algorithm, 1, **{parameter: 0.5})


def test_a_rate_that_is_none_belongs_to_fictitious_play() -> None:
    with pytest.raises(ValueError, match="learning_rate of online_mirror_descent"):
        solve(as_game(numbers(57)), iterations=1, learning_rate=None)


def test_rewards_that_become_nan_stop_a_solver() -> None:
    game = replace(as_game(numbers(58)), r_state=lambda t, mu: torch.where(mu < 1e-3, torch.nan, 10 * mu.log()))
    with pytest.raises(ValueError, match=r"random noise: .*NaN"):
        solve(game, "fixed_point", 20)


# -- other devices ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_gpu_solves_as_the_cpu_does(algorithm: str, form: str) -> None:
    name, parameters, _ = ALGORITHMS[algorithm]
    laws = [numbers(seed, form) for seed in range(5)]
    first = starts(laws[0], 2, 5)
    host = solve(as_game(laws), name, 10, policy=first, **parameters)
    device = solve(as_game(laws, device="cuda"), name, 10, policy=first.cuda(), **parameters)
    assert device.policy.is_cuda
    assert device.history.exploitability.is_cuda
    assert_close(device.policy.cpu(), host.policy, rtol=0.0, atol=1e-10)
    assert_close(device.flow.cpu(), host.flow, rtol=0.0, atol=1e-10)
    assert_close(device.history.exploitability.cpu(), host.history.exploitability, rtol=0.0, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nan_on_a_gpu_is_found_in_the_end() -> None:
    game = as_game(numbers(58), device="cuda")
    game = replace(game, r_state=lambda t, mu: torch.where(mu < 1e-3, torch.nan, 10 * mu.log()))
    with pytest.raises(ValueError, match="NaN"):
        solve(game, "fixed_point", 20)
