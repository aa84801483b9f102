"""What every agent must pass. A new agent joins with one line in ``CASES``."""

import io
import itertools
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import DiscretizeAction
from headway import agents
from headway.agents import AGENTS, ActorCriticAgent, FileFormatError, NonFiniteError
from headway.wrappers import Snapshot, as_batched
from headway.wrappers.random_delay import RandomDelay
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from support import DelayedPoint, Point, Stop, delayed_vec, vec

Make = Callable[..., ActorCriticAgent[Any]]

TINY = {"net_arch": [16, 16], "batch_size": 16, "buffer_size": 200, "learning_starts": 12}
CASES: dict[str, dict[str, Any]] = {
    "DCAC": TINY,
    "SAC": TINY,
    "TD3": TINY,
}
SOLVING: dict[str, dict[str, Any]] = {
    "DCAC": {"net_arch": [32, 32], "learning_rate": 3e-3, "gamma": 0.5, "ent_coef": 0.01, "reward_scale": 1.0},
    "SAC": {"net_arch": [32, 32], "learning_rate": 3e-3, "gamma": 0.5, "ent_coef": 0.01},
    "TD3": {"net_arch": [32, 32], "learning_rate": 3e-3, "gamma": 0.5},
}
DELAYED = {"DCAC"}
"""Agents that read delayed observations: their points are delayed ones, of one form."""


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Build an agent of each class, small and seeded."""
    if request.param in DELAYED:
        monkeypatch.setitem(globals(), "Point", DelayedPoint)
        monkeypatch.setitem(globals(), "vec", delayed_vec)

    def build(env: Any = None, **kwargs: Any) -> ActorCriticAgent[Any]:
        options = {"seed": 5, "device": "cpu", **CASES[request.param], **kwargs}
        policy = options.pop("policy", "MultiInputPolicy" if request.param in DELAYED else "MlpPolicy")
        return AGENTS[request.param](policy, vec() if env is None else env, **options)

    return build


@pytest.fixture
def delayed(request: pytest.FixtureRequest) -> bool:
    """Whether the agent that ``make`` builds reads delayed observations."""
    return request.node.callspec.params["make"] in DELAYED


def normalised(env: DummyVecEnv, **kwargs: Any) -> VecNormalize:
    """What ``VecNormalize`` can normalise of these observations."""
    several = isinstance(env.observation_space, spaces.Dict)
    return VecNormalize(env, norm_obs_keys=["observation"] if several else None, **kwargs)


def observations(agent: ActorCriticAgent[Any], n: int) -> Any:
    """The same ``n`` observations at every call."""
    space = agent.observation_space
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space}
    return np.stack(samples)


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every way of unpickling raise."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle was about to be loaded")

    load = torch.load

    def tensors_only(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("weights_only") is not True:
            refuse()
        return load(*args, **kwargs)

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", tensors_only)


class Rows(KVWriter):
    """Keeps what is logged, but for the clock."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        kept = {k: v for k, v in key_values.items() if k not in ("time/fps", "time/time_elapsed")}
        self.rows.append({k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in kept.items()})

    def close(self) -> None:
        pass


def equal(first: ActorCriticAgent[Any], second: ActorCriticAgent[Any]) -> None:
    """Assert that two agents are the same, bit for bit: weights, moments, experience, streams, returns."""
    ours, theirs = first.modules.state(), second.modules.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert (first.num_timesteps, first._n_updates) == (second.num_timesteps, second._n_updates)
    for name, generator in first.generators.items():
        assert torch.equal(generator.get_state(), second.generators[name].get_state()), name
    episodes = [[(info["r"], info["l"]) for info in agent.ep_info_buffer or ()] for agent in (first, second)]
    assert episodes[0] == episodes[1]
    if hasattr(first, "store"):
        same_tree(first.store.state(), second.store.state())  # type: ignore[attr-defined]


