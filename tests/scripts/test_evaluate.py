"""``headway evaluate``: numbers, files, mistakes."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import imageio_ffmpeg
import numpy as np
import pytest
import stable_baselines3
import torch
from conftest import Command
from headway import agents
from headway.agents import DQN, PPO, SAC
from headway.agents.tpo import Tree, TreeConfig
from headway.scripts.episodes import evaluate_agent, evaluation_env, following_camera
from headway.scripts.explain import best_line
from headway.scripts.statistics import interquartile_mean, summarise
from headway.scripts.worlds import World
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from toys import Point, vec

NUMBER = r"(-?[\d.]+)"
SUMMARY = rf"return {NUMBER} ± {NUMBER}   IQM {NUMBER} \[{NUMBER}, {NUMBER}\] \(\d\d %\)   length (\d+)   (\d+) episode"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for points, as the command line saves it."""
    import worlds  # noqa: F401

    agent = SAC("MlpPolicy", "worlds:Point-v0", net_arch=(8,), seed=0)
    path = tmp_path_factory.mktemp("policies") / "point.zip"
    agent.save(path)
    return path


def summary(out: str) -> list[float]:
    (numbers,) = re.findall(SUMMARY, out)
    return [float(number) for number in numbers]


def test_file_suffix_and_folder_mean_the_same_policy(headway: Command, policy: Path, tmp_path: Path) -> None:
    code, out, err = headway("evaluate", policy, "--episodes", 6)
    assert (code, err) == (0, "")
    assert out.startswith(f"{policy}: SAC after 0 steps, in worlds:Point-v0\n")
    mean, std, iqm, low, high, length, episodes = summary(out)
    assert mean < 0 < std
    assert low <= iqm <= high
    assert (length, episodes) == (7, 6)
    for name in ("final.zip", "best.zip"):  # the best goes before the final one
        (tmp_path / name).write_bytes(policy.read_bytes())
        for path in (policy.with_suffix(""), tmp_path):
            code, again, _ = headway("evaluate", path, "--episodes", 6)
            assert (code, summary(again)) == (0, summary(out))
        assert again.startswith(f"{tmp_path / name}: ")


