"""Crowds observed: counted from panels, read from files, sampled from games; and what cannot be a crowd."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from headway.envs.mean_field import Entropy, MFGame, best_response, exploitability, flow, make_game, solve
from headway.envs.mean_field.cohorts import BIOFAM_LABELS, Trajectories, kernels, load_cohorts, observe, synthetic
from torch import Tensor

needs_sequenzo = pytest.mark.skipif(
    importlib.util.find_spec("sequenzo") is None,
    reason="the data files of sequenzo are not here (pip install --no-deps sequenzo)",
)


def noisy_walk() -> MFGame:
    """Three actions on a ring of five, slips, and a cost of company: moves are not next states."""
    S = 5
    ring = torch.arange(S)
    return MFGame(
        name="walk",
        S=S,
        A=3,
        H=4,
        mu0=torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.0]], dtype=torch.float64),
        r_state=lambda t, mu: -mu,
        post=torch.stack([(ring + move) % S for move in (-1, 0, 1)], 1),
        noise_idx=torch.stack([ring, (ring + 1) % S], 1),
        noise_p=torch.tensor([[0.75, 0.25]] * S, dtype=torch.float64),
        regulariser=Entropy(0.3),
    )


def hand(n: int = 2, N: int = 3, d: int = 2) -> tuple[Tensor, Tensor]:
    """pi and counts of crowds in which everybody moves everywhere."""
    return torch.full((n, N + 1, d), 1 / d), torch.ones(n, N, d, d)


def test_people_are_counted() -> None:
    paths = [[0, 1, 1], [0, 0, 2], [1, 1, 1], [2, 2, 0]]
    data = Trajectories.from_paths(paths, [0, 0, 1, 1], labels="abc", names=["old", "young"])
    assert (len(data), data.horizon, data.d, data.names) == (2, 2, 3, ("old", "young"))
    assert data.pi[0].tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert data.counts[0, 0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert data.counts[1, 1].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert data.counts.sum((-1, -2)).tolist() == [[2, 2], [2, 2]]
    torch.testing.assert_close(data.matrices()[0, 0, 0], torch.tensor([0.5, 0.5, 0], dtype=torch.float64))
    assert (data.matrices()[0, 0, 1:] == 1 / 3).all()  # nobody there: uniform, as published


def test_counts_and_shares_say_the_same() -> None:
    rng = np.random.default_rng(0)
    data = Trajectories.from_paths(rng.integers(4, size=(300, 6)), rng.integers(5, size=300))
    people = data.counts.sum((-1, -2))[:, :, None]
    torch.testing.assert_close(data.counts.sum(-1) / people, data.pi[:, :-1])
    torch.testing.assert_close(data.counts.sum(-2) / people, data.pi[:, 1:])


def test_crowds_are_chosen() -> None:
    data = synthetic(days=3, people=50, d=3, horizon=2, tau=1.0, sweeps=300)
    first, rest = data.split(1)
    assert (len(first), len(rest)) == (1, 2)
    assert torch.equal(rest.pi, data.pi[1:])
    assert rest.planted is not None
    assert data.planted is not None
    assert torch.equal(rest.planted.flow, data.planted.flow[1:])
    assert torch.equal(rest.planted.games().mu0[:, 0], data.planted.flow[1:, 0])
    with pytest.raises(ValueError, match="first must be 1 to 2, got 3"):
        data.split(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pi, counts: (pi, counts[:, :2]), r"counts must be \(n, N, d, d\) = \(2, 3, 2, 2\).*got \(2, 2, 2, 2\)"),
        (lambda pi, counts: (pi[0], counts), r"pi must be \(n, N \+ 1, d\).*got \(4, 2\)"),
        (lambda pi, counts: (pi[:, :1], counts[:, :0]), "n and N at least 1"),
        (lambda pi, counts: (pi, -counts), r"counts must not be negative, it is -1.0 at \(0, 0, 0, 0\)"),
        (lambda pi, counts: (pi * torch.nan, counts), r"pi is nan at \(0, 0, 0\)"),
        (lambda pi, counts: (pi, counts / 0 * counts), "counts is inf"),
        (lambda pi, counts: (pi * 2, counts), r"pi must sum to 1 .* \(0, 0\) sum to 2.0"),
        (
            lambda pi, counts: (pi, counts * torch.tensor([0.0, 1, 1]).view(3, 1, 1)),
            r"no people at crowd and time \(0, 0",
        ),
        (lambda pi, counts: (torch.eye(2)[0].expand(2, 4, 2), counts), r"pi has nobody, at .* \(0, 0, 1\)"),
    ],
)
def test_what_is_no_crowd_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trajectories(*change(*hand()))


@pytest.mark.parametrize(
    ("paths", "groups", "labels", "message"),
    [
        ([[0.0, 1.0]], None, (), "paths must be integers"),
        ([[0], [1]], None, (), "at least two times"),
        ([[0, 3]], None, "ab", "paths hold states 0 to 3, there are 0 to 1"),
        ([[0, -1]], None, "ab", "paths hold states -1 to 0"),
        ([[0, 1], [1, 0]], [0, 2], (), "group 1 has no people"),
        ([[0, 1], [1, 0]], [0], (), r"one number from 0 per person, \(2,\), got \(1,\)"),
    ],
)
def test_what_is_no_panel_is_refused(paths: Any, groups: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trajectories.from_paths(paths, groups, labels)


def test_names_must_fit() -> None:
    pi, counts = hand()
    with pytest.raises(ValueError, match="there must be 2 labels, got 3"):
        Trajectories(pi, counts, labels=("a", "b", "c"))
    with pytest.raises(ValueError, match="there must be 2 names, got 1"):
        Trajectories(pi, counts, names=("a",))


# -- games -------------------------------------------------------------------------------------------------------------


def test_kernels_move_the_crowd() -> None:
    game = noisy_walk()
    policy = solve(game, "fixed_point", 50, damping=0.5).policy
    moves, mu = kernels(game, policy), flow(game, policy)
    assert moves.shape == (1, 4, 5, 5)
    torch.testing.assert_close(moves.sum(-1), torch.ones_like(moves[..., 0]))
    torch.testing.assert_close((mu[:, :-1].unsqueeze(-2) @ moves).squeeze(-2), mu[:, 1:])
    row = policy[0, 0, 2]  # from 2: to 1, 2, 3, each slipping one further with probability 1/4
    torch.testing.assert_close(moves[0, 0, 2, 2], 0.25 * row[0] + 0.75 * row[1])


def test_infinitely_many_people_move_by_the_kernels() -> None:
    game = noisy_walk()
    data = observe(game, game.uniform_policy())
    assert data.planted is not None
    torch.testing.assert_close(data.pi[0], flow(game, game.uniform_policy())[0])
    torch.testing.assert_close(data.counts.sum(-2), data.pi[:, 1:])
    there = data.pi[0, :-1] > 0
    torch.testing.assert_close(data.matrices()[0][there], data.planted.kernels[0][there])


def test_people_move_by_the_kernels() -> None:
    game, people = noisy_walk(), 20_000
    data = observe(game, game.uniform_policy(), people, seed=3)
    assert data.planted is not None
    assert (data.counts.sum((-1, -2)) == people).all()
    expected = data.planted.flow[:, :-1, :, None] * data.planted.kernels
    error = 5 * (expected * (1 - expected) / people).sqrt() + 1e-12  # five standard deviations
    assert ((data.counts / people - expected).abs() <= error).all()
    torch.testing.assert_close(data.counts.sum(-2) / people, data.pi[:, 1:])
    assert torch.equal(data.counts, observe(game, game.uniform_policy(), people, seed=3).counts)
    assert not torch.equal(data.counts, observe(game, game.uniform_policy(), people, seed=4).counts)


def test_people_of_a_game_in_single_precision() -> None:
    game = make_game("garnet", size=30, dtype=torch.float32)
    data = observe(game, game.uniform_policy(), 100, seed=0)
    assert (data.counts.sum((-1, -2)) == 100).all()


def test_games_that_cannot_be_watched() -> None:
    game = noisy_walk()
    for people in (0, 2.5):
        with pytest.raises(ValueError, match=f"people must be at least 1, got {people}"):
            observe(game, game.uniform_policy(), people)  # type: ignore[arg-type]
    two = MFGame(name="two", S=2, A=1, H=1, mu0=torch.eye(2), r_state=lambda t, mu: mu, post=torch.zeros(2, 1).long())
    with pytest.raises(ValueError, match="two must have one population"):
        observe(two, two.uniform_policy())


def test_topics_have_the_known_equilibrium() -> None:
    """The largest topic at the start, in the middle and at the end, to the digits that are known."""
    data = synthetic(days=7, people=None, seed=0)
    assert data.planted is not None
    assert (data.pi.shape, data.counts.shape) == ((7, 16, 15), (7, 15, 15, 15))
    top = data.planted.flow.amax(-1)[:, [0, 7, 15]]
    assert [round(x, 2) for x in top[0].tolist()] == [0.29, 0.24, 0.86]
    assert [round(x, 2) for x in top[6].tolist()] == [0.16, 0.13, 0.24]
    assert (data.pi[:, 0].diff(dim=-1) <= 0).all()
    assert data.planted.parameters == {"popularity": 1.0, "stay": 0.2, "log_congestion": 0.0, "tau": 0.05}
    games = data.planted.games()
    assert exploitability(games, data.planted.policy).abs().max() < 1e-12
    response = best_response(games, data.planted.flow.unsqueeze(1)).policy
    assert (response - data.planted.policy).abs().max() < 1e-10


def test_the_step_does_not_decide_the_equilibrium() -> None:
    flows = [
        synthetic(days=1, people=None, seed=0, step=step, sweeps=sweeps).pi
        for step, sweeps in ((0.05, 530), (0.1, 400))
    ]
    assert (flows[0] - flows[1]).abs().max() < 1e-12


def test_congestion_and_temperature_flatten_topics() -> None:
    options: dict[str, Any] = {"days": 1, "people": None, "seed": 0}
    assert round(float(synthetic(log_congestion=0.02, **options).pi[0, -1].max()), 2) == 0.09
    torch.testing.assert_close(
        synthetic(tau=0.5, **options).pi[0, -1], torch.full((15,), 1 / 15).double(), atol=1e-4, rtol=0
    )


def test_seeds_decide_topics() -> None:
    options: dict[str, Any] = {"days": 2, "people": 406, "d": 4, "horizon": 3, "tau": 1.0, "sweeps": 300}
    data = synthetic(seed=1, **options)
    assert torch.equal(data.counts, synthetic(seed=1, **options).counts)
    assert not torch.equal(data.pi[:, 0], synthetic(seed=2, **options).pi[:, 0])
    assert (data.counts.sum((-1, -2)) == 406).all()


def test_topics_that_were_not_solved_are_refused() -> None:
    with pytest.raises(ValueError, match="was not found in 5 sweeps"):
        synthetic(days=1, sweeps=5)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        synthetic(horizon=0)


# -- files -------------------------------------------------------------------------------------------------------------


def test_absent_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps sequenzo"):
        load_cohorts("biofam")


def test_cohorts_by_name() -> None:
    with pytest.raises(ValueError, match="no cohorts 'biofan': did you mean biofam"):
        load_cohorts("biofan")


@needs_sequenzo
def test_biofam_is_cut_into_cohorts() -> None:
    data = load_cohorts("biofam")
    assert (len(data), data.horizon, data.d, data.labels) == (27, 15, 8, BIOFAM_LABELS)
    people = data.counts[:, 0].sum((-1, -2))
    assert set(people.tolist()) == {74.0, 75.0}
    assert people.sum() == 2000
    assert (data.names[0], data.names[21], data.names[26]) == ("born 1909-1922", "born 1952-1953", "born 1957-1957")
    assert round(float(data.counts.diagonal(dim1=-2, dim2=-1).sum() / data.counts.sum()), 3) == 0.896
    assert len(load_cohorts("biofam", groups=4)) == 4
    with pytest.raises(ValueError, match=r"groups must lie in \[1, 2000\], got 0"):
        load_cohorts("biofam", groups=0)


@needs_sequenzo
def test_mvad_is_cut_into_groups() -> None:
    data = load_cohorts("mvad")
    assert (len(data), data.horizon, data.d) == (20, 71, 6)
    assert data.counts[:, 0].sum() == 712
    off = data.counts.sum((0, 2, 3)) - data.counts.diagonal(dim1=-2, dim2=-1).sum((0, 2))
    assert int(off.argmax()) == 1  # from August to September 1993, when the school year starts
    assert off[1] == 304
    assert round(float(1 - off.sum() / data.counts.sum()), 3) == 0.964
