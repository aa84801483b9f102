"""Random delays against the definition, against environments without delay, and the batch against single ones."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from headway.agents import DCAC, PPO, TD3
from headway.agents import SAC as OurSAC
from headway.envs import BatchedEnv, NumpyVectorEnv, make_batched
from headway.wrappers import BatchedRandomDelay, RandomDelay, as_batched, capture, restore
from headway.wrappers.delays import Constant, Delay, Trace, Uniform, WiFi, age_law, parse_pair
from headway.wrappers.random_delay import DelayedSpaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from toys import Counter

PAIRS = [
    "constant:0,0",
    "constant:2,1",
    "uniform:0-3,0-2",
    "wifi,wifi",
    "geometric:0.4/5,constant:0",
    "constant:0,geometric:0.5/4",
    "per-episode:uniform:0-3,per-episode:wifi",
    "markov:0.9/0.1|0.3/0.7;uniform:0-1;constant:3,markov:0.5/0.5|0.5/0.5;constant:0;uniform:1-2",
    "trace-wrap:0/2/1/0/0/2/2/0,trace-wrap:1/0/1/0/0",
]
OBS_KEYS = ["observation", "action_buffer", "observation_age", "action_age", "applied_action_age"]


class Tape(gym.Env[Any, Any]):
    """Shows row, episode, steps and the action that led there; pays the number of the step, counted from 1.

    Actions are meant to be eighths, so that every sum is exact.

    :param row: decides the lengths of episodes and how they end
    :param length: of every episode; None: from 1 to 9, by row and episode
    """

    def __init__(self, row: int = 0, length: int | None = None) -> None:
        self.row, self.length, self.episode = row, length, -1
        self.action_space = spaces.Box(-4, 4, (2,), np.float32)
        self.observation_space = spaces.Box(-1000, 1000, (5,), np.float32)

    def _shown(self, action: Any) -> Any:
        return np.array([self.row, self.episode, self.t, *action], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._shown([0, 0]), {"t": 0}

    def step(self, action: Any) -> Any:
        self.t += 1
        end = self.t >= (self.length or 1 + (7 * self.row + 5 * self.episode) % 9)
        odd = (self.row + self.episode) % 2 == 1
        return self._shown(action), float(self.t), end and odd, end and not odd, {"t": self.t}


class Tapes(BatchedEnv):
    """Tapes in tensors."""

    def __init__(self, rows: int, mode: AutoresetMode = AutoresetMode.DISABLED, device: str = "cpu") -> None:
        one = Tape()
        self.num_envs, self.device, self.metadata = rows, torch.device(device), {"autoreset_mode": mode}  # type: ignore[misc]
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        self.observation_space = batch_space(one.observation_space, rows)
        self.action_space = batch_space(one.action_space, rows)
        self.row = torch.arange(rows, device=self.device)
        self.episode, self.t = self.row * 0 - 1, self.row * 0

    def _shown(self, actions: Tensor) -> Tensor:
        return torch.cat((torch.stack((self.row, self.episode, self.t), 1).float(), actions), 1)

    def _restart(self, rows: Tensor, obs: Tensor) -> Tensor:
        self.episode, self.t = self.episode + rows.long(), self.t.masked_fill(rows, 0)
        return torch.where(rows.unsqueeze(1), self._shown(obs[:, 3:] * 0), obs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        rows = (options or {}).get("reset_mask", torch.ones_like(self.row, dtype=torch.bool))
        return self._restart(rows, self._shown(torch.zeros(self.num_envs, 2, device=self.device))), {"t": self.t}

    def step(self, actions: Tensor) -> Any:
        assert actions.dtype == torch.float32
        self.t = self.t + 1
        end = self.t >= 1 + (7 * self.row + 5 * self.episode) % 9
        odd = (self.row + self.episode) % 2 == 1
        final = self._shown(actions)
        rewards, flags = self.t.float(), (end & odd, end & ~odd)
        restarts = self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        obs = self._restart(end, final) if restarts else final
        return obs, rewards, *flags, {"final_obs": final, "episode": {}, "half": rewards / 2}

    def state(self) -> Any:
        return {"episode": self.episode.clone(), "t": self.t.clone()}

    def load_state(self, state: Any) -> None:
        self.episode, self.t = state["episode"].clone(), state["t"].clone()


def eighths(count: int, *shape: int, seed: int = 0) -> Any:
    """Actions that can be told apart and summed exactly."""
    return np.random.default_rng(seed).integers(-32, 33, (count, *shape)).astype(np.float32) / 8


def plain(value: Any) -> Any:
    """Nested data with arrays and tensors as lists, to compare by ==."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value


def row_of(value: Any, row: int) -> Any:
    """One row of nested tensors, as lists."""
    return {k: row_of(v, row) for k, v in value.items()} if isinstance(value, dict) else value[row].tolist()


# -- the worked examples ----------------------------------------------------------------------------------------------

SENT = Trace((1, 0, 1, 0, 0, 0, 1, 0))
CAPTURED = Trace((0, 2, 1, 0, 0, 2, 2, 0))
Z = [0.0, 0.0]
TIME_LINE = [  # state shown, action that led to it, omega, kappa, beta, reward; actions by the tick they were chosen in
    (1, None, 0, 1, 1, 1),
    (1, None, 1, 1, 1, 0),
    (1, None, 2, 1, 1, 0),
    (4, 1, 0, 0, 2, 9),
    (5, 3, 0, 0, 1, 5),
    (5, 3, 1, 0, 1, 0),
    (5, 3, 2, 0, 1, 0),
    (8, 5, 0, 0, 2, 21),
]
EXECUTED = [None, None, 1, 1, 3, 4, 5, 5]


class Long(Tapes):
    """A batch whose episodes do not end by themselves; rows end after ``length`` steps if given."""

    length: int | None = None

    def step(self, actions: Tensor) -> Any:
        obs, rewards, terminated, truncated, info = super().step(actions)
        terminated = self.t == self.length if self.length else torch.zeros_like(terminated)
        return obs, rewards, terminated, torch.zeros_like(truncated), info


def scalar_steps(env: gym.Env[Any, Any], actions: Any) -> Iterator[tuple[Any, float, bool, bool, Any]]:
    for action in actions:
        yield env.step(action)


def batched_steps(env: BatchedEnv, actions: Any) -> Iterator[tuple[Any, float, bool, bool, Any]]:
    """The steps of row 2, all rows fed alike."""
    for action in actions:
        _, rewards, terminated, truncated, info = env.step(torch.tensor(action).expand(env.num_envs, -1))
        final = {key: part[2].numpy() for key, part in info["final_obs"].items()}
        told = {"undelayed": {key: part[2].numpy() for key, part in info["undelayed"].items()}}
        yield final, float(rewards[2]), bool(terminated[2]), bool(truncated[2]), told


