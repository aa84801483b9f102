"""The learning curve of a run, and those of many."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from headway.scripts import plot
from headway.scripts.figures import (
    COLOURS,
    aligned,
    learning_curve,
    learning_curves,
    legend_below,
    panel_grid,
    read_columns,
)
from headway.scripts.grouping import find_runs, grouped
from headway.scripts.inside import POPULATION, count_events, read_inside
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def test_columns_leave_out_a_line_that_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "half.csv").write_bytes(b"step,mean\r\n0,-1.5\r\n10,-1")  # of -12.5, say
    assert [column.tolist() for column in read_columns(tmp_path / "half.csv", "step", "mean")] == [[0], [-1.5]]


# ---- many runs -------------------------------------------------------------------------------------------------------


def make_run(
    folder: Path,
    returns: list[float],
    env: str = "Pendulum-v1",
    every: int = 10,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    folder.mkdir(parents=True)
    options = {"env": env, "seed": len(returns), "run_dir": str(folder), "total_timesteps": 1, "n_envs": 1} | (
        options or {}
    )
    content = {"agent": "SAC", "options": options, "config": {"gamma": 0.9, "net_arch": [8, 8]} | settings}
    (folder / "config.json").write_text(json.dumps(content))
    lines = [f"{number * every},{value}" for number, value in enumerate(returns)]
    (folder / "evaluations.csv").write_text("\n".join(["step,mean", *lines, ""]))
    return folder


def test_runs_are_aligned_where_all_have_been() -> None:
    one = np.array([0.0, 10, 20]), np.array([0.0, 1, 4])
    two = np.array([0.0, 5, 10, 15]), np.array([8.0, 6, 4, 2])
    steps, values = aligned([one, two])
    assert steps.tolist() == [0, 5, 10, 15]
    assert values.tolist() == [[0, 0.5, 1, 2.5], [8, 6, 4, 2]]
    assert aligned([one])[1].tolist() == [[0, 1, 4]]


def test_runs_are_grouped_by_environment_agent_and_what_differs(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "s0", [1.0, 2], gamma=0.9)
    make_run(tmp_path / "a" / "s1", [1.0, 2, 3], gamma=0.9)
    make_run(tmp_path / "b", [3.0, 4], gamma=0.5)
    make_run(tmp_path / "c", [5.0, 6], env="worlds:Point-v0", gamma=0.1, net_arch=[4])
    (make_run(tmp_path / "d", []) / "evaluations.csv").write_text("step,mean\n")
    runs = find_runs([tmp_path / "b", tmp_path, tmp_path / "a"])
    assert runs[0] == tmp_path / "b"
    assert len(runs) == 5
    found = {env: {label: len(c) for label, c in groups.items()} for env, groups in grouped(runs).items()}
    assert found == {"Pendulum-v1": {"SAC gamma=0.5": 1, "SAC gamma=0.9": 2}, "Point-v0": {"SAC": 1}}
    with pytest.raises(FileNotFoundError, match="is no run folder and holds none"):
        find_runs([tmp_path / "a" / "s0" / "nothing"])
    with pytest.raises(ValueError, match="none of these runs has been evaluated yet"):
        grouped([tmp_path / "d"])


def test_figure_shows_the_iqm_and_its_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[str, list[float]]] = []
    bands: list[tuple[list[float], list[float]]] = []
    original_plot, original_fill = Axes.plot, Axes.fill_between

    def draw(self: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> Any:
        lines.append((look["color"], y.tolist()))
        return original_plot(self, x, y, **look)

    def fill(self: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, **look: Any) -> Any:
        bands.append((low.tolist(), high.tolist()))
        return original_fill(self, x, low, high, **look)

    monkeypatch.setattr(Axes, "plot", draw)
    monkeypatch.setattr(Axes, "fill_between", fill)
    steps = np.array([0.0, 10, 20])
    five = [(steps, np.array([0.0, 1, value])) for value in (-100, 1, 2, 3, 100)]
    panels = {"one": {"A": five, "B": [(steps, steps)]}, "two": {"A": [], "B": five[1:4]}}
    learning_curves(panels, tmp_path / "figure.png")
    assert lines == [(COLOURS[0], [0, 1, 2]), (COLOURS[1], [0, 10, 20]), (COLOURS[1], [0, 1, 2])]
    assert bands[0][0][:2] == bands[0][1][:2] == [0, 1]
    assert bands[0][0][2] < 1 < 3 < bands[0][1][2]
    assert np.isnan(bands[1]).all()
    image = matplotlib.image.imread(tmp_path / "figure.png")
    blue = (np.abs(image[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02).mean()
    vermilion = (np.abs(image[..., :3] - np.array([0xD5, 0x5E, 0]) / 255).max(-1) < 0.02).mean()
    assert 0.0005 < blue < 0.05
    assert 0.0005 < vermilion < 0.05


@pytest.mark.parametrize("count", [1, 4, 5])
def test_figure_of_any_number_of_panels(tmp_path: Path, count: int) -> None:
    curve = np.array([0.0, 1e6]), np.array([-2e4, 5e5])
    groups = {f"arm {number}": [curve] for number in range(9)}  # more than there are colours
    learning_curves({f"environment {number} " * 4: groups for number in range(count)}, tmp_path / "figure.png")
    assert matplotlib.image.imread(tmp_path / "figure.png").std() > 0.01


@pytest.mark.parametrize("length", [3, 40, 400])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_legends_are_whole(length: int, count: int) -> None:
    figure, (axes,) = panel_grid(1, 1, (7, 3.9), 0.6, "steps")
    handles = {f"{number} {'word ' * (length // 5)}": axes.plot([0, 1])[0] for number in range(count)}
    legend_below(figure, handles, 4, "a note on what is shown, " * 9)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width
    assert 0 <= extent.y0 < extent.y1 <= axes.get_tightbbox().y0  # below the axis's own label
    assert axes.get_window_extent().height > 3 * figure.dpi
    assert len(legend.get_texts()) == count


def test_runs_behind_delays_have_panels_of_their_own(tmp_path: Path) -> None:
    for number, delay in enumerate((None, None, "wifi,wifi", "constant:1,constant:1")):
        options = {"delay": delay, "delay_form": "dict"}
        make_run(tmp_path / str(number), [1.0, 2], options=options)
    make_run(tmp_path / "flat", [1.0, 2], options={"delay": "wifi,wifi", "delay_form": "flat"})
    make_run(tmp_path / "old", [1.0, 2])  # of a time without delays
    panels = grouped(find_runs([tmp_path]))
    assert {title: sorted(groups) for title, groups in panels.items()} == {
        "Pendulum-v1": ["SAC"],
        "Pendulum-v1 behind constant:1,constant:1": ["SAC"],
        "Pendulum-v1 behind wifi,wifi": ['SAC delay_form="dict"', 'SAC delay_form="flat"'],
    }
    assert len(panels["Pendulum-v1"]["SAC"]) == 3


def test_plot_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "s0", [1.0, 2])
    make_run(tmp_path / "runs" / "s1", [1.0, 2, 3])
    assert plot.main(["runs"]) == 0
    assert "Pendulum-v1: SAC, 2 runs, drawn to step 10, where the shortest ends" in capsys.readouterr().out
    assert (tmp_path / "learning_curves.png").stat().st_size > 0
    with pytest.raises(FileExistsError, match="choose another name or pass --overwrite"):
        plot.main(["runs"])
    assert plot.main(["runs", "--overwrite"]) == 0
    assert plot.main(["runs/s0", "runs/s1", "--output", "deep/er.svg"]) == 0
    assert (tmp_path / "deep" / "er.svg").read_text().startswith("<?xml")
    (tmp_path / "learning_curves.png").unlink()
    for arguments, message in (
        (["nowhere"], "nowhere is no run folder"),
        (["runs", "--output", "a.doc"], "must end in .png, .pdf or .svg"),
        (["runs", "--outptu", "a.png"], "did you mean --output"),
        ([], "runs|RUNS|PATH"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            plot.main(arguments)


# ---- generations -----------------------------------------------------------------------------------------------------

GENERATIONS = """\
time/total_timesteps,population/timesteps,population/generation,population/best_return,population/mean_return,\
population/width,population/parents_elite,population/parents_screened,population/parents_random,\
population/parents_learner,population/learner_return,population/learner_rank,population/guided,population/beta,\
population/rank_correlation,population/distance
5,,,,,,,,,,,,,,,
15,10,1,3,1,0.09,0,0,1,0,,,0,1,,
20,,,,,,,,,,,,,,,
55,40,3,4,2,0.08,0.2,0.4,0.2,0.2,2,3,0.25,1,-0.5,0.07
65,60,5,5,3,0.07,0.2,0.2,0.4,0.2,4,1,1,2,0.5,0.05
"""
"""Lines with no generation, with one, with three (2 to 4), whose members include the learner from the second on."""


def make_population(folder: Path, lines: str = GENERATIONS, **settings: Any) -> Path:
    config = {"guided": True, "population_size": 10, "target_distance": 0.05} | settings
    run = make_run(folder, [1.0, 2, 3], "headway/Trap-v0", 30, {"seed": int(folder.name[-1])}, **config)
    (run / "progress.csv").write_text(lines)
    return run


def test_generations_are_where_they_ended(tmp_path: Path) -> None:
    (record,) = read_inside([make_population(tmp_path / "s0")], POPULATION)
    assert {name: [column.tolist() for column in record[name]] for name in ("mean_return", "learner_rank")} == {
        "mean_return": [[10, 40, 60], [1, 2, 3]],
        "learner_rank": [[40, 60], [3, 1]],
    }
    assert record["evaluation"][0].tolist() == [30, 60]  # not the one before training
    assert count_events(record, "generation") == [1, 3, 1]


def test_population_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures: list[Any] = []
    original = Figure.savefig

    def savefig(self: Any, path: Path) -> None:
        figures.append(self)
        original(self, path)

    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.chdir(tmp_path)
    make_population(tmp_path / "runs" / "s0")
    assert plot.main(["--population", "runs/s0"]) == 0
    assert "written: population.png" in capsys.readouterr().out
    assert matplotlib.image.imread("population.png").std() > 0.01
    panels = {axes.get_title("left"): axes for axes in figures[0].axes}
    assert len(panels) == 6
    assert figures[0].get_suptitle() == "SAC in headway/Trap-v0, 5 generations"  # a run of test_plot is called SAC
    assert "up to 3 generations" in figures[0].get_supxlabel()
    lines = {line.get_label(): line.get_ydata().tolist() for line in panels["return of an episode"].lines}
    assert lines == {"best": [3, 4, 5], "mean": [1, 2, 3], "learner": [2, 4], "evaluated": [2, 3]}
    assert panels["guidance"].get_legend().get_texts()[0].get_text() == "guided (35%)"  # 0, 3 times 0.25, 1
    stack = [patch.get_paths()[0].get_extents() for patch in panels["parents, by origin"].collections]
    assert [extent.y1 for extent in stack] == pytest.approx([20, 60, 100, 100])
    assert (stack[2].x0, stack[2].x1) == (-5, 70)  # half the way to the next one around each

    second = GENERATIONS.replace("10,1,3,1,", "20,1,3,9,")
    make_population(tmp_path / "runs" / "s1", second)
    assert plot.main(["--population", "runs", "--output", "both.svg"]) == 0
    assert "median of 2 runs" in figures[1].get_supxlabel()
    axes = {axes.get_title("left"): axes for axes in figures[1].axes}["return of an episode"]
    (mean,) = (line for line in axes.lines if line.get_label() == "mean")
    assert mean.get_xydata().tolist() == [[20, pytest.approx((1 + 1 / 3 + 9) / 2)], [40, 2], [60, 3]]


def test_population_figure_of_hardly_anything(tmp_path: Path) -> None:
    """One generation of a search alone: three panels, no warning, and something to see."""
    names = ("timesteps", "generation", "best_return", "mean_return", "width", "parents_elite", "parents_screened")
    names += ("parents_random", "parents_learner")
    lines = ",".join(f"population/{name}" for name in names) + "\n100,1,-3,-5,0.1,0,0,1,0\n"
    run = make_population(tmp_path / "s0", lines, guided=False)
    assert plot.main(["--population", str(run), "--output", str(tmp_path / "one.png")]) == 0
    assert matplotlib.image.imread(tmp_path / "one.png").std() > 0.01


MODEL_LOG = """\
time/total_timesteps,model/timesteps,model/training,model/passes,model/rollout_length,model/error,model/spread,\
model/calibration
10,,,,,,,
30,20,1,12,1,0.5,0.2,1.5
70,50,2.5,8,2,0.3,0.1,1.2
"""


def test_model_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures: list[Any] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (figures.append(self), original(self, path))[0])
    monkeypatch.chdir(tmp_path)
    run = make_population(tmp_path / "runs" / "s0", MODEL_LOG)
    assert plot.main(["--model", "runs/s0"]) == 0
    assert "written: model.png" in capsys.readouterr().out
    assert figures[0].get_suptitle() == "SAC in headway/Trap-v0, 3 trainings"
    assert "up to 2 trainings" in figures[0].get_supxlabel()
    panels = {axes.get_title("left"): axes for axes in figures[0].axes}
    lines = {line.get_label(): line.get_ydata().tolist() for line in panels["on held-out rows"].lines}
    assert lines == {"mean squared error": [0.5, 0.3], "spread of members": [0.2, 0.1]}
    assert [line.get_xdata().tolist() for line in panels["a training of the model"].lines] == [[20, 50]] * 2
    with pytest.raises(ValueError, match="are different figures: ask for one"):
        plot.main(["--model", "--population", str(run)])
    with pytest.raises(ValueError, match=r"has no generations: .* name runs of PGPS or CEM"):
        plot.main(["--population", str(run)])


def test_runs_without_a_population(tmp_path: Path) -> None:
    one = make_population(tmp_path / "s0")
    sac = make_population(tmp_path / "s1", PROGRESS)
    bare = make_run(tmp_path / "s2", [1.0])
    other = make_population(tmp_path / "s3", gamma=0.5)
    for runs, message in (
        ([sac], "s1 has no generations: it is a run of SAC, or its first one has not been logged yet; name runs of PG"),
        ([one, sac], "s1 has no generations"),
        ([bare], "s2 has no generations"),
        ([one, other], "runs of one kind, got 2: SAC gamma=0.9 in headway/Trap-v0; SAC gamma=0.5 in headway/Trap-v0; "),
    ):
        with pytest.raises(ValueError, match=message):
            plot.main(["--population", *map(str, runs), "--output", str(tmp_path / "none.png")])
    assert not (tmp_path / "none.png").exists()


# -- searches ----------------------------------------------------------------------------------------------------------


def make_searches(path: Path, steps: int, *, policies: int = 3) -> None:
    lines = ["policy,steps,search,simulator_steps_per_step,better,episodes,mean"]
    for number in range(policies):
        lines += [f"s{number},{steps},policy alone,0.0,0.5,5,{100 + number}"]
        lines += [f's{number},{steps},"tree:{n},{k}",{n},0.6,5,{100 + n * k + number}' for k in (4, 8) for n in (8, 32)]
        lines += [f's{number},{steps},"shooting:32,4",32,0.6,5,1', f's{number},{steps},"tree:32,8,reuse",32,0.6,5,1']
    path.write_text("\n".join(lines) + "\n")


def test_trees_of_several_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (made.append(self), original(self, path))[0])
    monkeypatch.chdir(tmp_path)
    for steps in (300_000, 0):
        make_searches(Path(f"{steps}.csv"), steps)
    assert plot.main(["--search", "300000.csv", "0.csv"]) == 0
    assert matplotlib.image.imread("search.png").ndim == 3
    (figure,) = made
    assert [axes.get_title() for axes in figure.axes] == ["untrained", "after 300,000 steps of training"]
    for axes in figure.axes:
        alone, *trees = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"]  # type: ignore[arg-type]
        assert alone.get_ydata() == pytest.approx([101, 101])  # the middle of three policies
        assert [list(line.get_xdata()) for line in trees] == [[8, 32]] * 2  # type: ignore[arg-type]
        assert [list(line.get_ydata()) for line in trees] == [[133, 229], [165, 357]]  # type: ignore[arg-type]


def test_what_is_no_table_of_searches(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("episode,return\n0,1.0\n")
    with pytest.raises(ValueError, match="has no columns policy, steps, search, mean: it is not of headway evaluate"):
        plot.main(["--search", str(path), "--output", str(tmp_path / "a.png")])
    path.write_text("policy,steps,search,mean\na,0,policy alone,1.0\n")
    with pytest.raises(ValueError, match="there is no tree of so many simulations and candidates"):
        plot.main(["--search", str(path), "--output", str(tmp_path / "a.png")])
