"""Normalised scores: 100 (R - low) / (high - low), by references that are named, and never mixed."""

import csv
from dataclasses import dataclass
from pathlib import Path

from ..agents.core.data.dataset_files import read_references
from ..envs.naming import nearest
from .runs import read_run

D4RL = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
"""Returns of a random policy and of an expert in D4RL's environments (its infos.py), which are older than today's:
rewards and observations have changed since, and scores by them compare with published tables only loosely."""

V5 = {
    "HalfCheetah": (-298.0, 17642.0),
    "Hopper": (17.5, 4098.0),
    "Walker2d": (1.3, 6957.0),
}
"""The same in the v5 environments: random policies measured on MuJoCo 3.17 (300 episodes, HalfCheetah 48), experts as
the cards of Minari's v5 data sets say of the policies that recorded them."""

TABLES = {"d4rl": D4RL, "v5": V5}


@dataclass(frozen=True)
class Reference:
    """What counts as 0 and as 100.

    :param low: return
    :param high: return
    :param source: where both come from
    """

    low: float
    high: float
    source: str

    def score(self, value: float) -> float:
        """:return: a return on this scale"""
        return 100 * (value - self.low) / (self.high - self.low)

    def line(self, mean: float, iqm: float) -> str:
        """:return: what is printed of an evaluation"""
        scores = f"mean {self.score(mean):.1f}, IQM {self.score(iqm):.1f}"
        return f"normalised score: {scores}   (0 is {self.low:,.1f}, 100 is {self.high:,.1f}: {self.source})"


def find_reference(name: str, env_id: str) -> Reference:
    """Look references up.

    :param name: "d4rl" or "v5", or a data set whose own count
    :param env_id: where returns were made
    :return: them
    :raises ValueError: there are none
    """
    if name in TABLES:
        base = env_id.rpartition(":")[2].removeprefix("headway/").rpartition("-v")[0]
        if base not in TABLES[name]:
            raise ValueError(f"--reference {name} says nothing of {env_id}: {nearest(base, TABLES[name])}")
        return Reference(*TABLES[name][base], f"{name}, see headway/scripts/references.py")
    low, high = read_references(name)
    if low is None or high is None:
        raise ValueError(f"{name} holds no reference scores: headway collect --ref-min --ref-max stores them")
    return Reference(low, high, f"stored with {name}")


def reference_of_run(folder: Path) -> Reference | None:
    """:return: the references of the data that a run learnt from; None where there are none"""
    if not (folder / "config.json").exists():
        return None
    run = read_run(folder)
    saved = run.get("data", {}).get("references")
    if saved is None:
        return None
    low, high = saved
    return Reference(low, high, f"stored with {run['options'].get('dataset')}")


def selected_among(path: Path) -> int:
    """:return: evaluations among which a run has chosen this policy as its best; 1 for any other"""
    table = path.parent / "evaluations.csv"
    if path.name != "best.zip" or not table.is_file():
        return 1
    with table.open(newline="") as file:
        return max(1, sum(int(float(row["step"])) > 0 for row in csv.DictReader(file)))