@pytest.mark.parametrize("batched", [False, True])
def test_the_time_line(batched: bool) -> None:
    actions = eighths(8, 2)
    env: Any = BatchedRandomDelay(Long(3), CAPTURED, SENT) if batched else RandomDelay(Tape(length=99), CAPTURED, SENT)
    assert env.horizon == 4
    obs, _ = env.reset(seed=0)
    first = {key: part[2] for key, part in obs.items()} if batched else obs
    assert plain([first[key] for key in OBS_KEYS]) == [[2 if batched else 0, 0, 0, 0, 0], [Z] * 4, 0, 0, 1]
    by = {None: Z} | dict(enumerate(actions.tolist()))
    run = batched_steps if batched else scalar_steps
    for t, (obs, reward, terminated, truncated, info) in enumerate(run(env, actions)):
        state, cause, omega, kappa, beta, paid = TIME_LINE[t]
        assert plain(obs["observation"][2:]) == [state, *by[cause]]
        assert plain(obs["action_buffer"]) == [by[i if i >= 0 else None] for i in range(t, t - 4, -1)]
        assert plain([obs[key] for key in OBS_KEYS[2:]]) == [omega, kappa, beta]
        assert (reward, terminated, truncated) == (paid, False, False)
        assert plain(info["undelayed"]["executed_action"]) == by[EXECUTED[t]]
        assert info["undelayed"]["observation_delay"] == CAPTURED.delays[t]
        assert info["undelayed"]["action_delay"] == SENT.delays[t]
        assert info["undelayed"]["reward"] == t + 1


@pytest.mark.parametrize("batched", [False, True])
def test_the_end_arrives_by_its_own_packet(batched: bool) -> None:
    law = Trace((0, 0, 3, 0, 0, 0))
    inner = Long(3)
    inner.length = 3
    single = Tape(row=1, length=3)  # an odd row: terminates
    env: Any = BatchedRandomDelay(inner, law, "constant:0") if batched else RandomDelay(single, law, "constant:0")
    env.reset(seed=0)
    run = batched_steps if batched else scalar_steps
    seen = [
        (obs["observation"][2], obs["observation_age"], reward, terminated, truncated)
        for obs, reward, terminated, truncated, _ in run(env, eighths(6, 2))
    ]
    assert seen == [
        (1, 0, 1, False, False),
        (2, 0, 2, False, False),
        (2, 1, 0, False, False),
        (2, 2, 0, False, False),
        (2, 3, 0, False, False),
        (3, 3, 3, True, False),
    ]


# -- the definition, said in another way ------------------------------------------------------------------------------


def definition(w: list[int], k: list[int], length: int) -> Iterator[tuple[int, int, int, int, int | None]]:
    """Of each tick: state shown, omega, kappa, beta, and the tick whose action is executed (-1: the initial one)."""

    def newest(delays: list[int], t: int, last: int) -> int:
        return max([j for j in range(min(t, last) + 1) if j + delays[j] <= t], default=-1)

    for t in range(len(w)):
        c = newest(w, t, length - 1)
        kappa, beta = (c - newest(k, c, c), c - newest(k, c - 1, c - 1)) if c >= 0 else (0, 1)
        yield c + 1, t - c, kappa, beta, newest(k, t - 1, t - 1)


def delays_of(draw: Any, longest: int, ticks: int) -> list[int]:
    return list(draw(st.lists(st.integers(0, longest), min_size=ticks, max_size=ticks)))


@st.composite
def runs(draw: Any) -> tuple[list[int], list[int], int]:
    longest = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    length = draw(st.integers(1, 14))
    ticks = length + longest[0]
    return delays_of(draw, longest[0], ticks), delays_of(draw, longest[1], ticks), length


@settings(max_examples=150, deadline=None)
@given(runs())
def test_any_run_follows_the_definition_and_its_invariants(run: tuple[list[int], list[int], int]) -> None:
    w, k, length = run
    env = RandomDelay(Tape(row=1, length=length), Trace(w), Trace(k))  # type: ignore[arg-type]
    actions = eighths(len(w), 2)
    by = {-1: Z} | dict(enumerate(actions.tolist()))
    horizon, previous, paid = env.horizon, {"omega": 0, "capture": -1}, 0.0
    assert horizon == max(w) + max(k) + 1
    obs, _ = env.reset()
    assert obs in env.observation_space
    expected = list(definition(w, k, length))
    for t, action in enumerate(actions):
        obs, reward, terminated, truncated, info = env.step(action)
        assert obs in env.observation_space
        state, omega, kappa, beta, executed = expected[t]
        found = [int(obs["observation"][2]), *(int(obs[key]) for key in OBS_KEYS[2:])]
        assert found == [state, omega, kappa, beta]
        if t < length:
            assert plain(info["undelayed"]["executed_action"]) == by[executed]
        # what section 1.1 of the specification lists
        capture = t - omega
        assert 0 <= omega <= min(max(w), previous["omega"] + 1)
        assert 0 <= kappa <= max(k)
        assert 1 <= beta <= max(k) + 1
        assert 1 <= omega + beta <= horizon
        assert capture >= previous["capture"]
        buffer = [by[i if i >= 0 else -1] for i in range(t, t - horizon - 1, -1)]  # one longer than is shown
        assert plain(obs["action_buffer"]) == buffer[:horizon]
        if capture >= 0:
            assert plain(obs["observation"][3:]) == buffer[omega + beta]
            assert info["t"] == state
            if capture + 1 < length:
                assert by[expected[capture + 1][4]] == buffer[omega + kappa]
        paid += reward
        assert paid == sum(range(1, state + 1))  # what was earned up to the capture shown, no more and no less
        assert terminated == (state == length)
        assert not truncated
        previous = {"omega": omega, "capture": capture}
        if terminated:
            assert t + 1 == length + w[length - 1]  # steps plus the delay of the last packet
            return
    raise AssertionError


# -- against environments without delays ------------------------------------------------------------------------------


def wave(env: gym.Env[Any, Any], steps: int) -> Any:
    space: Any = env.action_space
    return np.random.default_rng(3).uniform(space.low, space.high, (steps, *space.shape)).astype(space.dtype)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "headway/Hopper-v5", "Hopper-v5"])
def test_without_delays_it_is_real_time_learning(env_id: str) -> None:
    env, truth = RandomDelay(gym.make(env_id), "constant:0", "constant:0"), gym.make(env_id)
    obs, state = env.reset(seed=5)[0], truth.reset(seed=5)[0]
    previous = np.zeros(env.action_space.shape or (), np.float32)
    assert env.horizon == 1
    for action in wave(truth, 60):
        assert plain([obs["observation"], obs["action_buffer"][0]]) == plain([state, previous])
        obs, *outcome, _ = env.step(action)
        state, *expected, _ = truth.step(previous)
        previous = action
        assert outcome == [pytest.approx(expected[0], rel=1e-9, abs=1e-12), *expected[1:]]  # a difference of sums
        if expected[1] or expected[2]:
            assert plain(obs["observation"]) == plain(state)
            obs, state, previous = env.reset()[0], truth.reset()[0], previous * 0