def test_episodes_are_written_as_they_end(headway: Command, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert headway("evaluate", policy, "--episodes", 9, "--n-envs", 2, "--csv", "whole.csv")[0] == 0
    seen: list[int] = []
    original = VecEnv.step

    def step(self: Any, actions: Any) -> Any:
        seen.append(len(Path("a.csv").read_text().splitlines()) - 1)
        if len(seen) == 30:
            raise KeyboardInterrupt
        return original(self, actions)

    with monkeypatch.context() as patch:
        patch.setattr(VecEnv, "step", step)
        assert headway("evaluate", policy, "--episodes", 9, "--n-envs", 2, "--csv", "a.csv")[0] == 130
    assert seen == [2 * (step // 7) for step in range(30)]  # episodes have seven steps
    assert Path("whole.csv").read_text().startswith(Path("a.csv").read_text())
    assert len(Path("whole.csv").read_text().splitlines()) == 10


def test_a_run_with_nothing_but_checkpoints(headway: Command, tmp_path: Path) -> None:
    SAC("MlpPolicy", "worlds:Point-v0", net_arch=(8,), buffer_size=9).save_checkpoint(tmp_path / "checkpoints")
    code, out, _ = headway("evaluate", tmp_path, "--episodes", 1)
    assert code == 0
    assert "checkpoint-000000000000.zip: SAC after 0 steps" in out
    assert out.endswith("1 episode\n")


def test_seed_and_stochastic(headway: Command, policy: Path) -> None:
    def run(*flags: object) -> list[float]:
        code, out, _ = headway("evaluate", policy, "--episodes", 5, *flags)
        assert code == 0
        return summary(out)

    assert run("--seed", 3) == run("--seed", 3)
    assert run("--seed", 3) != run("--seed", 4)
    assert run("--stochastic") == run("--stochastic") != run()
    assert run("--n-envs", 1, "--device", "cpu") == run("--n-envs", 1)


def test_csv_holds_every_episode(headway: Command, policy: Path) -> None:
    code, out, _ = headway("evaluate", policy, "--episodes", 9, "--n-envs", 2, "--csv", "deep/down/episodes.csv")
    assert code == 0
    assert out.endswith("episodes written to deep/down/episodes.csv\n")
    with Path("deep/down/episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["episode"] for row in rows] == [str(i) for i in range(9)]
    assert {row["length"] for row in rows} == {"7"}
    returns = [float(row["return"]) for row in rows]
    assert summary(out)[:3] == [
        round(x, 1) for x in (np.mean(returns), np.std(returns), np.mean(sorted(returns)[2:-2]))
    ]
    agent = agents.load(policy)
    assert evaluate_agent(agent, evaluation_env(World("worlds:Point-v0"), 2), 9, 10_000)[0] == returns


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_video(headway: Command, tmp_path: Path, suffix: str) -> None:
    SAC("MlpPolicy", "Pendulum-v1", net_arch=(8,), buffer_size=9, seed=0).save("pendulum.zip")
    code, out, err = headway("evaluate", "pendulum", "--episodes", 1, "--video", f"films/pendulum{suffix}")
    assert (code, err) == (0, "")
    assert f"200 frames written to films/pendulum{suffix}" in out
    with imageio.get_reader(f"films/pendulum{suffix}") as film:
        first, later = (np.asarray(film.get_data(index))[..., :3].astype(int) for index in (0, 50))
        assert film.get_meta_data().get("fps", 30) == 30
    assert first.shape == (500, 500, 3)
    assert abs(first - later).max() > 100  # it moves
    if suffix == ".mp4":
        assert imageio_ffmpeg.count_frames_and_secs(f"films/pendulum{suffix}") == (
            200,
            pytest.approx(200 / 30, abs=0.1),
        )
    assert [path.name for path in (tmp_path / "films").iterdir()] == [f"pendulum{suffix}"]


def test_video_is_of_the_episode_that_the_seed_means(headway: Command, policy: Path) -> None:
    """A point's frames are filled with its place, so a film tells where it was."""
    code, _, _ = headway("evaluate", policy, "--episodes", 1, "--seed", 5, "--video", "a.gif")
    assert code == 0
    with imageio.get_reader("a.gif") as film:
        first = np.asarray(film.get_data(0))[0, 0, 0]
    env = Point()
    env.reset(seed=5)
    assert abs(int(first) - int(env.render()[0, 0, 0])) <= 2


WRONG = [
    ("nothing", "there is no policy at nothing or nothing.zip"),
    (".", ". holds no best.zip, final.zip or checkpoint yet"),
    ("POLICY --episodes 0", "--episodes must lie in [1, inf), got 0"),
    ("POLICY --n-envs 0", "--n-envs must lie in [1, inf), got 0"),
    ("POLICY --seed -1", "--seed must lie in [0, inf), got -1"),
    ("POLICY --episodes few", "--episodes: invalid literal for int() with base 10: 'few'"),
    ("POLICY --device abacus", "--device abacus: there is no such device here"),
    (
        "POLICY --env Hopper-v5",
        "observation space is Box(-inf, inf, (11,), float64), this SAC was trained for Box(-3.0",
    ),
    ("POLICY --env CartPole-v1", "observation space is"),
    ("POLICY --env Pendulm-v1", "there is no environment 'Pendulm-v1': did you mean Pendulum-v1"),
    ("POLICY --csv there.csv", "there.csv exists: choose another name or pass --overwrite"),
    ("POLICY --video there.gif", "there.gif exists: choose another name or pass --overwrite"),
    ("POLICY --video film.avi", "--video must end in .mp4 or .gif, got film.avi"),
    ("POLICY --video film.gif --env worlds:Blind-v0", "--video: no film can be made of worlds:Blind-v0 here"),
    ("POLICY --vido film.gif", "takes no --vido: did you mean --video"),
    ("", "PATH"),
    ("cut.zip", "cut.zip: "),
    ("flipped.zip", "flipped.zip: "),
    ("there.csv", "there.csv: is not a zip file"),
    ("unknown.zip", "does not say which environment it was trained in: pass --env"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line or "nothing at all" for line, _ in WRONG])
def test_a_mistake_is_one_line(headway: Command, policy: Path, tmp_path: Path, line: str, message: str) -> None:
    content = policy.read_bytes()
    Path("there.csv").write_text("mine")
    Path("there.gif").write_text("mine")
    Path("cut.zip").write_bytes(content[: len(content) // 2])
    Path("flipped.zip").write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    SAC("MlpPolicy", vec(), net_arch=(8,), buffer_size=9).save("unknown.zip")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = headway("evaluate", *line.replace("POLICY", str(policy)).split())
    assert (code, out) == (1, "")
    assert err.startswith("headway: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Path("there.csv").read_text() == Path("there.gif").read_text() == "mine"


def test_overwrite_replaces(headway: Command, policy: Path) -> None:
    for name in ("there.csv", "there.gif"):
        Path(name).write_text("mine")
    code, _, _ = headway(
        "evaluate", policy, "--csv", "there.csv", "--video", "there.gif", "--overwrite", "--episodes", 1
    )
    assert code == 0
    assert Path("there.csv").read_text().startswith("episode,return,length")
    assert Path("there.gif").read_bytes().startswith(b"GIF89a")


def test_another_environment_with_the_same_spaces(headway: Command, policy: Path) -> None:
    code, out, _ = headway("evaluate", policy, "--env", "worlds:InfiniteReward-v0", "--episodes", 2)
    assert code == 0
    assert "in worlds:InfiniteReward-v0" in out


def test_a_policy_sees_the_statistics_it_was_trained_with(headway: Command) -> None:
    """Statistics far from the identity: without them the policy acts otherwise, and its returns are others."""

    def build() -> DummyVecEnv:
        return evaluation_env(World("worlds:Point-v0"), 2)

    venv = VecNormalize(build(), norm_reward=True)
    agent = SAC("MlpPolicy", venv, net_arch=(8,), seed=0, learning_starts=10, batch_size=8)
    agent.learn(60)
    venv.obs_rms.mean, venv.obs_rms.var = np.array([0.7]), np.array([0.01])
    agent.save("normalised.zip")
    code, out, _ = headway("evaluate", "normalised", "--episodes", 8, "--n-envs", 2)
    assert code == 0

    frozen = VecNormalize(build(), training=False, norm_reward=False)
    frozen.obs_rms.mean, frozen.obs_rms.var = np.array([0.7]), np.array([0.01])
    loaded = agents.load("normalised.zip")
    expected = summarise(*evaluate_agent(loaded, frozen, 8, 10_000))
    assert summary(out)[:3] == [round(x, 1) for x in (expected.mean, expected.std, expected.iqm)]
    plain = summarise(*evaluate_agent(loaded, build(), 8, 10_000))
    assert abs(plain.mean - expected.mean) > 0.5


@pytest.mark.parametrize("build", [lambda: vec(4), lambda: VecNormalize(vec(4), training=False, norm_reward=False)])
@pytest.mark.parametrize("cls", [SAC, stable_baselines3.SAC])
def test_first_episodes_are_those_of_evaluate_policy(cls: Any, build: Callable[[], VecEnv]) -> None:
    env = build()
    if isinstance(env, VecNormalize):
        env.obs_rms.mean, env.obs_rms.var = np.array([0.3]), np.array([0.1])
    sizes = {"net_arch": (8,)} if cls is SAC else {"policy_kwargs": {"net_arch": [8]}}
    agent = cls("MlpPolicy", vec(), seed=1, buffer_size=9, device="cpu", **sizes)
    env.seed(5)
    expected = evaluate_policy(agent, env, 4, return_episode_rewards=True)
    found = evaluate_agent(agent, env, 4, 5)
    assert sorted(zip(*found, strict=True)) == sorted(zip(*expected, strict=True))  # there in the order of their ends
    assert len(set(found[0])) == 4


class Counts:
    """A policy with a memory: how many steps its episode has gone on, which it turns into a push."""

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        clock = np.where(episode_start, 0, 0 if state is None else state[0])
        return (0.1 * clock[:, None] - 0.3).astype(np.float32), (clock + 1,)


def test_every_episode_has_its_seed_and_its_own_memory_whatever_is_stepped_together() -> None:
    found = [evaluate_agent(Counts(), vec(rows), 6, 50) for rows in (1, 4, 6)]  # type: ignore[arg-type]
    assert found[0] == found[1] == found[2]
    env = Point()
    for i, total in enumerate(found[0][0]):
        env.reset(seed=50 + i)
        pushes = (np.float32(0.1 * t - 0.3) for t in range(7))
        assert total == pytest.approx(sum(float(env.step([push])[1]) for push in pushes), abs=1e-6)


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([100.0, 1, 2, 3, -50, 4, 5, 6])) == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean(np.array([5.0, 1, 3])) == 3  # a quarter of three is none
    assert interquartile_mean(np.array([9.0, 1, 2, 3, 4])) == 3  # and of five is one
    np.testing.assert_array_equal(interquartile_mean(np.array([[1.0, 2, 3, 10], [0, 0, 4, 8]])), [2.5, 2])


def test_summary_by_hand() -> None:
    result = summarise([1.0, 2.0, 3.0, 10.0], [10, 20, 30, 41])
    assert (result.episodes, result.mean, result.iqm, result.length) == (4, 4.0, 2.5, 25.25)
    assert result.std == pytest.approx(np.sqrt(12.5))
    assert 1 <= result.low <= 2.5 <= result.high <= 10
    assert str(result).startswith("return 4.0 ± 3.5   IQM 2.5 [")
    assert str(result).endswith("] (87 %)   length 25   4 episodes")  # what an interval of four is worth
    assert "(95 %)" in str(summarise(list(range(8)), [1] * 8))


def test_summary_of_one_and_of_none() -> None:
    one = summarise([-3.25], [7])
    assert (one.mean, one.std, one.iqm) == (-3.25, 0, -3.25)
    assert np.isnan([one.low, one.high]).all()
    assert str(one) == "return -3.2   length 7   1 episode"
    with pytest.raises(ValueError, match="no episodes"):
        summarise([], [])


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of 200 samples of 25 normal returns; the percentile bootstrap is a little narrow for so few."""
    rng = np.random.default_rng(0)
    results = [summarise(rng.normal(5, 2, 25).tolist(), [1] * 25, resamples=1000) for _ in range(200)]
    assert all(r.low <= r.iqm <= r.high for r in results)
    assert 0.88 <= np.mean([r.low <= 5 <= r.high for r in results]) <= 0.98
    assert summarise([1.0, 2, 3, 4], [1] * 4) == summarise([1.0, 2, 3, 4], [1] * 4)


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("HalfCheetah-v5", {"camera_name": "track"}),
        ("headway/HalfCheetah-v5@dict@wifi,wifi", {"camera_name": "track"}),
        ("InvertedPendulum-v5", {}),
        ("Pendulum-v1", {}),
    ],
)
def test_films_follow_robots(name: str, camera: dict[str, str]) -> None:
    assert following_camera(World.of(name)) == camera


# -- looking ahead -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with a value of states, for points."""
    import worlds  # noqa: F401

    path = tmp_path_factory.mktemp("judges") / "point.zip"
    PPO("MlpPolicy", "worlds:Point-v0", net_arch=(8,), n_steps=8, batch_size=8, seed=0).save(path)
    return path


def test_searches_are_compared_with_the_policy_alone(headway: Command, judge: Path) -> None:
    searches = ("tree:8,4", "shooting:8,2", "mppi:8,2")
    files = ("--csv", "searches.csv", "--plot", "figures/searches.png")
    code, out, _ = headway("evaluate", judge, "--episodes", 6, "--n-envs", 3, "--search", *searches, *files)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{judge}: PPO after 0 steps, in worlds:Point-v0"
    pattern = rf"(\S.*?) +([\d.]+) simulated   {SUMMARY}s   better (\d+)%"
    shown = [re.fullmatch(pattern, line) for line in lines[1:5]]
    assert all(shown)
    assert [line[1] for line in shown if line] == ["policy alone", *searches]
    spent = [float(line[2]) for line in shown if line]
    assert spent[0] == 0.0
    assert all(5 < steps <= 8 for steps in spent[1:])  # fewer where episodes end in the simulator
    assert shown[0] is not None
    assert shown[0][10] == "50"
    alone = summary(headway("evaluate", judge, "--episodes", 6)[1])
    assert [float(shown[0][i]) for i in range(3, 10)] == alone  # the same episodes
    with Path("searches.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["search"] for row in rows] == ["policy alone", *searches]
    assert float(rows[1]["mean"]) == pytest.approx(float(shown[1][3]), abs=0.05)  # type: ignore[index]
    assert imageio.v3.imread("figures/searches.png").ndim == 3


def test_searches_of_several_policies(headway: Command, judge: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    PPO("MlpPolicy", "worlds:Point-v0", net_arch=(8,), n_steps=8, batch_size=8, seed=1).save(other)
    asked = ("--episodes", 6, "--n-envs", 3, "--search", "tree:8,4")
    code, out, err = headway("evaluate", judge, other, *asked, "--csv", "both.csv")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[1:3] == headway("evaluate", judge, *asked)[1].splitlines()[1:3]
    assert lines[3] == f"{other}: PPO after 0 steps"
    assert lines[4:6] == headway("evaluate", other, *asked)[1].splitlines()[1:3]
    assert lines[6] == "2 policies, of each its mean return:"
    with Path("both.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["search"]) for row in rows] == [
        (str(path), name) for path in (judge, other) for name in ("policy alone", "tree:8,4")
    ]
    for line, name in zip(lines[7:9], ("policy alone", "tree:8,4"), strict=True):
        means = [float(row["mean"]) for row in rows if row["search"] == name]
        better = [float(row["better"]) for row in rows if row["search"] == name]
        found = re.fullmatch(rf"{name} +[\d.]+ simulated   return (\S+) ± .* better (\d+)%", line)
        assert found is not None
        assert float(found[1]) == pytest.approx(np.mean(means), abs=0.051)
        assert float(found[2]) == pytest.approx(100 * np.mean(better), abs=0.51)


def test_policies_of_other_environments_are_not_compared(headway: Command, judge: Path, tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", net_arch=(8,), n_steps=8, batch_size=8, seed=1).save(tmp_path / "other.zip")
    code, _, err = headway("evaluate", judge, tmp_path / "other.zip", "--search", "tree:4")
    assert code == 1
    assert f"other.zip is of CartPole-v1, {judge} of worlds:Point-v0: pass --env" in err
    code, _, err = headway("evaluate", judge, judge)
    assert code == 1
    assert "several policies are compared with --search" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--search", "bush:3"], "'bush' is no planner, it can be tree, shooting, mppi, smc"),
        (["--search", "tree:0,4"], "TreeConfig.simulations must lie in [1, inf), got 0"),
        (["--search", "tree:4", "--video", "a.mp4"], "--search goes without --delays, --video and --reference"),
        (["--plot", "a.png"], "--plot draws the comparison of --delays, --search or --missions, and there are none"),
        (["--explain", "3"], "--explain goes with one --search tree:… and with --plot FILE, which it draws to"),
        (["--explain", "3", "--search", "tree:4"], "--explain goes with one --search tree:… and with --plot FILE"),
    ],
)
def test_searches_that_are_not_begun(headway: Command, judge: Path, flags: list[str], message: str) -> None:
    code, out, err = headway("evaluate", judge, *flags)
    assert (code, out) == (1, "")
    assert message in err


def test_who_has_no_value_cannot_search(headway: Command, tmp_path: Path) -> None:
    DQN("MlpPolicy", "CartPole-v1", net_arch=(8,)).save(tmp_path / "q.zip")
    code, _, err = headway("evaluate", tmp_path / "q.zip", "--search", "tree:4")
    assert code == 1
    assert "DQN has no policy that candidates could be drawn from: a search needs both" in err


def test_a_decision_is_drawn(headway: Command, judge: Path) -> None:
    code, out, err = headway("evaluate", judge, "--search", "tree:12,3", "--explain", 4, "--plot", "figures/one.png")
    assert code == 0, err
    assert out.splitlines()[-1] == "decision: figures/one.png"
    picture = imageio.v3.imread("figures/one.png")
    assert picture.shape[0] > 900  # with the strip of frames
    for flags, message in (
        (("--search", "tree:12,3", "--explain", 7), "--explain 7: the episode of seed 10000 ended after 7 steps"),
        (("--search", "smc:12,3", "--explain", 2), "--explain shows how a tree decided, and smc:12,3 grows none"),
    ):
        code, _, err = headway("evaluate", judge, *flags, "--plot", "other.png")
        assert code == 1
        assert message in err


def test_the_best_line_goes_where_most_visits_went() -> None:
    tree = Tree(TreeConfig(simulations=4), 1, 2, torch.zeros(1), 0.9)
    tree.begin()
    tree.used[:] = 4
    for child, parent, slot, n, q in ((1, 0, 0, 1, 9.0), (2, 0, 1, 3, 1.0), (3, 2, 0, 1, 5.0), (4, 2, 1, 1, 6.0)):
        tree.child[parent, slot], tree.n[parent, slot], tree.q[parent, slot] = child, n, q
    assert best_line(tree) == [0, 2, 4]
