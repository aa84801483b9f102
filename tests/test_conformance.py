"""What every agent must pass. A new agent joins with one entry in ``CASES``.

What an agent does by itself runs for each; what the loop, the collectors, the files or the wrappers do runs for one
agent (:func:`an_agent_that`), or for one of each source of data (:func:`an_agent_of_each`).
"""

import importlib
import io
import itertools
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway import agents
from headway.agents import AGENTS, ActorCriticAgent, FileFormatError, NonFiniteError
from headway.agents.core.config import describe
from headway.wrappers import Snapshot, as_batched
from headway.wrappers.random_delay import RandomDelay
from headway.wrappers.spaces_only import SpacesOnlyVecEnv
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
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from support import Stop, same_tree
from toys import FORMS, MOVES, DelayedPoint, Player, Point, homewards, homewards_in_halves, played

Agent = ActorCriticAgent[Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """How an agent joins. What it says it can do, it is tested to do; what it does not say, it must refuse in words.

    :param name: of its class
    :param hyper: what makes it small
    :param moves: kinds of actions it takes, of ``toys.MOVES``; its worlds have the first unless told
    :param sees: kinds of observations it takes besides the world's own, of ``toys.FORMS``
    :param can: "replay" (fills a replay buffer step by step and learns from it), "store" (has one), "on_policy" (learns
        from what it has just collected), "population" (its members play whole episodes), "offline" (learns from what
        was recorded, which it is given in the place of every environment), "delayed" (reads observations and actions
        that are late), "normalised" (inside ``VecNormalize``), "gradients" (takes gradient steps), "exact_resume",
        "memory" (``predict`` returns a state, which it wants back)
    :param solving: hyper-parameters, and ``total_timesteps``, with which it solves a point in seconds
    :param make_env: makes its world, with the keywords of :class:`~toys.Point`
    :param round: steps of each row between two rounds of updates: ``learn`` ends at a multiple of them
    :param generation: steps of all rows together, instead
    :param players: who plays in the data with which one that is "offline" solves a point, by the moves; by default
        actions come as they may
    :param label: in the names of tests; by default the agent's name
    """

    name: str
    hyper: Mapping[str, Any]
    can: frozenset[str]
    solving: Mapping[str, Any]
    moves: tuple[str, ...] = ("box",)
    sees: tuple[str, ...] = ("dict", "image", "image in a dict", "far tokens", "discrete", "multidiscrete")
    make_env: Callable[..., gym.Env[Any, Any]] = Point
    round: int = 1
    generation: int = 0
    players: Mapping[str, Player] = field(default_factory=dict)
    label: str = ""

    @property
    def agent(self) -> type[Agent]:
        """Its class."""
        return AGENTS[self.name]

    def env(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """Make its small world."""
        return self.make_env(**{"moves": self.moves[0], **kwargs})

    def vec(self, n: int = 1, **kwargs: Any) -> DummyVecEnv:
        """Make several of them, monitored, for Stable-Baselines3."""
        return DummyVecEnv([lambda: Monitor(self.env(**kwargs)) for _ in range(n)])

    def normalised(self, n: int = 1) -> VecNormalize:
        """Make several, with what ``VecNormalize`` can normalise of their observations."""
        env = self.vec(n)
        keys = ["observation"] if isinstance(env.observation_space, spaces.Dict) else None
        return VecNormalize(env, norm_obs_keys=keys, gamma=0.9)

    def make(self, env: Any = None, **kwargs: Any) -> Agent:
        """Build the agent, small and seeded."""
        env = self.vec() if env is None else env
        return self.agent(policy_for(env), **{**self.source(env), "seed": 5, "device": "cpu", **self.hyper, **kwargs})

    def source(self, env: Any = None) -> dict[str, Any]:
        """What the agent learns from, as the keyword of its constructor, ``load`` and ``resume``: the environment, or
        some episodes that were recorded in (the first of) it."""
        env = self.vec() if env is None else env
        if "offline" not in self.can:
            return {"env": env}
        if isinstance(env, Declares):
            return {"env": SpacesOnlyVecEnv(env.observation_space, env.action_space)}
        return {"dataset": played(env.envs[0] if isinstance(env, DummyVecEnv) else env, 4)}

    def resume(self, folder: Path, env: Any = None, device: str = "cpu") -> Agent:
        """Go on from a checkpoint, in the environment or with the data that were recorded in it."""
        return self.agent.resume(folder, device=device, **self.source(env))

    def steps(self, asked: int, rows: int = 1) -> int:
        """How many steps ``learn(asked)`` makes: the round in which they are reached is finished."""
        unit = self.generation or self.round * rows
        return -(-asked // unit) * unit


def policy_for(env: Any) -> str:
    """The policy that Stable-Baselines3 has for an environment's observations."""
    space = getattr(env, "single_observation_space", getattr(env, "observation_space", None))
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if isinstance(space, spaces.Box) and is_image_space(space) else "MlpPolicy"


class Endless(Point):
    """A point that no step leads out of bounds: all episodes have seven steps."""

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


DEVICES = ("cuda", "cpu")
TINY = {"net_arch": [16, 16], "batch_size": 16, "buffer_size": 200, "learning_starts": 12}
QUICK = {"total_timesteps": 500, "net_arch": [32, 32], "learning_starts": 100, "batch_size": 64, "gamma": 0.5}
QUICK |= {"learning_rate": 3e-3}
OFF_POLICY = frozenset({"replay", "store", "gradients", "normalised", "exact_resume"})
OFFLINE = frozenset({"offline", "gradients", "exact_resume"})
SMALL = {"net_arch": [16, 16], "batch_size": 16, "normalize_obs": False}
SHORT = {"total_timesteps": 500, "net_arch": [32, 32], "batch_size": 64, "gamma": 0.5, "learning_rate": 3e-3}
SHARP = {"expectile": 0.8, "inverse_temperature": 20.0}

MEMBERS = {"net_arch": [16, 16], "population_size": 6}
SEARCH = {"net_arch": [16], "population_size": 12, "initial_variance": 0.05, "variance_decay": 0.05}

CASES = (
    Case(name="SAC", hyper=TINY, solving=QUICK | {"ent_coef": 0.01}, can=OFF_POLICY),
    Case(name="TD3", hyper=TINY, solving=QUICK, can=OFF_POLICY),
    Case(
        name="DCAC",
        make_env=DelayedPoint,
        hyper=TINY,
        solving=QUICK | {"ent_coef": 0.01, "reward_scale": 1.0},
        sees=(),
        can=OFF_POLICY | {"delayed"},
    ),
    Case(
        name="DQN",
        hyper=TINY | {"target_update_interval": 10, "train_freq": 1},
        solving=QUICK
        | {"train_freq": 1, "target_update_interval": 20, "exploration_fraction": 0.5, "total_timesteps": 600},
        moves=("discrete",),
        can=OFF_POLICY,
    ),
    Case(
        name="PPO",
        hyper={"net_arch": [16, 16], "batch_size": 12, "n_steps": 8, "n_epochs": 2},
        solving={"total_timesteps": 6000, "n_steps": 64, "gamma": 0.5, "learning_rate": 3e-3, "log_std_init": -1.0}
        | {"ent_coef": 0.02, "learning_rate_schedule": "linear"},
        moves=("box", "discrete", "multidiscrete"),
        round=8,
        can=frozenset({"on_policy", "gradients", "normalised", "exact_resume"}),
    ),
    Case(
        name="TPO",
        hyper={
            "net_arch": [16, 16],
            "batch_size": 12,
            "n_steps": 8,
            "n_epochs": 2,
            "search_batch_size": 24,
            "history": 2,
        }
        | {"bootstrap_steps": 16, "gate": "off", "simulations": 6, "candidates": 3},
        solving={"total_timesteps": 1500, "n_steps": 64, "gamma": 0.5, "learning_rate": 3e-3, "log_std_init": -1.0}
        | {"bootstrap_steps": 0, "simulations": 8, "candidates": 4, "n_epochs": 10},
        moves=("box", "discrete"),
        round=8,
        can=frozenset({"on_policy", "gradients", "normalised", "exact_resume"}),
    ),
    Case(
        name="CEM",
        make_env=Endless,
        hyper=MEMBERS,
        solving=SEARCH | {"total_timesteps": 2500},
        sees=("dict", "far tokens", "discrete", "multidiscrete"),
        generation=42,
        can=frozenset({"population", "normalised", "exact_resume"}),
    ),
    Case(
        name="PGPS",
        make_env=Endless,
        hyper=MEMBERS
        | {"batch_size": 16, "buffer_size": 200, "learning_starts": 0, "surrogate_start": 50, "candidates": 3}
        | {"actor_learning_rate": None, "n_blocks": 2, "probe_states": 8, "surrogate_states": 4, "guided_margin": 0.0},
        solving=SEARCH
        | {"total_timesteps": 1200, "learning_starts": 84, "surrogate_start": 200, "batch_size": 64}
        | {"gamma": 0.5, "learning_rate": 3e-3, "net_arch": [32, 32]},
        sees=("dict", "far tokens", "discrete", "multidiscrete"),
        generation=42,
        can=frozenset({"population", "store", "gradients", "normalised", "exact_resume"}),
    ),
    Case(
        name="MBPO",
        hyper=TINY
        | {"n_models": 3, "n_elites": 2, "model_net_arch": [8], "model_train_freq": 20, "rollouts_per_step": 2}
        | {"gradient_steps": 2, "rollout_schedule": [0, 2, 1, 3], "epoch_length": 20},
        solving=QUICK
        | {"model_net_arch": [32], "n_models": 3, "n_elites": 2, "gradient_steps": 3, "model_train_freq": 100}
        | {"rollouts_per_step": 20, "rollout_schedule": [0, 1, 1, 1], "total_timesteps": 300},
        sees=(),
        can=frozenset({"store", "gradients", "exact_resume"}),
    ),
    Case(
        name="BC",
        hyper=SMALL,
        solving=SHORT | {"total_timesteps": 200},
        moves=("box", "discrete"),
        players={"box": homewards, "discrete": homewards_in_halves},
        can=OFFLINE,
    ),
    Case(name="IQL", hyper=SMALL, solving=SHORT | SHARP, moves=("box", "discrete"), can=OFFLINE),
    Case(
        name="IQL",
        label="IQL online",
        hyper=TINY,
        solving=QUICK | SHARP | {"total_timesteps": 700},
        moves=("box", "discrete"),
        sees=(),
        can=OFF_POLICY,
    ),
    Case(name="TD3BC", hyper=SMALL, solving=SHORT | {"q_coef": 20.0}, can=OFFLINE),
    Case(
        name="HDCR",
        hyper=SMALL | {"value_steps": 5, "actor_steps": 8},
        solving=SHORT
        | {"value_steps": 150, "actor_steps": 250, "return_lambda": 0.0, "total_timesteps": 800}
        | {"value_learning_rate": 1e-2, "temperature": 0.5},
        moves=("box", "discrete"),
        can=OFFLINE,
    ),
    Case(
        name="TDT",
        hyper={"context": 3, "width": 16, "layers": 1, "heads": 2, "batch_size": 8, "normalize_obs": False},
        solving={"total_timesteps": 250, "context": 3, "width": 32, "layers": 1, "heads": 2, "learning_rate": 3e-3},
        moves=("discrete",),
        players={"discrete": homewards_in_halves},
        can=OFFLINE | {"memory"},
    ),
    Case(
        name="ABM",
        hyper=SMALL | {"n_samples": 3, "target_update_interval": 10},
        solving=SHORT | {"epsilon_mean": 0.1},
        can=OFFLINE,
    ),
)


def able(*needed: str) -> list[Case]:
    """The agents that can do all that is needed."""
    return [case for case in CASES if case.can >= set(needed)]


def each_of(chosen: Iterable[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.label or case.name)


def every_agent_that(*needed: str) -> pytest.MarkDecorator:
    """Run a test for each agent that can do all that is needed."""
    return each_of(able(*needed))


def an_agent_that(*needed: str) -> pytest.MarkDecorator:
    """Run a test for one agent that can do all that is needed: what it tests is not the agent's own."""
    return each_of(able(*needed)[:1])


every_agent = every_agent_that()
an_agent = an_agent_that()


def an_agent_of_each(*sources: str) -> pytest.MarkDecorator:
    """Run a test for one agent of each of these sources of data."""
    return each_of([case for source in sources for case in able(source)[:1]])


an_agent_of_each_source = an_agent_of_each("replay", "on_policy", "population", "offline")
every_agent_that_steps = each_of([case for case in CASES if "offline" not in case.can])
an_agent_that_steps = an_agent_of_each("replay", "on_policy", "population")
every_move = pytest.mark.parametrize(
    ("case", "moves"),
    [pytest.param(case, moves, id=f"{case.label or case.name}-{moves}") for case in CASES for moves in case.moves],
)
every_sight = pytest.mark.parametrize(
    ("case", "form"), [pytest.param(case, form, id=f"{case.name}-{form}") for case in CASES for form in case.sees]
)


def test_every_agent_is_here() -> None:
    ours = {name for name, cls in AGENTS.items() if cls.__module__.startswith("headway.")}
    assert {case.name for case in CASES} == ours


# -- what tests share ------------------------------------------------------------------------------------------------


def held(agent: Agent) -> dict[str, Any]:
    """What an agent's checkpoint holds but for its environment, as a nest of plain data."""
    parts = {name: part.state() for name, part in agent.parts.items() if name not in ("environment", "global_streams")}
    parts["episodes"] = [(info["r"], info["l"]) for info in agent.ep_info_buffer or ()]  # without the clock
    return {"networks": agent.modules.state(), **parts}


def updates(agent: Agent) -> int:
    """Gradient steps so far, by Stable-Baselines3's name."""
    return agent._n_updates


def equal(first: Agent, second: Agent) -> None:
    """Assert that two agents are the same, bit for bit: weights, moments, experience, streams, returns."""
    same_tree(held(first), held(second))


def observations(agent: Agent, n: int) -> Any:
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
    importlib.import_module("torch._dynamo")  # torch's optimisers would, and its classes inherit from pickle's

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
        counted = ("time/episodes", "time/total_timesteps")
        kept = {k: v for k, v in key_values.items() if not k.startswith("time/") or k in counted}
        self.rows.append({k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in kept.items()})

    def close(self) -> None:
        pass


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# -- the ecosystem ---------------------------------------------------------------------------------------------------


@every_agent
@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")  # nor can they be, with data
def test_stock_callbacks(case: Case, tmp_path: Path) -> None:
    agent = case.make(tensorboard_log=str(tmp_path / "tb"))
    after_eval = StopTrainingOnNoModelImprovement(max_no_improvement_evals=99)
    evaluation = EvalCallback(
        case.vec(),
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

    checkpoints = CheckpointCallback(25, str(tmp_path / "ck"), save_replay_buffer="store" in case.can)
    agent.learn(60, [evaluation, checkpoints, EveryNTimesteps(15, Count()), LogEveryNTimesteps(30)])
    end = case.steps(60)
    assert agent.num_timesteps == evaluation.n_calls == end
    assert seen == [*range(15, end + 1, 15)]
    assert len(evaluation.evaluations_results) == end // 20
    best = type(agent).load(tmp_path / "best" / "best_model")
    assert best.num_timesteps in range(20, end + 1, 20)
    saved = {f"rl_model_{step}_steps.zip" for step in range(25, end + 1, 25)}
    assert {p.name for p in (tmp_path / "ck").glob("*.zip")} == saved
    assert list((tmp_path / "tb").glob("*/events*"))


@an_agent_that_steps
def test_callbacks_can_stop_at_any_step(case: Case) -> None:
    assert case.make().learn(20, CallbackList([Stop(10)])).num_timesteps == 10
    low = EvalCallback(case.vec(), callback_on_new_best=StopTrainingOnRewardThreshold(-1e9), eval_freq=10, verbose=0)
    assert case.make().learn(10_000, low).num_timesteps == 10
    agent = case.make().learn(10_000, StopTrainingOnMaxEpisodes(3))
    assert len(agent.ep_info_buffer or ()) == 3


@an_agent_that_steps
def test_callbacks_read_their_locals(case: Case) -> None:
    seen: list[tuple[Any, ...]] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append((self.locals["dones"].copy(), self.locals["infos"], self.locals["total_timesteps"]))
            return True

    case.make(case.vec(2)).learn(40, Look())
    assert all(dones.shape == (2,) and len(infos) == 2 and total == 40 for dones, infos, total in seen)
    ended = [(row, infos[row]) for dones, infos, _ in seen for row in np.flatnonzero(dones)]
    assert ended
    assert all("terminal_observation" in info and "episode" in info for _, info in ended)


@an_agent_of_each_source
@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")  # Stable-Baselines3's bar is tqdm's rich one
def test_progress_bar(case: Case) -> None:
    assert case.make().learn(30, progress_bar=True).num_timesteps == case.steps(30)


@every_agent
def test_evaluate_policy_agrees_with_a_loop(case: Case) -> None:
    agent, env, single = case.make().learn(30), case.vec(), case.env()
    env.seed(3)
    returns, lengths = evaluate_policy(agent, env, n_eval_episodes=3, return_episode_rewards=True)
    expected = []
    for episode in range(3):
        obs, _ = single.reset(seed=3 if episode == 0 else None)
        total, done, state = 0.0, False, None
        while not done:
            action, state = agent.predict(obs, state, deterministic=True)
            obs, reward, terminated, truncated, _ = single.step(action)
            total, done = total + float(reward), terminated or truncated
        expected.append(total)
    assert np.allclose(returns, expected, atol=1e-5)  # Monitor rounds to 1e-6, VecEnv's rewards are float32
    assert all(length <= 7 for length in lengths)  # type: ignore[union-attr]


@every_move
def test_predict_takes_one_observation_or_many(case: Case, moves: str) -> None:
    agent = case.make(case.vec(2, moves=moves))
    obs = observations(agent, 5)
    first = {key: part[0] for key, part in obs.items()} if isinstance(obs, dict) else obs[0]
    one, state = agent.predict(first, deterministic=True)
    many, _ = agent.predict(obs, deterministic=True)
    assert np.shape(one) == agent.action_space.shape
    assert many.shape == (5, *np.shape(one))
    assert (state is not None) == ("memory" in case.can)
    assert np.allclose(many[0], one, atol=1e-6)  # batches of different size round differently
    assert all(agent.action_space.contains(action) for action in many)


class Strict(gym.Wrapper[Any, Any, Any, Any]):
    """Refuses actions outside of its space, which is lopsided where it is a Box."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        if isinstance(env.action_space, spaces.Box):
            self.action_space = spaces.Box(np.float32([-0.3]), np.float32([0.1]))

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return super().step(action)


@every_move
def test_actions_lie_in_their_space(case: Case, moves: str) -> None:
    case.make(Strict(case.env(moves=moves))).learn(40)


@every_agent_that("replay")
def test_train_freq_and_gradient_steps(case: Case) -> None:
    def after(steps: int, n: int, **hyper: Any) -> int:
        return updates(case.make(case.vec(n), **{"learning_starts": 0, **hyper}).learn(steps))

    assert after(16, 2, train_freq=4, gradient_steps=-1) == 16
    assert after(16, 2, train_freq=4, gradient_steps=3) == 12
    assert after(15, 1, gradient_steps=4, learning_starts=10) == 20
    assert after(5, 1, gradient_steps=0) == 0
    episodic = case.make(train_freq=(1, "episode"), gradient_steps=-1, learning_starts=0).learn(10)
    assert updates(episodic) == episodic.num_timesteps >= 10


@every_agent_that("gradients")
def test_linear_schedule_ends_at_zero(case: Case) -> None:
    agent = case.make(learning_rate_schedule="linear", learning_rate=1e-2)
    rates: list[float] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            rates.append(next(iter(agent.modules)).optimizer.param_groups[0]["lr"])
            return True

    agent.learn(max(40, 3 * case.generation), Look())
    assert rates[0] == 1e-2
    assert rates[-1] < 0.5 * rates[0]
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert agent.current_learning_rate == 0


@an_agent_that_steps
def test_set_env_and_more_environments_on_load(case: Case, tmp_path: Path) -> None:
    agent = case.make(case.vec(2)).learn(20)
    agent.set_env(case.vec(2))
    agent.learn(20, reset_num_timesteps=False)
    assert agent.num_timesteps == 2 * case.steps(20, rows=2)
    with pytest.raises(ValueError, match="was made for 2 environments, got 3"):
        agent.set_env(case.vec(3))
    agent.save(tmp_path / "a.zip")
    more = type(agent).load(tmp_path / "a.zip", env=case.vec(3)).learn(30, reset_num_timesteps=False)
    assert more.num_timesteps == agent.num_timesteps + case.steps(30, rows=3)


# -- what is learned -------------------------------------------------------------------------------------------------


@every_move
def test_solves_a_point_on_a_line(case: Case, moves: str) -> None:
    """The best return is 0, and minus twice the start's cost if actions act two ticks late.

    Standing still costs 7/3 on average.
    """
    late = {"delays": ("constant:1", "constant:1")} if "delayed" in case.can else {}
    env, hyper = case.vec(moves=moves, **late), dict(case.solving)
    total = hyper.pop("total_timesteps")
    source: dict[str, Any] = {"env": env}
    if "offline" in case.can:
        source = {"dataset": played(Point(moves=moves), 200, case.players.get(moves))}
    agent = case.agent(policy_for(env), **source, seed=0, device="cpu", **hyper).learn(total)
    env.seed(9)
    returns, _ = evaluate_policy(agent, env, n_eval_episodes=20, return_episode_rewards=True)
    single = Point(moves=moves)
    starts = [single.reset(seed=None if episode else 9)[0] for episode in range(20)]
    assert np.mean(returns) > (-2 * np.mean(np.square(starts)) if late else 0.0) - 0.1


# -- reproducibility and resumption ----------------------------------------------------------------------------------


@every_agent
def test_seeded_runs_are_equal(case: Case) -> None:
    first, second = case.make(case.vec(2)).learn(60), case.make(case.vec(2)).learn(60)
    equal(first, second)
    with pytest.raises(AssertionError):
        equal(first, case.make(case.vec(2), seed=6).learn(60))


@an_agent
def test_a_drawn_seed_is_kept(case: Case) -> None:
    first = case.make(seed=None)
    first.env.seed(first.seed)  # which no seed of the agent's does
    again = case.make(seed=first.seed)
    with torch.random.fork_rng():  # from where seeds are drawn
        equal(first.learn(30), again.learn(30))
    torch.manual_seed(9)
    drawn = [case.make(seed=None).seed for _ in range(2)]
    torch.manual_seed(9)
    assert drawn[0] == case.make(seed=None).seed != drawn[1]


def holds_when_resumed(
    case: Case, env: Callable[[], Any], stops: list[int], folder: Path, total: int = 90, **hyper: Any
) -> Agent:
    """Run once in one go, and once stopped, saved and resumed in fresh environments: assert that all is equal.

    :return: the agent that was resumed
    """
    straight_rows, broken_rows = Rows(), Rows()
    straight = case.make(env(), **hyper)
    straight.set_logger(Logger(None, [straight_rows]))
    straight.learn(total, log_interval=2)

    agent = case.make(env(), **hyper)
    agent.set_logger(Logger(None, [broken_rows]))
    agent.learn(total, Stop(stops[0]), log_interval=2)
    for index, _ in enumerate(stops):
        agent.save_checkpoint(folder)
        torch.rand(7), np.random.rand(3)  # noqa: NPY002 (disturb what a fresh process would have elsewhere)
        agent.get_env().close()  # type: ignore[union-attr]
        agent = case.resume(folder, env(), hyper.get("device", "cpu"))
        agent.set_logger(Logger(None, [broken_rows]))
        following = stops[index + 1 : index + 2]
        callback = Stop(following[0]) if following else None
        agent.learn(agent.remaining_timesteps, callback, log_interval=2, reset_num_timesteps=False)
    equal(straight, agent)
    assert straight_rows.rows == broken_rows.rows
    assert updates(agent) > 0 or "gradients" not in case.can
    straight.get_env().close()  # type: ignore[union-attr]
    return agent


@every_agent_that("exact_resume")
def test_resumed_equals_uninterrupted(case: Case, tmp_path: Path) -> None:
    """Stops before the first update, right after it, at the end of an episode (14), of a round (32), inside both."""
    holds_when_resumed(case, case.vec, [3, 13, 14, 32, 62], tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@every_agent_that("exact_resume")
def test_resumed_on_a_gpu(case: Case, tmp_path: Path) -> None:
    """To the same bits, with the policy's file acting as the agent does on another device."""
    agent = holds_when_resumed(case, case.vec, [14, 32], tmp_path / "run", device="cuda")
    assert agent.device.type == "cuda"
    agent.save(tmp_path / "policy")
    obs = case.vec(3).reset()
    there, here = (case.agent.load(tmp_path / "policy", device=d).predict(obs, deterministic=True)[0] for d in DEVICES)
    assert np.allclose(there, here, atol=1e-4)


@an_agent_that("exact_resume", "replay")
@pytest.mark.parametrize(
    "rounds", [{"train_freq": 4, "gradient_steps": 3}, {"train_freq": [1, "episode"], "gradient_steps": -1}], ids=str
)
def test_resumed_inside_rounds_of_steps_or_episodes(case: Case, tmp_path: Path, rounds: dict[str, Any]) -> None:
    holds_when_resumed(case, case.vec, [3, 13, 14, 32, 62], tmp_path, **rounds)


@every_agent_that("exact_resume", "normalised")
def test_resumed_with_normalised_rows(case: Case, tmp_path: Path) -> None:
    agent = holds_when_resumed(case, lambda: case.normalised(2), [30, 36], tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in agent.modules.state().values())


@every_agent_that("exact_resume")
def test_resumed_in_bfloat16(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.agents.core.agent.check_precision", lambda *_: None)  # faster here or not
    agent = holds_when_resumed(case, case.vec, [14], tmp_path, total=40, precision="bfloat16")
    assert all(tensor.dtype is not torch.bfloat16 for tensor in agent.modules.state().values())
    with pytest.raises(AssertionError):
        equal(case.make().learn(40), agent)
    agent.save(tmp_path / "a")
    monkeypatch.undo()  # a policy predicts on any processor
    assert case.agent.load(tmp_path / "a").config.precision == "bfloat16"


def keeps_its_policy(agent: Agent, path: Path) -> None:
    """Assert that a saved agent predicts what the agent does, and that its weights are numbers."""
    assert all(torch.isfinite(tensor).all() for tensor in agent.modules.state().values())
    agent.save(path)
    obs = observations(agent, 3)
    expected, _ = agent.predict(obs, deterministic=True)
    assert np.array_equal(type(agent).load(path).predict(obs, deterministic=True)[0], expected)
    agent.get_env().close()  # type: ignore[union-attr]


@every_sight
def test_sees(case: Case, form: str, tmp_path: Path) -> None:
    agent = holds_when_resumed(case, lambda: case.vec(form=form), [14], tmp_path, total=18)
    keeps_its_policy(agent, tmp_path / "agent.zip")


@every_move
def test_moves(case: Case, moves: str, tmp_path: Path) -> None:
    agent = holds_when_resumed(case, lambda: case.vec(3, moves=moves), [30], tmp_path, total=45)
    keeps_its_policy(agent, tmp_path / "agent.zip")


KINDS: dict[str, Callable[[Case], Any]] = {
    "one": lambda case: case.env(),
    "next step": lambda case: SyncVectorEnv([case.env] * 3, autoreset_mode=AutoresetMode.NEXT_STEP),
    "same step": lambda case: as_batched(SyncVectorEnv([case.env] * 2, autoreset_mode=AutoresetMode.SAME_STEP)),
    "processes": lambda case: SubprocVecEnv([lambda: Snapshot(Monitor(Point()))] * 2),
    "an id": lambda case: "Pendulum-v1",
    "physics": lambda case: gym.make("Hopper-v5", max_episode_steps=25),
}


@an_agent_that_steps
@pytest.mark.parametrize("kind", KINDS)
def test_environments_of_every_kind(case: Case, kind: str, tmp_path: Path) -> None:
    agent = holds_when_resumed(case, lambda: KINDS[kind](case), [30], tmp_path, total=48)
    keeps_its_policy(agent, tmp_path / "agent.zip")


@every_agent_that("exact_resume", "delayed")
def test_resumed_with_delayed_physics(case: Case, tmp_path: Path) -> None:
    def env() -> gym.Env[Any, Any]:
        return RandomDelay(gym.make("Hopper-v5", max_episode_steps=25), "uniform:0-2", "uniform:0-1")

    holds_when_resumed(case, env, [30, 36], tmp_path, total=60)


@every_agent_that("exact_resume", "gradients")
def test_stopping_between_two_updates_resumes_exactly(case: Case, tmp_path: Path) -> None:
    hyper = {"train_freq": 5, "gradient_steps": 7} if "replay" in case.can else {}
    straight, agent = case.make(**hyper).learn(60), case.make(**hyper)
    add = agent.metrics.add

    def stop_after_ten(values: Mapping[str, torch.Tensor]) -> None:
        """What the loop calls once per update."""
        add(values)
        if updates(agent) == 9:  # this one is counted next
            agent.request_stop()

    agent.metrics.add = stop_after_ten  # type: ignore[method-assign]
    agent.learn(60)
    assert updates(agent) == 10
    agent.save_checkpoint(tmp_path)
    resumed = case.resume(tmp_path)
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    equal(straight, resumed)


@every_agent_that("exact_resume")
def test_checkpoints_and_evaluations_inside_callbacks_do_not_change_training(case: Case, tmp_path: Path) -> None:
    class Disturb(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % 11 == 0:
                self.model.save_checkpoint(tmp_path, keep=None)  # type: ignore[attr-defined]
                evaluate_policy(self.model, Monitor(case.env()), n_eval_episodes=1, deterministic=False)
            return True

    end = case.steps(60)
    straight, disturbed = case.make().learn(end), case.make().learn(end, Disturb())
    saved = end // 11
    assert len(list(tmp_path.iterdir())) == saved
    from_middle = case.resume(tmp_path)
    assert from_middle.num_timesteps == 11 * saved
    from_middle.learn(from_middle.remaining_timesteps, reset_num_timesteps=False)
    for agent in (disturbed, from_middle):
        # The stream of sampled predictions has moved; nothing else may have.
        agent.generators["predict"].set_state(straight.generators["predict"].get_state())
        equal(straight, agent)


@an_agent_that_steps
def test_env_that_cannot_be_saved_restarts_its_episode(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(gym.Wrapper[Any, Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(case.env())
            self.hidden: Iterator[int] = iter(range(10))

    agent = case.make(Closed()).learn(31)
    agent.save_checkpoint(tmp_path)
    assert "restart" in caplog.text
    assert "hidden" in caplog.text
    resumed = type(agent).resume(tmp_path, Closed())
    assert "restarted" in caplog.text
    resumed.learn(20, reset_num_timesteps=False)
    assert resumed.num_timesteps == case.steps(agent.num_timesteps + 20)


# -- files -----------------------------------------------------------------------------------------------------------


@every_agent
@pytest.mark.usefixtures("no_pickle")
def test_save_load_gives_the_same_actions_without_pickle(case: Case, tmp_path: Path) -> None:
    agent = case.make().learn(40)
    obs = observations(agent, 50)
    expected, _ = agent.predict(obs, deterministic=True)
    agent.save(tmp_path / "agent")
    assert (tmp_path / "agent.zip").exists()
    stream = io.BytesIO()
    agent.save(stream)
    stream.seek(0)
    for path in (tmp_path / "agent", tmp_path / "agent.zip", str(tmp_path / "agent"), stream):
        loaded = type(agent).load(path)
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], expected)
        assert loaded.config == agent.config
    assert isinstance(agents.load(tmp_path / "agent"), type(agent))
    agent.save_checkpoint(tmp_path / "ck")
    assert case.resume(tmp_path / "ck").num_timesteps == agent.num_timesteps


@every_agent
def test_loading_and_learning_on(case: Case, tmp_path: Path) -> None:
    agent = case.make().learn(30)
    agent.save(tmp_path / "a")
    loaded = type(agent).load(tmp_path / "a", **case.source(), activation="tanh")
    assert loaded.config.activation == "tanh"
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == agent.num_timesteps + case.steps(20)


@every_agent_that("store")
def test_experience_alone_can_be_saved(case: Case, tmp_path: Path) -> None:
    agent, other = case.make().learn(30), case.make(seed=6)
    agent.save_replay_buffer(tmp_path / "experience.zip")  # type: ignore[attr-defined]
    other.load_replay_buffer(tmp_path / "experience.zip")  # type: ignore[attr-defined]
    same_tree(held(agent)["store"], held(other)["store"])


@an_agent
def test_a_file_of_another_class_is_refused(case: Case, tmp_path: Path) -> None:
    agent = case.make()
    agent.save(tmp_path / "a")
    other = next(cls for name, cls in AGENTS.items() if cls is not type(agent) and ":" not in name)
    with pytest.raises(FileFormatError, match=f"holds a {case.name} agent, not {other.__name__}"):
        other.load(tmp_path / "a")
    agent.save_checkpoint(tmp_path / "ck")
    with pytest.raises(FileFormatError, match="agent, not"):
        other.resume(tmp_path / "ck", case.vec())


@an_agent
def test_missing_and_broken_files(case: Case, tmp_path: Path) -> None:
    agent = case.make().learn(20)
    with pytest.raises(FileNotFoundError):
        type(agent).load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        type(agent).resume(tmp_path, case.vec())
    agent.save_checkpoint(tmp_path / "ck")
    agent.learn(10, reset_num_timesteps=False)
    newest = agent.save_checkpoint(tmp_path / "ck")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert type(agent).resume(tmp_path / "ck", case.vec()).num_timesteps == 20


@an_agent
def test_a_full_disk_leaves_the_previous_checkpoint(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = case.make().learn(20)
    agent.save_checkpoint(tmp_path)
    agent.learn(10, reset_num_timesteps=False)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            agent.save_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000020.zip"]
    assert type(agent).resume(tmp_path, case.vec()).num_timesteps == 20


# -- bad input -------------------------------------------------------------------------------------------------------


class Declares(gym.Wrapper[Any, Any, Any, Any]):
    """Says that its spaces are others than they are."""

    def __init__(self, env: gym.Env[Any, Any], **declared: spaces.Space[Any]) -> None:
        super().__init__(env)
        for name, space in declared.items():
            setattr(self, name, space)


@every_agent
def test_other_actions_are_refused(case: Case) -> None:
    for moves in MOVES.keys() - case.moves:
        with pytest.raises(ValueError, match=f"got {type(MOVES[moves]).__name__}") as error:
            case.make(Declares(case.env(), action_space=MOVES[moves]))
        text = one_line(error)
        assert all(other.name in text for other in CASES if moves in other.moves)


@each_of([case for case in CASES if case.agent.squashes and "box" in case.moves])
def test_bounds_of_actions_are_checked(case: Case) -> None:
    with pytest.raises(ValueError, match="finite bounds") as error:
        case.make(Declares(case.env(), action_space=spaces.Box(-np.inf, np.inf, (1,), np.float32)))
    one_line(error)


@every_agent
def test_other_observations_are_refused(case: Case) -> None:
    pair = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))
    with pytest.raises(ValueError, match=r"Tuple\(Discrete\(2\), Discrete\(3\)\)") as error:
        case.make(Declares(case.env(), observation_space=pair))
    one_line(error)


MISTAKES = (
    ({"net_arhc": [9]}, "no field 'net_arhc': did you mean net_arch"),
    ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
    ({"gamma": float("nan")}, "gamma must lie in"),
    ({"batch_size": 0}, r"batch_size must lie in \[1, inf\), got 0"),
    ({"batch_size": 2.5}, "batch_size must be int, got 2.5"),
    ({"net_arch": [64, -1]}, "net_arch must lie in"),
    ({"learning_rate": lambda progress: progress}, "learning_rate_schedule='linear'"),
    ({"activation": "swish"}, "activation must be"),
    ({"policy_kwargs": {"net_arc": [3]}}, "did you mean net_arch"),
)


@every_agent
def test_hyper_parameters_are_checked(case: Case) -> None:
    for hyper, message in MISTAKES:
        if not {"net_arhc", "policy_kwargs", *describe(case.agent.config_class)} >= hyper.keys():
            continue  # a field that means nothing to this agent
        with pytest.raises((TypeError, ValueError), match=message) as error:
            case.make(**hyper)
        one_line(error)


@an_agent
def test_unknown_id_names_the_nearest(case: Case) -> None:
    with pytest.raises(ValueError, match="did you mean Pendulum-v1") as error:
        case.make("Pendulun-v1")
    one_line(error)


class Broken(gym.Wrapper[Any, Any, Any, Any]):
    """Returns a number that is none at its 24th step, until it is mended."""

    mended = False

    def __init__(self, env: gym.Env[Any, Any], bad: float, where: str = "reward") -> None:
        super().__init__(env)
        self.bad, self.where, self.count = bad, where, 0

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        self.count += 1
        if self.count < 24 or self.mended:
            return obs, reward, *rest
        if self.where == "reward":
            return obs, self.bad, *rest
        return {**obs, "clock": np.array([0.5, self.bad])}, reward, *rest


def refuses_at_step_24(case: Case, env: Broken, place: str, bad: float) -> Agent:
    agent = case.make(DummyVecEnv([lambda: env]))
    with pytest.raises(NonFiniteError, match=rf"environment 0 .* returned {place} = {re.escape(str(bad))} at step 24"):
        agent.learn(100)
    assert agent.num_timesteps == 23
    return agent


@every_agent_that_steps
def test_resuming_when_the_environment_is_mended(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = refuses_at_step_24(case, Broken(case.env(), np.nan), "reward", np.nan)
    agent.save_checkpoint(tmp_path)
    monkeypatch.setattr(Broken, "mended", True)
    resumed = type(agent).resume(tmp_path, DummyVecEnv([lambda: Broken(case.env(), np.nan)]))
    resumed.learn(20, reset_num_timesteps=False)
    # 23 were done; a round that broke off begins anew, or of a generation only the fourth episode, in its second step
    assert resumed.num_timesteps == 23 + (case.generation - 21 if case.generation else case.steps(20))


@an_agent_that_steps
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_numbers_are_named(case: Case, bad: float) -> None:
    refuses_at_step_24(case, Broken(case.env(), bad), "reward", bad)
    place = r"observation\['clock'\]\[1\]"
    refuses_at_step_24(case, Broken(case.env(form="dict"), bad, "clock"), place, bad)


@every_agent
def test_a_policy_refuses_other_observations(case: Case, tmp_path: Path) -> None:
    agent = case.make()
    wide = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="shape"):
        agent.predict({**observations(agent, 2), "observation": wide} if "delayed" in case.can else wide)
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match="was trained for") as error:
        type(agent).load(tmp_path / "a", env=gym.make("Pendulum-v1"))
    one_line(error)
    with pytest.raises(ValueError, match="was trained for"):
        agent.set_env("Pendulum-v1")


@an_agent
def test_learning_without_an_environment(case: Case, tmp_path: Path) -> None:
    case.make().save(tmp_path / "a")
    with pytest.raises(ValueError, match="no environment"):
        case.agent.load(tmp_path / "a").learn(10)
    with pytest.raises(TypeError, match="is no environment"):
        case.make(3)


@an_agent_that("replay")
def test_too_large_a_buffer(case: Case) -> None:
    with pytest.raises(ValueError, match="buffer_size") as error:
        case.make(buffer_size=10**13)
    one_line(error)


# -- the worlds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moves", MOVES)
@pytest.mark.parametrize("form", FORMS)
def test_the_small_world_passes_the_stock_checker(form: str, moves: str) -> None:
    check_env(Snapshot(Point(form=form, moves=moves)))