def same_tree(first: Any, second: Any) -> None:
    """Assert that two nests of plain data are equal."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same_tree(first[key], second[key])
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_every_agent_is_here() -> None:
    assert set(CASES) == set(AGENTS)
    assert set(SOLVING) == set(AGENTS)


# -- the ecosystem ---------------------------------------------------------------------------------------------------


def test_stock_callbacks(make: Make, tmp_path: Path) -> None:
    agent = make(tensorboard_log=str(tmp_path / "tb"))
    after_eval = StopTrainingOnNoModelImprovement(max_no_improvement_evals=99)
    evaluation = EvalCallback(
        vec(),
        callback_on_new_best=StopTrainingOnRewardThreshold(1e9),
        callback_after_eval=after_eval,
        eval_freq=20,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
    )
    seen: list[int] = []

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.num_timesteps)
            return True

    checkpoints = CheckpointCallback(25, str(tmp_path / "ck"), save_replay_buffer=True)
    agent.learn(60, [evaluation, checkpoints, EveryNTimesteps(15, Count()), LogEveryNTimesteps(30)])
    assert agent.num_timesteps == 60
    assert seen == [15, 30, 45, 60]
    assert evaluation.n_calls == 60
    assert len(evaluation.evaluations_results) == 3
    best = type(agent).load(tmp_path / "best" / "best_model")
    assert best.num_timesteps in (20, 40, 60)
    assert {p.name for p in (tmp_path / "ck").glob("*.zip")} == {"rl_model_25_steps.zip", "rl_model_50_steps.zip"}
    assert list((tmp_path / "tb").glob("*/events*"))


def test_max_episodes_and_threshold_stop(make: Make) -> None:
    agent = make().learn(10_000, StopTrainingOnMaxEpisodes(3))
    assert agent._episode_num == 3
    low = EvalCallback(vec(), callback_on_new_best=StopTrainingOnRewardThreshold(-1e9), eval_freq=10, verbose=0)
    agent = make().learn(10_000, low)
    assert agent.num_timesteps == 10


def test_callbacks_read_their_locals(make: Make) -> None:
    seen: list[tuple[Any, ...]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append((self.locals["dones"].copy(), self.locals["infos"], self.locals["total_timesteps"]))
            return True

    make(vec(2)).learn(40, Look())
    assert all(dones.shape == (2,) and len(infos) == 2 and total == 40 for dones, infos, total in seen)
    ended = [(row, infos[row]) for dones, infos, _ in seen for row in np.flatnonzero(dones)]
    assert ended
    assert all("terminal_observation" in info and "episode" in info for _, info in ended)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")  # Stable-Baselines3's bar is tqdm's rich one
def test_progress_bar(make: Make) -> None:
    agent = make().learn(30, progress_bar=True)
    assert agent.num_timesteps == 30


def test_evaluate_policy_agrees_with_a_loop(make: Make) -> None:
    agent = make().learn(30)
    env = vec()
    env.seed(3)
    returns, lengths = evaluate_policy(agent, env, n_eval_episodes=3, return_episode_rewards=True)
    single, expected = Point(), []
    for episode in range(3):
        obs, _ = single.reset(seed=3 if episode == 0 else None)
        total, done = 0.0, False
        while not done:
            action, _ = agent.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = single.step(action)
            total, done = total + reward, terminated or truncated
        expected.append(total)
    assert np.allclose(returns, expected, atol=1e-5)  # Monitor rounds to 1e-6, VecEnv's rewards are float32
    assert all(length <= 7 for length in lengths)


@pytest.mark.parametrize(
    "kind", ["several", "subproc", "normalised", "vector", "batched", "dict", "image", "single", "id"]
)
def test_environments_of_every_kind(make: Make, kind: str, delayed: bool, tmp_path: Path) -> None:
    if delayed and kind in ("dict", "image", "id"):
        pytest.skip("not delayed, or not a vector behind the delay")
    builders = [lambda: Monitor(Point()) for _ in range(2)]
    env: Any = {
        "several": lambda: vec(3),
        "subproc": lambda: SubprocVecEnv(builders),
        "normalised": lambda: normalised(vec(2)),
        "vector": lambda: SyncVectorEnv([Point, Point], autoreset_mode=AutoresetMode.NEXT_STEP),
        "batched": lambda: as_batched(SyncVectorEnv([Point, Point], autoreset_mode=AutoresetMode.SAME_STEP)),
        "dict": lambda: vec(2, form="dict"),
        "image": lambda: vec(form="image"),
        "single": Point,
        "id": lambda: "Pendulum-v1",
    }[kind]()
    policy = {"dict": {"policy": "MultiInputPolicy"}, "image": {"policy": "CnnPolicy"}}.get(kind, {})
    agent = make(env, **policy, buffer_size=90)
    steps = 18 if kind == "image" else 48
    agent.learn(steps)
    assert agent.num_timesteps == steps
    assert agent._n_updates > 0
    assert all(torch.isfinite(tensor).all() for tensor in agent.modules.state().values())
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent")
    obs = agent.get_env().reset()
    assert np.array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    agent.get_env().close()


def test_predict_takes_one_observation_or_many(make: Make) -> None:
    agent = make(vec(2))
    obs = observations(agent, 5)
    first = {key: part[0] for key, part in obs.items()} if isinstance(obs, dict) else obs[0]
    one, state = agent.predict(first, deterministic=True)
    many, _ = agent.predict(obs, deterministic=True)
    assert one.shape == (1,)
    assert many.shape == (5, 1)
    assert state is None
    assert np.allclose(many[0], one, atol=1e-6)  # batches of different size round differently
    assert (np.abs(many) <= 1).all()


def test_actions_respect_asymmetric_bounds(make: Make) -> None:
    class Asymmetric(Point):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Box(np.float32([-0.3]), np.float32([0.1]))

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action), action
            return super().step(action)

    make(Asymmetric()).learn(40)


def test_train_freq_and_gradient_steps(make: Make) -> None:
    assert make(vec(2), train_freq=4, gradient_steps=-1, learning_starts=0).learn(64)._n_updates == 64
    assert make(vec(2), train_freq=4, gradient_steps=3, learning_starts=0).learn(64)._n_updates == 48
    assert make(vec(), gradient_steps=20, learning_starts=10).learn(15)._n_updates == 100
    assert make(vec(), gradient_steps=0, learning_starts=0).learn(20)._n_updates == 0
    episodic = make(vec(), train_freq=(1, "episode"), gradient_steps=-1, learning_starts=0).learn(20)
    assert episodic._n_updates == episodic.num_timesteps >= 20


def test_linear_schedule_ends_at_zero(make: Make) -> None:
    agent = make(learning_rate_schedule="linear", learning_rate=1e-2)
    rates: list[float] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            rates.append(next(iter(self.model.modules)).optimizer.param_groups[0]["lr"])  # type: ignore[attr-defined]
            return True

    agent.learn(40, Look())
    assert rates[0] == 1e-2
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert agent.current_learning_rate == 0


def test_set_env_and_more_environments_on_load(make: Make, tmp_path: Path) -> None:
    agent = make(vec(2)).learn(20)
    agent.set_env(vec(2))
    agent.learn(20, reset_num_timesteps=False)
    assert agent.num_timesteps == 40
    with pytest.raises(ValueError, match="was made for 2 environments, got 3"):
        agent.set_env(vec(3))
    agent.save(tmp_path / "a.zip")
    more = type(agent).load(tmp_path / "a.zip", env=vec(3)).learn(30, reset_num_timesteps=False)
    assert more.num_timesteps == 70


# -- what is learned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_solves_a_point_on_a_line(name: str) -> None:
    """The best return is 0, and minus twice the start's cost if actions act two ticks late.

    Standing still costs 7/3 on average.
    """
    late = name in DELAYED
    env = delayed_vec(delays=("constant:1", "constant:1")) if late else vec()
    policy = "MultiInputPolicy" if late else "MlpPolicy"
    agent = AGENTS[name](policy, env, seed=0, device="cpu", learning_starts=100, batch_size=64, **SOLVING[name])
    agent.learn(700)
    env.seed(9)
    returns, _ = evaluate_policy(agent, env, n_eval_episodes=20, return_episode_rewards=True)
    single = Point()
    starts = [single.reset(seed=None if episode else 9)[0] for episode in range(20)]
    assert np.mean(returns) > (-2 * np.mean(np.square(starts)) if late else 0.0) - 0.1  # type: ignore[arg-type]


# -- reproducibility and resumption ----------------------------------------------------------------------------------


def test_two_seeded_runs_are_equal(make: Make) -> None:
    first, second, other = make(vec(2)).learn(60), make(vec(2)).learn(60), make(vec(2), seed=6).learn(60)
    equal(first, second)
    with pytest.raises(AssertionError):
        equal(first, other)


def test_a_drawn_seed_is_kept(make: Make, tmp_path: Path) -> None:
    first = make(seed=None)
    again = make(seed=first.seed)
    equal(first.learn(30), again.learn(30))


ROUNDS: dict[str, dict[str, Any]] = {
    "every step": {},
    "inside a round": {"train_freq": 4, "gradient_steps": 3},
    "several updates": {"gradient_steps": 3},
    "whole episodes": {"train_freq": [1, "episode"], "gradient_steps": -1},
}


def uninterrupted_and_resumed(
    make: Make, env: Callable[[], Any], stops: list[int], folder: Path, total: int = 90, **hyper: Any
) -> tuple[ActorCriticAgent[Any], ActorCriticAgent[Any], list[Any], list[Any]]:
    """Run once in one go, and once stopped, saved and resumed in fresh environments; log both."""
    straight_rows, broken_rows = Rows(), Rows()
    straight = make(env(), **hyper)
    straight.set_logger(Logger(None, [straight_rows]))
    straight.learn(total, log_interval=2)

    agent = make(env(), **hyper)
    agent.set_logger(Logger(None, [broken_rows]))
    agent.learn(total, Stop(stops[0]), log_interval=2)
    for index, _ in enumerate(stops):
        agent.save_checkpoint(folder)
        torch.rand(7), np.random.rand(3)  # noqa: NPY002 (disturb what a fresh process would have elsewhere)
        agent = type(agent).resume(folder, env())
        agent.set_logger(Logger(None, [broken_rows]))
        following = stops[index + 1 : index + 2]
        callback = Stop(following[0]) if following else None
        agent.learn(agent.remaining_timesteps, callback, log_interval=2, reset_num_timesteps=False)
    return straight, agent, straight_rows.rows, broken_rows.rows


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("stops", [[3], [13], [7, 14, 15], [30, 62]], ids=str)
def test_resumed_equals_uninterrupted(make: Make, tmp_path: Path, stops: list[int], rounds: str) -> None:
    """Stops before the first update, right after it, at the end of an episode (7, 14), and inside one."""
    result = uninterrupted_and_resumed(make, vec, stops, tmp_path, **ROUNDS[rounds])
    equal(*result[:2])
    assert result[2] == result[3]


@pytest.mark.parametrize("kind", ["several", "normalised", "next step", "subproc", "Hopper-v5", "dict"])
def test_resumed_equals_uninterrupted_in(make: Make, delayed: bool, tmp_path: Path, kind: str) -> None:
    if delayed and kind == "dict":
        pytest.skip("only vectors behind the delay")

    def hopper() -> Any:
        env = gym.make("Hopper-v5", max_episode_steps=25)
        return RandomDelay(env, "uniform:0-2", "uniform:0-1") if delayed else env

    makers: dict[str, Callable[[], Any]] = {
        "several": lambda: vec(3),
        "normalised": lambda: normalised(vec(2), gamma=0.9),
        "next step": lambda: SyncVectorEnv([Point, Point, Point]),
        "subproc": lambda: SubprocVecEnv([lambda: Snapshot(Monitor(Point())) for _ in range(2)]),
        "Hopper-v5": hopper,
        "dict": lambda: vec(2, form="dict"),
    }
    policy = {"policy": "MultiInputPolicy"} if kind == "dict" else {}
    stops = [30] if kind == "subproc" else [30, 36]  # each start of processes takes seconds
    result = uninterrupted_and_resumed(make, makers[kind], stops, tmp_path, **policy)
    equal(*result[:2])
    assert result[2] == result[3]
    for agent in result[:2]:
        agent.get_env().close()  # type: ignore[union-attr]


def test_stopping_between_two_updates_resumes_exactly(make: Make, tmp_path: Path) -> None:
    hyper = {"train_freq": 5, "gradient_steps": 7}
    straight = make(vec(), **hyper).learn(60)
    agent = make(vec(), **hyper)
    update, calls = agent._update, []

    def stopping(phase: str) -> dict[str, torch.Tensor]:
        calls.append(agent.num_timesteps)
        if len(calls) == 10:
            agent.request_stop()
        return update(phase)

    agent._update = stopping  # type: ignore[method-assign]
    agent.learn(60)
    assert agent.pending_updates == 4  # 10 = 7 + 3 of the second 7
    agent.save_checkpoint(tmp_path)
    resumed = type(agent).resume(tmp_path, vec())
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    equal(straight, resumed)


def test_checkpoints_inside_callbacks_do_not_change_training(make: Make, tmp_path: Path) -> None:
    class Save(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % 11 == 0:
                self.model.save_checkpoint(tmp_path, keep=None)  # type: ignore[attr-defined]
            return True

    straight, saving = make().learn(60), make().learn(60, Save())
    equal(straight, saving)
    assert len(list(tmp_path.iterdir())) == 5
    from_middle = type(straight).resume(tmp_path, vec())
    assert from_middle.num_timesteps == 55
    equal(straight, from_middle.learn(from_middle.remaining_timesteps, reset_num_timesteps=False))


def test_evaluating_does_not_change_training(make: Make) -> None:
    class Act(BaseCallback):
        def _on_step(self) -> bool:
            evaluate_policy(self.model, Monitor(Point()), n_eval_episodes=1, deterministic=False)
            return True

    equal_but_prediction(make().learn(40), make().learn(40, Act()))


def equal_but_prediction(first: ActorCriticAgent[Any], second: ActorCriticAgent[Any]) -> None:
    """The stream of sampled predictions may have moved; nothing else may."""
    second.generators["predict"].set_state(first.generators["predict"].get_state())
    equal(first, second)


def test_env_that_cannot_be_saved_restarts_its_episode(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(Point):
        def __init__(self) -> None:
            super().__init__()
            self.hidden: Iterator[int] = iter(range(10))

    agent = make(Closed()).learn(31)
    agent.save_checkpoint(tmp_path)
    assert "restart" in caplog.text
    assert "hidden" in caplog.text
    resumed = type(agent).resume(tmp_path, Closed())
    assert "restarted" in caplog.text
    resumed.learn(20, reset_num_timesteps=False)
    assert resumed.num_timesteps == 51


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pickle")
def test_save_load_gives_the_same_actions_without_pickle(make: Make, tmp_path: Path) -> None:
    agent = make().learn(40)
    obs = observations(agent, 50)
    expected, _ = agent.predict(obs, deterministic=True)
    agent.save(tmp_path / "agent")
    assert (tmp_path / "agent.zip").exists()
    for path in (tmp_path / "agent", tmp_path / "agent.zip", str(tmp_path / "agent")):
        loaded = type(agent).load(path)
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], expected)
        assert loaded.config == agent.config
    assert isinstance(agents.load(tmp_path / "agent"), type(agent))
    stream = io.BytesIO()
    agent.save(stream)
    stream.seek(0)
    assert np.array_equal(type(agent).load(stream).predict(obs, deterministic=True)[0], expected)
    agent.save_checkpoint(tmp_path / "ck")
    assert type(agent).resume(tmp_path / "ck", vec()).num_timesteps == 40


def test_loading_and_learning_on(make: Make, tmp_path: Path) -> None:
    agent = make().learn(30)
    agent.save(tmp_path / "a")
    agent.save_replay_buffer(tmp_path / "experience.zip")  # type: ignore[attr-defined]
    loaded = type(agent).load(tmp_path / "a", env=vec(), learning_rate=1e-4)
    assert loaded.config.learning_rate == 1e-4
    loaded.load_replay_buffer(tmp_path / "experience.zip")  # type: ignore[attr-defined]
    same_tree(
        loaded.store.state()["fields"], agent.store.state()["fields"]
    ) if "fields" in agent.store.state() else None  # type: ignore[attr-defined]
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 50


def test_a_file_of_another_class_is_refused(make: Make, tmp_path: Path) -> None:
    agent = make()
    agent.save(tmp_path / "a")
    other = next(cls for cls in AGENTS.values() if cls is not type(agent))
    with pytest.raises(FileFormatError, match=f"holds a {type(agent).__name__} agent, not {other.__name__}"):
        other.load(tmp_path / "a")
    agent.save_checkpoint(tmp_path / "ck")
    with pytest.raises(FileFormatError, match="agent, not"):
        other.resume(tmp_path / "ck", vec())


def test_missing_and_broken_files(make: Make, tmp_path: Path) -> None:
    agent = make().learn(20)
    with pytest.raises(FileNotFoundError):
        type(agent).load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        type(agent).resume(tmp_path, vec())
    agent.save_checkpoint(tmp_path / "ck")
    agent.learn(10, reset_num_timesteps=False)
    newest = agent.save_checkpoint(tmp_path / "ck")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert type(agent).resume(tmp_path / "ck", vec()).num_timesteps == 20


def test_a_full_disk_leaves_the_previous_checkpoint(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make().learn(20)
    agent.save_checkpoint(tmp_path)
    agent.learn(10, reset_num_timesteps=False)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            agent.save_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000020.zip"]
    assert type(agent).resume(tmp_path, vec()).num_timesteps == 20


# -- bad input -------------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_action_spaces_are_checked(make: Make) -> None:
    with pytest.raises(ValueError, match="Box action space, got Discrete") as error:
        make(gym.make("CartPole-v1"))
    assert "no agent here takes it" in one_line(error)
    with pytest.raises(ValueError, match="needs a Box action space"):
        make(DiscretizeAction(Point(), 5))

    class Unbounded(Point):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    with pytest.raises(ValueError, match="finite bounds") as error:
        make(Unbounded())
    one_line(error)


def test_observation_spaces_are_checked(make: Make) -> None:
    class Odd(Point):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Tuple([spaces.Discrete(2)])

    with pytest.raises(ValueError, match="only Box") as error:
        make(Odd())
    one_line(error)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"gama": 0.9}, "no field 'gama': did you mean gamma"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"gamma": float("nan")}, "gamma must lie in"),
        ({"batch_size": 0}, r"batch_size must lie in \[1, inf\), got 0"),
        ({"batch_size": 2.5}, "batch_size must be int, got 2.5"),
        ({"net_arch": [64, -1]}, "net_arch must lie in"),
        ({"learning_rate": lambda progress: progress}, "learning_rate_schedule='linear'"),
        ({"activation": "gelu"}, "activation must be"),
        ({"policy_kwargs": {"net_arc": [3]}}, "did you mean net_arch"),
    ],
)
def test_hyper_parameters_are_checked(make: Make, hyper: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as error:
        make(**hyper)
    one_line(error)


def test_unknown_id_names_the_nearest(make: Make) -> None:
    with pytest.raises(ValueError, match="did you mean Pendulum-v1") as error:
        make("Pendulun-v1")
    one_line(error)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["reward", "observation"])
def test_non_finite_environment(make: Make, delayed: bool, tmp_path: Path, where: str, bad: float) -> None:
    if delayed:
        pytest.skip("only vectors behind the delay; its own test has it")

    class Broken(Point):
        broken = True

        def step(self, action: Any) -> Any:
            obs, reward, *rest = super().step(action)
            self.count = getattr(self, "count", 0) + 1
            if self.count >= 24 and self.broken:
                if where == "reward":
                    reward = bad
                else:
                    obs = {**obs, "clock": np.array([0.5, bad])}
            return obs, reward, *rest

    agent = make(DummyVecEnv([lambda: Broken(form="dict")]), policy="MultiInputPolicy")
    place = "reward" if where == "reward" else r"observation\['clock'\]\[1\]"
    with pytest.raises(NonFiniteError, match=rf"environment 0 .* returned {place} = {re.escape(str(bad))} at step 24"):
        agent.learn(100)
    assert agent.num_timesteps == 23
    agent.save_checkpoint(tmp_path)
    Broken.broken = False
    resumed = type(agent).resume(tmp_path, DummyVecEnv([lambda: Broken(form="dict")]))
    assert resumed.learn(20, reset_num_timesteps=False).num_timesteps == 43


def test_a_policy_refuses_other_observations(make: Make, delayed: bool, tmp_path: Path) -> None:
    agent = make()
    wide = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="shape"):
        agent.predict({**observations(agent, 2), "observation": wide} if delayed else wide)
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match="was trained for") as error:
        type(agent).load(tmp_path / "a", env=gym.make("Pendulum-v1") if delayed else vec(form="dict"))
    one_line(error)
    with pytest.raises(ValueError, match="was trained for"):
        agent.set_env("Pendulum-v1")


def test_learning_without_an_environment(make: Make, tmp_path: Path) -> None:
    agent = make()
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match="no environment"):
        type(agent).load(tmp_path / "a").learn(10)
    with pytest.raises(TypeError, match="is no environment"):
        make(3)


def test_too_large_a_buffer(make: Make) -> None:
    with pytest.raises(ValueError, match="buffer_size") as error:
        make(buffer_size=10**13)
    one_line(error)


# -- environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["box", "dict"])
def test_wrappers_pass_the_stock_checker(form: str) -> None:
    check_env(Snapshot(Point(form=form)))


def test_callback_lists_are_taken(make: Make) -> None:
    assert make().learn(20, CallbackList([Stop(10)])).num_timesteps == 10
