"""The learning curve of a run."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from headway.scripts.plot import learning_curve, read_columns
from matplotlib.axes import Axes

PROGRESS = """\
rollout/ep_rew_mean,time/total_timesteps,eval/mean_reward
-10.0,100,
-8.0,200,
,200,-5.0
-4.0,300,
"""
EVALUATIONS = "step,mean,std,iqm\n0,-12.0,2.0,-11\n200,-5.0,1.0,-5\n300,-1.0,0.5,-1\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "progress.csv").write_text(PROGRESS)
    (tmp_path / "evaluations.csv").write_text(EVALUATIONS)
    return tmp_path


def test_columns_leave_out_rows_with_a_gap(run: Path) -> None:
    steps, returns = read_columns(run / "progress.csv", "time/total_timesteps", "rollout/ep_rew_mean")
    assert steps.tolist() == [100, 200, 300]
    assert returns.tolist() == [-10, -8, -4]
    assert read_columns(run / "progress.csv", "no such column")[0].tolist() == []


def test_learning_curve_shows_both_curves(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[float], list[float]]] = {}
    original = Axes.plot

    def plot(self: Axes, x: np.ndarray, y: np.ndarray, *args: object, **kwargs: object) -> object:
        drawn[str(kwargs["label"]).partition(" ")[0]] = (x.tolist(), y.tolist())
        return original(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", plot)
    path = learning_curve(run, "SAC in Point-v0, seed 0")
    assert path == run / "learning_curve.png"
    assert drawn == {"training": ([100, 200, 300], [-10, -8, -4]), "evaluation,": ([0, 200, 300], [-12, -5, -1])}
    image = matplotlib.image.imread(path)
    assert image.shape == (585, 910, 4)
    blue = (image[..., 2] > image[..., 0] + 0.3).mean()  # the evaluations and their band
    assert 0.001 < blue < 0.2
    assert (image[..., :3].max(-1) < 0.3).any()  # letters


@pytest.mark.parametrize("steps", ["0", "0\n5", "0\n3000000"])
def test_learning_curve_of_hardly_anything(run: Path, steps: str) -> None:
    """No episode has ended yet, there is but one evaluation, the run is long: no warning, and something to see."""
    (run / "progress.csv").write_text("time/total_timesteps\n5\n")
    lines = "".join(f"{step},-1.0,0.5\n" for step in steps.split())
    (run / "evaluations.csv").write_text(f"step,mean,std\n{lines}")
    assert matplotlib.image.imread(learning_curve(run, "A title that goes on and on " * 5)).std() > 0.01
