"""Agents that learn from data without an environment, and agents that remember: both of a user's own, written here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import AGENTS, ActorCriticAgent
from headway.agents.core.files import read_manifest
from headway.agents.core.nets import DeterministicActor
from headway.agents.core.offline import OfflineAgent, OfflineConfig
from headway.agents.core.spaces import Obs, ObservationCodec, count_rows
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from support import Stop
from torch import Tensor
from toys import PLACE, Point, vec


@dataclass(frozen=True)
class Recorded:
    """Somebody who does the best thing at every point on the line: move by ``-x``, as far as one can."""

    rows: int = 256
    observation_space: ClassVar[spaces.Space[Any]] = PLACE
    action_space: ClassVar[spaces.Space[Any]] = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def transitions(self, codec: ObservationCodec) -> Mapping[str, Any]:
        obs = torch.linspace(-2, 2, self.rows).unsqueeze(1)
        no = torch.zeros(self.rows, dtype=torch.bool)
        return {
            "obs": codec.encode(obs, torch.device("cpu")),
            "actions": -obs,
            "rewards": torch.zeros(self.rows),
            "terminated": no,
            "truncated": no,
            "next_obs": torch.zeros_like(obs),
        }


class Imitation(OfflineAgent[OfflineConfig]):
    """Does what the data do."""

    config_class = OfflineConfig

    def _build(self) -> None:
        self.actor = self.track("actor", DeterministicActor(self.codec.features(), 1, **self.config.perceptron))

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return self.actor.module.mode(obs)

    def _update(self, phase: str) -> dict[str, Tensor]:
        batch = self.sample()
        loss = (self.actor.module.mode(batch.obs) - batch.actions).square().mean()
        self.actor.minimise(loss)
        return {"loss": loss}


SMALL: dict[str, Any] = {"net_arch": [16], "batch_size": 16, "learning_rate": 1e-2, "seed": 0, "device": "cpu"}


def imitation(**kwargs: Any) -> Imitation:
    return Imitation("MlpPolicy", dataset=Recorded(), **SMALL, **kwargs)


def wider_points() -> DummyVecEnv:
    """Points that move as far as the data's."""

    def build() -> Monitor:
        env = Point()
        env.action_space = Recorded.action_space
        return Monitor(env)

    return DummyVecEnv([build])


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_steps_are_gradient_steps(tmp_path: Path) -> None:
    seen: list[int] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.num_timesteps)
            return True

    evaluation = EvalCallback(
        worlds := wider_points(), eval_freq=50, n_eval_episodes=2, verbose=0, best_model_save_path=str(tmp_path)
    )
    agent = imitation(tensorboard_log=str(tmp_path / "tb"))
    agent.learn(300, [evaluation, EveryNTimesteps(100, Look()), CheckpointCallback(150, str(tmp_path))], log_interval=1)
    assert (agent.num_timesteps, agent._n_updates) == (300, 300)
    assert seen == [100, 200, 300]
    assert list((tmp_path / "tb").glob("*/events*"))
    assert (tmp_path / "best_model.zip").exists()
    returns, _ = evaluate_policy(agent, worlds, n_eval_episodes=10)
    assert returns > -0.1  # the first reward is what is left of the start, by what the network is off
    action, _ = Imitation.load(tmp_path / "best_model").predict(np.float32([1.0]), deterministic=True)
    assert Recorded.action_space.contains(action)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_resumed_equals_uninterrupted_and_holds_no_data(tmp_path: Path) -> None:
    straight = imitation().learn(60)
    agent = imitation()
    for stop in (7, 30):
        agent.learn(60 if stop == 7 else agent.remaining_timesteps, Stop(stop), reset_num_timesteps=stop == 7)
        path = agent.save_checkpoint(tmp_path)
        agent = Imitation.resume(tmp_path, dataset=Recorded())
    assert read_manifest(path)["parts"].keys() == agent.parts.keys() | {"extra"}
    agent.learn(agent.remaining_timesteps, reset_num_timesteps=False, progress_bar=True)
    for name, tensor in straight.modules.state().items():
        assert torch.equal(tensor, agent.modules.state()[name]), name
    assert (agent.num_timesteps, agent._n_updates) == (60, 60)