@pytest.mark.parametrize(("w", "k"), [(0, 2), (2, 0), (2, 2), (3, 1)])
def test_constant_delays_shift_the_actions(w: int, k: int) -> None:
    env, truth = (gym.make("Pendulum-v1") for _ in range(2))
    env, steps = RandomDelay(env, Constant(w), Constant(k)), 40
    actions = wave(truth, steps)
    states, rewards = [truth.reset(seed=2)[0]], []
    for action in [actions[0] * 0] * (k + 1) + list(actions):
        state, reward, *_ = truth.step(action)
        states.append(state)
        rewards.append(float(reward))
    obs, _ = env.reset(seed=2)
    for t, action in enumerate(actions, 1):
        obs, reward, *_ = env.step(action)
        assert plain(obs["observation"]) == plain(states[max(t - w, 0)])
        assert reward == pytest.approx(rewards[t - w - 1] if t > w else 0, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "form",
    [
        *("uniform:2-2", "categorical:2@1", "categorical:0@0/0/1", "per-episode:constant:2", "markov:1;constant:2"),
        *("trace-wrap:2", "per-episode:uniform:2-2", "markov:0.5/0.5|0.1/0.9;constant:2;uniform:2-2"),
    ],
)
def test_degenerate_laws_are_constants(form: str) -> None:
    histories = []
    for law in (form, "constant:2"):
        env = RandomDelay(Tape(row=3), law, law)
        assert (env.observation_delay.min, env.observation_delay.max) == (2, 2)
        histories.append(history(env, eighths(60, 2), seed=1))
    assert histories[0] == histories[1]


def history(env: gym.Env[Any, Any], actions: Any, seed: int | None = None) -> list[Any]:
    """Everything an environment tells, as plain data, reset where it ends."""
    seen = [] if seed is None else [plain(env.reset(seed=seed))]
    for action in actions:
        seen.append(plain(env.step(action)))
        if seen[-1][2] or seen[-1][3]:
            seen.append(plain(env.reset()))
    return seen


# -- the batch against single environments ----------------------------------------------------------------------------


class Rows:
    """Single environments, each stepped by hand and restarted when its end arrives, beside one batch."""

    def __init__(self, singles: list[gym.Env[Any, Any]], batch: BatchedEnv, seed: int) -> None:
        self.singles, self.batch, self.ends = singles, batch, np.zeros(len(singles), int)
        obs, _ = batch.reset(seed=seed)
        for i, env in enumerate(singles):
            assert row_of(obs, i) == plain(env.reset(seed=seed + i)[0])

    def step(self, actions: Any) -> None:
        obs, rewards, terminated, truncated, info = self.batch.step(torch.tensor(actions))
        for i, env in enumerate(self.singles):
            final, reward, *flags, told = env.step(actions[i])
            assert row_of(info["final_obs"], i) == plain(final)
            assert rewards[i] == torch.tensor(reward, dtype=rewards.dtype)
            assert [terminated[i].item(), truncated[i].item()] == flags
            facts = row_of({name: info["undelayed"][name] for name in told["undelayed"]}, i)
            assert facts == plain(told["undelayed"])
            if any(flags):
                self.ends[i] += 1
                final, _ = env.reset()
            assert row_of(obs, i) == plain(final)


FORM: Any = {False: "dict", True: "flat"}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_batch_is_single_environments(pair: str, flat: bool) -> None:
    rows = 7
    laws = parse_pair(pair)
    batch = BatchedRandomDelay(Tapes(rows), *laws, form=FORM[flat])
    pairs = Rows([RandomDelay(Tape(i), *laws, form=FORM[flat]) for i in range(rows)], batch, seed=11)
    for actions in eighths(120, rows, 2):
        pairs.step(actions)
    assert pairs.ends.min() > 5
    assert len(set(pairs.ends.tolist())) > 1  # they end at different times


@pytest.mark.parametrize("pair", ["wifi,wifi", "uniform:0-3,0-1"])
@pytest.mark.parametrize(("name", "limit"), [("Hopper", 1000), ("HalfCheetah", 17)])
def test_a_batch_of_robots_is_single_robots(name: str, limit: int, pair: str) -> None:
    rows, laws = 3, parse_pair(pair)
    batch = make_batched(
        f"headway/{name}-v5",
        rows,
        dtype=torch.float64,
        max_episode_steps=limit,
        autoreset_mode=AutoresetMode.DISABLED,
        num_threads=1,
    )
    # row 0 beside our own single environment, the others beside Gymnasium's
    singles = [gym.make(f"{'' if i else 'headway/'}{name}-v5", max_episode_steps=limit) for i in range(rows)]
    pairs = Rows([RandomDelay(env, *laws) for env in singles], BatchedRandomDelay(batch, *laws), seed=4)
    for actions in np.random.default_rng(0).uniform(-1, 1, (90, rows, *singles[0].action_space.shape)):  # type: ignore[misc]
        pairs.step(actions.astype(np.float32))
    assert pairs.ends.min() >= 2


@settings(max_examples=25, deadline=None)
@given(runs(), st.integers(0, 1000))
def test_a_batch_is_single_environments_under_any_traces(run: tuple[list[int], list[int], int], seed: int) -> None:
    laws = Trace(tuple(run[0]), wrap=True), Trace(tuple(run[1]), wrap=True)
    batch = BatchedRandomDelay(Tapes(4), *laws)
    pairs = Rows([RandomDelay(Tape(i), *laws) for i in range(4)], batch, seed=0)
    for actions in eighths(25, 4, 2, seed=seed):
        pairs.step(actions)


def test_row_i_of_a_seeded_batch_draws_what_a_single_one_seeded_s_plus_i_draws() -> None:
    wide, narrow = (BatchedRandomDelay(Tapes(n), "wifi", "uniform:0-3") for n in (6, 2))
    wide.reset(seed=np.int64(20))  # type: ignore[arg-type]
    narrow.reset(seed=[23, 24])
    for _ in range(30):
        many, few = (env.step(torch.zeros(env.num_envs, 2))[4]["undelayed"] for env in (wide, narrow))
        for name in ("observation_delay", "action_delay"):
            assert torch.equal(many[name][3:5], few[name])


def test_channels_draw_independently_and_resets_go_on_with_the_streams() -> None:
    env = RandomDelay(Tape(length=5), "uniform:0-3", "uniform:0-3")

    def drawn(seed: int | None) -> list[Any]:
        seen = [told for _, *_, told in scalar_steps(env, eighths(5, 2))] if env.reset(seed=seed) else []
        return [[told["undelayed"][key] for told in seen] for key in ("observation_delay", "action_delay")]

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert first == again != other
    assert first[0] != first[1]
    assert drawn(None) != other


