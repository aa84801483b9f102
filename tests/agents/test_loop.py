"""Phases, parts and optimisers of an agent's own: a stop anywhere between two gradient steps goes on exactly."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from headway.agents import PPO, SAC
from headway.agents.core.config import OffPolicyConfig
from headway.agents.core.nets import SGD, Adam, Critics, DeterministicActor
from headway.agents.core.off_policy import OffPolicyAgent
from headway.agents.core.spaces import Obs
from headway.wrappers import as_batched
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch import Tensor
from toys import Counter, Point, vec


class Tally:
    """State of an agent's own."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.weights = torch.zeros(3)

    def state(self) -> dict[str, Any]:
        return {"phases": list(self.phases), "weights": self.weights.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.phases, self.weights = list(state["phases"]), state["weights"]


class Phased(OffPolicyAgent[OffPolicyConfig]):
    """Three gradient steps of critics by momentum, then up to four of an actor, of which the second may be the last."""

    config_class = OffPolicyConfig
    cut_short = False

    def _build(self) -> None:
        features, perceptron = self.codec.features(), self.config.perceptron
        self.actor = self.track("actor", DeterministicActor(features, 1, **perceptron), optimiser=Adam(eps=1e-5))
        self.critics = self.track(
            "critics", Critics(features, 1, **perceptron), target=True, optimiser=SGD(learning_rate=1e-2, momentum=0.9)
        )
        self.track("fixed", DeterministicActor(self.codec.features(), 1, **perceptron), frozen=True)
        self.tally = Tally()
        self.register("tally", self.tally)

    def _act(self, obs: Obs, deterministic: bool, generator: torch.Generator) -> Tensor:
        return self.actor.module.mode(obs)

    def phases(self, collected: int) -> Sequence[tuple[str, int]]:
        if not super().phases(collected):
            return []
        return [("critic", 3), ("nothing", 0), ("actor", 4)]

    def _update(self, phase: str) -> dict[str, Tensor]:
        self.tally.phases.append(phase)
        self.tally.weights += torch.rand(3, generator=self.generators["update"])
        batch = self.sample()
        if phase == "critic":
            loss = self.critics.module(batch.obs, batch.actions).square().mean()
            self.critics.minimise(loss)
            self.critics.follow(0.1)
        else:
            loss = -self.critics.module.first(batch.obs, self.actor.module.mode(batch.obs)).mean()
            self.actor.minimise(loss)
            if self.cut_short and self.tally.phases[-2:] == ["actor", "actor"]:
                self.end_phase()
        return {phase: loss}


HYPER: dict[str, Any] = {
    "net_arch": [8],
    "batch_size": 4,
    "learning_starts": 3,
    "train_freq": 4,
    "seed": 0,
    "device": "cpu",
}


class ShortPhased(Phased):
    config_class = OffPolicyConfig
    cut_short = True


@pytest.mark.parametrize("kind", [Phased, ShortPhased])
@pytest.mark.parametrize("at", range(1, 8))
def test_a_stop_between_any_two_gradient_steps_goes_on_exactly(kind: type[Phased], at: int, tmp_path: Path) -> None:
    straight = kind("MlpPolicy", vec(), **HYPER).learn(12)
    agent = kind("MlpPolicy", vec(), **HYPER)
    add = agent.metrics.add

    def stop(values: Any) -> None:
        add(values)
        if agent.updates == at:
            agent.request_stop()

    agent.metrics.add = stop  # type: ignore[method-assign]
    agent.learn(12)
    assert agent.updates == at + 1
    agent.save_checkpoint(tmp_path)
    resumed = kind.resume(tmp_path, vec())
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    once = ["critic"] * 3 + ["actor"] * (2 if kind.cut_short else 4)
    assert straight.tally.phases == resumed.tally.phases == once * 3
    assert torch.equal(straight.tally.weights, resumed.tally.weights)
    theirs = resumed.modules.state()
    for name, tensor in straight.modules.state().items():
        assert torch.equal(tensor, theirs[name]), name
    assert straight.metrics.flush() == resumed.metrics.flush()


def test_each_network_has_its_own_optimiser_and_a_frozen_one_is_in_files(tmp_path: Path) -> None:
    agent = Phased("MlpPolicy", vec(), **HYPER, learning_rate_schedule="linear")
    before = {name: tensor.clone() for name, tensor in agent.modules.state().items()}
    agent.learn(12)
    rates = [t.optimizer.param_groups[0]["lr"] for t in agent.modules if t.optimizer is not None]
    assert rates == [0.0, 0.0]
    after = agent.modules.state()
    moved = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"actor", "critics"}
    assert any(name.startswith("fixed.online") for name in after)
    agent.save(tmp_path / "a")
    assert torch.equal(
        Phased.load(tmp_path / "a").modules.state()["fixed.online.mlp.weights.0"], after["fixed.online.mlp.weights.0"]
    )


