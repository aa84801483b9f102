"""Policies, checkpoints, experience that somebody forged: one line, soon, in little memory, or nothing impossible."""

import contextlib
import functools
import re
import tempfile
from collections.abc import Callable
from copy import deepcopy
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


@pytest.mark.parametrize("world", WORLDS)
def test_what_nobody_has_forged_is_read(world: str, tmp_path: Path) -> None:
    own = files(world)
    for name, archive in (("policy.zip", own.policy), ("checkpoint-000000000045.zip", own.checkpoint)):
        write_archive(tmp_path / name, archive.manifest, archive.members)
    check_agent(agents.load(tmp_path / "policy.zip", device="cpu"))
    check_resumed(own.cls.resume(tmp_path, own.env(), device="cpu"))


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


# ---- one by one: files of a few kilobytes that would fill the memory, run for hours, or be silently wrong ------------


def forged(folder: Path, world: str, edit: Callable[[dict[str, Any]], object], tensors: Any = None) -> Path:
    archive = files(world).policy
    manifest = deepcopy(archive.manifest)
    edit(manifest)
    networks = archive.members["networks"]
    networks = networks if tensors is None else {name: tensors(tensor) for name, tensor in networks.items()}
    write_archive(folder / "forged.zip", manifest, archive.members | {"networks": networks})
    return folder / "forged.zip"


LARGE: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "rows": ("TD3", lambda m: m.update(n_envs=10**12), r"\['n_envs'\] must be a whole number"),
    "observations": (
        "TD3",
        lambda m: m["observation_space"].update(shape=[10**9], low=-1, high=1),
        "more numbers than",
    ),
    "half as many": ("TD3", lambda m: m["observation_space"].update(shape=[10**6], low=-1, high=1), "own content"),
    "wrapping around": (
        "TD3",
        lambda m: m.update(observation_space={"type": "MultiBinary", "n": [2**39, 2**39]}),
        "more numbers than",
    ),
    "choices": (
        "TD3",
        lambda m: m.update(observation_space={"type": "Discrete", "n": 2**40, "start": 0, "dtype": "int64"}),
        "more numbers than",
    ),
    "choices of several": (
        "PPO, several",
        lambda m: m["action_space"].update(nvec=[10**12, 2]),
        "more numbers than",
    ),
    "wide layers": ("TD3", lambda m: m["config"].update(net_arch=[30_000, 30_000]), "own content"),
    "many layers": ("TD3", lambda m: m["config"].update(net_arch=[1] * 50_000), "own content"),
    "many wide layers": ("TD3", lambda m: m["config"].update(net_arch=[1000] * 100), "own content"),
    "critics": ("TD3", lambda m: m["config"].update(n_critics=10**9), "own content"),
    "rows of a store": ("TD3", lambda m: m["config"].update(buffer_size=10**13), "this machine has"),
    "a name": ("TD3", lambda m: m.update({"class": "x" * 10**6}), "not known here"),
    "a field's name": ("TD3", lambda m: m["config"].update({"x" * 10**6: 1}), "has no field"),
    "nested": ("TD3", lambda m: m.update(env_spec="[" * 10**6), "no spec of an environment"),
}


@pytest.mark.parametrize("what", LARGE)
def test_sizes_are_held_against_what_the_file_holds(what: str, tmp_path: Path) -> None:
    world, edit, message = LARGE[what]
    place = forged(tmp_path, world, edit)
    outcome, told = attempt(lambda: agents.load(place, device="cpu"), check_agent, FileFormatError)
    assert outcome == "refused", told
    assert re.search(message, told), told