def test_delays_do_not_touch_the_random_numbers_of_the_environment() -> None:
    starts = []
    for law in ("constant:0", "uniform:0-3"):
        env = RandomDelay(gym.make("Pendulum-v1", max_episode_steps=8), law, law)
        seen = [plain(env.reset(seed=9)[0]["observation"])]
        for _ in range(40):
            if any(env.step(np.zeros(1, np.float32))[2:4]):
                seen.append(plain(env.reset()[0]["observation"]))
        starts.append(seen[:3])
    assert starts[0] == starts[1]


def test_masked_resets_start_and_seed_only_their_rows() -> None:
    env = BatchedRandomDelay(Tapes(4), "wifi", "uniform:0-3")
    env.reset(seed=0)
    for actions in eighths(3, 4, 2):
        last: Any = env.step(torch.tensor(actions))[0]
    before = env.state()["delays"]
    obs, _ = env.reset(seed=50, options={"reset_mask": torch.tensor([False, True, False, False])})
    after, fresh = env.state()["delays"], BatchedRandomDelay(Tapes(4), "wifi", "uniform:0-3")
    fresh.reset(seed=50)
    for name, register in after.items():
        assert torch.equal(register[[0, 2, 3]], before[name][[0, 2, 3]])
        if name not in ("obs", "memory"):
            assert torch.equal(register[1], fresh.state()["delays"][name][1])
    assert [row_of(obs, row) for row in (0, 2, 3)] == [row_of(last, row) for row in (0, 2, 3)]
    assert [part[1].tolist() for part in obs.values()][1:] == [[Z] * env.horizon, 0, 0, 1]  # type: ignore[union-attr]


# -- laws of ages -----------------------------------------------------------------------------------------------------


def close(sample: Tensor, expected: float, rounding: float = 0.0) -> bool:
    """Whether rows' means agree with a value, within 4.5 standard errors of independent rows and its own rounding."""
    means = sample.double().mean(1)
    return bool(abs(means.mean() - expected) <= 4.5 * means.std() / len(means) ** 0.5 + rounding)


@pytest.mark.parametrize(
    ("pair", "mean_total", "lengths"),
    [
        ("wifi,wifi", 4.524, {3: 0.095, 4: 0.384, 5: 0.429, 6: 0.085, 7: 0.006}),
        ("uniform:0-1,0-1", 2.0, {1: 0.25, 2: 0.5, 3: 0.25}),
        ("uniform:0-2,0-2", 2.78, {1: 0.11, 2: 0.30, 3: 0.35, 4: 0.20, 5: 0.05}),
        ("constant:2,2", 5.0, {5: 1.0}),
    ],
)
def test_ages_follow_the_table_of_the_specification(pair: str, mean_total: float, lengths: dict[int, float]) -> None:
    rows, ticks, burn_in = 500, 160, 12
    env = BatchedRandomDelay(Long(rows), *parse_pair(pair))
    env.reset(seed=0)
    seen = [env.step(torch.zeros(rows, 2))[0] for _ in range(burn_in + ticks)][burn_in:]
    omega, kappa, beta = (torch.stack([obs[key] for obs in seen], 1) for key in OBS_KEYS[2:])  # type: ignore[index]
    for ages, law in ((omega, env.observation_delay), (kappa, env.action_delay)):
        for age, prob in enumerate(age_law(law).tolist()):
            assert close(ages == age, prob)
    total = omega + beta
    assert close(total, mean_total, rounding=0.005)
    windows = total.unfold(1, env.horizon, 1)  # d_1 … d_K, from every start
    n = (windows >= torch.arange(1, env.horizon + 1)).long().cumprod(2).sum(2)
    for length, prob in lengths.items():
        assert close(n == length, prob, rounding=0.005 if prob * 1000 % 10 == 0 else 0.0012)
    assert close(n, mean_total, rounding=0.005)  # E n = E d


def test_wifi_repeats_and_loses_more_than_a_quarter() -> None:
    env = BatchedRandomDelay(Long(500), WiFi(), "constant:0")
    env.reset(seed=1)
    shown = torch.stack([env.step(torch.zeros(500, 2))[0]["observation"][:, 2] for _ in range(160)], 1)  # type: ignore[call-overload, index]
    assert close(shown[:, 13:] == shown[:, 12:-1], 0.28, rounding=0.005)


# -- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_immediate_ends_arrive_in_their_tick_with_all_rewards(mode: AutoresetMode) -> None:
    rows, lengths = 5, []
    env = BatchedRandomDelay(Tapes(rows, mode), "uniform:0-3", "wifi", terminal_delivery="immediate")
    obs: Any = env.reset(seed=0)[0]
    returns, ticks = torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
    for actions in eighths(60, rows, 2):
        before = obs["observation"]
        obs, rewards, terminated, truncated, info = env.step(torch.tensor(actions))
        returns, ticks = returns + rewards, ticks + 1
        for row in (terminated | truncated).nonzero().flatten().tolist():
            episode = int(before[row, 1])
            length = 1 + (7 * row + 5 * episode) % 9
            assert ticks[row] == length == info["episode"]["l"][row]
            assert returns[row] == sum(range(1, length + 1)) == info["episode"]["r"][row]
            final: Any = {key: part[row] for key, part in info["final_obs"].items()}
            assert final["observation"][1:3].tolist() == [episode, length]
            assert final["observation_age"] == 0
            assert bool(terminated[row]) == ((row + episode) % 2 == 1) != bool(truncated[row])
            assert row_of(obs, row)["observation"] == [row, episode + 1, 0, 0, 0]
            assert row_of(obs, row)["action_buffer"] == [Z] * env.horizon
            lengths.append(length)
        returns, ticks = returns.masked_fill(terminated | truncated, 0), ticks.masked_fill(terminated | truncated, 0)
    assert set(lengths) > {1, 2, 5, 9}


