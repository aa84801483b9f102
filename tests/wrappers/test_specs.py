"""Environments named by their specs: what comes back is what was saved, and a file runs no code of its choice."""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from headway.agents import SAC
from headway.agents.core.files import archive
from headway.envs import make, make_batched
from headway.scripts.worlds import World
from headway.wrappers import BatchedVecEnv, RandomDelay, Snapshot
from headway.wrappers.specs import make_spec, named, not_imported, spec_from_json, spec_of, spec_to_json
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import Point

gym.register("SpecPoint-v0", Point, max_episode_steps=5)
gym.register("ns/SpecPoint-v0", Point)

LAWS = ("uniform:0-2", "constant:1")


def wrapped() -> Any:
    return gym.wrappers.RescaleAction(gym.make("SpecPoint-v0"), np.float32(-0.5), np.float32(0.5))


SINGLE: dict[str, Callable[[], Any]] = {
    "an id": lambda: gym.make("SpecPoint-v0"),
    "keywords": lambda: gym.make("SpecPoint-v0", length=3),
    "another limit": lambda: gym.make("SpecPoint-v0", max_episode_steps=2),
    "no limit": lambda: gym.make("SpecPoint-v0", max_episode_steps=-1, length=9),
    "a task": lambda: gym.make("headway/InvertedPendulum-v5", reset_noise_scale=0.5),
    "a wrapper": lambda: gym.wrappers.TimeAwareObservation(gym.make("SpecPoint-v0")),
    "delays": lambda: RandomDelay(gym.make("SpecPoint-v0"), *LAWS, form="flat"),
    "delays by id": lambda: gym.make(
        "headway/Delayed-v0",
        env_id="SpecPoint-v0",
        initial_action=[0.5],
        observation_delay=LAWS[0],
        action_delay=LAWS[1],
    ),
    "delays around a wrapper": lambda: RandomDelay(gym.wrappers.TimeAwareObservation(gym.make("SpecPoint-v0")), *LAWS),
}


def story(env: Any, steps: int = 30) -> list[Any]:
    """What an environment does under the same seed and actions."""
    rng, told = np.random.default_rng(0), [env.reset(seed=3)[0]]
    for _ in range(steps):
        action = rng.uniform(-0.3, 0.3, 1).astype(np.float32)
        *step, _ = env.step(action)
        told.append(step)
        if step[2] or step[3]:
            told.append(env.reset()[0])
    return told


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(np.array_equal(one, two))


def round_trip(spec: EnvSpec | None) -> EnvSpec:
    text = spec_to_json(spec)
    assert text is not None
    return spec_from_json(text)


@pytest.mark.parametrize("kind", SINGLE)
def test_what_comes_back_does_the_same(kind: str) -> None:
    build = SINGLE[kind]
    spec = spec_of(DummyVecEnv([lambda: Snapshot(Monitor(build()))]))
    saved = round_trip(spec)
    assert not_imported(saved) is None
    again = make_spec(saved)
    assert again.observation_space == build().observation_space
    assert same(story(again), story(build()))
    assert same(story(World.of_spec(saved).single()), story(build()))  # as headway evaluate makes it
    assert round_trip(spec_of(DummyVecEnv([lambda: make_spec(saved)]))) == saved  # type: ignore[list-item,return-value]


@pytest.mark.parametrize("delayed", [False, True])
def test_batches_come_back_as_batches(delayed: bool) -> None:
    def build(rows: int) -> Any:
        if not delayed:
            return make_batched("headway/InvertedPendulum-v5", rows, num_threads=1, reset_noise_scale=0.3)
        laws: Any = {"observation_delay": "wifi", "action_delay": "constant:1", "form": "flat"}
        return gym.make_vec("headway/Delayed-v0", rows, env_id="headway/InvertedPendulum-v5", device="cpu", **laws)

    saved = round_trip(spec_of(BatchedVecEnv(build(2))))
    envs = [make_spec(saved, 3), build(3), World.of_spec(saved).batch(3, threads=1)]
    obs = [env.reset(seed=1)[0] for env in envs]  # type: ignore[arg-type]
    for _ in range(40):
        assert torch.equal(obs[0], obs[1])
        assert torch.equal(obs[0], obs[2])
        obs = [env.step(torch.full((3, 1), 0.3))[0] for env in envs]  # type: ignore[arg-type]


