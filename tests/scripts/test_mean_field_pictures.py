"""Pictures and films of crowds, of solvers and of fits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headway.envs.mean_field import make_game
from headway.scripts.mean_field import draw_crowds, draw_curves, draw_fits
from headway.scripts.mean_field.draw_crowds import FlowPicture, reachable
from matplotlib.colors import LogNorm
from mean_field_support import image


def test_walls_are_what_nobody_can_reach() -> None:
    game = make_game("four_rooms")
    assert int(reachable(game).sum()) == 104
    assert np.array_equal(~reachable(game), game.info["walls"].numpy())
    assert reachable(make_game("crowd_modelling")).all()
    assert reachable(make_game("garnet", sparsity_factor=0.5)).any()
    assert reachable(make_game("sis")).all()


def test_frames_show_where_the_crowd_is() -> None:
    game = make_game("crowd_modelling_2d", size=3, horizon=1, forbidden_states="[0|0]", initial_distribution="[2|2]")
    flow = np.zeros((1, 2, 9))
    flow[0, 0, 8], flow[0, 1, 1:] = 1, 1 / 8
    picture = FlowPicture(game, flow, "a title " * 12)
    first, second = picture.frame(0), picture.frame(1)
    assert first.shape == second.shape
    axes = picture.figure.axes[0]
    walls = picture.maps[0].get_array().mask
    assert walls.tolist() == [[True, False, False], [False] * 3, [False] * 3]

    def colour(frame: Any, x: int, y: int) -> list[int]:
        column, row = axes.transData.transform((x, y))
        return frame[frame.shape[0] - 1 - int(row), int(column)].tolist()

    assert colour(first, 0, 0) == [183] * 3
    assert colour(first, 2, 2)[0] > 200 > 100 > colour(first, 1, 1)[0]  # yellow, purple
    assert colour(second, 1, 1) == colour(second, 2, 2)


def test_crowds_that_start_at_a_point_are_on_a_logarithmic_scale() -> None:
    flow = np.full((1, 11, 25), 1 / 25)
    flow[0, 0] = np.eye(25)[0]
    assert isinstance(draw_crowds.colour_scale(flow), LogNorm)
    assert not isinstance(draw_crowds.colour_scale(flow[:, 1:]), LogNorm)


@pytest.mark.parametrize("value", [0.0, -1e-17, 2.0])
def test_curves_of_nothing_and_of_one_evaluation_are_drawn(value: float) -> None:
    one = draw_curves.Curve(np.array([0]), np.array([0.1]), np.array([value]))
    zero = draw_curves.Curve(np.arange(2), np.arange(2) * 0.1, np.zeros(2))
    draw_curves.exploitability_curves(Path("one.png"), "one", {"a": one})
    draw_curves.solver_comparison(Path("both.png"), {"g": {"a": one, "b": zero}, "h": {"a": one}, "i": {"b": zero}})
    draw_curves.learning_curves(Path("runs.png"), "runs", {"g": ([one], zero), "h": ([zero, zero], None)}, "exact")
    draw_fits.forecast_errors(Path("errors.png"), "none", {"a": (0.0, 0.0)})
    for name in ("one", "both", "runs", "errors"):
        image(f"{name}.png")


def test_labels_of_states_are_no_formulas() -> None:
    shares = np.full((4, 15), 1 / 15)
    labels = [f"${state}$_^" for state in range(15)]
    draw_fits.forecasts(Path("forecasts.png"), "$a_^$", shares, {"m": shares}, labels)
    draw_fits.reward_map(Path("reward.png"), "$a_^$", -np.eye(15), np.ones((15, 15), bool), labels)
    image("forecasts.png")
    image("reward.png")