@pytest.mark.parametrize("batched", [False, True])
def test_returns_are_whole_and_ends_come_after_their_delay(batched: bool) -> None:
    if not batched:
        env = RandomDelay(Tape(4), "uniform:0-3", "wifi")
        env.reset(seed=0)
        for episode in range(12):
            rewards, done, told = [], False, []
            while not done:
                _, reward, terminated, truncated, info = env.step(np.zeros(2))
                rewards.append(reward)
                told.append(info["undelayed"])
                done = terminated or truncated
            length = 1 + (7 * 4 + 5 * episode) % 9
            assert sum(rewards) == sum(range(1, length + 1)) == sum(facts["reward"] for facts in told)
            assert len(rewards) == length + told[length - 1]["observation_delay"]
            assert [facts["terminated"] or facts["truncated"] for facts in told].index(True) == length - 1
            env.reset()
        return
    rows = 5
    batch = BatchedRandomDelay(Tapes(rows), "uniform:0-3", "wifi")
    obs: Any = batch.reset(seed=0)[0]
    returns = torch.zeros(rows)
    for actions in eighths(80, rows, 2):
        before, (obs, rewards, terminated, truncated, info) = obs, batch.step(torch.tensor(actions))
        returns += rewards
        done = terminated | truncated
        for row in done.nonzero().flatten().tolist():
            length = 1 + (7 * row + 5 * int(before["observation"][row, 1])) % 9
            assert returns[row] == sum(range(1, length + 1)) == info["episode"]["r"][row]
            assert info["final_obs"]["observation"][row, 2] == length
            assert obs["observation"][row, 2] == 0
        for key, part in obs.items():
            assert torch.equal(part[~done], info["final_obs"][key][~done])
        returns = returns.masked_fill(done, 0)


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_a_batch_goes_on_from_its_state(pair: str) -> None:
    env, other = (BatchedRandomDelay(Tapes(5), *parse_pair(pair)) for _ in range(2))
    actions = torch.tensor(eighths(60, 5, 2))
    env.reset(seed=0)
    for action in actions[:17]:
        env.step(action)
    state = env.state()
    kept = deepcopy(state)
    future = [plain(env.step(action)) for action in actions[17:]]
    for live in (env, other):
        if live is other:
            live.reset(seed=77)
        live.load_state(state)
        assert [plain(live.step(action)) for action in actions[17:]] == future
    assert plain(state) == plain(kept)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_single_environment_goes_on_from_its_capture(pair: str, fresh: bool) -> None:
    def made() -> Any:
        return RandomDelay(gym.wrappers.TimeLimit(Tape(3), 7), *parse_pair(pair))

    env, actions = made(), eighths(60, 2)
    history(env, actions[:17], seed=0)
    state = capture(env)
    future = history(env, actions[17:])
    if fresh:
        env = made()
        env.reset()
    restore(env, state)
    assert history(env, actions[17:]) == future


def test_robots_go_on_with_packets_in_flight() -> None:
    inner = make_batched("headway/Hopper-v5", 3, autoreset_mode=AutoresetMode.DISABLED, num_threads=1)
    env = BatchedRandomDelay(inner, "wifi", "wifi")
    actions = torch.tensor(np.random.default_rng(0).uniform(-1, 1, (60, 3, 3)).astype(np.float32))
    env.reset(seed=0)
    for action in actions[:25]:
        env.step(action)
    state = env.state()
    future = [plain(env.step(action)) for action in actions[25:]]
    env.load_state(state)
    assert [plain(env.step(action)) for action in actions[25:]] == future
    assert capture(env)["kind"] == "protocol"


def test_a_state_of_other_delays_is_refused() -> None:
    state = BatchedRandomDelay(Tapes(3), "wifi", "wifi").state()
    env = BatchedRandomDelay(Tapes(3), "constant:1", "wifi")
    before = plain(env.state())
    with pytest.raises(ValueError, match=r"'facts' is \(3, 5, 5\), expected \(3, 2, 5\)"):
        env.load_state(state)
    assert plain(env.state()) == before


# -- forms ------------------------------------------------------------------------------------------------------------


def test_what_was_returned_stays_as_it_was() -> None:
    batch, env = BatchedRandomDelay(Tapes(4), "uniform:0-3", "uniform:0-2"), RandomDelay(Tape(2), "wifi", "wifi")
    given: list[Any] = [batch.reset(seed=0), env.reset(seed=0)]
    kept = [plain(given[0]), plain(given[1])]
    for actions in eighths(25, 4, 2):
        tensor = torch.tensor(actions)
        results: tuple[Any, Any] = batch.step(tensor), env.step(actions[0])
        given += results
        kept += [plain(result) for result in results]
        if results[1][2] or results[1][3]:
            env.reset()
        tensor.zero_()  # nor do the caller's actions matter afterwards
        actions[:] = 0
    assert [plain(value) for value in given] == kept


@pytest.mark.parametrize("batched", [False, True])
def test_the_caller_may_write_into_what_it_got(batched: bool) -> None:
    histories: list[list[Any]] = [[], []]
    for spoil, seen in enumerate(histories):
        laws = "uniform:0-3", "wifi"
        env: Any = BatchedRandomDelay(Long(2), *laws) if batched else RandomDelay(Tape(length=30), *laws)
        env.reset(seed=0)
        for actions in eighths(20, 2, 2):
            obs, *_, info = env.step(torch.tensor(actions) if batched else actions[0])
            seen.append(plain([obs, info]))
            if spoil:
                for part in (*obs.values(), info["undelayed"]["executed_action"]):
                    if isinstance(part, (np.ndarray, Tensor)):
                        part[:] = 9
    assert histories[0] == histories[1]


class Reusing(Tape):
    """Shows and tells the same objects in every step, and writes into the action it is given."""

    def reset(self, **kwargs: Any) -> Any:
        self.shown, self.told = super().reset(**kwargs)
        return self.shown, self.told

    def step(self, action: Any) -> Any:
        obs, *outcome, info = super().step(action)
        self.shown[:] = obs
        self.told.update(info)
        action[:] = 0
        return self.shown, *outcome, self.told


def test_environments_may_reuse_what_they_return() -> None:
    actions = eighths(60, 2)
    plain_one, reusing = (RandomDelay(cls(3), "uniform:0-3", "wifi") for cls in (Tape, Reusing))
    assert history(reusing, actions, seed=0) == history(plain_one, actions, seed=0)


def test_the_flat_form_is_the_dict_form_flattened() -> None:
    laws = parse_pair("wifi,uniform:0-2")
    shown, flat = RandomDelay(Tape(3), *laws), RandomDelay(Tape(3), *laws, form="flat")
    width = 5 + 2 * shown.horizon + 5 + 3
    assert flat.observation_space.shape == (width,)
    assert flat.observation_space.dtype == np.float32
    parts, vector = shown.reset(seed=1)[0], flat.reset(seed=1)[0]
    for action in eighths(40, 2):
        ages = np.eye(5)[parts["observation_age"]], np.eye(3)[parts["action_age"]]
        assert plain(vector) == plain(np.concatenate([parts["observation"], parts["action_buffer"].ravel(), *ages]))
        assert vector.dtype == np.float32
        assert vector in flat.observation_space
        (parts, *outcome, _), (vector, *same, _) = shown.step(action), flat.step(action)
        assert outcome == same
        if any(same[1:]):
            parts, vector = shown.reset()[0], flat.reset()[0]


@pytest.mark.parametrize("batched", [False, True])
def test_the_initial_action_fills_the_buffer_and_acts_first(batched: bool) -> None:
    given = [1.5, -0.25]
    env: Any = (
        BatchedRandomDelay(Tapes(2), "constant:1", "constant:2", initial_action=given)
        if batched
        else RandomDelay(Tape(length=9), "constant:1", "constant:2", initial_action=given)
    )
    obs, _ = env.reset(seed=0)
    buffer = obs["action_buffer"][0] if batched else obs["action_buffer"]
    assert plain(buffer) == [given] * 4
    action = torch.zeros(2, 2) if batched else np.zeros(2)
    _, *_, info = env.step(action)
    executed = info["undelayed"]["executed_action"]
    assert plain(executed) == ([given] * 2 if batched else given)


