"""Policies, checkpoints, experience that somebody forged: one line, soon, in little memory, or nothing impossible."""

import contextlib
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from forging import Forger, attempt, report
from headway import agents
from headway.agents import DCAC, DQN, PPO, SAC, TD3, FileFormatError
from headway.agents.core.files import pack, read_archive, unpack, write_archive
from headway.envs import make_batched
from headway.wrappers import BatchedVecEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import DelayedPoint, vec

SMALL: dict[str, Any] = {"seed": 0, "device": "cpu", "net_arch": [4]}
OFF: dict[str, Any] = SMALL | {"buffer_size": 60, "learning_starts": 10, "batch_size": 4}

WORLDS: dict[str, tuple[Any, Callable[[], Any], dict[str, Any]]] = {
    "SAC, normalised": (SAC, lambda: VecNormalize(vec(2)), OFF),
    "TD3": (TD3, lambda: DummyVecEnv([lambda: gym.make("Pendulum-v1")]), OFF),
    "DQN, tokens": (DQN, lambda: vec(form="tokens", moves="discrete"), OFF),
    "PPO, several": (PPO, lambda: vec(2, form="dict", moves="multidiscrete"), SMALL | {"n_steps": 16, "batch_size": 8}),
    "DCAC": (DCAC, lambda: DummyVecEnv([DelayedPoint]), OFF),
    "SAC, a batch": (SAC, lambda: BatchedVecEnv(make_batched("headway/InvertedPendulum-v5", 2, num_threads=1)), OFF),
}

NAMED = ("TD3", "SAC, a batch")
"""Those whose files say how to make their environment."""


@dataclass(frozen=True)
class Files:
    """What one agent has written.

    :param cls: its class
    :param env: makes its environment
    :param policy: a file
    :param checkpoint: a file
    :param store: a file; None: it keeps none
    """

    cls: Any
    env: Callable[[], Any]
    policy: Any
    checkpoint: Any
    store: Any


@functools.cache
def files(world: str) -> Files:
    cls, env, _ = WORLDS[world]
    agent = blank(world)
    agent.learn(45 if cls is not PPO else 40)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agent.save(folder / "policy.zip")
        checkpoint = agent.save_checkpoint(folder)
        if hasattr(agent, "store"):
            agent.save_replay_buffer(folder / "store.zip")
        names = ("policy.zip", checkpoint.name, "store.zip")
        return Files(cls, env, *(read_archive(folder / n) if (folder / n).exists() else None for n in names))


def check_agent(agent: Any) -> None:
    """What holds of every agent that a file can describe."""
    for name, tensor in agent.modules.state().items():
        assert tensor.isfinite().all(), name
        assert "exp_avg_sq" not in name or (tensor >= 0).all(), name
    for name in ("num_timesteps", "_n_updates", "_episode_num", "n_envs"):
        assert type(getattr(agent, name)) is int, name
        assert getattr(agent, name) >= 0, name
    agent.config.from_dict(agent.config.to_dict())
    space = agent.action_space
    assert not isinstance(space, gym.spaces.Box) or np.isfinite([space.low, space.high]).all() or not agent.squashes
    for generator in agent.generators.values():
        assert torch.randn(700, generator=generator).isfinite().all()


def check_resumed(agent: Any) -> None:
    check_agent(agent)
    assert all(type(count) is int and count > 0 for _, count in agent._pending)
    if agent.normalizer is not None:
        normaliser = agent.get_vec_normalize_env()
        for moments in (normaliser.obs_rms, normaliser.ret_rms):
            assert np.isfinite(moments.mean).all()
            assert (moments.var >= 0).all()
            assert moments.count > 0
    if hasattr(agent, "store"):
        check_store(agent)
    if hasattr(agent, "rollout"):
        assert 0 <= agent.rollout.steps <= agent.rollout.n_steps
        assert all(agent.rollout[name].isfinite().all() for name in agent.rollout.fields)


