"""What tests of ``headway mfg`` share."""

import csv
from pathlib import Path
from typing import Any

import matplotlib.image

SMALL = ("--param", "size=4", "horizon=3")
QUIET = ("--no-progress", "--format", "none")


def image(path: str | Path) -> Any:
    drawn = matplotlib.image.imread(path)
    assert drawn.std() > 0.01
    return drawn


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))
