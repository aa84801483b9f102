"""``headway collect``: who records, how likely each action was, references, provenance, mistakes."""

import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import stable_baselines3
import torch
from conftest import Command
from headway.agents import BC, PPO, SAC, TD3
from headway.agents.core.data import Dataset, load_dataset
from headway.agents.core.data.dataset_files import datasets_root, find_datasets
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.distributions import Normal
from toys import Point, recorded, vec

POINT = ("--env", "worlds:Point-v0", "--no-progress", "--n-envs", 4, "--dataset", "toys/x-v0")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    monkeypatch.syspath_prepend(tmp_path)


def collected(headway: Command, *arguments: object, steps: int = 40, name: str = "toys/x-v0") -> Dataset:
    code, _, err = headway("collect", *POINT, "--steps", steps, *arguments, "--dataset", name)  # the last ones count
    assert (code, err) == (0, "")
    return load_dataset(name)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies for points, as the command line saves them."""
    import worlds  # noqa: F401

    folder = tmp_path_factory.mktemp("policies")
    for cls in (SAC, PPO, TD3):
        cls("MlpPolicy", "worlds:Point-v0", net_arch=(8,), seed=0).save(folder / f"{cls.__name__}.zip")
    SAC("MlpPolicy", "Pendulum-v1", net_arch=(8,), seed=0).save(folder / "pendulum.zip")
    return folder


def test_random_actions_are_uniform_and_say_so(headway: Command) -> None:
    data = collected(headway, "--policy", "random", steps=3000)
    assert 3000 <= len(data) < 3007
    assert data.env_id == "worlds:Point-v0"
    torch.testing.assert_close(data.extras["behavior_logp"], torch.full((len(data),), -np.log(2.0)), rtol=1e-6, atol=0)
    assert data.extras["policy_id"].tolist() == [0] * len(data)
    assert -0.999 > data.actions.min() >= -1  # 3000 draws miss the last 0.05 % once in five
    assert abs(float(data.actions.mean())) < 4 * 0.58 / np.sqrt(3000)
    assert minari.load_dataset("toys/x-v0").recover_environment().spec.id == "Point-v0"


@pytest.mark.parametrize(("env", "density"), [("worlds:Halves-v0", -np.log(5)), ("Pendulum-v1", -np.log(4))])
def test_densities_are_in_the_unit_of_the_action_space(headway: Command, env: str, density: float) -> None:
    data = collected(headway, "--policy", "random", "--env", env)
    np.testing.assert_allclose(data.extras["behavior_logp"], density, rtol=1e-6)


def test_densities_of_sac_are_those_of_its_distribution(headway: Command, policies: Path) -> None:
    data = collected(headway, "--policy", policies / "pendulum.zip", "--env", "Pendulum-v1")
    mean, log_std = SAC.load(policies / "pendulum.zip").actor.module.head(data.obs).detach().double().chunk(2, 1)
    squashed = data.actions.double() / 2
    inner = Normal(mean, log_std.exp()).log_prob(squashed.atanh())
    expected = (inner - (1 - squashed.square()).log() - np.log(2)).sum(1)
    inside = squashed.abs().squeeze(1) < 0.99  # nearer to 1, float32 does not hold what was drawn
    torch.testing.assert_close(data.extras["behavior_logp"].double()[inside], expected[inside], rtol=0, atol=1e-3)


def test_densities_of_ppo_are_those_before_clipping(headway: Command, policies: Path) -> None:
    data = collected(headway, "--policy", policies / "PPO.zip", steps=100)
    nets = PPO.load(policies / "PPO.zip").nets.module
    expected = nets.policy.evaluate(nets(data.obs)[0], data.actions)[0].detach()
    clipped = data.actions.abs().squeeze(1) == 1
    assert 0 < int(clipped.sum()) < len(data) / 2
    logp = data.extras["behavior_logp"]
    torch.testing.assert_close(logp[~clipped], expected[~clipped], rtol=0, atol=1e-5)
    assert (logp[clipped] < expected[clipped]).all()  # what was drawn lay farther out


@pytest.mark.parametrize("moves", ["box", "discrete"])
def test_densities_of_what_was_learnt_from_data(headway: Command, tmp_path: Path, moves: str) -> None:
    BC("MlpPolicy", dataset=recorded(moves=moves), net_arch=(8,), seed=0).save(tmp_path / "bc.zip")
    env = ("--env", "worlds:Halves-v0" if moves == "discrete" else "worlds:Point-v0")
    data = collected(headway, "--policy", tmp_path / "bc.zip", *env, steps=100)
    expected = BC.load(tmp_path / "bc.zip").actor.module.log_prob(data.obs, data.actions).detach()
    inside = torch.ones(len(data), dtype=torch.bool) if moves == "discrete" else data.actions.abs().squeeze(1) < 1
    assert inside.sum() > 30
    torch.testing.assert_close(data.extras["behavior_logp"][inside], expected[inside], rtol=0, atol=1e-5)


def test_modes_have_no_density(headway: Command, policies: Path) -> None:
    data = collected(headway, "--policy", policies / "SAC.zip", "--deterministic")
    assert [*data.extras] == ["policy_id"]
    expected, _ = SAC.load(policies / "SAC.zip").predict(data.obs.numpy(), deterministic=True)  # type: ignore[union-attr]
    np.testing.assert_allclose(data.actions, expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["random", "SAC.zip", "PPO.zip"])
def test_equal_seeds_give_equal_data(headway: Command, policies: Path, policy: str) -> None:
    who = policy if policy == "random" else policies / policy
    one = collected(headway, "--policy", who)
    for name, seed, alike in (("toys/y-v0", 0, True), ("toys/z-v0", 1, False)):
        other = collected(headway, "--policy", who, "--seed", seed, name=name)
        assert torch.equal(one.actions, other.actions) == alike
        assert torch.equal(one.rewards, other.rewards) == alike


def test_mixtures_say_who_chose(headway: Command, policies: Path) -> None:
    mix = ("--policy", "random", "--policy", policies / "SAC.zip", "--shares", 1, 3)
    data = collected(headway, *mix, steps=400)
    ids = data.extras["policy_id"]
    assert 100 <= int((ids == 0).sum()) < 107
    assert 300 <= int((ids == 1).sum()) < 307
    assert "behavior_logp" in data.extras
    said = data.about["collected"]["policies"]
    assert [(one["id"], one["policy"].split(",")[0], one["steps"]) for one in said] == [
        (0, "random", int((ids == 0).sum())),
        (1, "SAC after 0 steps", int((ids == 1).sum())),
    ]
    other = collected(headway, *mix[:4], "--policy", policies / "TD3.zip", name="toys/y-v0")
    assert [*other.extras] == ["policy_id"]  # TD3 has no density


def test_a_script_acts(headway: Command, tmp_path: Path) -> None:
    functions = {"go": "-3 * obs", "odd": "obs[:1]", "sick": "obs * float('nan')"}
    source = "".join(f"def {name}(obs):\n    return {returned}\n" for name, returned in functions.items())
    (tmp_path / "home.py").write_text(source)
    data = collected(headway, "--policy", "home:go")
    assert torch.equal(data.actions, (-3 * data.obs).clamp(-1, 1))  # type: ignore[operator]
    assert data.about["collected"]["policies"][0]["policy"] == "home:go"
    other = (*POINT[:-1], "toys/y-v0")
    assert (
        "home:odd returned actions of shape (1, 1), 4 rows need (4, 1)"
        in headway("collect", "--policy", "home:odd", *other)[2]
    )
    assert "has no function 'gone'" in headway("collect", "--policy", "home:gone", *other)[2]
    assert "nowhere cannot be imported" in headway("collect", "--policy", "nowhere:go", *other)[2]


def test_what_a_normalised_policy_saw_is_not_what_is_recorded(headway: Command, tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Monitor(Point())]))
    SAC("MlpPolicy", env, net_arch=(8,), seed=0, learning_starts=50).learn(40).save(tmp_path / "n.zip")
    env.obs_rms.mean += 5  # type: ignore[operator, union-attr]
    data = collected(headway, "--policy", tmp_path / "n.zip")
    assert data.obs.abs().max() <= 3  # type: ignore[union-attr]
    assert data.observation_space == Point().observation_space


def test_references_are_measured_or_given(headway: Command, policies: Path) -> None:
    references = ("--steps", 20, "--ref-min", "random", "--ref-max", policies / "SAC.zip")
    code, out, _ = headway("collect", "--policy", "random", *POINT, *references)
    assert code == 0
    assert "reference min: " in out
    data = load_dataset("toys/x-v0")
    said = data.about["collected"]["references"]
    assert data.ref_min_score == said["min"]["mean"]
    assert data.ref_max_score == said["max"]["mean"]
    assert said["min"]["episodes"] == data.about["num_episodes_average_score"] == 100
    assert said["max"]["policy"].startswith("SAC after 0 steps")
    given = collected(headway, "--policy", "random", "--ref-min", -3, "--ref-max", "0.5", name="toys/y-v0")
    assert (given.ref_min_score, given.ref_max_score) == (-3, 0.5)
    assert minari.get_normalized_score(minari.load_dataset("toys/y-v0"), np.array(-3.0)) == 0


def test_the_store_of_a_run(headway: Command, tmp_path: Path) -> None:
    """A ring of 50 steps, in which episodes of up to seven have been overwritten."""
    agent = SAC("MlpPolicy", vec(2), net_arch=(8,), seed=0, buffer_size=50, learning_starts=200)
    agent.learn(120)
    agent.save_checkpoint(tmp_path / "run/checkpoints")
    data = collected(headway, "--replay", tmp_path / "run")
    assert 30 <= len(data) < 50
    stored = {tuple(row) for row in agent.store.sample(500).obs.tolist()}
    assert {tuple(row) for row in data.obs.tolist()} <= stored  # type: ignore[union-attr]
    assert isinstance(data.next_obs, torch.Tensor)
    torch.testing.assert_close(data.next_obs, (data.obs + data.actions).clamp(-3, 3))  # type: ignore[operator]
    PPO("MlpPolicy", vec(1), net_arch=(8,), n_steps=8).save_checkpoint(tmp_path / "ppo")
    other = (*POINT[:-1], "toys/y-v0")
    assert "is of PPO, which keeps no replay store" in headway("collect", "--replay", tmp_path / "ppo", *other)[2]
    assert "has no checkpoint" in headway("collect", "--replay", tmp_path, *other)[2]


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_other_formats(headway: Command, data_format: str) -> None:
    collected(headway, "--policy", "random", "--data-format", data_format)
    assert [*(find_datasets()["toys/x-v0"] / "data/0").glob(f"*.{data_format}")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "who acts? pass --policy random"),
        (("--policy", "random", "--replay", "x"), "and not both"),
        (("--policy", "random", "--shares", 1, 2), "--shares has 2 numbers for 1 times --policy"),
        (("--policy", "random", "--shares", -1), "--shares must be positive numbers, got -1.0"),
        (("--policy", "random", "--policy", "random", "--shares", 1, 1e9), "--shares leave no step for random"),
        (("--policy", "random", "--dataset", "x"), "is no id of a data set"),
        (("--policy", "random", "--env", "Nowhere-v0"), "there is no environment 'Nowhere-v0'"),
        (("--policy", "gone.zip"), "there is no policy at gone"),
        (("--policy", "random", "--policy", "random", "--agent", "sb3:PPO"), "--agent says the class of one --policy"),
        (("--policy", "random", "--env", "worlds:InfiniteReward-v0"), "rewards are not finite at episode"),
        (("--policy", "random", "--steps", 0), "--steps"),
    ],
)
def test_mistakes_leave_nothing(headway: Command, arguments: tuple[Any, ...], message: str) -> None:
    code, _, err = headway("collect", *POINT, *arguments)
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1
    assert not [path for path in datasets_root().rglob("*") if path.is_file()]


def test_no_environment(headway: Command) -> None:
    assert "pass --env Id-v0" in headway("collect", "--policy", "random", "--dataset", "toys/x-v0")[2]


def test_another_policys_environment(headway: Command, policies: Path) -> None:
    assert "observation space" in headway("collect", "--policy", policies / "pendulum.zip", *POINT)[2]


def test_an_id_that_exists_is_refused_before_anything_is_recorded(headway: Command) -> None:
    collected(headway, "--policy", "random")
    code, out, err = headway("collect", "--policy", "random", *POINT, "--ref-min", "random")
    assert (code, out) == (1, "")
    assert "there is a data set toys/x-v0 already" in err


def test_what_is_missing_is_said_before_anything_is_recorded(headway: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    long = ("collect", "--policy", "random", *POINT, "--steps", 10**9)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert "MB to spare: make room" in headway(*long)[2]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = "data sets need pyarrow: pip install 'headway-rl[offline]'"
    assert message in headway(*long, "--data-format", "arrow")[2]


def test_a_policy_of_stable_baselines3(headway: Command, tmp_path: Path) -> None:
    stable_baselines3.PPO("MlpPolicy", Point(), n_steps=8, batch_size=8, seed=0).save(tmp_path / "ppo.zip")
    data = collected(headway, "--policy", tmp_path / "ppo.zip", "--agent", "sb3:PPO")
    again = collected(headway, "--policy", tmp_path / "ppo.zip", "--agent", "sb3:PPO", name="toys/y-v0")
    assert [*data.extras] == ["policy_id"]
    assert torch.equal(data.actions, again.actions)
    assert len(data.actions.unique()) > 20  # samples


def test_ctrl_c_leaves_nothing(headway: Command) -> None:
    timer = threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    code, _, err = headway("collect", "--policy", "random", *POINT, "--steps", 10**6)  # some 30 s
    timer.cancel()
    assert (code, err) == (130, "headway: interrupted\n")
    assert not [path for path in datasets_root().rglob("*") if path.is_file()]
