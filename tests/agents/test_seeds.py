"""Seeds that follow from a run's."""

import itertools

import numpy as np
from headway.agents.core.seeds import spawn_seed

ROWS = 64


def test_neighbouring_seeds_share_nothing() -> None:
    """Sixty-four rows each, of a hundred neighbouring runs, for training and for evaluation."""
    starts = [
        spawn_seed(seed, purpose) + row
        for seed, purpose, row in itertools.product(range(100), ("environments", "evaluation"), range(ROWS))
    ]
    assert len(set(starts)) == len(starts)
    restarts = [spawn_seed(seed, "restart", step) for seed in range(30) for step in range(30)]
    assert len({*restarts, *starts}) == len(restarts) + len(starts)


def test_spawned_seeds_are_numpys_and_fit_everywhere() -> None:
    """Published commands are run again with the same numbers: these are fixed."""
    child = np.random.SeedSequence(7, spawn_key=(3,)).generate_state(1, np.uint64)[0]
    assert spawn_seed(7, "environments") == int(child % (2**31 - 2**20))
    assert [spawn_seed(seed, "environments") for seed in (0, 1)] == [908315582, 1429332193]
    for seed in (0, 1, 4_000_000_000):
        assert 0 <= spawn_seed(seed, "evaluation") < 2**31 - 2**20
