"""The cross-entropy method: its weights, its update by hand, its schedule, how fast it finds a bottom, bad input."""

import logging
import math
from typing import Any

import pytest
import torch
from headway.agents.pgps import CEMSearch
from headway.agents.pgps.cem import recombination_weights
from torch import Tensor


def search(dim: int = 3, population: int = 10, seed: int = 0, **kwargs: Any) -> CEMSearch:
    return CEMSearch(torch.zeros(dim), population, torch.Generator().manual_seed(seed), **kwargs)


def test_weights_are_the_programs() -> None:
    for parents, expected in ((5, (0.4295, 0.2634, 0.1662, 0.0972, 0.0437)), (3, (0.5856, 0.2928, 0.1215))):
        weights = recombination_weights(parents)
        assert weights.tolist() == pytest.approx(expected, abs=1e-4)
        assert float(weights.sum()) == pytest.approx(1)
        assert (weights.diff() < 0).all()


def test_the_variance_is_around_the_old_mean() -> None:
    found = search(population=2, parents=1, decay=0.0, variance=0.01)
    delta = torch.tensor([0.5, -1.0, 2.0])
    found.tell(torch.stack((torch.zeros(3), delta)), torch.tensor([0.0, 1.0]))
    assert torch.equal(found.mean, delta)
    torch.testing.assert_close(found.variance, delta.square() + 0.01)
    assert torch.equal(found.elite, delta)  # type: ignore[arg-type]


@pytest.mark.parametrize("inverse", [True, False])
def test_one_generation_by_hand(inverse: bool) -> None:
    found = search(population=6, decay=0.25, variance=0.04, final_variance=0.02, inverse_parents=inverse)
    found.mean += 0.1
    members, fitness = found.ask(), torch.tensor([0.0, 5.0, -1.0, 3.0, 9.0, 2.0])
    order = found.tell(members, fitness)
    assert order.tolist() == [4, 1, 3, 5, 0, 2]
    floor = 0.75 * 0.04 + 0.25 * 0.02  # comes down before it is added
    for k in range(3):
        xs, ws = [float(members[i, k]) for i in (4, 1, 3)], recombination_weights(3).tolist()
        spread = sum(w * (x - 0.1) ** 2 for w, x in zip(ws, xs, strict=True)) * (1 / 3 if inverse else 1)
        assert float(found.mean[k]) == pytest.approx(sum(w * x for w, x in zip(ws, xs, strict=True)), abs=1e-6)
        assert float(found.variance[k]) == pytest.approx(spread + floor, rel=1e-5)


def test_the_floor_has_a_closed_form() -> None:
    found = search(decay=0.03)
    for generation in range(1, 30):
        found.tell(found.ask(), torch.zeros(10))
        assert found.floor == pytest.approx(1e-5 + (7.5e-3 - 1e-5) * 0.97**generation)


def quadratic(population: int, decay: float, seed: int, generations: int) -> list[float]:
    """:return: f(mean) / f(0) after each generation, f(x) = |x - x*|^2 in 50 dimensions, x* ~ N(0, 0.3^2)"""
    goal = 0.3 * torch.randn(50, generator=torch.Generator().manual_seed(1000 + seed))
    found, left = search(50, population, seed, decay=decay), []
    for _ in range(generations):
        members = found.ask()
        found.tell(members, -(members - goal).square().sum(1))
        left.append(float((found.mean - goal).square().sum() / goal.square().sum()))
    return left


@pytest.mark.parametrize(
    ("population", "expected"), [(10, {20: 0.26, 50: 0.053, 100: 0.0096}), (6, {20: 0.49, 50: 0.19, 100: 0.035})]
)
def test_a_bottom_is_found_as_fast_as_measured(population: int, expected: dict[int, float]) -> None:
    """Medians of twenty seeds, which were measured with another program's random numbers: within half of them."""
    runs = torch.tensor([quadratic(population, 0.03, seed, 100) for seed in range(20)])
    for generation, value in expected.items():
        assert float(runs[:, generation - 1].median()) == pytest.approx(value, rel=0.5), generation


def test_the_elite_stays_and_others_are_new() -> None:
    found = search()
    members = found.ask()
    found.tell(members, torch.arange(10.0))
    following = found.ask()
    assert torch.equal(following[0], members[9])
    assert not (following[1:, None] == members[None]).all(-1).any()
    plain = search(elitism=False)
    plain.tell(plain.ask(), torch.arange(10.0))
    assert not torch.equal(plain.ask()[0], plain.elite)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [6, 7])