@pytest.mark.parametrize("maker", [functools.partial(Point, length=3), lambda **how: Point(length=3, **how)])
def test_makers_without_a_name_are_found_by_their_id(maker: Any) -> None:
    gym.registry.pop("Partial-v0", None)
    gym.register("Partial-v0", maker, max_episode_steps=9)
    saved = round_trip(gym.make("Partial-v0", max_episode_steps=2).spec)
    again = make_spec(saved)
    assert again.unwrapped.length == 3  # type: ignore[attr-defined]
    assert again.spec is not None
    assert again.spec.max_episode_steps == 2


def test_modules_in_front_of_ids_are_kept() -> None:
    gym.register("Named-v0", Point)
    gym.register("ns/Named-v0", Point)
    for name in (
        "toys:Named-v0",
        "headway.wrappers:ns/Named-v0",
    ):  # the second is no id that Gymnasium's specs can have
        for env in (
            make(name),
            gym.make("headway/Delayed-v0", env_id=name, observation_delay="wifi", action_delay="wifi"),
        ):
            spec = spec_of(DummyVecEnv([lambda env=env: env]))  # type: ignore[misc]
            assert round_trip(spec).id == name
    agent = SAC("MlpPolicy", "toys:Named-v0", net_arch=(8,), buffer_size=9)
    assert agent.env_id == "toys:Named-v0"


def test_what_has_no_spec_has_none() -> None:
    class Tells(gym.Wrapper[Any, Any, Any, Any]):
        """A wrapper that does not tell its keywords."""

    for build in (lambda: Point(), lambda: Tells(gym.make("SpecPoint-v0"))):
        assert spec_of(DummyVecEnv([build])) is None
    odd = spec_of(DummyVecEnv([lambda: gym.make("SpecPoint-v0", length=np.int64(3))]))
    assert odd is not None
    assert spec_to_json(odd) is None is spec_to_json(None)
    for text in ("", "[]", "{}", '{"id": 3}', '{"id": "A-v0", "more": 1}'):
        with pytest.raises(ValueError, match="this is no spec of an environment"):
            spec_from_json(text)


# ---- agents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keywords", "delays", "delays by id", "delays around a wrapper"])
def test_an_agent_resumes_in_the_environment_that_it_was_saved_in(kind: str, tmp_path: Path) -> None:
    env = SINGLE[kind]()
    policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
    small: Any = {"net_arch": (8,), "learning_starts": 5, "batch_size": 4, "seed": 0}
    agent = SAC(policy, env, **small)
    agent.learn(30)
    agent.save_checkpoint(tmp_path)
    again = SAC.resume(tmp_path)
    for one in (agent, again):
        one.learn(30, reset_num_timesteps=False)
    assert same(*[[p.detach().numpy() for p in one.policy.parameters()] for one in (agent, again)])


