"""Mean field games against loops over plain numbers, solved instances, and what must hold of every game."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from headway.envs.mean_field import (
    GAMES,
    Entropy,
    MFGame,
    Quadratic,
    best_response,
    exploitability,
    flow,
    make_game,
    policy_value,
    policy_values,
    register_game,
    solve,
)
from headway.envs.mean_field import moves as moves_module
from scipy.optimize import minimize
from torch import Tensor
from torch.testing import assert_close

from .mean_field_reference import (
    BONUSES,
    FORMS,
    Array,
    Loops,
    as_game,
    numbers,
    policies,
    projection,
    relabelled,
)

EXACT = {"rtol": 0.0, "atol": 1e-12}
EVERY = [(form, bonus) for form in FORMS for bonus in ("none", *BONUSES)]


def tensor(part: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(np.array(part), dtype=dtype)


def same(part: Tensor, wanted: Any, atol: float = 1e-12) -> None:
    assert_close(part, tensor(wanted) if not isinstance(wanted, Tensor) else wanted, rtol=0.0, atol=atol)


# -- against loops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "bonus"), EVERY)
@pytest.mark.parametrize("seed", [0, 1])
def test_everything_equals_the_loops(form: str, bonus: str, seed: int) -> None:
    law = replace(numbers(seed, form), bonus=bonus)
    game, loops = as_game(law), Loops(law)
    own, other = policies(law, 2, seed)
    mu = loops.flow(own)
    same(flow(game, tensor(own)), mu)
    same(policy_values(game, tensor(own)), loops.values(mu, own)[1])
    same(policy_values(game, tensor(other), tensor(mu)), loops.values(mu, other)[1])
    same(policy_value(game, tensor(other), tensor(mu)), (law.mu0 * loops.values(mu, other)[1][:, 0]).sum(-1))
    response, (q, values, best) = best_response(game, tensor(mu)), loops.values(mu)
    same(response.q_values, q)
    same(response.values, values)
    same(response.policy, best, 1e-9)
    same(exploitability(game, tensor(own)), loops.nash_conv(own))


@pytest.mark.parametrize(("form", "bonus"), EVERY)
def test_batches_equal_single_games(form: str, bonus: str) -> None:
    laws = [replace(numbers(seed, form), bonus=bonus) for seed in range(5)]
    batch, singles = as_game(laws), [as_game(law) for law in laws]
    assert batch.batch == (5,)
    # three policies for each of the five games
    policy = tensor([policies(laws[0], 3, seed) for seed in range(5)]).movedim(1, 0)
    mu, gains = flow(batch, policy), exploitability(batch, policy)
    response, values = best_response(batch, mu), policy_values(batch, policy)
    assert (mu.shape, gains.shape) == ((3, 5, 2, 5, 4), (3, 5))
    assert response.policy.shape == policy.shape
    for row in range(3):
        for column, game in enumerate(singles):
            own = policy[row, column]
            assert_close(mu[row, column], flow(game, own), **EXACT)
            assert_close(gains[row, column], exploitability(game, own), **EXACT)
            assert_close(values[row, column], policy_values(game, own), **EXACT)
            assert_close(policy_value(batch, policy)[row, column], policy_value(game, own), **EXACT)
            single = best_response(game, mu[row, column])
            for part, wanted in zip(response, single, strict=True):
                assert_close(part[row, column], wanted, **EXACT)


def test_a_batch_may_have_several_dimensions() -> None:
    laws = [numbers(seed) for seed in range(6)]
    policy = tensor(policies(laws[0], 1, 0)[0])
    wide = as_game(laws)
    tall = replace(
        wide,
        mu0=wide.mu0.view(2, 3, 2, 4),
        noise_p=wide.noise_p.view(2, 3, 1, 4, 3),  # type: ignore[union-attr]
        # one time after the other, since t has a dimension for each of the crowd's
        r_state=by_time(lambda t, mu: wide.r_state(t, mu.flatten(-4, -3)).unflatten(-3, (2, 3))),
        r_action=lambda t, mu: -mu.unsqueeze(-1),
        terminal=None,
    )
    flat = replace(wide, r_action=lambda t, mu: -mu.unsqueeze(-1), terminal=None)
    assert tall.batch == (2, 3)
    assert_close(exploitability(tall, policy).flatten(), exploitability(flat, policy), **EXACT)


def by_time(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """:return: a function that is called with one time only."""

    def called(t: Any, mu: Tensor) -> Tensor:
        if not isinstance(t, Tensor):
            return function(t, mu)
        return torch.stack([function(int(one), crowd) for one, crowd in zip(t.flatten(), mu, strict=True)])

    return called


def test_games_may_differ_in_one_number_only() -> None:
    law = numbers(0)
    base, policy = as_game(law), tensor(policies(law, 1, 0)[0])
    weights = tensor([0.0, 1.0, 2.0]).view(3, 1, 1)
    weighted = replace(base, r_state=lambda t, mu: weights * base.r_state(t, mu))
    assert weighted.batch == (3,)
    assert weighted.uniform_policy().shape == (3, 2, 4, 4, 3)
    for weight, gain in zip((0.0, 1.0, 2.0), exploitability(weighted, policy), strict=True):
        single = replace(base, r_state=lambda t, mu, w=weight: w * base.r_state(t, mu))
        assert_close(gain, exploitability(single, policy), **EXACT)


def test_noise_and_successors_may_differ_between_populations() -> None:
    laws = [numbers(seed, P=1) for seed in range(2)]
    games = [as_game(law) for law in laws]
    policy = tensor(policies(laws[0], 1, 3)[0])
    crowds = torch.cat([flow(game, policy) for game in games])
    start = torch.cat([game.mu0 for game in games])
    p = torch.stack([game.noise_p for game in games])  # type: ignore[misc]
    both = MFGame(
        name="both",
        S=4,
        A=3,
        H=4,
        mu0=start,
        r_state=lambda t, mu: -mu,
        legal=games[0].legal,
        post=games[0].post,
        noise_idx=games[0].noise_idx,
        noise_p=p,
    )
    assert both.n_pop == 2
    assert both.batch == ()
    assert_close(flow(both, policy.expand(2, -1, -1, -1)), crowds, **EXACT)
    listed = replace(both, post=None, noise_idx=None, noise_p=None, **successors_of(both))
    assert listed.succ_p is not None
    assert listed.succ_p.shape == (2, 4, 3, 3)
    assert_close(flow(listed, policy.expand(2, -1, -1, -1)), crowds, **EXACT)


def successors_of(game: MFGame) -> dict[str, Tensor]:
    """:return: where two stages lead, as one."""
    assert game.post is not None
    assert game.noise_idx is not None
    assert game.noise_p is not None
    return {"succ_idx": game.noise_idx[game.post], "succ_p": game.noise_p[..., game.post, :]}


def results(game: MFGame, policy: Tensor) -> list[Tensor]:
    """:return: whatever follows from a policy."""
    mu = flow(game, policy)
    return [mu, policy_values(game, policy), exploitability(game, policy), *best_response(game, mu)]


@pytest.mark.parametrize("bonus", ["none", "entropy"])
def test_three_ways_of_saying_the_same_moves_agree(bonus: str) -> None:
    law = replace(numbers(5), bonus=bonus)
    game = as_game(law)
    policy = tensor(policies(law, 1, 6)[0])
    listed = replace(game, post=None, noise_idx=None, noise_p=None, **successors_of(game))
    assert listed.succ_p is not None
    p = listed.succ_p
    called = replace(listed, succ_p=None, transition=lambda t, mu: p)
    assert (game.dynamic, listed.dynamic, called.dynamic) == (False, False, True)
    for part, other, third in zip(*(results(one, policy) for one in (game, listed, called)), strict=True):
        assert_close(part, other, **EXACT)
        assert_close(part, third, **EXACT)


def test_moves_without_noise_are_noise_that_leaves_everybody_in_place() -> None:
    law = numbers(7, K=1)
    still = replace(law, noise_idx=np.arange(4)[:, None], noise_p=np.ones((4, 1)))
    noisy, policy = as_game(still), tensor(policies(law, 1, 8)[0])
    for part, other in zip(
        results(noisy, policy), results(replace(noisy, noise_idx=None, noise_p=None), policy), strict=True
    ):
        assert_close(part, other, **EXACT)


def test_moves_are_gathered_or_multiplied_with_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    law = numbers(9, P=1, S=300, A=2, H=2, K=2)
    game, policy = as_game(law), tensor(policies(law, 1, 10)[0])
    assert moves_module.DENSE < 300
    wanted = results(game, policy)
    same(wanted[0], Loops(law).flow(policy.numpy()))
    for dense, small in ((300, 0), (300, 300 * 300 * 2)):  # noise as a matrix, noise and moves as one
        monkeypatch.setattr(moves_module, "DENSE", dense)
        monkeypatch.setattr(moves_module, "SMALL", small)
        for part, other in zip(results(game, policy), wanted, strict=True):
            assert_close(part, other, **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_single_precision_is_close_to_double(form: str) -> None:
    law = numbers(11, form)
    policy = tensor(policies(law, 1, 12)[0])
    single, double = as_game(law, torch.float32), as_game(law)
    assert single.dtype == torch.float32
    for part, wanted in zip(results(single, policy), results(double, policy), strict=True):
        assert part.dtype == torch.float32
        assert_close(part.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("states", [4, 300])
def test_a_single_precision_game_takes_double_precision_noise(states: int) -> None:
    law = numbers(13, P=1, S=states, A=2, H=2, K=2)
    game = as_game(law, torch.float32)
    mixed = replace(game, noise_p=tensor(law.noise_p))
    assert_close(flow(mixed, game.uniform_policy()), flow(game, game.uniform_policy()))


# -- what holds of every game -----------------------------------------------------------------------------------------


def sis() -> MFGame:
    """Susceptible and infected members, who stay in (costs 0.5) or go out and are infected by those who do."""

    def transition(t: Any, mu: Tensor) -> Tensor:
        ill = 0.81 * mu[..., 1]
        zero, healed = torch.zeros_like(ill), torch.full_like(ill, 0.3)
        rows = [[zero, ill], [1 - healed, 1 - healed]]  # (state, action) -> mass to the infected
        p = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return torch.stack([1 - p, p], -1)

    return MFGame(
        name="sis",
        S=2,
        A=2,
        H=30,
        mu0=tensor([[0.6, 0.4]]),
        r_state=lambda t, mu: tensor([[0.0, -1.0]]),
        r_action=lambda t, mu: tensor([[-0.5, 0.0]]).expand(2, 2),
        succ_idx=torch.tensor([0, 1]).expand(2, 2, 2),
        transition=transition,
    )


def some_games() -> dict[str, MFGame]:
    """:return: a game of each kind."""
    games = {f"{form} {bonus}": as_game(replace(numbers(20, form), bonus=bonus)) for form, bonus in EVERY}
    return {**games, "sis": sis(), "crowd_modelling": make_game("crowd_modelling")}


def random_policies(game: MFGame, count: int, seed: int = 0) -> Tensor:
    logits = 2 * torch.randn(
        count, game.n_pop, game.H, game.S, game.A, generator=torch.Generator().manual_seed(seed), dtype=game.dtype
    )
    return logits.masked_fill(~game.legal, -torch.inf).softmax(-1)


KINDS = [*(f"{form} {bonus}" for form, bonus in EVERY), "sis", "crowd_modelling"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_policies_move_mass_and_leave_something_to_gain(kind: str) -> None:
    game = some_games()[kind]
    policy = random_policies(game, 200)
    mu, gains = flow(game, policy), exploitability(game, policy)
    assert mu.shape == (200, game.n_pop, game.H + 1, game.S)
    assert float((mu.sum(-1) - 1).abs().max()) <= 1e-12
    assert float(mu.min()) >= 0
    assert_close(mu[..., 0, :], game.mu0.expand(200, -1, -1), **EXACT)
    assert float(gains.min()) >= -1e-10
    assert float(gains.min()) < float(gains.max())
    # a game that has a regulariser can only be exploited a little more than not at all, and the others by much
    value = policy_value(game, policy)
    same(gains, (game.mu0 * best_response(game, mu).values[..., 0, :]).sum((-1, -2)) - value.sum(-1), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_response_is_a_policy_that_none_beats(kind: str) -> None:
    game = some_games()[kind]
    mu = flow(game, random_policies(game, 1, seed=1)[0])
    response = best_response(game, mu)
    assert_close(policy_values(game, response.policy, mu), response.values, rtol=0.0, atol=1e-11)
    others = policy_values(game, random_policies(game, 50, seed=2), mu)
    assert bool((others <= response.values + 1e-12).all())
    assert bool((others[..., 0, :] < response.values[..., 0, :] - 1e-3).any(-1).all())
    assert bool(response.q_values.isneginf().eq(~game.legal).all())


def test_an_unreachable_state_stays_empty() -> None:
    law = numbers(14)
    reached = replace(law, mu0=law.mu0 * [1, 1, 1, 0], post=law.post % 3, noise_idx=law.noise_idx % 3)
    reached = replace(reached, mu0=reached.mu0 / reached.mu0.sum(1, keepdims=True))
    mu = flow(as_game(reached), tensor(policies(law, 20, 15)))
    assert bool((mu[..., 3] == 0).all())
    assert bool((mu[..., :3] > 0).any())


@pytest.mark.parametrize(("form", "bonus"), EVERY)
def test_names_of_states_and_actions_do_not_matter(form: str, bonus: str) -> None:
    law = replace(numbers(16, form), bonus=bonus)
    states, actions = np.array([2, 0, 3, 1]), np.array([1, 2, 0])
    game, renamed = as_game(law), as_game(relabelled(law, states, actions))
    assert not torch.equal(game.legal, renamed.legal)
    policy = tensor(policies(law, 3, 17))
    mu, values, gain, best, best_values, q = results(game, policy)
    wanted = [
        mu[..., states],
        values[..., states],
        gain,
        best[..., states, :][..., actions],
        best_values[..., states],
        q[..., states, :][..., actions],
    ]
    for part, other in zip(results(renamed, policy[..., states, :][..., actions]), wanted, strict=True):
        assert_close(part, other, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_an_action_that_exists_twice_is_worth_nothing(form: str) -> None:
    law = numbers(18, form)
    twice = relabelled(law, np.arange(4), np.array([0, 1, 2, 2]))
    mu = flow(as_game(law), tensor(policies(law, 3, 19)))
    response, more = best_response(as_game(law), mu), best_response(as_game(twice), mu)
    assert_close(more.values, response.values, **EXACT)
    assert_close(more.policy[..., 2], more.policy[..., 3], **EXACT)
    assert_close(more.q_values[..., :3], response.q_values, **EXACT)


@pytest.mark.parametrize(("form", "bonus"), EVERY)
def test_rewards_that_are_the_same_everywhere_change_values_and_nothing_else(form: str, bonus: str) -> None:
    law = replace(numbers(21, form), bonus=bonus)
    game = as_game(law)
    richer = replace(
        game, r_state=lambda t, mu: game.r_state(t, mu) + 5 * (torch.cos(torch.as_tensor(t)) + mu[..., :1] ** 2)
    )
    policy = tensor(policies(law, 3, 22))
    mu, values, gain, best, best_values, _ = results(game, policy)
    more = results(richer, policy)
    assert float((more[1] - values).abs().amin((-1, -2, -3)).min()) >= 0
    assert float((more[1][..., 0, :] - values[..., 0, :]).abs().min()) > 1e-3
    assert_close(more[0], mu, **EXACT)
    assert_close(more[2], gain, rtol=0.0, atol=1e-11)
    assert_close(more[3], best, rtol=0.0, atol=1e-9)
    added = 5 * (torch.cos(torch.arange(4)) + mu[..., :4, 0] ** 2).flip(-1).cumsum(-1).flip(-1)
    assert_close((more[4] - best_values)[..., :4, :], added.unsqueeze(-1).expand_as(values[..., :4, :]), **EXACT)


@pytest.mark.parametrize(("form", "bonus"), EVERY)
def test_shaping_leaves_best_responses_alone(form: str, bonus: str) -> None:
    law = replace(numbers(23, form), bonus=bonus)
    game, loops = as_game(law), Loops(law)
    policy = policies(law, 1, 24)[0]
    mu = loops.flow(policy)
    height = np.random.default_rng(25).normal(size=(law.H + 1, 4))
    height[[0, -1]] = 0
    climb = torch.zeros(law.H, 2, 4, 3, dtype=torch.float64)  # E h_{t+1}(x') - h_t(x), along this flow
    for t, p, x, a in np.ndindex(*climb.shape):
        climb[t, p, x, a] = loops.kernel(t, mu[:, t], p, x, a) @ height[t + 1] - height[t, x]
    assert game.r_action is not None
    plain = game.r_action

    def shaped(t: Any, mu: Tensor) -> Tensor:
        return plain(t, mu) + (climb[t.flatten()] if isinstance(t, Tensor) else climb[t])

    shifted = replace(game, r_action=shaped)
    response, other = (best_response(one, tensor(mu)) for one in (game, shifted))
    assert_close(other.policy, response.policy, rtol=0.0, atol=1e-9)
    assert_close(other.values + tensor(height), response.values, rtol=0.0, atol=1e-11)
    assert_close(exploitability(shifted, tensor(policy)), exploitability(game, tensor(policy)), rtol=0.0, atol=1e-11)


def test_values_are_what_is_added_up_on_the_way() -> None:
    for form, bonus in EVERY:
        law = replace(numbers(26, form), bonus=bonus)
        policy = policies(law, 1, 27)[0]
        same(policy_value(as_game(law), tensor(policy)), Loops(law).summed(policy))


def test_an_epidemic_goes_the_way_of_its_recursion() -> None:
    game = sis()
    policy = torch.zeros(1, 30, 2, 2, dtype=torch.float64)
    policy[..., 1] = 1
    ill, seen = 0.4, [0.4]
    for _ in range(30):
        ill = 0.7 * ill + (1 - ill) * 0.81 * ill
        seen.append(ill)
    same(flow(game, policy)[0, :, 1], seen)
    same(policy_value(game, policy), [-sum(seen[:-1])])
    solution = solve(game, "fixed_point", 40, damping=0.9, temperature=0.05, evaluate_every=40)
    assert float(solution.exploitability) < 0.1 * float(solution.history.exploitability[0])
    assert_close(flow(game, solution.policy), solution.flow, **EXACT)


# -- ties and temperatures --------------------------------------------------------------------------------------------


def lottery(*prizes: float, **changes: Any) -> MFGame:
    """One state, one decision, and what each action earns."""
    parts: dict[str, Any] = {
        "name": "lottery",
        "S": 1,
        "A": len(prizes),
        "H": 1,
        "mu0": tensor([[1.0]]),
        "r_state": lambda t, mu: 0 * mu,
        "r_action": lambda t, mu: tensor([prizes]),
        "post": torch.zeros(1, len(prizes), dtype=torch.int64),
    }
    return MFGame(**{**parts, **changes})


def test_equally_good_actions_are_split_or_the_first_is_taken() -> None:
    game, still = lottery(1.0, 2.0, 2.0, 2.0 - 1e-6), tensor([[[1.0], [1.0]]])
    same(best_response(game, still).policy.flatten(), [0, 0.5, 0.5, 0])
    same(best_response(game, still, tie="first").policy.flatten(), [0, 1, 0, 0])
    same(best_response(game, still, tol=1e-5).policy.flatten(), np.array([0, 1, 1, 1]) / 3)
    within = best_response(lottery(1.0, 2.0, 2.0 + 1e-12), still)  # as rounding makes them
    same(within.policy.flatten(), [0, 0.5, 0.5])
    same(within.values.flatten(), [2, 0], 2e-12)
    barred = lottery(1.0, 2.0, 2.0, legal=torch.tensor([[True, False, True]]))
    same(best_response(barred, still).policy.flatten(), [0, 0, 1])
    same(best_response(barred, still, tie="first").policy.flatten(), [0, 0, 1])
    with pytest.raises(ValueError, match=r"tie is 'last': it can be 'split' or 'first'"):
        best_response(game, still, tie="last")  # type: ignore[arg-type]


def test_the_first_of_equally_good_actions_is_the_first_within_the_tolerance() -> None:
    game, still = lottery(1.0, 2.0, 2.0 + 1e-12), tensor([[[1.0], [1.0]]])
    same(best_response(game, still, tie="first").policy.flatten(), [0, 1, 0])


@pytest.mark.parametrize("form", FORMS)
def test_soft_responses_become_best_ones_as_they_cool_down(form: str) -> None:
    law = numbers(28, form)
    game = as_game(law)
    mu = flow(game, tensor(policies(law, 3, 29)))
    hard = best_response(game, mu)
    gaps = []
    for tau in (1.0, 0.1, 0.01, 0.001, 1e-4):
        soft = best_response(game, mu, tau=tau)
        gap = soft.values - hard.values
        assert float(gap.min()) >= -1e-12
        assert float(gap.max()) <= tau * 4 * log(3) + 1e-12
        gaps.append(float((soft.policy - hard.policy).abs().max()))
        assert_close(soft.policy, ((soft.q_values - soft.q_values.amax(-1, keepdim=True)) / tau).softmax(-1), **EXACT)
    assert all(later < earlier for earlier, later in pairwise(gaps))
    assert gaps[-1] < 1e-6


def test_a_temperature_is_an_entropy_bonus() -> None:
    law = numbers(30)
    game, policy = as_game(law), tensor(policies(law, 4, 31))
    softened = as_game(replace(law, bonus="entropy", strength=0.7))
    mu = flow(game, policy)
    assert_close(exploitability(game, policy, tau=0.7), exploitability(softened, policy), **EXACT)
    for part, wanted in zip(best_response(game, mu, tau=0.7), best_response(softened, mu), strict=True):
        assert_close(part, wanted, **EXACT)
    for call in (lambda: exploitability(softened, policy, tau=0.1), lambda: best_response(softened, mu, tau=0.1)):
        with pytest.raises(ValueError, match=r"has a regulariser of its own, Entropy\(tau=0.7\): leave tau at 0"):
            call()
    with pytest.raises(ValueError, match=r"tau must lie in \(0, inf\), got -1"):
        exploitability(game, policy, tau=-1)


# -- regularisers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_sparsemax_is_the_nearest_distribution(scale: float) -> None:
    rng = np.random.default_rng(32)
    points = np.concatenate([3 * rng.normal(size=(100, 5)), rng.integers(-2, 3, (50, 5)), np.zeros((1, 5))])
    rows, worth = Quadratic(scale).best(tensor(points), -1)
    wanted = np.array([projection(point / scale) for point in points])
    same(rows, wanted)
    same(worth, (wanted * points).sum(1) - scale / 2 * (wanted**2).sum(1))
    moved, again = Quadratic(scale).best(tensor(points).T, 0)
    assert_close(moved.T, rows, **EXACT)
    assert_close(again, worth, **EXACT)
    far, _ = Quadratic(scale).best(tensor(points) + 1e6, -1)
    assert_close(far, rows, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("regulariser", [Entropy(0.4), Quadratic(0.4)])
def test_the_best_rows_maximise_and_leave_illegal_actions_out(regulariser: Entropy | Quadratic) -> None:
    generator = torch.Generator().manual_seed(33)
    values = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    values[:20, 1] = -torch.inf
    values[:10, 3] = -torch.inf
    rows, worth = regulariser.best(values, -1)
    assert_close(rows.sum(-1), torch.ones(40, dtype=torch.float64), **EXACT)
    assert bool((rows[values.isneginf()] == 0).all())
    finite = values.nan_to_num(neginf=0.0)
    assert_close(worth, (rows * finite).sum(-1) + regulariser.bonus(rows, -1), **EXACT)
    others = torch.rand(300, 40, 4, generator=generator, dtype=torch.float64) ** 3
    others = torch.where(values.isneginf(), 0, others)
    others = others / others.sum(-1, keepdim=True)
    reached = (others * finite).sum(-1) + regulariser.bonus(others, -1)
    assert bool((reached <= worth + 1e-12).all())
    assert bool((reached > worth - 0.5).any())


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_regularisers_have_a_strength(bad: float) -> None:
    with pytest.raises(ValueError, match=r"tau must lie in \(0, inf\)"):
        Entropy(bad)
    with pytest.raises(ValueError, match=r"scale must lie in \(0, inf\)"):
        Quadratic(bad)


@pytest.mark.parametrize("d", [2, 3, 15])
def test_members_who_only_pay_for_certainty_spread_out(d: int) -> None:
    game = topics(tensor(np.zeros((d, d))), tensor(np.full((1, d), 1 / d)), Quadratic(), H=6)
    solution = solve(game, "fixed_point", 1)
    assert_close(solution.policy, torch.full_like(solution.policy, 1 / d), **EXACT)
    wanted = -(6 - torch.arange(7, dtype=torch.float64)) / (2 * d)
    values = best_response(game, solution.flow).values
    assert_close(values, wanted.view(1, 7, 1).expand(1, 7, d), **EXACT)
    assert_close(policy_values(game, solution.policy), values, **EXACT)


def test_members_who_have_favourites_play_sparsemax_of_them() -> None:
    b = tensor([[0.5, -1.0, 0.3], [0.0, 0.1, 0.2], [2.0, 0.0, 0.0]])
    game = topics(b, tensor([[0.6, 0.3, 0.1]]), Quadratic(), H=3)
    value = np.zeros(3)
    response = best_response(game, flow(game, game.uniform_policy()))
    for t in (2, 1, 0):
        rows = np.array([projection(row + value) for row in b.numpy()])
        value = (rows * (b.numpy() + value)).sum(1) - 0.5 * (rows**2).sum(1)
        same(response.policy[0, t], rows)
        same(response.values[0, t], value)
    assert 0 < int((response.policy == 0).sum()) < 27


# -- three solved instances -------------------------------------------------------------------------------------------

U = [[0, 1, -0.5], [0.3, 0, 0.8], [-0.2, 0.4, 0]]
START = [[0.6, 0.3, 0.1]]
TAU = 0.5


def topics(u: Tensor, start: Tensor, regulariser: Any, H: int = 4, crowd: Any = None) -> MFGame:
    """A graph whose states choose rows of a transition matrix: action j goes to state j (arXiv 1711.03156)."""
    d = len(u)
    return MFGame(
        name="topics",
        S=d,
        A=d,
        H=H,
        mu0=start,
        r_state=crowd or (lambda t, mu: 0 * mu),
        r_action=lambda t, mu: u,
        post=torch.arange(d).expand(d, d).contiguous(),
        regulariser=regulariser,
    )


CROWDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "A": lambda t, mu: 0 * mu,
    "B": lambda t, mu: -mu.log(),
    "C": lambda t, mu: -2 * mu,
}
NASH = {
    "A": {4: (0.1916993848, 0.3978770243, 0.4104235909)},
    "B": {
        1: (0.2900593370, 0.4652844637, 0.2446561993),
        2: (0.3005850674, 0.4044117085, 0.2950032241),
        3: (0.3039493130, 0.4096506376, 0.2864000493),
        4: (0.1799896781, 0.4727662491, 0.3472440728),
    },
    "C": {
        1: (0.2882171632, 0.4858657882, 0.2259170486),
        4: (0.1812480968, 0.4646050090, 0.3541468942),
    },
}
FIRST_VALUES = {
    "A": (3.9461776222, 3.7625555205, 3.5023308823),
    "B": (7.5147500314, 8.3707736892, 9.0023267213),
}
WELFARE = {"A": 3.8467063177, "B": 7.9203147977, "C": 0.7707454287}
DIGITS = 6e-11  # half of the last digit, and a little


def instance(name: str) -> MFGame:
    return topics(tensor(U), tensor(START), Entropy(TAU), crowd=CROWDS[name])


@pytest.mark.parametrize("name", "ABC")
def test_damped_fixed_points_find_the_known_equilibria(name: str) -> None:
    game = instance(name)
    solution = solve(game, "fixed_point", 300, damping=0.8, evaluate_every=300)
    assert abs(float(solution.exploitability)) < 1e-12
    for n, wanted in NASH[name].items():
        same(solution.flow[0, n], wanted, DIGITS)
    values = best_response(game, solution.flow).values
    if name in FIRST_VALUES:
        same(values[0, 0], FIRST_VALUES[name], DIGITS)
    same(policy_value(game, solution.policy), [WELFARE[name]], DIGITS)
    same((game.mu0 * values[:, 0]).sum(-1), [WELFARE[name]], DIGITS)
    # one single step of time tells the reward apart from all that is added by the future
    rows, u = solution.policy[0].log(), tensor(U)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        cycle = TAU * (rows[:, i, j] + rows[:, j, i] - rows[:, i, i] - rows[:, j, j])
        same(cycle, (u[i, j] + u[j, i] - u[i, i] - u[j, j]).expand(4), 1e-10)


def test_instance_a_has_a_closed_form() -> None:
    kernel, phi = np.exp(np.array(U) / TAU), [np.ones(3)]
    for _ in range(4):
        phi.append(kernel @ phi[-1])
    phi = phi[::-1]
    game = instance("A")
    response = best_response(game, flow(game, game.uniform_policy()))
    same(response.values[0], TAU * np.log(phi))
    for n in range(4):
        same(response.policy[0, n], kernel * phi[n + 1] / phi[n][:, None])
    first = [
        [0.1477667556, 0.8291205974, 0.0231126470],
        [0.3887277620, 0.1620021847, 0.4492700532],
        [0.2406463755, 0.6067149630, 0.1526386614],
    ]
    same(response.policy[0, 0], first, DIGITS)
    assert float(exploitability(game, response.policy)) < 1e-12


def optimum(welfare: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, float]:
    """Maximise, over rows of four matrices, what ``welfare(flow, bonus)`` says, by BFGS.

    :return: policy (1, 4, 3, 3) and value
    """

    def loss(x: Array) -> tuple[float, Array]:
        logits = torch.tensor(x, requires_grad=True)
        rows = logits.view(4, 3, 3).softmax(-1)
        mu, total = tensor(START[0]), torch.zeros((), dtype=torch.float64)
        for p in rows:
            total = total + welfare(mu, (mu @ (p * (tensor(U) - TAU * p.log()))).sum())
            mu = mu @ p
        (-total).backward()
        assert logits.grad is not None
        return -total.item(), logits.grad.numpy()

    found = minimize(loss, np.zeros(36), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    return torch.tensor(found.x).view(1, 4, 3, 3).softmax(-1), -float(found.fun)


def test_planners_do_better_than_equilibria_where_crowds_cost_linearly() -> None:
    game = instance("C")
    planned, welfare = optimum(lambda mu, bonus: bonus - 2 * (mu**2).sum())
    assert welfare == pytest.approx(0.7862465033, abs=1e-9)
    same(policy_value(game, planned), [0.7862465033], 1e-9)
    mu = flow(game, planned)
    same(mu[0, 1], (0.3006403919, 0.4431117666, 0.2562478415), 1e-7)
    same(mu[0, 4], (0.1787834859, 0.4804229616, 0.3407935525), 1e-7)
    assert float(exploitability(game, planned)) == pytest.approx(0.0196345994, abs=5e-9)
    # the planner's optimum, to more digits, is the equilibrium of members who pay for what they do to others as well
    taxed = replace(game, r_state=lambda t, mu: -4 * mu)
    exact = solve(taxed, "fixed_point", 600, damping=0.8, evaluate_every=600)
    assert_close(exact.flow, mu, rtol=0.0, atol=2e-8)
    assert float(exploitability(game, exact.policy)) == pytest.approx(0.0196345993916, abs=1e-12)
    same(policy_value(game, exact.policy), [0.7862465033], DIGITS)
    assert float(exploitability(game, game.uniform_policy())) == pytest.approx(0.8328150737, abs=DIGITS)
    nash = solve(game, "fixed_point", 300, damping=0.8, evaluate_every=300)
    assert float((nash.flow - mu).abs().max()) == pytest.approx(0.0428, abs=5e-5)


def test_planners_play_the_equilibrium_where_they_should() -> None:
    for name, welfare in {
        "A": lambda mu, bonus: bonus,
        "B": lambda mu, bonus: bonus - (mu * mu.log()).sum(),
        "C": lambda mu, bonus: bonus - (mu**2).sum(),  # the potential of linear congestion
    }.items():
        game, (planned, value) = instance(name), optimum(welfare)
        assert float(exploitability(game, planned)) < 1e-8
        for n, wanted in NASH[name].items():
            same(flow(game, planned)[0, n], wanted, 1e-6)
        if name != "C":
            assert value == pytest.approx(WELFARE[name], abs=1e-9)


# -- bad input --------------------------------------------------------------------------------------------------------


def parts(**changes: Any) -> dict[str, Any]:
    """:return: keywords of a game in which two populations stay or swap two places."""
    return {
        "name": "swap",
        "S": 2,
        "A": 2,
        "H": 3,
        "mu0": tensor([[0.5, 0.5], [1, 0]]),
        "r_state": lambda t, mu: -mu,
        "post": torch.tensor([[0, 1], [1, 0]]),
        **changes,
    }


LISTED = {"post": None, "succ_idx": torch.tensor([[[0, 1], [1, 0]], [[1, 0], [0, 1]]])}
EVENLY = torch.full((2, 2, 2), 0.5, dtype=torch.float64)
STILL = {"noise_idx": torch.tensor([[0, 1], [1, 0]]), "noise_p": tensor([[0.75, 0.25], [1.0, 0.0]])}
BAD_GAMES: dict[str, tuple[dict[str, Any], str]] = {
    "no time": ({"H": 0}, "swap: H must be at least 1, got 0"),
    "no actions": ({"A": 0}, "swap: A must be at least 1, got 0"),
    "no states": ({"S": 0}, "swap: S must be at least 1, got 0"),
    "flat start": ({"mu0": tensor([0.5, 0.5])}, r"mu0 must be \(…, n_pop, S = 2\), got \(2\)"),
    "start of other states": ({"mu0": tensor([[0.2, 0.3, 0.5]])}, r"mu0 must be .* got \(1, 3\)"),
    "whole numbers": ({"mu0": torch.tensor([[1, 0]])}, "mu0 must hold floating-point numbers, got torch.int64"),
    "too little mass": ({"mu0": tensor([[0.5, 0.5], [0.5, 0.4]])}, "mu0 .*at population 1 it sums to 0.9, not to 1"),
    "negative mass": ({"mu0": tensor([[1.5, -0.5]])}, "mu0 .*at population 0 it has a negative entry, -0.5"),
    "mass that is none": ({"mu0": tensor([[float("nan"), 1]])}, "mu0 .*at population 0 it sums to nan"),
    "legal of another shape": ({"legal": torch.ones(2, 3, dtype=torch.bool)}, r"legal must be .*got \(2, 3\)"),
    "legal of another type": ({"legal": torch.ones(2, 2)}, "legal must be .* of bool, got .* of torch.float32"),
    "nothing legal": ({"legal": torch.tensor([[True, False], [False, False]])}, "state 1 has no legal action"),
    "no moves": ({"post": None}, "swap: .*post"),
    "two sorts of moves": ({**LISTED, "succ_p": EVENLY, "post": parts()["post"]}, "swap: .*post"),
    "noise of no place": ({"noise_p": EVENLY[0]}, "swap: .*noise_idx"),
    "noise of no size": ({"noise_idx": torch.tensor([[0, 1], [1, 0]])}, "swap: .*noise_p"),
    "noise with successors": (
        {**LISTED, "succ_p": EVENLY, "noise_idx": torch.tensor([[0, 1], [1, 0]]), "noise_p": EVENLY[0]},
        "swap: .*noise",
    ),
    "successors without probabilities": (LISTED, "swap: .*succ_p"),
    "probabilities without successors": ({"succ_p": EVENLY}, "swap: .*succ_idx"),
    "two sorts of probabilities": ({**LISTED, "succ_p": EVENLY, "transition": lambda t, mu: EVENLY}, "swap: .*succ_p"),
    "a place outside": ({"post": torch.tensor([[0, 1], [1, 2]])}, "post names states 0 to 2, there are 0 to 1"),
    "a place below": ({"post": torch.tensor([[0, 1], [1, -1]])}, "post names states -1 to 1, there are 0 to 1"),
    "places that are no numbers": ({"post": torch.ones(2, 2)}, "post must be .*of int64 .* got .* of torch.float32"),
    "places of another shape": ({"post": torch.tensor([[0], [1]])}, r"post must be \(S, A\).* got \(2, 1\)"),
    "noise of another shape": (
        {"noise_idx": torch.tensor([[0, 1], [1, 0]]), "noise_p": torch.ones(2, 1)},
        r"noise_p must end like its indices, \(2, 2\), got \(2, 1\)",
    ),
    "noise that loses some": (
        {"noise_idx": torch.tensor([[0, 1], [1, 0]]), "noise_p": tensor([[0.5, 0.5], [0.5, 0.25]])},
        "noise_p .*at state 1 it sums to 0.75, not to 1",
    ),
    "noise that is negative": (
        {"noise_idx": torch.tensor([[0, 1], [1, 0]]), "noise_p": tensor([[1.5, -0.5], [0.5, 0.5]])},
        "noise_p .*at state 0 it has a negative entry, -0.5",
    ),
    "successors that lose some": ({**LISTED, "succ_p": EVENLY * 0.5}, "succ_p .*state 0, action 0 it sums to 0.5"),
    "successors outside": ({**LISTED, "succ_idx": LISTED["succ_idx"] + 1, "succ_p": EVENLY}, "succ_idx names states 1"),  # type: ignore[operator]
    "a transition that loses some": ({**LISTED, "transition": lambda t, mu: EVENLY * 0.9}, "transition .*sums to 0.9"),
    "a transition of another shape": ({**LISTED, "transition": lambda t, mu: EVENLY.expand(3, 2, 2, 2)}, "transition"),
    "NaN of a state": ({"r_state": lambda t, mu: mu * float("nan")}, "r_state returned nan"),
    "NaN of an action": ({"r_action": lambda t, mu: mu[..., None] * float("nan")}, "r_action returned nan"),
    "infinity at the end": ({"terminal": lambda mu: mu / 0}, "terminal returned inf"),
    "reward of another shape": ({"r_state": lambda t, mu: torch.ones(2, 3)}, r"r_state must return \(…, 2, 2\), it"),
    "cost of another shape": ({"r_action": lambda t, mu: torch.ones(2, 3)}, r"r_action must return \(…, 2, 2, 2\), it"),
    "half a decision": ({"H": 2.5}, "swap: H must be a whole number, got 2.5"),
    "a grid of other cells": ({"grid": (2, 2)}, r"grid must be \(width, height\) of S = 2 cells, got \(2, 2\)"),
    "labels of other states": ({"labels": ("a",)}, "there must be S = 2 labels, got 1"),
    "no successors": (
        {**LISTED, "succ_idx": torch.zeros(2, 2, 0, dtype=torch.int64), "succ_p": EVENLY[..., :0]},
        r"succ_idx must be \(S, A, K\) of int64 .* got \(2, 2, 0\)",
    ),
    "a number for a reward": ({"r_state": lambda t, mu: 0.0}, "r_state must return a tensor, it returned 0.0"),
    "nothing for a reward": ({"r_action": lambda t, mu: None}, "r_action must return a tensor, it returned None"),
    "a choice by time": (
        {"r_state": lambda t, mu: -mu if t == 0 else mu},
        "r_state failed when it was tried: .*t is a tensor of times there",
    ),
    "a ragged list": ({"mu0": [[0.5, 0.5], [1.0]]}, "swap: mu0 must become a tensor"),
    "words": ({"post": [["stay", "go"], ["go", "stay"]]}, "swap: post must become a tensor"),
    "a list of no distribution": ({"mu0": [[0.5, 0.4]]}, "mu0 .*at population 0 it sums to 0.9, not to 1"),
    "end of another shape": ({"terminal": lambda mu: torch.ones(3)}, r"terminal must return \(…, 2, 2\), it returned"),
}


@pytest.mark.parametrize("case", BAD_GAMES)
def test_games_that_cannot_be_say_why(case: str) -> None:
    changes, message = BAD_GAMES[case]
    with pytest.raises(ValueError, match=message):
        MFGame(**parts(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"r_state": lambda t, mu: torch.zeros(3, 2)[t]},  # a row too many when asked for all times
        {"r_action": lambda t, mu: t * torch.ones(2, 2), "H": 2},  # times where populations belong
        {"r_state": lambda t, mu: 0 * mu + mu.sum()},  # other times' crowds
        {"noise_idx": torch.tensor([[0, 1], [1, 0]]), "noise_p": EVENLY[0].expand(5, 2, 2)},  # a batch without n_pop
    ],
)
def test_functions_that_mix_up_times_are_found(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="swap: "):
        MFGame(**parts(**changes))


def test_quotients_of_times_in_single_precision_are_found() -> None:
    with pytest.raises(ValueError, match=r"r_state returns other values .* float32: t.to\(mu.dtype\)"):
        MFGame(**parts(r_state=lambda t, mu: 0 * mu + t / 10))
    right = MFGame(**parts(r_state=lambda t, mu: 0 * mu + torch.as_tensor(t, dtype=mu.dtype) / 10))
    same(policy_value(right, right.uniform_policy()), [0.3, 0.3])


def crowded(p: Callable[[Any, Tensor], Tensor]) -> MFGame:
    """:return: two states, between which all move with a probability p, (…, 1, 1), of going to the second."""

    def transition(t: Any, mu: Tensor) -> Tensor:
        ahead = p(t, mu)[..., None].expand(*mu.shape, 2)
        return torch.stack([1 - ahead, ahead], -1)

    return MFGame(**parts(post=None, succ_idx=torch.tensor([0, 1]).expand(2, 2, 2).contiguous(), transition=transition))


def test_transitions_are_checked_at_all_times_and_for_the_crowds_that_come_up() -> None:
    late = torch.tensor([0.5, 0.5, 1.5], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"what transition returns at t = 2 must hold .* negative entry, -0.5"):
        crowded(lambda t, mu: late[t].expand(*mu.shape[:-1], 1) if isinstance(t, int) else late[t] + 0 * mu[..., :1])
    game = crowded(lambda t, mu: 1.2 * mu[..., :1])  # above 1 where nearly all are in the first state
    with pytest.raises(ValueError, match=r"transition led to a crowd of mass 1, its smallest part -0.2, at t = 1"):
        flow(game, game.uniform_policy())


@pytest.mark.parametrize("kind", ["single", "crowded", "grid", "batch"])
def test_exploitability_can_be_differentiated(kind: str) -> None:
    if kind == "crowded":
        game = crowded(lambda t, mu: 0.3 + 0.4 * mu[..., :1])
    elif kind == "grid":
        game = make_game("crowd_modelling_2d", size=3, horizon=2, forbidden_states=((1, 1),))
    else:
        aversion = torch.tensor([0.5, 1.0]) if kind == "batch" else 0.7
        game = make_game("crowd_modelling", size=4, horizon=3, crowd_aversion_coef=aversion)
    law = torch.Generator().manual_seed(0)
    shape = (*game.batch, game.n_pop, game.H, game.S, game.A)
    logits = torch.randn(shape, generator=law, dtype=torch.float64, requires_grad=True)

    def gained(logits: Tensor) -> Tensor:
        return exploitability(game, logits.masked_fill(~game.legal, -torch.inf).softmax(-1))

    assert torch.autograd.gradcheck(gained, (logits,), fast_mode=True)


def test_solving_leaves_gradients_alone() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    game = MFGame(**parts(r_state=lambda t, mu: -weight * mu))
    assert not solve(game, iterations=2).policy.requires_grad


def test_leading_dimensions_that_do_not_go_together() -> None:
    game = make_game("crowd_modelling", crowd_aversion_coef=torch.tensor([0.5, 1.0]))
    policy = game.uniform_policy()[:1].expand(3, -1, -1, -1, -1)
    with pytest.raises(ValueError, match=r"leading dimensions \(3,\) do not go with those of the game, \(2,\)"):
        exploitability(game, policy)
    with pytest.raises(ValueError, match=r"leading dimensions of policy \(3,\) and flow \(2,\)"):
        policy_values(game, policy, flow(game, game.uniform_policy()))


def test_a_tolerance_below_zero_is_none() -> None:
    game = make_game("crowd_modelling")
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="tol must be at least 0"):
            best_response(game, flow(game, game.uniform_policy()), tol=bad)


def test_arrays_and_lists_become_tensors() -> None:
    given = parts(legal=torch.tensor([[True, True], [True, False]]), **STILL)
    game = MFGame(**given)
    for convert in (Tensor.tolist, Tensor.numpy):
        again = MFGame(**{name: convert(part) if isinstance(part, Tensor) else part for name, part in given.items()})
        for name in ("mu0", "post", "legal", "noise_idx", "noise_p"):
            part = getattr(again, name)
            assert part.dtype == getattr(game, name).dtype
            same(part, getattr(game, name))
        same(exploitability(again, again.uniform_policy()), exploitability(game, game.uniform_policy()))


def test_a_game_of_one_decision_is_asked_for_no_other_time() -> None:
    table = tensor([[1.0, 2.0]])

    def r_state(t: Any, mu: Tensor) -> Tensor:
        return table[t.flatten()].unsqueeze(1) if isinstance(t, Tensor) else table[t]

    game = MFGame(**parts(H=1, r_state=r_state))
    same(policy_value(game, game.uniform_policy()), [1.5, 1])


def test_rewards_that_fail_on_the_way_say_where() -> None:
    def r_state(t: Any, mu: Tensor) -> Tensor:
        return torch.where(mu > 0.9, torch.nan, mu)

    game = MFGame(**parts(r_state=r_state, mu0=tensor([[0.5, 0.5]])))
    policy = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).expand(1, 3, 2, 2).clone()  # all to state 0
    for call in (exploitability, policy_value, lambda *args: solve(args[0], policy=args[1])):
        with pytest.raises(ValueError, match=r"swap: r_state returned NaN, first at t = 1, x = 0"):
            call(game, policy)
    ends = replace(game, r_state=lambda t, mu: mu, terminal=lambda mu: r_state(3, mu))
    with pytest.raises(ValueError, match=r"swap: terminal returned NaN"):
        exploitability(ends, policy)
    acts = replace(game, r_state=lambda t, mu: mu, r_action=lambda t, mu: r_state(t, mu).unsqueeze(-1))
    with pytest.raises(ValueError, match=r"swap: r_action returned NaN"):
        best_response(acts, flow(acts, policy))


def test_rewards_that_are_infinite_on_the_way_say_where() -> None:
    game = MFGame(**parts(r_state=lambda t, mu: -mu.log(), mu0=tensor([[1.0, 0.0]])))
    for call in (exploitability, policy_value):
        with pytest.raises(ValueError, match="swap: r_state returned inf"):
            call(game, game.uniform_policy())


def swap(**changes: Any) -> MFGame:
    return MFGame(**parts(legal=torch.tensor([[True, False], [True, True]]), **changes))


def edited(part: Tensor, place: tuple[int, ...], row: list[float]) -> Tensor:
    part = part.clone()
    part[place] = tensor(row)
    return part


BAD_POLICIES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "rows": (
        lambda policy: edited(policy, (1, 2, 1), [0.5, 0.25]),
        "the policy must hold distributions; at population 1, time 2, state 1 it sums to 0.75, not to 1",
    ),
    "sign": (
        lambda policy: edited(policy, (0, 1, 1), [1.5, -0.5]),
        "the policy .* at population 0, time 1, state 1 it has a negative entry, -0.5",
    ),
    "NaN": (lambda policy: policy * float("nan"), "the policy .* sums to nan"),
    "illegal": (
        lambda policy: edited(policy, (1, 0, 0), [0.5, 0.5]),
        r"takes action 1 in state 0, at time 0 in population 1: it is not legal there; legal are \[0\]",
    ),
    "time": (lambda policy: policy[:, :2], r"\(…, n_pop, H, S, A\) = \(…, 2, 3, 2, 2\), got \(2, 2, 2, 2\)"),
    "population": (lambda policy: policy[:1], r"= \(…, 2, 3, 2, 2\), got \(1, 3, 2, 2\)"),
    "dimensions": (lambda policy: policy[0], r"= \(…, 2, 3, 2, 2\), got \(3, 2, 2\)"),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_policies_that_are_none_say_why(case: str) -> None:
    change, message = BAD_POLICIES[case]
    game = swap()
    good = game.uniform_policy()
    assert_close(game.check_policy(good), good, **EXACT)
    crowd = flow(game, good)
    for call in (flow, policy_value, exploitability, lambda *args: policy_values(*args, crowd)):
        with pytest.raises(ValueError, match=message):
            call(game, change(good))
    with pytest.raises(ValueError, match=message):
        solve(game, policy=change(good))


BAD_FLOWS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "mass": (lambda mu: edited(mu, (1, 3), [0.5, 0.4]), "the flow .* at population 1, time 3 it sums to 0.9, not to 1"),
    "sign": (lambda mu: edited(mu, (0, 1), [1.5, -0.5]), "the flow .* at population 0, time 1 it has a negative entry"),
    "time": (lambda mu: mu[:, :3], r"\(…, n_pop, H \+ 1, S\) = \(…, 2, 4, 2\), got \(2, 3, 2\)"),
    "states": (lambda mu: mu[..., :1], r"= \(…, 2, 4, 2\), got \(2, 4, 1\)"),
    "dimensions": (lambda mu: mu[0], r"= \(…, 2, 4, 2\), got \(4, 2\)"),
}


@pytest.mark.parametrize("case", BAD_FLOWS)
def test_flows_that_are_none_say_why(case: str) -> None:
    change, message = BAD_FLOWS[case]
    game = swap()
    mu = flow(game, game.uniform_policy())
    assert_close(game.check_flow(mu), mu, **EXACT)
    for call in (best_response, lambda game, mu: policy_values(game, game.uniform_policy(), mu)):
        with pytest.raises(ValueError, match=message):
            call(game, change(mu))


def test_batches_that_do_not_fit_are_refused() -> None:
    game = as_game([numbers(seed) for seed in range(2)])
    with pytest.raises(ValueError, match=r"(?s)\(?3.*2|2.*3"):
        flow(game, tensor(policies(numbers(0), 3, 0)))


# -- games by name ----------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Games that tests register are forgotten."""
    monkeypatch.setattr("headway.envs.mean_field.library.GAMES", dict(GAMES))