def test_mirrored_draws_lie_opposite(count: int) -> None:
    found = search(mirror=True)
    found.mean += 1.0
    drawn = found.draw(count) - 1.0
    half = -(-count // 2)
    assert drawn.shape == (count, 3)
    torch.testing.assert_close(drawn[half:], -drawn[: count - half], atol=1e-6, rtol=0)


def test_draws_have_the_mean_and_the_variance() -> None:
    found = search(2)
    found.mean, found.variance = torch.tensor([1.0, -2.0]), torch.tensor([0.25, 4.0])
    drawn = found.draw(20_000)
    torch.testing.assert_close(drawn.mean(0), found.mean, atol=0.05, rtol=0)  # 3.5 standard errors of the second
    torch.testing.assert_close(drawn.var(0), found.variance, rtol=0.05, atol=0)
    assert float(found.width) == pytest.approx((0.5 + 2.0) / 2)


@pytest.mark.parametrize("mirror", [False, True])
def test_batches_are_draws(mirror: bool) -> None:
    one, other = search(mirror=mirror), search(mirror=mirror)
    parts = [(part.clone(), part.data_ptr()) for part in one.batches(10, 4)]
    for (part, memory), count in zip(parts, (4, 4, 2), strict=True):
        assert torch.equal(part, other.draw(count))
        assert memory == parts[0][1]
    assert not list(one.batches(0, 4))


def shared_draws(seed: int) -> Tensor:
    """60 members of 2,000 numbers from a standard Gaussian: windows of a table of 42,000."""
    found = search(2_000, seed=seed, variance=1.0)
    return torch.cat([part.clone() for part in found.batches(60, 7, shared=True)])


def test_shared_draws_are_windows_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.agents.pgps.cem.TABLE", 40_000)
    found = search(2_000, variance=0.25)
    found.mean += 3.0
    state = found.generator.get_state()
    drawn = torch.cat([part.clone() for part in found.batches(60, 7, shared=True)])
    found.generator.set_state(state)
    table = torch.empty(40_000 // 60 * 60 + 2_000).normal_(generator=found.generator) * 0.5 + 3.0
    starts = [int((table[:-1_999] == row[0]).nonzero()) for row in drawn]
    assert all(torch.equal(row, table[start : start + 2_000]) for row, start in zip(drawn, starts, strict=True))
    assert [start // (40_000 // 60) for start in starts] == list(range(60))  # one begins in each part: all differ
    found.generator.set_state(state)
    assert torch.equal(drawn, torch.cat([part.clone() for part in found.batches(60, 7, shared=True)]))
    few = search(2_000)  # fewer numbers than a table has: fresh ones
    assert torch.equal(torch.cat([part.clone() for part in few.batches(20, 20, shared=True)]), search(2_000).draw(20))


def test_shared_draws_are_as_good_as_fresh_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the moments of a Gaussian, no two go together, and the best of them by a linear score, which is what a
    critic sees of a narrow search, is as good as the best of fresh ones."""
    monkeypatch.setattr("headway.agents.pgps.cem.TABLE", 40_000)
    direction = torch.randn(2_000, generator=torch.Generator().manual_seed(7))
    direction /= direction.norm()
    best: dict[str, list[float]] = {"shared": [], "fresh": []}
    for seed in range(100):
        drawn = shared_draws(seed)
        assert float(drawn.mean(1).abs().max()) < 5 / 2_000**0.5  # five standard errors, as all bounds here
        assert float((drawn.var(1) - 1).abs().max()) < 5 * (2 / 2_000) ** 0.5
        together = torch.corrcoef(drawn).fill_diagonal_(0)
        assert float(together.abs().max()) < 6 / 2_000**0.5  # of 177,000 pairs
        best["shared"].append(float((drawn @ direction).max()))
        best["fresh"].append(float((search(2_000, seed=1000 + seed, variance=1.0).draw(60) @ direction).max()))
    shared, fresh = (torch.tensor(best[name]) for name in ("shared", "fresh"))
    error = ((shared.var() + fresh.var()) / 100).sqrt()
    assert float((shared.mean() - fresh.mean()).abs()) < 3 * float(error)
    assert 0.6 < float(shared.std() / fresh.std()) < 1.6  # as far as a hundred tell, at three standard errors


def test_state_goes_on_exactly() -> None:
    def run(found: CEMSearch, generations: int) -> list[Tensor]:
        members = []
        for _ in range(generations):
            members.append(found.ask())
            found.tell(members[-1], -members[-1].square().sum(1))
        return members

    straight, halted = search(), search()
    whole = run(straight, 8)
    run(halted, 3)
    state, stream = halted.state(), halted.generator.get_state()
    resumed = search(seed=5)
    resumed.load_state(state)
    resumed.generator.set_state(stream)
    assert all(map(torch.equal, run(resumed, 5), whole[3:]))
    assert torch.equal(resumed.mean, straight.mean)
    with pytest.raises(ValueError, match="the search"):
        search(4).load_state(state)
    with pytest.raises(ValueError, match="floor"):
        search().load_state(state | {"floor": -1.0})


def test_a_fitness_that_is_no_number_ranks_last(caplog: pytest.LogCaptureFixture) -> None:
    found = search()
    fitness = torch.arange(10.0)
    fitness[9] = math.nan
    with caplog.at_level(logging.WARNING, "headway"):
        order = found.tell(found.ask(), fitness)
    assert order.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0, 9]
    assert "the fitness of 1 of 10 members is NaN" in caplog.text
    with pytest.raises(ValueError, match="all 10 members is NaN"):
        found.tell(found.ask(), torch.full((10,), math.nan))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"population": 0}, "population is 0"),
        ({"parents": 11}, "parents is 11, it must be from 1 to the population of 10"),
        ({"parents": 0}, "parents is 0"),
        ({"variance": 0.0}, "variance is 0.0"),
        ({"final_variance": math.inf}, "final_variance is inf"),
        ({"decay": 1.5}, "decay is 1.5"),
    ],
)
def test_what_makes_no_search_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**bad)
    with pytest.raises(ValueError, match=r"members are \(3, 3\) and fitness \(3,\)"):
        search().tell(torch.zeros(3, 3), torch.zeros(3))
