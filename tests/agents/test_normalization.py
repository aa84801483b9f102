"""Batches normalised as Stable-Baselines3's VecNormalize normalises what it shows."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import DCAC, PPO, SAC, TD3
from headway.agents.core.data import Transitions
from headway.agents.core.normalization import BatchNormalizer, load_normalizer_state, normalizer_state
from headway.agents.core.spaces import ObservationCodec
from headway.wrappers import RandomDelay
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from toys import Counter, Labelled

CPU = torch.device("cpu")
# Both compute in float64, from observations that float32 holds or that are stored as float64; what they make of float64
# in tests that encode it themselves is rounded to 24 bits, below 250 in size, over deviations above 0.02 (or clipped).
OBS_TOLERANCE = 3 * 250 * 2**-24 / 0.02


def labelled(form: str = "box", n: int = 3) -> DummyVecEnv:
    return DummyVecEnv([partial(Labelled, row, form) for row in range(n)])


def advance(env: VecNormalize, steps: int, seed: int = 0) -> None:
    """Let the statistics grow."""
    env.action_space.seed(seed)
    for _ in range(steps):
        env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))


def started(form: str = "box", **settings: Any) -> VecNormalize:
    env = VecNormalize(labelled(form), **settings)
    env.seed(1)
    env.reset()
    advance(env, 20)
    return env


def raw_batch(env: VecNormalize, size: int = 40) -> Any:
    samples = [env.observation_space.sample() for _ in range(size)]
    if isinstance(env.observation_space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in env.observation_space.spaces}
    return np.stack(samples)


def encode(codec: ObservationCodec, obs: Any) -> torch.Tensor:
    tensors = (
        {key: torch.from_numpy(part) for key, part in obs.items()} if isinstance(obs, dict) else torch.from_numpy(obs)
    )
    return codec.encode(tensors, CPU)


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "box": ("box", {}),
    "box, clipped": ("box", {"clip_obs": 0.7, "clip_reward": 0.3}),
    "box, another epsilon": ("box", {"epsilon": 0.5, "gamma": 0.5}),
    "box, rewards only": ("box", {"norm_obs": False}),
    "box, observations only": ("box", {"norm_reward": False}),
    "dict": ("dict", {}),
    "dict, clipped": ("dict", {"clip_obs": 0.7}),
    "dict, one key": ("dict", {"norm_obs_keys": ["place"]}),
    "dict, the other key": ("dict", {"norm_obs_keys": ["deed"]}),
}
ALL_SETTINGS = pytest.mark.parametrize("name", SETTINGS)


def build(name: str) -> VecNormalize:
    form, settings = SETTINGS[name]
    return started(form, **settings)


@ALL_SETTINGS
def test_batches_are_normalised_as_the_peer_does(name: str) -> None:
    env = build(name)
    codec = ObservationCodec(env.observation_space)
    normalizer = BatchNormalizer(env, codec, CPU)
    env.observation_space.seed(2)
    obs, rewards = raw_batch(env), np.linspace(-60, 60, 40, dtype=np.float32)
    for _ in range(2):  # with the statistics of this moment, which the second time are others
        expected = encode(codec, env.normalize_obs(obs))
        ours = normalizer.obs(encode(codec, obs))
        assert (ours.dtype, ours.shape) == (torch.float32, (40, 5))
        torch.testing.assert_close(ours, expected, atol=OBS_TOLERANCE, rtol=0)
        # One multiplication by a rounded scale instead of one division: two roundings more.
        expected_rewards = torch.from_numpy(env.normalize_reward(rewards))
        torch.testing.assert_close(normalizer.rewards(torch.from_numpy(rewards)), expected_rewards, rtol=2**-22, atol=0)
        before = ours, normalizer.rewards(torch.from_numpy(rewards))
        advance(env, 5, seed=1)
    assert torch.equal(before[0], normalizer.obs(encode(codec, obs))) == (not env.norm_obs)
    assert torch.equal(before[1], normalizer.rewards(torch.from_numpy(rewards))) == (not env.norm_reward)
    clipped = env.clip_obs if env.norm_obs else np.inf
    assert ours[:, :2].abs().max() <= clipped or name == "dict, one key"


def test_each_dimension_has_its_own_statistics() -> None:
    env = started("dict", norm_obs_keys=["place"])
    codec = ObservationCodec(env.observation_space)
    assert list(codec.parts) == ["deed", "place"]
    ours = BatchNormalizer(env, codec, CPU).obs(torch.full((1, 5), 2.0))[0]
    assert ours[:2].tolist() == [2, 2]
    rms = env.obs_rms["place"]
    assert len(set(rms.mean)) == 3
    expected = (2 - rms.mean) / np.sqrt(rms.var + env.epsilon)
    torch.testing.assert_close(ours[2:], torch.from_numpy(expected).float(), atol=OBS_TOLERANCE, rtol=0)


def test_an_observation_of_more_axes_is_flattened_as_its_statistics_are() -> None:
    space = spaces.Box(-3, 3, (2, 3), np.float64, seed=0)

    class Sampled(Labelled):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = space

        def _observe(self, action: float) -> Any:
            return space.sample() * [[1, 2, 3], [4, 5, 6]]

    env = VecNormalize(DummyVecEnv([Sampled]))
    env.reset()
    advance(env, 10)
    codec = ObservationCodec(env.observation_space)
    obs = np.stack([space.sample() for _ in range(8)])
    expected = torch.from_numpy(env.normalize_obs(obs)).flatten(1)
    torch.testing.assert_close(
        BatchNormalizer(env, codec, CPU).obs(encode(codec, obs)), expected, atol=OBS_TOLERANCE, rtol=0
    )


def test_images_are_left_alone() -> None:
    env = VecNormalize(labelled("image"), norm_obs=False)
    image_space = spaces.Box(0, 255, (3, 36, 40), np.uint8)
    images = torch.randint(0, 256, (2, 3, 36, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert BatchNormalizer(env, ObservationCodec(image_space), CPU).obs(images) is images


@ALL_SETTINGS
def test_what_an_agent_samples(name: str) -> None:
    form, settings = SETTINGS[name]
    env = VecNormalize(labelled(form), **settings)
    policy = "MultiInputPolicy" if form == "dict" else "MlpPolicy"
    agent = SAC(policy, env, net_arch=(4,), learning_starts=1000, buffer_size=500, batch_size=64, seed=1, device="cpu")
    agent.learn(60)
    for _ in range(2):
        stream = agent.generators["store"].get_state()
        batch = agent.sample()
        agent.generators["store"].set_state(stream)
        raw: Transitions = agent.store.sample(64)
        parts = {key: int(np.prod(part.shape)) for key, part in agent.codec.parts.items()}

        def normalised(obs: torch.Tensor, parts: dict[str, int] = parts) -> torch.Tensor:
            columns = torch.split(obs, list(parts.values()), 1)
            if form == "box":
                return encode(agent.codec, env.normalize_obs(columns[0].numpy()))
            shaped = {
                key: column.numpy().reshape(-1, *agent.codec.parts[key].shape)
                for key, column in zip(parts, columns, strict=True)
            }
            return encode(agent.codec, env.normalize_obs(shaped))

        torch.testing.assert_close(batch.obs, normalised(raw.obs), atol=OBS_TOLERANCE, rtol=0)
        torch.testing.assert_close(batch.next_obs, normalised(raw.next_obs), atol=OBS_TOLERANCE, rtol=0)
        expected = torch.from_numpy(env.normalize_reward(raw.rewards.numpy()))
        torch.testing.assert_close(batch.rewards, expected, rtol=2**-22, atol=0)
        for field in fields(Transitions):
            if field.name not in ("obs", "next_obs", "rewards"):
                assert torch.equal(getattr(batch, field.name), getattr(raw, field.name))
        assert torch.equal(batch.obs, raw.obs) == (not env.norm_obs)
        assert torch.equal(batch.rewards, raw.rewards) == (not env.norm_reward)
        # Raw rewards are whole numbers and quarters: what is stored has not been divided by anything.
        assert (raw.rewards * 4 == (raw.rewards * 4).round()).all()
        agent.learn(30, reset_num_timesteps=False)


def test_a_normaliser_that_no_longer_learns_still_normalises() -> None:
    env = started()
    env.training = False
    codec = ObservationCodec(env.observation_space)
    normalizer = BatchNormalizer(env, codec, CPU)
    obs = encode(codec, raw_batch(env))
    before = normalizer.obs(obs)
    advance(env, 3)
    assert torch.equal(normalizer.obs(obs), before)
    assert not torch.equal(before, obs)


# -- saving ------------------------------------------------------------------------------------------------------------


@ALL_SETTINGS
def test_statistics_and_settings_go_round(name: str) -> None:
    env = build(name)
    state = normalizer_state(env)
    form, _ = SETTINGS[name]
    fresh = VecNormalize(labelled(form))
    load_normalizer_state(fresh, state)
    obs, rewards = raw_batch(env), np.linspace(-9, 9, 40)
    for expected, ours in zip(flat(env.normalize_obs(obs)), flat(fresh.normalize_obs(obs)), strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(fresh.normalize_reward(rewards), env.normalize_reward(rewards))
    # A copy: neither follows the other.
    saved = flat(fresh.normalize_obs(obs))
    fresh.seed(5)
    fresh.reset()
    advance(fresh, 5)
    again = VecNormalize(labelled(form))
    load_normalizer_state(again, state)
    for expected, ours in zip(saved, flat(again.normalize_obs(obs)), strict=True):
        np.testing.assert_array_equal(ours, expected)


def flat(obs: Any) -> list[Any]:
    return [obs[key] for key in sorted(obs)] if isinstance(obs, dict) else [obs]


@pytest.mark.parametrize(
    ("target", "state", "named"),
    [
        (lambda: VecNormalize(labelled(), norm_obs=False), lambda: normalizer_state(started()), "of the observations,"),
        (
            lambda: VecNormalize(labelled("dict"), norm_obs_keys=["deed"]),
            lambda: normalizer_state(started("dict")),
            "of the observations place,",
        ),
    ],
)
def test_statistics_that_find_no_place_are_refused(
    target: Callable[[], VecNormalize], state: Callable[[], dict[str, Any]], named: str
) -> None:
    env = target()
    before = env.norm_obs, env.norm_obs_keys, float(env.ret_rms.var)
    with pytest.raises(ValueError, match=r"same norm_obs and norm_obs_keys$") as error:
        load_normalizer_state(env, state())
    assert named in str(error.value)
    assert (env.norm_obs, env.norm_obs_keys, float(env.ret_rms.var)) == before


# -- precision, wrappers above, statistics of a policy file ------------------------------------------------------------

SIZES: dict[str, Any] = {"net_arch": (4,), "learning_starts": 99, "buffer_size": 100, "seed": 0, "device": "cpu"}
FAR = 1_700_000_000  # seconds since 1970: neighbours are one number in float32


def far(dtype: Any, form: str = "box", **settings: Any) -> VecNormalize:
    env = VecNormalize(DummyVecEnv([lambda: Counter(form, dtype=dtype, offset=FAR)]), norm_reward=False, **settings)
    env.training = False
    for rms in env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms]:
        rms.mean, rms.var = np.full(2, FAR + 2.5), np.full(2, 2.0)
    return env


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int32, np.uint32])
@pytest.mark.parametrize("form", ["box", "dict"])
@pytest.mark.parametrize("make", [SAC, TD3, PPO])
def test_large_offsets_are_normalised_in_the_spaces_own_precision(make: Any, form: str, dtype: Any) -> None:
    env = far(dtype, form)
    policy = "MultiInputPolicy" if form == "dict" else "MlpPolicy"
    sizes = SIZES if make is not PPO else {"net_arch": (4,), "n_steps": 5, "batch_size": 5, "seed": 0, "device": "cpu"}
    agent = make(policy, env, **sizes)
    agent.learn(5)
    expected = (np.arange(6) - 2.5) / np.sqrt(2 + env.epsilon)
    if make is PPO:
        obs = agent.rollout.field("obs")
        seen = {"": obs} if isinstance(obs, torch.Tensor) else obs
        assert all(np.allclose(part.flatten(0, 1)[:, 0], expected[:5], atol=1e-6) for part in seen.values())
        return
    batch, raw = agent.sample(), agent.store.state()
    for name, wanted in (("obs", expected[:5]), ("next_obs", expected[1:])):
        found = getattr(batch, name)
        for part in found.values() if isinstance(found, dict) else [found]:
            assert part.dtype is torch.float32
            assert np.allclose(
                sorted(set(part[:, 0].tolist())), wanted, atol=1e-6
            )  # final ones are un-normalised again
    stored = {name: part for name, part in raw.items() if name.startswith("data.next_obs")}
    assert all((part[:, 0] - FAR).tolist() == pytest.approx([1, 2, 3, 4, 5], abs=1e-5) for part in stored.values())


def test_a_delayed_observation_with_a_large_offset() -> None:
    env = VecNormalize(
        DummyVecEnv([lambda: RandomDelay(Counter(dtype=np.float64, offset=FAR), "constant:1", "constant:0")]),
        norm_obs_keys=["observation"],
    )
    agent = DCAC("MultiInputPolicy", env, batch_size=8, **SIZES)
    agent.learn(30)
    env.training = False
    seen = agent.sample_fragments().seen[:, 0, 0]
    assert len(set(seen.tolist())) >= 4
    assert seen.abs().max() < 10


def test_a_float32_space_is_stored_as_before() -> None:
    agent = SAC("MlpPolicy", VecNormalize(DummyVecEnv([Counter])), **SIZES)
    assert {field.dtype for name, field in agent.store.fields.items() if "obs" in name} == {torch.float32}
    wide = SAC("MlpPolicy", DummyVecEnv([lambda: Counter(dtype=np.float64)]), **SIZES)
    assert wide.store.fields["obs"].dtype is torch.float32  # nothing normalises it


class Changes(VecEnvWrapper):
    """Doubles observations, or rewards."""

    def __init__(self, venv: Any, what: str) -> None:
        super().__init__(venv)
        self.factors = {"observations": (2, 1), "rewards": (1, 2), "nothing": (1, 1)}[what]

    def reset(self) -> Any:
        return self.factors[0] * self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return self.factors[0] * obs, self.factors[1] * rewards, dones, infos


@pytest.mark.parametrize("what", ["observations", "rewards", "nothing", "stacks"])
@pytest.mark.parametrize("norm_obs", [True, False])
def test_wrappers_above_a_normaliser(what: str, norm_obs: bool) -> None:
    inner = VecNormalize(DummyVecEnv([Counter]), norm_obs=norm_obs)
    env = VecFrameStack(inner, 2) if what == "stacks" else Changes(inner, what)
    agent = SAC("MlpPolicy", env, **SIZES)
    if what == "nothing" or (not norm_obs and what != "rewards"):
        agent.learn(7)
        assert len(agent.store) == 7
        return
    with pytest.raises(ValueError, match="above VecNormalize changes the"):
        agent.learn(3)


def trained(tmp_path: Path, **settings: Any) -> tuple[VecNormalize, Path]:
    env = VecNormalize(DummyVecEnv([Counter]), **settings)
    SAC("MlpPolicy", env, **SIZES).learn(12).save(tmp_path / "policy")
    return env, tmp_path / "policy"


def test_loading_applies_the_statistics_of_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    env, path = trained(tmp_path)
    for way in ("load", "set_env", "saved again"):
        new = VecNormalize(DummyVecEnv([Counter]), clip_obs=3.0)
        if way == "load":
            SAC.load(path, new)
        elif way == "set_env":
            SAC.load(path).set_env(new)
        else:
            SAC.load(path).save(tmp_path / "again")
            SAC.load(tmp_path / "again", new)
        assert np.array_equal(new.obs_rms.mean, env.obs_rms.mean)
        assert new.clip_obs == env.clip_obs
    assert not caplog.records
    agent = SAC.load(path, new)
    agent.learn(3)
    agent.set_env(new)  # what it has learnt since is not put back
    assert not np.array_equal(new.obs_rms.mean, env.obs_rms.mean)


def test_statistics_that_are_not_applied_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, path = trained(tmp_path)
    SAC.load(path, DummyVecEnv([Counter]))
    assert "wrap the environment in VecNormalize" in caplog.text
    caplog.clear()
    own = VecNormalize(DummyVecEnv([Counter]))
    own.reset()
    mean = own.obs_rms.mean.copy()
    SAC.load(path, own)
    assert "statistics of its own" in caplog.text
    assert np.array_equal(own.obs_rms.mean, mean)
    with pytest.raises(ValueError, match="norm_obs"):
        SAC.load(path, VecNormalize(DummyVecEnv([Counter]), norm_obs=False))
