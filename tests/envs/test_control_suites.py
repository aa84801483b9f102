"""DeepMind's control suite and Meta-World, where they are installed: by id, by seed, in batches, what ends and pays."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headway.agents import MBPO
from headway.agents.mbpo.agent import MBPOConfig
from headway.agents.presets import preset, preset_for
from headway.envs import make
from headway.envs.terminations import find_termination, never
from headway.wrappers import as_batched, verify_snapshot
from stable_baselines3.common.vec_env import DummyVecEnv
from support import same_tree

CARTPOLE, SPARSE, WALKER = (f"dm_control/{name}-v0" for name in ("cartpole-swingup", "pendulum-swingup", "walker-walk"))
DRAWER = "metaworld/drawer-open_sparse-v3"
PACKAGES = {"dm_control": "shimmy", "metaworld": "metaworld"}
WIDTHS = {CARTPOLE: 5, SPARSE: 3, WALKER: 24, DRAWER: 39}
TINY: dict[str, Any] = {"net_arch": [8], "batch_size": 20, "buffer_size": 200, "learning_starts": 20, "device": "cpu"}
TINY |= {"model_learning_rate": 1e-6}  # so that fitting stops at once
TINY |= {"n_models": 2, "n_elites": 1, "model_net_arch": [8], "rollouts_per_step": 4, "gradient_steps": 1, "seed": 3}

pytestmark = pytest.mark.filterwarnings("ignore:.*DISPLAY")  # glfw's, which dm_control asks for a screen


def installed(env_id: str) -> str:
    """Skip where an environment's package is absent; :return: the id"""
    pytest.importorskip(PACKAGES[env_id.partition("/")[0]], exc_type=ImportError)
    return env_id


def flat(obs: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([np.ravel(obs[key]) for key in sorted(obs)]) if isinstance(obs, dict) else obs


@pytest.mark.parametrize(("env_id", "module"), [(CARTPOLE, "dm_control"), (DRAWER, "metaworld")])
def test_without_their_packages_they_say_what_to_install(
    env_id: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gymnasium.registry", {})
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"dm_control": "dmc"}.get(module, module)
    with pytest.raises(ValueError, match=rf"pip install 'headway-rl\[{extra}\]'"):
        make(env_id)


@pytest.mark.parametrize("env_id", WIDTHS)
def test_a_seed_decides_where_they_begin(env_id: str) -> None:
    first, second = make(installed(env_id)), make(env_id)
    begins = [flat(env.reset(seed=seed)[0]) for env, seed in ((first, 3), (second, 3), (second, 4))]
    assert begins[0].shape == (WIDTHS[env_id],)
    np.testing.assert_array_equal(begins[0], begins[1])
    assert (begins[1] != begins[2]).any()
    action = first.action_space.sample()
    assert flat(first.step(action)[0]).shape == (WIDTHS[env_id],)


@pytest.mark.parametrize("env_id", WIDTHS)
def test_rows_of_a_batch_step_as_single_environments_do(env_id: str) -> None:
    batch, single = as_batched(DummyVecEnv([lambda: make(installed(env_id))] * 2)), make(env_id)
    batch.reset(seed=5)
    single.reset(seed=6)
    single.action_space.seed(0)
    for _ in range(3):
        action = single.action_space.sample()
        obs, rewards, *_ = batch.step(torch.from_numpy(np.stack([action, action])))
        alone, reward, *_ = single.step(action)
        row = {key: part[1].numpy() for key, part in obs.items()} if isinstance(obs, dict) else obs[1].numpy()
        np.testing.assert_array_equal(flat(row), flat(alone))
        assert rewards[1] == np.float32(reward)


@pytest.mark.parametrize("env_id", WIDTHS)
def test_snapshots_are_exact(env_id: str) -> None:
    """The walker stands on contacts, which dm_control's next step goes on from before it looks for new ones."""
    report = verify_snapshot(installed(env_id))
    assert report.exact, report


@pytest.mark.parametrize("env_id", WIDTHS)
def test_they_never_end(env_id: str) -> None:
    assert find_termination(installed(env_id)) is never
    env = make(env_id)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(500 if "metaworld" in env_id else 1000)]
    assert ends == [(False, False)] * (len(ends) - 1) + [(False, True)]


def test_what_may_end_is_known_or_refused() -> None:
    lqr = find_termination("shimmy:dm_control/lqr-lqr_2_1-v0")
    assert lqr(torch.tensor([[0.0, 0.0, 1e-7, 0.0], [0.0, 0.0, 1e-5, 0.0]])).tolist() == [True, False]
    with pytest.raises(ValueError, match="RodentRunGaps"):
        find_termination("dm_control/RodentRunGaps-v0")


def test_the_suite_shares_a_preset() -> None:
    assert preset_for("mbpo", CARTPOLE) == preset_for("mbpo", f"shimmy:{CARTPOLE}") == "dmc"
    assert preset_for("sac", CARTPOLE) == preset_for("mbpo", DRAWER) == "default"


@pytest.mark.filterwarnings("ignore:Constant")  # the player's, some of whose actions are clipped
def test_meta_world_pays_for_success_or_for_the_way_there() -> None:
    """Told by its own scripted player, which opens the drawer."""
    installed(DRAWER)
    from metaworld.policies import SawyerDrawerOpenV3Policy

    sparse, dense, player = make(DRAWER), make("metaworld/drawer-open-v3"), SawyerDrawerOpenV3Policy()
    obs, _ = sparse.reset(seed=0)
    dense.reset(seed=0)
    rewards, successes, shaped = [], [], []
    while not any(rewards) and len(rewards) < 200:
        action = np.clip(player.get_action(obs), -1, 1).astype(np.float32)
        obs, reward, _, _, info = sparse.step(action)
        rewards.append(reward)
        successes.append(info["success"])
        shaped.append(dense.step(action)[1])
    assert rewards == successes == [0.0] * (len(rewards) - 1) + [1.0]
    assert 0 < shaped[0] < shaped[-1] <= 10


@pytest.mark.parametrize("env_id", [CARTPOLE, DRAWER])
def test_stopping_and_resuming_is_exact(env_id: str, tmp_path: Path) -> None:
    policy = "MultiInputPolicy" if env_id == CARTPOLE else "MlpPolicy"

    def agent() -> MBPO:
        hyper = preset("mbpo", "dmc", MBPOConfig) | TINY
        return MBPO(policy, make(installed(env_id)), **hyper)

    whole, first = agent(), agent()
    whole.learn(30)
    first.learn(23)
    first.save_checkpoint(tmp_path)
    second = MBPO.resume(tmp_path, make(env_id))
    second.learn(7, reset_num_timesteps=False)
    assert whole.config.scale_targets
    same_tree(second.get_parameters(), whole.get_parameters())
    rows = whole.store.at(torch.arange(30)), second.store.at(torch.arange(30))
    for name in ("obs", "actions", "rewards", "next_obs"):
        torch.testing.assert_close(*(getattr(batch, name) for batch in rows), rtol=0, atol=0)