def test_what_an_agent_would_store_takes_no_memory_until_it_stores(tmp_path: Path) -> None:
    for world, config in (("TD3", {"buffer_size": 10**8}), ("PPO, several", {"n_steps": 10**7, "batch_size": 8})):
        place = forged(tmp_path, world, lambda m, config=config: m["config"].update(config))  # type: ignore[misc]
        outcome, told = attempt(lambda place=place: agents.load(place, device="cpu"), check_agent, FileFormatError)  # type: ignore[misc]
        assert outcome == "accepted", told


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], Any, str]] = {
    "whole weights": (lambda m: None, lambda t: t.long(), "holds torch.int64, this agent's torch.float32"),
    "flags as weights": (lambda m: None, lambda t: t.bool(), "holds torch.bool"),
    "double weights": (lambda m: None, lambda t: t.double(), "holds torch.float64"),
    "no numbers": (lambda m: None, lambda t: t * torch.nan, "holds NaN or infinity"),
    "negative moments": (lambda m: None, lambda t: -t.abs(), "exp_avg_sq' must lie from 0|step' must lie from 0"),
    "steps in words": (lambda m: m.update(num_timesteps="a"), None, r"\['num_timesteps'\] must be a whole number"),
    "negative updates": (lambda m: m.update(n_updates=-1), None, r"\['n_updates'\]"),
    "a seed beyond": (lambda m: m.update(seed=2**32), None, r"\['seed'\]"),
    "endless actions": (lambda m: m["action_space"].update(low="-inf"), None, "finite bounds"),
    "bounds that cross": (lambda m: m["action_space"].update(low=9.0), None, "the low ones not above the high ones"),
    "no bounds": (lambda m: m["observation_space"].update(low="nan"), None, "the low ones not above the high ones"),
    "a foreign dtype": (lambda m: m["observation_space"].update(dtype="object"), None, "must be one of bool, int8"),
    "no config": (lambda m: m.pop("config"), None, "lacks 'config'"),
    "versions": (lambda m: m.update(versions=[1]), None, "names and values"),
}


@pytest.mark.parametrize("what", WRONG)
def test_impossible_values_are_refused_by_name(what: str, tmp_path: Path) -> None:
    edit, tensors, message = WRONG[what]
    with pytest.raises(FileFormatError, match=message):
        agents.load(forged(tmp_path, "TD3", edit, tensors), device="cpu")


def resume_forged(folder: Path, world: str, part: str, edit: Callable[[Any], Any]) -> Any:
    own = files(world)
    manifest, members = deepcopy(own.checkpoint.manifest), dict(own.checkpoint.members)
    tree, members[part] = pack(edit(unpack(manifest["parts"][part], members[part])))
    manifest["parts"][part] = tree
    write_archive(folder / "checkpoint-000000000045.zip", manifest, members)
    return own.cls.resume(folder, own.env(), device="cpu")


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    owner = tree
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return tree


PARTS: dict[str, tuple[str, str, tuple[Any, ...], Any, str]] = {
    "counters": ("TD3", "counters", ("updates",), -5, "whole number"),
    "pending": ("TD3", "counters", ("pending",), [["update", 0]], "from 1"),
    "collector": ("TD3", "collector", ("steps",), 10**9, "from 0 to 1"),
    "metrics": ("TD3", "metrics", ("counts",), {}, "a count for each sum"),
    "generators": ("TD3", "generators", ("update",), torch.zeros(5056, dtype=torch.uint8), "damaged"),
    "episodes": ("SAC, normalised", "episodes", ("infos",), [{"r": "a", "l": 1}], "number"),
    "variance": ("SAC, normalised", "normalizer", ("ret_rms", "var"), np.array(-1.0), "from 0"),
    "clip": ("SAC, normalised", "normalizer", ("clip_obs",), "a", "number over 0"),
    "statistics": ("SAC, normalised", "normalizer", ("obs_rms", "mean"), np.zeros(5), "shape"),
    "actions": ("DQN, tokens", "store", ("data.actions",), None, "data.actions"),
    "order": ("PPO, several", "epoch", ("order",), torch.tensor([10**9]), "must lie from 0 to 31"),
    "rollout": ("PPO, several", "rollout", ("steps",), 17, "from 0 to 16"),
    "shown": ("TD3", "environment", ("obs",), torch.zeros(2, 3), "shape"),
    "delays": ("DCAC", "store", ("data.ages",), None, "data.ages"),
}


@pytest.mark.parametrize("what", PARTS)
def test_parts_of_a_checkpoint_are_checked(what: str, tmp_path: Path) -> None:
    world, part, path, value, message = PARTS[what]

    def edit(state: Any) -> Any:
        # None: the same tensor with a number beyond its choices
        return put(dict(state), path, torch.full_like(state[path[0]], 99) if value is None else value)

    with pytest.raises(FileFormatError, match=message):
        resume_forged(tmp_path, world, part, edit)
    assert check_resumed(resume_forged(tmp_path, world, part, lambda state: state)) is None  # unforged