def check_store(agent: Any) -> None:
    state = agent.store.state()
    assert len(agent.store) <= agent.store.capacity_per_env * agent.n_envs
    for name, rows in state.items():
        assert not name.startswith("data.") or rows.isfinite().all(), name
    if agent.action_space.__class__ is gym.spaces.Discrete:
        assert ((state["data.actions"] >= 0) & (state["data.actions"] < agent.action_space.n)).all()
    if len(agent.store):
        agent.store.sample(50)


def forge(case: int, folder: Path) -> tuple[str, str]:
    """Forge and read one file; :return: how it came out."""
    forger = Forger(case)
    world = forger.rng.choice(list(WORLDS))
    own = files(world)
    kinds = ["policy", "checkpoint", "checkpoint"] + ["store"] * (own.store is not None)
    kind = forger.rng.choice(kinds)
    archive = getattr(own, kind)
    manifest, members = dict(archive.manifest), dict(archive.members)
    for _ in range(forger.rng.choice([1, 1, 2, 3])):
        with contextlib.suppress(Exception):  # an earlier change may have left nothing to change there
            change(forger, manifest, members)
    place = folder / ("checkpoint-000000000045.zip" if kind == "checkpoint" else "file.zip")
    try:
        with place.open("wb") as file:  # given a path, it would wait for the disk
            write_archive(file, manifest, members)
    except (ValueError, TypeError) as error:
        return "refused", f"no file can hold it: {error}"
    if kind == "policy":
        return attempt(lambda: agents.load(place, device="cpu"), check_agent, FileFormatError)
    if kind == "store":
        agent = blank(world)
        return attempt(lambda: agent.load_replay_buffer(place), lambda _: check_store(agent), FileFormatError)
    env = None if world in NAMED and forger.rng.random() < 0.5 else own.env()
    read = functools.partial(own.cls.resume, folder, env, device="cpu")
    return attempt(read, check_resumed, ValueError)  # an environment may not fit what the file says of it


def change(forger: Forger, manifest: dict[str, Any], members: dict[str, Any]) -> None:
    """Change one thing in what a file holds."""
    packed = {**manifest.get("parts", {}), "normalizer": manifest.get("normalizer")}
    packed = {name: tree for name, tree in packed.items() if tree is not None}
    way = forger.rng.choice(["part", "part", "part", "description", "description", "networks", "anything", "member"])
    if way == "part" and packed:
        name = forger.rng.choice(sorted(packed))
        tree, tensors = pack(forger.tree(unpack(packed[name], members[name])))
        members[name] = tensors
        if name in manifest.get("parts", {}):
            manifest["parts"] = {**manifest["parts"], name: tree}
        else:
            manifest[name] = tree
    elif way in ("networks", "member") and (way in members or way == "member"):
        name = forger.rng.choice(sorted(name for name in members if members[name])) if way == "member" else way
        members[name] = forger.tensors(members[name])
    elif way == "anything":
        changed = forger.tree(manifest)
        manifest.clear()
        manifest.update(changed)
    else:
        described = {name: value for name, value in manifest.items() if name not in ("parts", "normalizer")}
        changed = forger.tree(described)
        for name in described.keys() - changed.keys():
            del manifest[name]
        manifest.update(changed)


def blank(world: str) -> Any:
    cls, make_env, options = WORLDS[world]
    env = make_env()
    policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
    return cls(policy, env, **options)


def forge_all(cases: range, folder: Path) -> None:
    outcomes = {str(case): forge(case, folder) for case in cases}
    kinds = {kind for kind, _ in outcomes.values()}
    text = report(outcomes)
    print(text)
    assert kinds == {"refused", "accepted"}, text


@pytest.mark.parametrize("share", range(5))
def test_five_hundred_forged_files(share: int, tmp_path: Path) -> None:
    forge_all(range(100 * share, 100 * (share + 1)), tmp_path)


@pytest.mark.slow
def test_ten_thousand_forged_files(tmp_path: Path) -> None:
    forge_all(range(10_000), tmp_path)