def test_a_batch_behind_delays_is_rebuilt_with_all_its_rows(tmp_path: Path) -> None:
    env = World("headway/InvertedPendulum-v5", "wifi,wifi", "flat").batch(3)
    agent = SAC("MlpPolicy", env, net_arch=(8,), learning_starts=5, batch_size=4, seed=0)
    agent.learn(30)
    agent.save_checkpoint(tmp_path)
    again = SAC.resume(tmp_path)
    for one in (agent, again):
        one.learn(30, reset_num_timesteps=False)
    assert same(*[[p.detach().numpy() for p in one.policy.parameters()] for one in (agent, again)])


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that registers an environment, which nothing has imported yet."""
    source = "import gymnasium as gym\nfrom toys import Point\ngym.register('Elsewhere-v0', Point)\n"
    (tmp_path / "elsewhere.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield "elsewhere:Elsewhere-v0"
    forget()


def forget() -> None:
    """As in a process that has not imported it."""
    sys.modules.pop("elsewhere", None)
    gym.registry.pop("Elsewhere-v0", None)


@pytest.mark.parametrize("delayed", [False, True])
def test_resuming_imports_only_what_it_may(elsewhere: str, delayed: bool, tmp_path: Path) -> None:
    laws = {"observation_delay": "constant:1", "action_delay": "constant:1", "form": "flat"}
    env: Any = gym.make("headway/Delayed-v0", env_id=elsewhere, **laws) if delayed else elsewhere
    SAC("MlpPolicy", env, net_arch=(8,), buffer_size=9).save_checkpoint(tmp_path / "c")
    forget()
    message = "which would import the module elsewhere: pass env=, .*, or, if you trust the file, pass trust_env=True"
    with pytest.raises(ValueError, match=message):
        SAC.resume(tmp_path / "c")
    assert "elsewhere" not in sys.modules
    assert SAC.resume(tmp_path / "c", trust_env=True).env_id == elsewhere
    assert SAC.resume(tmp_path / "c").env_id == elsewhere  # it is imported now


def test_files_of_earlier_versions_name_environments_behind_delays(tmp_path: Path) -> None:
    env = RandomDelay(gym.make("SpecPoint-v0"), *LAWS, form="flat")
    agent = SAC("MlpPolicy", env, net_arch=(8,), buffer_size=9)
    agent.save(tmp_path / "new.zip")
    read = archive.read_archive(tmp_path / "new.zip")
    manifest = {k: v for k, v in read.manifest.items() if k not in ("env_spec", "members", "format")}
    manifest["env_id"] = f"SpecPoint-v0@flat@{','.join(LAWS)}"
    archive.write_archive(tmp_path / "old.zip", manifest, read.members)
    old = SAC.load(tmp_path / "old.zip")
    assert old.env_id == "SpecPoint-v0"
    assert old.env_spec is not None
    world = World.of_spec(old.env_spec)
    assert (world.env_id, world.delay, world.form) == ("SpecPoint-v0", ",".join(LAWS), "flat")
    assert same(story(world.single()), story(env))


# ---- strangers' files ------------------------------------------------------------------------------------------------


def test_an_entry_point_of_a_file_is_never_called(tmp_path: Path) -> None:
    """Whatever it names: what is imported already, as ``os`` is, would do as much harm as what is not."""
    harm = tmp_path / "harm"
    evil = EnvSpec("SpecPoint-v0", entry_point="os:system", kwargs={"command": f"touch {harm}"}, max_episode_steps=5)
    with pytest.raises(ValueError, match="cannot be made"):  # the point takes no such keyword
        make_spec(round_trip(evil))
    unknown = EnvSpec("Unknown-v7", entry_point="os:system", kwargs={"command": f"touch {harm}"})
    with pytest.raises(ValueError, match="there is no environment 'Unknown-v7'"):
        make_spec(round_trip(unknown))
    around = WrapperSpec("system", "os:system", {"command": f"touch {harm}"})
    with pytest.raises(ValueError, match=r"wrapper os:system is none"):
        make_spec(round_trip(EnvSpec("SpecPoint-v0", additional_wrappers=(around,))))
    assert not harm.exists()


@pytest.mark.parametrize(
    "spec",
    [
        EnvSpec("SpecPoint-v0", additional_wrappers=(WrapperSpec("W", "antigravity:W", {}),)),
        EnvSpec("headway/HalfCheetah-v5", kwargs={"task": "antigravity:Task"}),
        EnvSpec("headway/Delayed-v0", kwargs={"env_id": "antigravity:Id-v0", "observation_delay": "wifi"}),
        EnvSpec("Unknown-v0", entry_point="antigravity:Env"),
        named("antigravity:Id-v0"),
    ],
)
def test_modules_that_a_file_would_import_are_named(spec: EnvSpec) -> None:
    assert not_imported(spec) == "antigravity"
    assert json.loads(spec_to_json(spec) or "")["id"] == spec.id