def test_where_zero_is_no_action_the_nearest_one_is() -> None:
    space = spaces.Box(np.array([1, -2, -1], np.float32), np.array([3, -0.5, 1], np.float32))
    shapes = DelayedSpaces(Tape().observation_space, space, Constant(0), Constant(0))
    assert shapes.initial(None).tolist() == [1, -0.5, 0]
    assert DelayedSpaces(space, spaces.Discrete(3, start=2), Constant(0), Constant(0)).initial(None) == 2


def test_discrete_actions_are_delayed() -> None:
    env = RandomDelay(gym.make("CartPole-v1"), "uniform:0-2", "uniform:0-1", initial_action=1)
    obs, _ = env.reset(seed=0)
    assert env.observation_space["action_buffer"] == spaces.MultiDiscrete([2] * 4)  # type: ignore[index]
    assert plain(obs["action_buffer"]) == [1] * 4
    sent = []
    for t in range(6):
        obs, *_, info = env.step(t % 2)
        sent.append(t % 2)
        assert type(info["undelayed"]["executed_action"].item()) is int
        assert plain(obs["action_buffer"]) == [*sent[::-1], *[1] * 4][:4]
    with pytest.raises(ValueError, match="take the Dict form"):
        RandomDelay(gym.make("CartPole-v1"), "wifi", "wifi", form="flat")


class Doubles(Tapes):
    """Observations and rewards in float64."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.single_observation_space = spaces.Box(-1000, 1000, (5,), np.float64)

    def step(self, actions: Tensor) -> Any:
        obs, rewards, *flags, info = super().step(actions)
        info["final_obs"] = info["final_obs"].double() + 2.0**-40
        return obs.double(), rewards.double() + 2.0**-40, *flags, info

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return obs.double(), info


def test_precision_is_that_of_the_environment() -> None:
    wide, narrow = BatchedRandomDelay(Doubles(3), "wifi", "wifi"), BatchedRandomDelay(Tapes(3), "wifi", "wifi")
    wide.reset(seed=0)
    narrow.reset(seed=0)
    for actions in torch.tensor(eighths(40, 3, 2)):
        one, other = wide.step(actions), narrow.step(actions)
        fine, coarse = one[0]["observation"], other[0]["observation"]  # type: ignore[index, call-overload]
        assert (fine.dtype, one[1].dtype, coarse.dtype, other[1].dtype) == (torch.float64,) * 2 + (torch.float32,) * 2
        assert torch.allclose(fine.float(), coarse)
        assert torch.allclose(one[1].float(), other[1], atol=1e-5)
        assert torch.equal(one[2], other[2])
    assert wide.state()["delays"]["obs"].dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("pair", PAIRS)
def test_a_gpu_does_what_the_cpu_does(pair: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    host, device = (BatchedRandomDelay(Tapes(6, device=name), *parse_pair(pair)) for name in ("cpu", "cuda"))
    assert plain(host.reset(seed=3)) == plain(device.reset(seed=3))
    for actions in torch.tensor(eighths(60, 6, 2)):
        assert plain(host.step(actions)) == plain(device.step(actions.cuda()))


# -- other people's tools ---------------------------------------------------------------------------------------------


def check(env: gym.Env[Any, Any]) -> None:
    """Gymnasium's checker; that it sees a wrapper is the point, and some environments do not draw without a screen."""
    with pytest.warns(UserWarning, match="different from the unwrapped version"):
        check_env(env, skip_render_check=True)


# What both checkers say of the environments inside, and Stable-Baselines3's of any Box that is no vector or image.
CHECKED = "ignore:.*(symmetric and normalized|observation space (min|max)imum|an unconventional shape).*"


@pytest.mark.filterwarnings(CHECKED)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "headway/Hopper-v5", "CartPole-v1"])
def test_checkers_are_content(env_id: str, flat: bool) -> None:
    flat = flat and env_id != "CartPole-v1"  # whose actions have no flat form
    check(RandomDelay(gym.make(env_id), "wifi", "uniform:0-2", form=FORM[flat]))
    sb3_check_env(RandomDelay(gym.make(env_id), "wifi", "uniform:0-2", form=FORM[flat]))


@pytest.mark.parametrize("flat", [False, True])
def test_sac_of_stable_baselines3_trains_on_it_unchanged(flat: bool) -> None:
    env = RandomDelay(gym.make("Pendulum-v1", max_episode_steps=60), "wifi", "uniform:0-1", form=FORM[flat])
    agent = SAC("MlpPolicy" if flat else "MultiInputPolicy", env, learning_starts=150, batch_size=32, seed=0)
    agent.learn(200)
    assert agent.num_timesteps == 200
    assert agent._episode_num == 3  # of 60 steps each, and the delay of their ends
    obs, _ = env.reset(seed=0)
    assert agent.predict(obs, deterministic=True)[0] in env.action_space


def test_a_spec_makes_the_same_again() -> None:
    env = RandomDelay(gym.make("Pendulum-v1"), WiFi(), Uniform(0, 2), initial_action=np.array([0.5], np.float32))
    for spec in (env.spec, EnvSpec.from_json(env.spec.to_json())):  # type: ignore[union-attr]
        again: Any = gym.make(spec)  # type: ignore[arg-type]
        assert (again.observation_delay, again.action_delay) == (WiFi(), Uniform(0, 2))
        assert again.env.spec.max_episode_steps == 200
        actions = wave(env, 210)
        assert history(again, actions, seed=3) == history(env, actions, seed=3)


# -- the id -----------------------------------------------------------------------------------------------------------

DELAYED: dict[str, Any] = {"observation_delay": "wifi", "action_delay": "uniform:0-2"}


@pytest.mark.parametrize("flat", [False, True])
def test_the_id_makes_any_environment_delayed(flat: bool) -> None:
    options = {"env_id": "Pendulum-v1", **DELAYED, "initial_action": [0.5], "form": FORM[flat]}
    env = gym.make("headway/Delayed-v0", **options, g=5.0)
    assert isinstance(env, RandomDelay)  # no limit outside
    assert env.unwrapped.g == 5.0  # type: ignore[attr-defined]
    actions = wave(env, 450)
    by_hand = RandomDelay(gym.make("Pendulum-v1", g=5.0), *DELAYED.values(), initial_action=[0.5], form=FORM[flat])
    seen = history(by_hand, actions, seed=0)
    assert history(env, actions, seed=0) == seen
    assert sum(len(entry) == 2 for entry in seen) == 3  # the start, and two episodes that ended by their own limit
    for spec in (env.spec, env.unwrapped.spec):
        assert spec is not None
        assert history(gym.make(spec), actions, seed=0) == seen