def test_gradient_steps_can_be_taken_at_any_time() -> None:
    agent = Phased("MlpPolicy", vec(), **HYPER).learn(4)
    count = agent.updates
    agent.train(5)
    assert agent.updates == count + 5
    assert agent.num_timesteps == 4
    assert agent.pending_updates == 0


def test_a_part_is_registered_once(tmp_path: Path) -> None:
    agent = Phased("MlpPolicy", vec(), **HYPER)
    with pytest.raises(ValueError, match="has registered a part 'tally' already"):
        agent.register("tally", Tally())
    agent.register("more", Tally())
    agent.learn(4)
    agent.save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="does not hold just what Phased needs to go on: more"):
        Phased.resume(tmp_path, vec())


# -- rows that only reset, and environments that somebody else moves ---------------------------------------------------

SMALL: dict[str, Any] = {"seed": 0, "device": "cpu", "net_arch": (4,)}
STORED: dict[str, Any] = SMALL | {"learning_starts": 0, "buffer_size": 500, "batch_size": 4}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("train_freq", [1, 3, 4])
@pytest.mark.parametrize("gradient_steps", [1, 2, -1])
def test_rows_that_only_reset_are_no_steps_and_bring_no_gradient_steps(
    rows: int, train_freq: int, gradient_steps: int
) -> None:
    lengths = iter((1, 3))
    envs = SyncVectorEnv([lambda: Counter(length=next(lengths))] * rows)
    agent = SAC("MlpPolicy", envs, **STORED, train_freq=train_freq, gradient_steps=gradient_steps)
    agent.learn(36)
    assert agent.num_timesteps == len(agent.store)
    per_step = 1 if gradient_steps < 0 else gradient_steps / train_freq
    assert 0 <= len(agent.store) * per_step - agent.updates < 1


def test_what_is_owed_of_gradient_steps_goes_into_checkpoints(tmp_path: Path) -> None:
    def make() -> SyncVectorEnv:
        return SyncVectorEnv([Counter])

    whole = SAC("MlpPolicy", make(), **STORED, train_freq=4)
    whole.learn(40)
    half = SAC("MlpPolicy", make(), **STORED, train_freq=4)
    half.learn(19)
    half.save_checkpoint(tmp_path)
    again = SAC.resume(tmp_path, make())
    again.learn(40 - again.num_timesteps, reset_num_timesteps=False)
    assert (again.updates, again.num_timesteps) == (whole.updates, whole.num_timesteps)