def small_lottery(*, prize: float = 1.0, device: torch.device, dtype: torch.dtype) -> MFGame:
    assert device == torch.device("cpu")
    return lottery(0.0, prize, mu0=torch.ones(1, 1, dtype=dtype))


@pytest.mark.usefixtures("registry")
def test_games_can_be_registered() -> None:
    register_game("small_lottery", small_lottery)
    register_game("small_lottery", small_lottery)  # again is no fault, as modules are imported again
    game = make_game("small_lottery", prize=3.0, dtype=torch.float32)
    assert game.dtype == torch.float32
    assert float(best_response(game, tensor([[[1.0], [1.0]]])).values[0, 0, 0]) == 3
    with pytest.raises(ValueError, match=r"there is a game 'small_lottery' already.*choose another name"):
        register_game("small_lottery", lottery)
    with pytest.raises(ValueError, match=r"game 'small_lottery' has no parameter 'prise': did you mean prize\?"):
        make_game("small_lottery", prise=3.0)
    with pytest.raises(ValueError, match=r"game 'small_lottery' has no compat='openspiel': leave it out"):
        make_game("small_lottery", "openspiel")


def test_games_that_do_not_exist_are_answered_with_their_nearest() -> None:
    with pytest.raises(ValueError, match=r"there is no game 'crowd_modeling': did you mean crowd_modelling"):
        make_game("crowd_modeling")
    with pytest.raises(ValueError, match=r"game 'crowd_modelling' has no parameter 'horizn': did you mean horizon\?"):
        make_game("crowd_modelling", horizn=3)
    with pytest.raises(ValueError, match=r"compat is 'mfglib': it can be None or 'openspiel'"):
        make_game("crowd_modelling", "mfglib")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="horizon"):
        make_game("crowd_modelling", horizon=0)


# -- other devices ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("form", "bonus"), EVERY)
def test_a_gpu_computes_what_the_cpu_does(form: str, bonus: str) -> None:
    laws = [replace(numbers(seed, form), bonus=bonus) for seed in range(6)]
    policy = tensor([policies(law, 1, seed)[0] for seed, law in enumerate(laws)])
    host, device = results(as_game(laws), policy), results(as_game(laws, device="cuda"), policy.cuda())
    for part, wanted in zip(device, host, strict=True):
        assert part.is_cuda
        assert_close(part.cpu(), wanted, rtol=0.0, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gathers_many_states_as_the_cpu_does() -> None:
    law = numbers(9, P=2, S=300, A=3, H=3, K=3)
    policy = tensor(policies(law, 2, 10))
    for part, wanted in zip(
        results(as_game(law, device="cuda"), policy.cuda()), results(as_game(law), policy), strict=True
    ):
        assert_close(part.cpu(), wanted, rtol=0.0, atol=1e-10)
    # a policy from the host is taken over
    assert flow(as_game(law, device="cuda"), policy).is_cuda