@pytest.mark.parametrize("flat", [False, True])
def test_the_id_makes_vectors_of_batched_environments(flat: bool) -> None:
    options: dict[str, Any] = {
        "env_id": "headway/HalfCheetah-v5",
        **DELAYED,
        "form": FORM[flat],
        "max_episode_steps": 9,
    }
    arrays = gym.make_vec("headway/Delayed-v0", 3, **options)
    assert isinstance(arrays, NumpyVectorEnv)
    assert isinstance(arrays.batched, BatchedRandomDelay)
    rows = single_rows("HalfCheetah-v5", 3, form=FORM[flat])
    assert arrays.observation_space == rows.observation_space
    follow(arrays, rows)
    with pytest.raises(ValueError, match="did you mean dtype"):
        gym.make_vec("headway/Delayed-v0", 3, **options, dtypo=1)


def single_rows(env_id: str, rows: int, **options: Any) -> SyncVectorEnv:
    def row() -> gym.Env[Any, Any]:
        return RandomDelay(gym.make(env_id, max_episode_steps=9), *DELAYED.values(), **options)

    return SyncVectorEnv([row] * rows, autoreset_mode=AutoresetMode.SAME_STEP)


def follow(vector: gym.vector.VectorEnv[Any, Any, Any], truth: gym.vector.VectorEnv[Any, Any, Any]) -> None:
    assert plain(vector.reset(seed=5)[0]) == plain(truth.reset(seed=5)[0])
    shape: Any = truth.action_space.shape
    ends = 0
    for actions in np.random.default_rng(1).uniform(-1, 1, (40, *shape)).astype(np.float32):
        (*found, info), (*expected, told) = vector.step(actions), truth.step(actions)
        assert plain(found) == plain(expected)
        if "final_obs" in told:
            ends += 1
            for row in np.flatnonzero(told["_final_obs"]):
                assert plain(info["final_obs"][row]) == plain(told["final_obs"][row])
    assert ends > 3


def test_the_id_makes_vectors_of_any_environment() -> None:
    options: dict[str, Any] = {"env_id": "Pendulum-v1", **DELAYED, "max_episode_steps": 9}
    vector = gym.make_vec("headway/Delayed-v0", 2, **options)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    follow(vector, single_rows("Pendulum-v1", 2))
    tensors = gym.make_vec("headway/Delayed-v0", 2, **options, device="cpu")
    assert isinstance(tensors, BatchedEnv)
    obs, _ = tensors.reset(seed=0)
    assert obs["action_buffer"].shape == (2, 7, 1)  # type: ignore[call-overload, index]
    for bad in ({"device": "cuda"}, {"terminal_delivery": "immediate"}):
        with pytest.raises(ValueError, match="no batched form"):
            gym.make_vec("headway/Delayed-v0", 2, **options, **bad)


def test_a_batch_has_a_spec_that_makes_the_same_again() -> None:
    inner = make_batched("headway/Hopper-v5", 3, autoreset_mode=AutoresetMode.DISABLED, frame_skip=2)
    env = BatchedRandomDelay(inner, "uniform:0-3", WiFi(), initial_action=[0.5, 0, 0], form="flat")
    again = gym.make_vec(env.spec)  # type: ignore[arg-type]
    assert isinstance(again, BatchedRandomDelay)
    assert again.num_envs == 3
    assert plain(again.reset(seed=0)[0]) == plain(env.reset(seed=0)[0])
    for actions in np.random.default_rng(1).uniform(-1, 1, (20, 3, 3)).astype(np.float32):
        assert plain(again.step(torch.tensor(actions))) == plain(env.step(torch.tensor(actions)))
    assert BatchedRandomDelay(Tapes(2), "wifi", "wifi").spec is None


# -- bad input --------------------------------------------------------------------------------------------------------


class TooLong(Delay):
    """Breaks its word."""

    range = (0, 1)

    def draw(self, u: Tensor, tick: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(tick == 3, 2, 0), memory

    def __str__(self) -> str:
        return "too-long"


@pytest.mark.parametrize("channel", [0, 1])
def test_a_draw_beyond_the_longest_is_an_error(channel: int) -> None:
    laws: list[Any] = ["constant:0", "constant:0"]
    laws[channel] = TooLong()
    env, batch = RandomDelay(Tape(length=9), *laws), BatchedRandomDelay(Long(2), *laws)
    env.reset(seed=0)
    batch.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2))
        batch.step(torch.zeros(2, 2))
    for step in (lambda: env.step(np.zeros(2)), lambda: batch.step(torch.zeros(2, 2))):
        with pytest.raises(ValueError, match="too-long drew a delay of 2 ticks, outside 0 to its max of 1"):
            step()


def test_a_trace_that_runs_out_is_an_error() -> None:
    env, batch = RandomDelay(Tape(length=9), "trace:0/1", "wifi"), BatchedRandomDelay(Long(2), "trace:0/1", "wifi")
    env.reset(seed=0)
    batch.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(2))
        batch.step(torch.zeros(2, 2))
    for step in (lambda: env.step(np.zeros(2)), lambda: batch.step(torch.zeros(2, 2))):
        with pytest.raises(ValueError, match="the trace of 2 delays has run out at tick 2"):
            step()


@pytest.mark.parametrize("law", [2, None, -1, "unifrom:0-1", "constant:-1"])
def test_what_is_no_law_is_refused(law: Any) -> None:
    for make in (lambda: RandomDelay(Tape(), law, "wifi"), lambda: BatchedRandomDelay(Tapes(2), "wifi", law)):
        with pytest.raises(ValueError, match=r"no law of delays|did you mean uniform|at least 0, got -1"):
            make()


def test_delays_are_not_put_around_delays() -> None:
    once = RandomDelay(Tape(), "wifi", "wifi")
    batch = as_batched(DummyVecEnv([lambda: RandomDelay(Tape(), "wifi", "wifi")]))
    for make in (
        lambda: RandomDelay(once, "wifi", "wifi"),
        lambda: RandomDelay(gym.wrappers.TimeLimit(once, 5), "wifi", "wifi"),
        lambda: BatchedRandomDelay(BatchedRandomDelay(Tapes(2), "wifi", "wifi"), "wifi", "wifi"),
        lambda: BatchedRandomDelay(batch, "wifi", "wifi", terminal_delivery="immediate"),
    ):
        with pytest.raises(ValueError, match="delayed already"):
            make()