MOVERS: dict[str, Callable[[Any, Any], Any]] = {
    "evaluation": lambda agent, _: evaluate_policy(agent, agent.get_env(), n_eval_episodes=1, warn=False),
    "a reset": lambda agent, _: agent.get_env().reset(),
    "the vector environment": lambda agent, env: evaluate_policy(agent, env, n_eval_episodes=1, warn=False),
}
ENVS: dict[str, Callable[[], Any]] = {
    "single": Counter,
    "limited": lambda: TimeLimit(Counter(length=9), 5),
    "dummy": lambda: DummyVecEnv([Counter]),
    "processes": lambda: SubprocVecEnv([Counter], start_method="fork"),
    "normalised": lambda: VecNormalize(DummyVecEnv([Counter]), norm_obs=False),
    "vector": lambda: SyncVectorEnv([Counter], autoreset_mode=AutoresetMode.SAME_STEP),
    "batch": lambda: as_batched(Counter()),
}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("when", ["between", "within"])
def test_an_environment_that_somebody_moved_begins_anew(env: str, mover: str, when: str) -> None:
    if mover == "the vector environment" and (env not in ("limited", "dummy", "processes") or when == "within"):
        return
    made = ENVS[env]()
    agent = SAC("MlpPolicy", made, **(STORED | {"learning_starts": 99}))

    class Moves(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 7:
                MOVERS[mover](agent, made)
            return True

    if when == "within":
        agent.learn(10, Moves())
    else:
        agent.learn(7)
        MOVERS[mover](agent, made)
        agent.learn(3, reset_num_timesteps=False)
    state = agent.store.state()
    assert (state["data.next_obs"] - state["data.obs"] == 1).all()  # type: ignore[operator]
    assert state["data.obs"][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]  # type: ignore[index]
    runs = state["runs"]
    assert runs.tolist() == [1, 2, 3, 4, 5, 1, 2, 1, 2, 3]  # type: ignore[union-attr]
    agent.get_env().close()  # type: ignore[union-attr]


def test_an_environment_that_nobody_moved_goes_on() -> None:
    agent = SAC("MlpPolicy", Counter(), **(STORED | {"learning_starts": 99}))
    agent.learn(7)
    evaluate_policy(agent, DummyVecEnv([Counter]), n_eval_episodes=1, warn=False)
    agent.learn(3, reset_num_timesteps=False)
    assert agent.store.state()["data.obs"][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]  # type: ignore[index]


def test_on_policy_a_round_that_is_moved_bootstraps() -> None:
    agent = PPO("MlpPolicy", DummyVecEnv([lambda: Counter(length=50)]), **SMALL, n_steps=8, batch_size=8, n_epochs=1)
    values: list[float] = []

    class Moves(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 4:
                values.append(float(agent.values(agent.last_obs).detach()))
                self.training_env.reset()
            return True

    agent.learn(8, Moves())
    assert agent.rollout["ended"][:, 0].tolist() == [i == 3 for i in range(8)]
    assert agent.rollout["rewards"][3, 0].item() == pytest.approx(1 + agent.config.gamma * values[0], abs=1e-6)
    assert agent.rollout["obs"][:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("envs", [1, 2, 3, 8])
@pytest.mark.parametrize("train_freq", [1, 4, (3, "step"), (2, "episode")])
@pytest.mark.parametrize("total", [20, 21, 23])
def test_the_last_round_is_finished_and_no_more(
    envs: int, train_freq: int | tuple[int, str], total: int, tmp_path: Path
) -> None:
    def agent() -> SAC:
        rows = DummyVecEnv([Point] * envs)
        return SAC("MlpPolicy", rows, seed=0, device="cpu", learning_starts=8, train_freq=train_freq, net_arch=(4,))

    length, unit = train_freq if isinstance(train_freq, tuple) else (train_freq, "step")
    if unit == "episode" and envs > 1:
        with pytest.raises(ValueError, match="count steps instead"):
            agent()
        return
    learnt = agent().learn(total)
    round_of = envs * length if unit == "step" else length * Point().length
    assert learnt.num_timesteps == -(-total // round_of) * round_of
    assert learnt.remaining_timesteps == 0
    learnt.save_checkpoint(tmp_path)
    rest = SAC.resume(tmp_path, DummyVecEnv([Point] * envs), device="cpu")
    assert rest.learn(rest.remaining_timesteps, reset_num_timesteps=False).num_timesteps == learnt.num_timesteps
    for one in (learnt, rest):
        one.learn(1, reset_num_timesteps=False)
    assert all(torch.equal(rest.modules.state()[k], tensor) for k, tensor in learnt.modules.state().items())


@pytest.mark.parametrize("total", [2.5, float("inf"), float("nan")])
def test_steps_that_are_no_whole_number_are_refused(total: float) -> None:
    agent = SAC("MlpPolicy", "Pendulum-v1", net_arch=(4,), buffer_size=10, seed=0, device="cpu")
    with pytest.raises(ValueError, match="total_timesteps must be a whole number, got"):
        agent.learn(total)  # type: ignore[arg-type]
