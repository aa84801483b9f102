"""Seeds that follow from one seed, and have nothing in common with those that follow from the next."""

from typing import Literal

import numpy as np

Purpose = Literal["environments", "evaluation", "restart", "generation", "gate"]
_PURPOSES: dict[Purpose, int] = {"restart": 1, "evaluation": 2, "environments": 3, "generation": 4, "gate": 5}


def spawn_seed(seed: int, purpose: Purpose, *more: int) -> int:
    """Derive a seed as :meth:`numpy.random.SeedSequence.spawn` derives streams.

    Row ``i`` of a batch seeded ``s`` draws what a single environment seeded ``s + i`` draws. So if runs 0 and 1 seeded
    their environments 0 and 1, with four rows they would share three of four starts, and their results would be too
    much alike. Seeds spawned from 0 and from 1 lie apart: two runs with a hundred rows each share a start with a chance
    of one in ten million.

    :param seed: of the run
    :param purpose: what is seeded
    :param more: what else tells it from others, say a step
    :return: a seed below 2**31 - 2**20, so that it is a 32-bit integer of every library, plus a row's number too
    """
    key = (_PURPOSES[purpose], *more)
    (drawn,) = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(drawn % (2**31 - 2**20))
