"""Entropic transport and the labels that are made of it, against identities and two other libraries."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents.core.data.dataset import Dataset
from headway.agents.relabelling import (
    EpisodeCosts,
    Matcher,
    Problem,
    RelabelConfig,
    best,
    compare,
    cosine_cost,
    log_domain,
    prepare,
    relabel,
    squash,
    transport,
    unit,
)
from headway.agents.relabelling.costs import batches, other_segment, outside_band
from headway.agents.relabelling.sinkhorn import quick_on_cpu
from headway.agents.relabelling.workers import Workers
from torch import Tensor
from walks import WIDTH, recorded, walk


def exact_cost(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """The mean cost of each row, by the plain loop in float64."""
    cost = cosine_cost(unit(x), unit(y))
    plan = log_domain(cost, **options)
    return (plan * cost).sum(1) / plan.sum(1)


def mean_costs(x: Tensor, y: Tensor, **config: Any) -> Tensor:
    """The mean cost of each row, as data sets are labelled."""
    return costs_of([x], [y], **config)[0].costs[0]


def costs_of(episodes: Sequence[Tensor], demonstrations: Sequence[Tensor], **config: Any) -> list[EpisodeCosts]:
    settings = RelabelConfig(dtype="float64", **config)
    problem = prepare(recorded(episodes), recorded(demonstrations), settings)
    found = dict(compare(problem, range(len(episodes))))
    return [found[i] for i in range(len(episodes))]


# -- Transport -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_products_say_what_logarithms_say(dtype: torch.dtype, tolerance: float) -> None:
    """Rounding of a float32 cost, 1e-7, is multiplied by 1 / epsilon = 100 in the exponent."""
    x, y = walk(70, 0), walk(40, 1)
    cost = cosine_cost(unit(x).to(dtype), unit(y).to(dtype))
    solved, plan = transport(cost[None])
    torch.testing.assert_close(solved.cost[0].double(), exact_cost(x, y), atol=tolerance, rtol=0)
    assert solved.iterations == 100
    assert plan.min() >= 0
    assert float(plan.sum()) == pytest.approx(1, abs=1e-6)
    assert float(solved.row_error) < 1e-6  # rows are done last
    assert float(solved.column_error) > float(solved.row_error)


def test_errors_are_those_of_the_plan() -> None:
    cost = cosine_cost(unit(walk(30, 0)), unit(walk(20, 1)))
    solved, plan = transport(cost[None], iterations=7)
    assert float(solved.column_error) == pytest.approx(float((plan[0].sum(0) - 1 / 20).abs().sum()))
    assert float(solved.row_error) == pytest.approx(float((plan[0].sum(1) - 1 / 30).abs().sum()), abs=1e-15)
    torch.testing.assert_close(plan[0], log_domain(cost, iterations=7), atol=1e-16, rtol=1e-10)


def test_a_tolerance_is_kept() -> None:
    costs = torch.stack([cosine_cost(unit(walk(30, s)), unit(walk(20, s + 9))) for s in range(3)])
    short, _ = transport(costs, iterations=20_000, tolerance=1e-3)
    long, _ = transport(costs, iterations=20_000, tolerance=1e-9)
    assert float(short.column_error.max()) < 1e-3
    assert float(long.column_error.max()) < 1e-9
    assert short.iterations < long.iterations < 20_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_potentials_beyond_float32_are_absorbed(dtype: torch.dtype) -> None:
    """Half of the columns are far from all rows: their potentials go where exp has no float32."""
    angles = torch.cat((torch.linspace(0, 0.3, 12), torch.linspace(2.5, 2.9, 12))).double()
    circle = torch.stack((angles.cos(), angles.sin()), 1)
    cost = cosine_cost(circle[:10], circle)
    a, b = torch.full((10,), 0.1).double(), torch.full((24,), 1 / 24).double()
    expected = log_domain(cost, 0.004, 400, (a, b))
    solved, plan = transport(cost[None].to(dtype), epsilon=0.004, iterations=400)
    assert torch.isfinite(plan).all()
    tolerance = 1e-10 if dtype is torch.float64 else 2e-4  # 1e-7 / 0.004, at each of many steps
    wanted = (expected * cost).sum(1) / expected.sum(1)
    torch.testing.assert_close(solved.cost[0].double(), wanted, atol=tolerance, rtol=0)


def test_padding_is_nothing() -> None:
    """Pairs of several sizes in one batch are what each is alone; padding is exactly 0, whatever stands there."""
    sizes = [(30, 20), (1, 20), (17, 1), (1, 1), (30, 13)]
    pairs = [(unit(walk(n, s)), unit(walk(m, s + 50))) for s, (n, m) in enumerate(sizes)]
    costs = torch.full((len(pairs), 30, 20), 1.7, dtype=torch.float64)
    for cost, (x, y) in zip(costs, pairs, strict=True):
        cost[: len(x), : len(y)] = cosine_cost(x, y)
    rows = torch.arange(30) < torch.tensor([n for n, _ in sizes])[:, None]
    columns = torch.arange(20) < torch.tensor([m for _, m in sizes])[:, None]
    solved, plan = transport(costs, rows, columns)
    assert torch.isfinite(plan).all()
    assert (plan[~(rows[:, :, None] & columns[:, None, :])] == 0).all()
    assert (solved.cost[~rows] == 0).all()
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(5).double())
    for b, (x, y) in enumerate(pairs):
        alone, own = transport(cosine_cost(x, y)[None])
        torch.testing.assert_close(solved.cost[b, : len(x)], alone.cost[0], atol=1e-14, rtol=1e-12)
        torch.testing.assert_close(plan[b, : len(x), : len(y)], own[0], atol=1e-16, rtol=1e-9)
        assert float(solved.column_error[b]) == pytest.approx(float(alone.column_error), abs=1e-14)


def test_much_entropy_matches_everything_with_everything() -> None:
    cost = cosine_cost(unit(walk(30, 0)), unit(walk(20, 1)))
    solved, plan = transport(cost[None], epsilon=1e5)
    torch.testing.assert_close(plan[0], torch.full((30, 20), 1 / 600).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(solved.cost[0], cost.mean(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("masses", [(1 / 1000, 1 / 1000), (0.3, 2.0)])
def test_only_ratios_of_weights_count(masses: tuple[float, float]) -> None:
    """The authors give each step 1 / 1000, so that masses differ where lengths do: mean costs are the same."""
    x, y = walk(30, 0), walk(20, 1)
    weights = torch.full((30,), masses[0]).double(), torch.full((20,), masses[1]).double()
    torch.testing.assert_close(exact_cost(x, y, weights=weights), mean_costs(x, y), atol=1e-13, rtol=0)


def test_one_step_is_spread_over_all() -> None:
    x, y = walk(1, 0), walk(20, 1)
    torch.testing.assert_close(mean_costs(x, y), cosine_cost(unit(x), unit(y)).mean(1))
    alone = mean_costs(y, x)
    torch.testing.assert_close(alone, cosine_cost(unit(y), unit(x))[:, 0])


def test_against_exact_transport() -> None:
    """Nearest neighbours <= exact <= entropic <= exact + epsilon log(min(n, m)), where sums are right on both sides."""
    ot = pytest.importorskip("ot")
    cost = cosine_cost(unit(walk(60, 0)), unit(walk(45, 1)))
    n, m = cost.shape
    exact = float(ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), cost.numpy()))
    gaps = []
    for epsilon in (0.1, 0.03, 0.01, 0.003):
        solved, plan = transport(cost[None], epsilon=epsilon, iterations=100_000, tolerance=1e-10)
        paid = float((plan[0] * cost).sum())
        assert paid == pytest.approx(float(solved.cost.mean()))
        assert float(cost.amin(1).mean()) <= exact <= paid + 1e-9
        assert paid <= exact + epsilon * math.log(min(n, m)) + 1e-9
        gaps.append(paid - exact)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1 * gaps[0]


@pytest.mark.filterwarnings("ignore")  # of a library that is no part of Headway
def test_against_ott() -> None:
    """The library that the authors call, by 100 iterations without a look at the error."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("ott")
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    cost = cosine_cost(unit(walk(60, 0)), unit(walk(45, 1)))
    with jax.enable_x64(True):
        problem = linear_problem.LinearProblem(geometry.Geometry(jax.numpy.asarray(cost.numpy()), epsilon=0.01))
        solve = sinkhorn.Sinkhorn(lse_mode=True, min_iterations=100, max_iterations=100)
        plan = torch.from_numpy(np.array(solve(problem).matrix))
    solved, own = transport(cost[None])
    torch.testing.assert_close(own[0], plan, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(solved.cost[0], (plan * cost).sum(1) / plan.sum(1), atol=1e-9, rtol=0)


# -- Costs -----------------------------------------------------------------------------------------------------------


def test_an_episode_beside_itself_costs_nothing() -> None:
    states = torch.randn(200, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(mean_costs(states, states).max()) < 2e-3
    squashed = squash(mean_costs(states, states), RelabelConfig(), RelabelConfig().constants(None, 17))
    assert float(squashed.min()) > 0.999 * 5
    assert float(mean_costs(states, states, epsilon=0.1).mean()) > 0.05  # another epsilon would be noticed


def test_what_is_scaled_or_reordered() -> None:
    x, y = walk(30, 0), walk(20, 1)
    costs = mean_costs(x, y)
    rows, columns = (torch.randperm(n, generator=torch.Generator().manual_seed(2)) for n in (30, 20))
    torch.testing.assert_close(mean_costs(x[rows], y), costs[rows], atol=1e-12, rtol=0)
    torch.testing.assert_close(mean_costs(x, y[columns]), costs, atol=1e-12, rtol=0)
    factors = torch.logspace(-200, 200, 30, dtype=torch.float64)[:, None]
    torch.testing.assert_close(mean_costs(factors * x, 1e-9 * y), costs, atol=1e-12, rtol=0)


def test_zero_states_cost_one() -> None:
    x, y = walk(6, 0), walk(5, 1)
    x[2] = 0
    assert float(mean_costs(x, y)[2]) == 1
    assert float(mean_costs(x, y, method="min-distance")[2]) == 1
    assert mean_costs(torch.zeros(4, 3), torch.zeros(7, 3)).tolist() == [1] * 4


def test_nearest_states() -> None:
    x, y = walk(30, 0), walk(20, 1)
    cost = cosine_cost(unit(x), unit(y))
    torch.testing.assert_close(mean_costs(x, y, method="min-distance"), cost.amin(1))
    parts = mean_costs(x, y, method="segment", segments=4)
    expected = [float(cost[i, 5 * (4 * i // 30) : 5 * (4 * i // 30) + 5].min()) for i in range(30)]
    assert parts.tolist() == pytest.approx(expected)
    assert float(mean_costs(x, y, method="min-distance").mean()) <= float(mean_costs(x, y).mean())
    torch.testing.assert_close(mean_costs(x, y, method="segment", segments=1), cost.amin(1))


def test_segments_of_short_episodes() -> None:
    for n, m in ((1, 9), (9, 1), (3, 9), (9, 3), (10, 10)):
        allowed = ~other_segment(torch.tensor([n]), n, m, 10)[0]
        assert allowed.any(1).all()
        assert allowed.any(0).all()


def test_the_band() -> None:
    same = outside_band(torch.tensor([7]), 7, 7, 2)[0]
    i = torch.arange(7)
    assert torch.equal(same, (i[:, None] - i).abs() > 2)
    for n, m in ((1, 50), (50, 1), (40, 13), (13, 40)):
        allowed = ~outside_band(torch.tensor([n]), n, m, 1)[0].numpy()
        share = [[max(0, min((i + 1) / n, (j + 1) / m) - max(i / n, j / m)) for j in range(m)] for i in range(n)]
        assert allowed[np.array(share) > 1e-9].all()  # a plan of these weights lies within


def test_temporal_costs_are_means_over_steps_that_follow() -> None:
    """As TemporalOT's code has it: costs of frames i, i + 1, i + 2, the last one repeated; no match off the band."""
    x, y = walk(12, 0), walk(12, 1)
    cost = cosine_cost(unit(x), unit(y))
    steps = [torch.arange(12).add(i).clamp_max(11) for i in range(3)]
    mean = torch.stack([cost[s][:, s] for s in steps]).mean(0)
    banned = (torch.arange(12)[:, None] - torch.arange(12)).abs() > 2
    plan = log_domain(mean.masked_fill(banned, 1e4))
    expected = (plan * mean).sum(1) / plan.sum(1)
    found = mean_costs(x, y, method="temporal", mask_k=2)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    states = prepare(recorded([x]), recorded([y]), RelabelConfig(method="temporal", mask_k=2, dtype="float64"))
    shares = Matcher(states.demonstrations, states.config).plan(states.states, 0)
    assert (shares[banned] == 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(12).double())


@pytest.mark.parametrize("method", ["otr", "temporal", "segment", "min-distance"])
def test_batches_of_any_size_say_the_same(method: Any) -> None:
    lengths = [5, 1, 30, 12, 30, 7]
    data = recorded([walk(n, s) for s, n in enumerate(lengths)])
    demonstrations = recorded([walk(20, 90), walk(9, 91)])
    problem = prepare(data, demonstrations, RelabelConfig(method=method))
    alone = dict(compare(problem, range(6)))
    matcher = Matcher(problem.demonstrations, problem.config)
    for memory in (1, 40_000, 10**9):
        together = list(batches(problem, range(6), memory))
        assert sorted(i for batch in together for i in batch) == list(range(6))
        assert len(together) == {1: 6, 10**9: 1}.get(memory, len(together))
        for batch in together:
            for i, costs in zip(batch, matcher.match([problem.episodes()[i] for i in batch]), strict=True):
                torch.testing.assert_close(costs.costs, alone[i].costs, atol=2e-6, rtol=0)


def test_worker_processes_say_the_same() -> None:
    problem = prepare(recorded([walk(n, n) for n in (9, 1, 14)]), recorded([walk(9, 70)]), RelabelConfig())
    here, there = (dict(compare(problem, range(3), workers=workers)) for workers in (1, 2))
    for i in range(3):
        torch.testing.assert_close(here[i].costs, there[i].costs, atol=0, rtol=0)
        torch.testing.assert_close(here[i].column_error, there[i].column_error, atol=0, rtol=0)


def test_a_worker_that_dies_or_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="a worker process failed: ZeroDivisionError"):
        list(Workers(1, divider).map({"a": 0}))
    with pytest.raises(RuntimeError, match="a worker process was killed"):
        list(Workers(1, suicide).map({"a": 0}))


def divider() -> Any:
    return lambda number: 1 / number


def suicide() -> Any:
    import os

    return lambda _: os._exit(9)


def test_switches_of_torch_are_put_back() -> None:
    small = torch.tensor(1e-39)
    threads = torch.get_num_threads()
    with quick_on_cpu():
        assert float(small * 1) == 0
        assert torch.get_num_threads() == 1
    assert float(small * 1) > 0
    assert torch.get_num_threads() == threads


# -- Labels ----------------------------------------------------------------------------------------------------------

TOY = [walk(12, 0), walk(30, 1), walk(5, 2), walk(20, 3)]


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("mujoco", lambda c: 5 * math.exp(-5 * c / WIDTH)),
        ("adroit", lambda c: 5 * math.exp(-5 * c / WIDTH)),
        ("antmaze", lambda c: 5 * math.exp(-c) - 2),
    ],
)
def test_squashing_has_a_closed_form(domain: Any, expected: Any) -> None:
    data = recorded(TOY)
    labelled = relabel(data, best(data, 1), RelabelConfig(domain=domain, scale="none", dtype="float64"))
    costs = torch.cat([exact_cost(states, TOY[3]) for states in TOY])
    torch.testing.assert_close(labelled.rewards, torch.tensor([expected(c) for c in costs.tolist()]).double())


def test_other_squashing() -> None:
    costs = torch.linspace(0, 2, 9).double()
    linear = RelabelConfig(squash="linear")
    torch.testing.assert_close(squash(costs, linear, linear.constants(None, 17)), -10 * costs / 1000)
    paper = RelabelConfig(beta_divisor=6.0, alpha=2.0, beta=3.0)
    torch.testing.assert_close(squash(costs, paper, paper.constants(None, 17)), 2 * torch.exp(-costs / 2))
    default = squash(costs, RelabelConfig(), RelabelConfig().constants("HalfCheetah-v5", 17))
    assert default[0] == 5
    assert float(default[-1]) == pytest.approx(5 * math.exp(-10 / 17))  # the least there is: always positive
    assert (default.diff() < 0).all()


def test_constants_follow_the_environment() -> None:
    def constants(env_id: str | None, **config: Any) -> tuple[Any, ...]:
        return tuple(vars(RelabelConfig(**config).constants(env_id, 8)).values())

    assert constants("headway/Hopper-v5") == (5, 5, 8, True, 0)
    assert constants(None) == (5, 5, 8, True, 0)
    assert constants("AntMaze_UMaze-v5") == constants("PointMaze_UMaze-v3") == (5, 1, 1, True, -2)
    assert constants("AntMaze_UMaze-v5", domain="mujoco") == (5, 5, 8, True, 0)
    assert constants("AntMaze_UMaze-v5", method="ground-truth") == (5, 1, 1, False, -1)
    assert constants("Hopper-v5", method="ground-truth") == (5, 5, 8, True, 0)


@pytest.mark.parametrize("method", ["otr", "min-distance", "segment", "temporal", "constant", "ground-truth"])
def test_returns_are_a_thousand_apart(method: Any) -> None:
    data = recorded(TOY)
    returns = relabel(data, best(data, 2), RelabelConfig(method=method)).returns
    assert float(returns.max() - returns.min()) == pytest.approx(1000)
    biased = relabel(data, best(data, 2), RelabelConfig(method=method, bias=-2.0)).returns
    torch.testing.assert_close(biased, returns - 2 * data.lengths)


def test_equal_returns_are_not_scaled() -> None:
    data = recorded([walk(9, 0)] * 3, rewards=[1.0, 1.0, 1.0])
    for method in ("constant", "ground-truth", "otr"):
        labelled = relabel(data, best(data, 1), RelabelConfig(method=method))  # type: ignore[arg-type]
        assert torch.isfinite(labelled.rewards).all()
        assert labelled.about["relabelling"]["constants"]["scale"] == 1


def test_controls() -> None:
    data = recorded(TOY)
    demonstrations = best(data, 1)
    otr, shuffled, again = (
        relabel(data, demonstrations, RelabelConfig(method=method, seed=seed))  # type: ignore[arg-type]
        for method, seed in (("otr", 0), ("shuffled", 0), ("shuffled", 1))
    )
    assert torch.equal(otr.rewards.sort().values, shuffled.rewards.sort().values)
    assert not torch.equal(otr.rewards, shuffled.rewards)
    assert not torch.equal(again.rewards, shuffled.rewards)
    constant = relabel(data, None, RelabelConfig(method="constant", scale="none"))
    assert constant.rewards.tolist() == [1] * len(data)
    true = relabel(data, None, RelabelConfig(method="ground-truth", scale="none"))
    assert torch.equal(true.rewards, data.rewards)


def test_of_several_demonstrations_the_best_counts() -> None:
    """Whole episodes choose, by their squashed rewards; so each return is at least what any of them would give."""
    data, demonstrations = recorded(TOY), recorded([walk(10, 80), walk(25, 81), walk(10, 82)])
    config: dict[str, Any] = {"scale": "none", "dtype": "float64"}
    each = [relabel(data, demonstrations.select([k]), RelabelConfig(**config)) for k in range(3)]
    together = relabel(data, demonstrations, RelabelConfig(**config))
    returns = torch.stack([labelled.returns for labelled in each])
    torch.testing.assert_close(together.returns, returns.max(0).values)
    assert together.about["relabelling"]["episodes"]["demonstration"] == returns.argmax(0).tolist()
    mean = relabel(data, demonstrations, RelabelConfig(top_k=2, **config))
    torch.testing.assert_close(mean.returns, returns.topk(2, 0).values.mean(0))
    twice = relabel(data, demonstrations.select([0, 1, 2, 0]), RelabelConfig(**config))
    torch.testing.assert_close(twice.rewards, together.rewards, atol=0, rtol=0)


def test_the_best_episodes() -> None:
    data = recorded(TOY, rewards=[3.0, 0.1, 9.0, -1.0])  # returns 36, 3, 45, -20
    chosen = best(data, 2)
    assert chosen.about["episodes"] == [2, 0]
    assert torch.equal(chosen.obs, torch.cat((TOY[2], TOY[0])))  # type: ignore[arg-type]
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"best:{count}: toy/walks-v0 has 4 episodes"):
            best(data, count)


def test_where_labels_come_from_is_kept() -> None:
    data = recorded(TOY)
    before = data.rewards.clone()
    labelled = relabel(data, best(data, 2), RelabelConfig(iterations=50))
    assert torch.equal(data.rewards, before)
    assert labelled.obs is data.obs
    about = labelled.about["relabelling"]
    assert (about["source"], about["source_relabelling"]) == ("toy/walks-v0", None)
    assert about["config"] == RelabelConfig(iterations=50).to_dict()
    assert about["demonstrations"] == {
        "name": "toy/walks-v0", "episodes": [3, 1], "lengths": [20, 30], "returns": [60.0, 30.0],
    }  # fmt: skip
    assert {"torch", "headway-rl"} <= about["versions"].keys()
    matched = prepare(data, best(data, 2), RelabelConfig(iterations=50))
    found = dict(compare(matched, range(4)))
    for i, k in enumerate(about["episodes"]["demonstration"]):
        assert about["episodes"]["cost"][i] == pytest.approx(float(found[i].costs[k].mean()), rel=1e-5)
        assert about["episodes"]["column_error"][i] == pytest.approx(float(found[i].column_error[k]), rel=1e-5)
    again = relabel(labelled, best(data, 1))
    assert again.about["relabelling"]["source_relabelling"]["config"]["iterations"] == 50


def test_known_costs_are_not_computed_again() -> None:
    data = recorded(TOY)
    computed: dict[int, EpisodeCosts] = {}
    whole = relabel(data, best(data, 1), on_episode=computed.__setitem__)
    assert sorted(computed) == [0, 1, 2, 3]
    rest: list[int] = []
    half = {i: computed[i] for i in (1, 2)}
    resumed = relabel(data, best(data, 1), done=half, on_episode=lambda i, _: rest.append(i))
    assert rest == [0, 3]
    assert torch.equal(resumed.rewards, whole.rewards)


def test_going_out_and_coming_back() -> None:
    """Who comes back first and goes out then has been everywhere the demonstration was: order alone tells."""
    angles = torch.linspace(0.1, 1.4, 30).double()
    out = torch.stack((angles.cos(), angles.sin()), 1)
    right, wrong = torch.cat((out, out.flip(0))), torch.cat((out.flip(0), out))
    data, demonstration = recorded([right, wrong]), recorded([right])
    returns = {
        method: relabel(data, demonstration, RelabelConfig(method=method, scale="none", dtype="float64")).returns
        for method in ("otr", "min-distance", "temporal", "segment")
    }
    for blind in ("otr", "min-distance"):
        assert float(returns[blind][1]) == pytest.approx(float(returns[blind][0]), rel=1e-9)
    for seeing in ("temporal", "segment"):
        assert float(returns[seeing][1]) < 0.8 * float(returns[seeing][0])


# -- What is compared ------------------------------------------------------------------------------------------------


def test_actions_and_statistics() -> None:
    data = recorded(TOY)
    data.actions[:] = torch.rand(len(data), 2, generator=torch.Generator().manual_seed(0))
    demonstrations = best(data, 1)

    def states(**config: Any) -> Problem:
        return prepare(data, demonstrations, RelabelConfig(dtype="float64", **config))

    both = states(states="obs-action")
    torch.testing.assert_close(both.states, unit(torch.cat((data.obs, data.actions.double()), 1)))  # type: ignore[arg-type]
    assert both.numbers == WIDTH
    assert isinstance(data.obs, Tensor)
    assert isinstance(demonstrations.obs, Tensor)
    for whose, of in (("dataset", data.obs), ("demonstrations", demonstrations.obs)):
        found = states(standardize=whose)
        torch.testing.assert_close(found.states, unit((data.obs - of.mean(0)) / of.std(0, correction=0)))
    data.obs[:, 1] = 7.0  # has no standard deviation
    assert torch.isfinite(states(standardize="dataset").states).all()


def test_parts_of_dicts() -> None:
    flat = recorded(TOY)
    assert isinstance(flat.obs, Tensor)
    assert isinstance(flat.final_obs, Tensor)
    fields: dict[str, Any] = {
        "observation_space": spaces.Dict({"goal": spaces.Box(-9, 9, (2,)), "observation": flat.observation_space}),
        "obs": {"goal": torch.ones(len(flat), 2), "observation": flat.obs},
        "final_obs": {"goal": torch.ones(4, 2), "observation": flat.final_obs},
    }
    data = Dataset(**{**vars(flat), **fields})
    assert prepare(data, best(data, 1), RelabelConfig()).states.shape == (67, 7)
    part = relabel(data, best(data, 1), RelabelConfig(keys=("observation",)))
    torch.testing.assert_close(part.rewards, relabel(flat, best(flat, 1)).rewards, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="keys goals: observations of toy/walks-v0 have the parts goal, observation"):
        prepare(data, best(data, 1), RelabelConfig(keys=("goals",)))
    with pytest.raises(ValueError, match="keys goal: observations of toy/walks-v0 have no parts"):
        prepare(flat, best(flat, 1), RelabelConfig(keys=("goal",)))


def test_what_does_not_fit_is_refused() -> None:
    data = recorded(TOY)
    other = recorded([walk(5, 0, 4)], name="toy/thin-v0")
    with pytest.raises(ValueError, match=r"toy/thin-v0 has the observation space .*4,.*, toy/walks-v0 has .*5,"):
        relabel(data, other)
    with pytest.raises(ValueError, match="toy/b-v0 is of Other-v0, toy/walks-v0 of Toy-v0"):
        relabel(data, recorded(TOY, env_id="Other-v0", name="toy/b-v0"))
    relabel(data, recorded(TOY, env_id=None))  # nobody knows
    with pytest.raises(ValueError, match="method otr needs at least one demonstration"):
        relabel(data)
    with pytest.raises(ValueError, match="top_k 2: there are only 1 demonstrations"):
        relabel(data, best(data, 1), RelabelConfig(top_k=2))
    with pytest.raises(ValueError, match=r"epsilon must lie in \[0.0001, 10\]"):
        RelabelConfig(epsilon=0.0)


def test_images_are_refused() -> None:
    lengths = torch.tensor([3])
    data = Dataset(
        observation_space=spaces.Box(0, 255, (36, 36, 3), np.uint8),
        action_space=spaces.Discrete(2),
        obs=torch.zeros(3, 36, 36, 3, dtype=torch.uint8),
        final_obs=torch.zeros(1, 36, 36, 3, dtype=torch.uint8),
        actions=torch.zeros(3, dtype=torch.int64),
        rewards=torch.zeros(3, dtype=torch.float64),
        lengths=lengths,
        terminated=torch.tensor([True]),
    )
    with pytest.raises(ValueError, match="contain images"):
        relabel(data, data)


# -- On a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["otr", "temporal", "segment", "min-distance"])
def test_a_gpu_says_the_same(method: Any) -> None:
    """Switches that round products to TF32 are not let in; sums are taken in another order, 1e-7 times 100."""
    data = recorded([walk(n, n, 17) for n in (300, 41, 1, 297, 120)])
    demonstrations = recorded([walk(250, 90, 17), walk(80, 91, 17)])
    problem = prepare(data, demonstrations, RelabelConfig(method=method))
    here = dict(compare(problem, range(5)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for memory in (10**6, 10**9):
            there = dict(compare(problem, range(5), device="cuda", memory=memory))
            for i in range(5):
                torch.testing.assert_close(there[i].costs, here[i].costs, atol=1e-5, rtol=0)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_labels_of_a_gpu() -> None:
    data = recorded(TOY)
    here, there = (relabel(data, best(data, 2), RelabelConfig(dtype="float64"), device=d) for d in ("cpu", "cuda"))
    torch.testing.assert_close(there.rewards, here.rewards, atol=1e-9, rtol=1e-9)