def test_updates_outside_of_learn() -> None:
    one, other = imitation().train(20), imitation().learn(20)
    assert one._n_updates == 20
    assert one.num_timesteps == 0
    assert all(
        torch.equal(a, b) for a, b in zip(one.modules.state().values(), other.modules.state().values(), strict=True)
    )


def test_an_agent_without_data_predicts_but_does_not_learn(tmp_path: Path) -> None:
    agent = imitation().learn(10)
    agent.save(tmp_path / "a")
    loaded = Imitation.load(tmp_path / "a")
    assert np.array_equal(loaded.predict(np.float32([0.5]))[0], agent.predict(np.float32([0.5]))[0])
    with pytest.raises(ValueError, match="no environment to learn in"):
        loaded.learn(1)
    again = Imitation.load(tmp_path / "a", dataset=Recorded()).learn(5, reset_num_timesteps=False)
    assert again.num_timesteps == 15


class Parrot(ActorCriticAgent[OfflineConfig]):
    """Moves by the sum of what it has seen in the episode, which it remembers."""

    config_class = OfflineConfig

    def _build(self) -> None:
        self.track("nothing", DeterministicActor(self.codec.features(), 1, **self.config.perceptron))

    def _make_collector(self) -> Any:
        return None

    def _update(self, phase: str) -> dict[str, Tensor]:
        raise NotImplementedError

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return self._act_with({"sum": torch.zeros(count_rows(obs), 1)}, obs, deterministic, generator)[0]

    def _new_memory(self, rows: int) -> dict[str, Tensor]:
        return {"sum": torch.zeros(rows, 1)}

    def _act_with(self, memory: Any, obs: Any, deterministic: bool, generator: torch.Generator) -> Any:
        total = memory["sum"] + obs
        return total.clamp(-1, 1), {"sum": total}


def test_memory_is_threaded_through_predict_and_begins_anew_with_episodes() -> None:
    agent = Parrot("MlpPolicy", vec(2), device="cpu", seed=0)
    obs = np.float32([[0.25], [0.125]])
    first, memory = agent.predict(obs, episode_start=np.array([True, True]))
    second, memory = agent.predict(obs, memory, np.array([False, False]))
    third, memory = agent.predict(obs, memory, np.array([True, False]))
    assert first.tolist() == [[0.25], [0.125]]
    assert second.tolist() == [[0.5], [0.25]]
    assert third.tolist() == [[0.25], [0.375]]
    one, memory = agent.predict(np.float32([0.5]))
    again, _ = agent.predict(np.float32([0.5]), memory)
    assert (one.tolist(), again.tolist()) == ([0.5], [1.0])
    expected = []
    env = Point()
    for episode in range(3):
        at, _ = env.reset(seed=4 if episode == 0 else None)
        seen, total, done = 0.0, 0.0, False
        while not done:
            seen += float(at[0])
            at, reward, terminated, truncated, _ = env.step(np.clip([seen], -1, 1).astype(np.float32))
            total, done = total + reward, terminated or truncated
        expected.append(total)
    single = vec()
    agent = Parrot("MlpPolicy", single, device="cpu", seed=0)
    single.seed(4)
    returns, _ = evaluate_policy(agent, single, n_eval_episodes=3, return_episode_rewards=True)
    assert np.allclose(returns, expected, atol=1e-5)


def test_users_agents_are_known_by_their_module(tmp_path: Path) -> None:
    name = f"{Imitation.__module__}:Imitation"
    assert AGENTS[name] is Imitation
    agent = imitation()
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match=f"holds a {name} agent, not SAC"):
        AGENTS["SAC"].load(tmp_path / "a")

    def again() -> type:
        class Imitation(OfflineAgent[OfflineConfig]):
            config_class = OfflineConfig

        return Imitation

    with pytest.raises(TypeError, match=f"there is an agent {name} already"):
        again()