def test_buffers_longer_than_an_episode_are_told_of() -> None:
    with pytest.warns(UserWarning, match="holds 9 actions.* after 5 steps"):
        RandomDelay(gym.make("Pendulum-v1", max_episode_steps=5), "wifi", "wifi")
    inner = make_batched("headway/InvertedPendulum-v5", 2, max_episode_steps=5, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.warns(UserWarning, match="holds 9 actions.* after 5 steps"):
        BatchedRandomDelay(inner, "wifi", "wifi")


def test_batches_that_restart_by_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="restarts finished rows by itself"):
        BatchedRandomDelay(Tapes(2, AutoresetMode.SAME_STEP), "wifi", "wifi")
    with pytest.raises(ValueError, match="'delayed' or 'immediate'"):
        BatchedRandomDelay(Tapes(2), "wifi", "wifi", terminal_delivery="at once")  # type: ignore[arg-type]
    rows = SyncVectorEnv([lambda: Tape(length=2)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    env = BatchedRandomDelay(as_batched(rows), "wifi", "wifi", terminal_delivery="immediate")
    env.reset(seed=0)
    for _ in range(2):
        env.step(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="a step of its own"):
        env.step(torch.zeros(2, 2))


class Odd(Tape):
    """Takes and shows what cannot be delayed everywhere."""

    def __init__(self, actions: spaces.Space[Any], observations: spaces.Space[Any]) -> None:
        super().__init__()
        self.action_space, self.observation_space = actions, observations


def test_spaces_that_cannot_be_delayed_are_refused() -> None:
    box, parts = Tape().observation_space, spaces.Dict({"a": Tape().observation_space})
    with pytest.raises(ValueError, match="MultiBinary space cannot be delayed: Box and Discrete can"):
        RandomDelay(Odd(spaces.MultiBinary(2), box), "wifi", "wifi")
    with pytest.raises(ValueError, match="take the Dict form"):
        RandomDelay(Odd(box, parts), "wifi", "wifi", form="flat")
    tapes = Tapes(2)
    tapes.single_observation_space = parts  # type: ignore[assignment]
    with pytest.raises(ValueError, match="cannot be delayed in a batch"):
        BatchedRandomDelay(tapes, "wifi", "wifi")
    for action in ([9.0, 0.0], [0.0], "up"):
        with pytest.raises(ValueError, match=r"initial_action is .* not in"):
            RandomDelay(Tape(), "wifi", "wifi", initial_action=action)
    for number in (2, 0.5, -1):
        with pytest.raises(ValueError, match=r"initial_action is .* not in Discrete"):
            RandomDelay(gym.make("CartPole-v1"), "wifi", "wifi", initial_action=number)


def test_steps_need_a_reset() -> None:
    env = RandomDelay(Tape(length=1), "constant:0", "constant:0")
    for _ in range(2):
        with pytest.raises(ResetNeeded, match="call reset"):
            env.step(np.zeros(2))
        env.reset()
        env.step(np.zeros(2))


def test_the_bare_form_is_the_observation_alone() -> None:
    laws = ("uniform:0-2", "constant:1")
    shown, bare = RandomDelay(Tape(3), *laws), RandomDelay(Tape(3), *laws, form="bare")
    assert bare.observation_space == shown.observation_space["observation"]
    assert (shown.reset(seed=1)[0]["observation"] == bare.reset(seed=1)[0]).all()
    for _ in range(20):
        action = shown.action_space.sample()
        (parts, *outcome, _), (alone, *same, _) = shown.step(action), bare.step(action)
        assert (parts["observation"] == alone).all()
        assert outcome == same
        if outcome[1] or outcome[2]:
            break
    batch = BatchedRandomDelay(Tapes(2), *laws, form="bare")
    assert isinstance(batch.reset(seed=0)[0], torch.Tensor)
    with pytest.raises(ValueError, match="form is 'thin': it can be 'dict', 'flat', 'bare'"):
        RandomDelay(Tape(3), *laws, form="thin")  # type: ignore[arg-type]


# -- other spaces of observations --------------------------------------------------------------------------------------


def test_parts_of_dict_observations_stand_beside_what_is_added() -> None:
    env = RandomDelay(Counter("dict"), "constant:1", "constant:0")
    assert list(env.observation_space) == [
        "count", "other", "action_buffer", "observation_age", "action_age", "applied_action_age",
    ]  # fmt: skip
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    seen = []
    for _ in range(3):
        obs = env.step(np.zeros(1, np.float32))[0]
        seen.append(float(obs["count"][0]))
    assert seen == [0, 1, 2]


def test_names_that_delayed_observations_have_too_are_refused() -> None:
    env = Counter("dict")
    env.observation_space = spaces.Dict({"action_age": spaces.Discrete(3)})
    with pytest.raises(ValueError, match="parts named action_age"):
        RandomDelay(env, "constant:1", "constant:0")


@pytest.mark.parametrize("make", [OurSAC, TD3, DCAC, PPO])
def test_agents_learn_from_delayed_dicts(make: Any) -> None:
    sizes: dict[str, Any] = {"seed": 0, "device": "cpu", "net_arch": (4,), "batch_size": 4}
    sizes |= {"n_steps": 8} if make is PPO else {"learning_starts": 8, "buffer_size": 60}
    agent = make("MultiInputPolicy", RandomDelay(Counter("dict"), "uniform:0-1", "uniform:0-1"), **sizes)
    agent.learn(16)
    assert agent.updates > 0


UNREADABLE = {
    "nested": spaces.Dict({"a": spaces.Dict({"b": spaces.Box(0, 1, (2,))})}),
    "text": spaces.Text(5),
    "sequence": spaces.Sequence(spaces.Box(0, 1, (2,))),
    "tuple": spaces.Tuple([spaces.Discrete(2)]),
    "text in a dict": spaces.Dict({"a": spaces.Text(5)}),
}


@pytest.mark.parametrize("delayed", [True, False])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_in_our_words(name: str, delayed: bool) -> None:
    env: Any = Counter()
    env.observation_space = UNREADABLE[name]
    env = RandomDelay(env, "constant:1", "constant:0") if delayed else env
    for make in (OurSAC, DCAC):
        with pytest.raises(ValueError, match="can be read"):
            make("MultiInputPolicy", env)


def test_agents_read_action_buffers_as_dcac_does() -> None:
    def make() -> RandomDelay:
        return RandomDelay(Counter(actions=(-2, 6, np.float32)), "constant:1", "constant:0")

    obs, _ = make().reset(seed=0)
    batch = {key: torch.as_tensor(np.asarray(part))[None] for key, part in obs.items()}
    batch["action_buffer"] = torch.tensor([[[-2.0], [4.0]]])
    for make_agent in (OurSAC, DCAC):
        agent = make_agent("MultiInputPolicy", make(), buffer_size=100, net_arch=(4,), device="cpu")
        encoded = agent.codec.encode(batch, torch.device("cpu"))
        assert isinstance(encoded, torch.Tensor)
        parts = dict(zip(agent.codec.parts, torch.split(encoded, agent.codec.sizes, 1), strict=True))
        assert parts["action_buffer"].tolist() == [[-1.0, 0.5]]
