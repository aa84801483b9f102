"""What the agents that learn from data share: several seeds as one stack, going on online, data that do not fit."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents import ABM, AGENTS, BC, HDCR, IQL, TD3BC, TDT, ActorCriticAgent, Dataset
from headway.agents.core.offline import OfflineAgent
from headway.wrappers.spaces_only import SpacesOnlyVecEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from support import Stop, same_tree
from toys import Point, played, vec

DATA = {moves: played(Point(moves=moves), 6) for moves in ("box", "discrete")}
SMALL: dict[str, Any] = {"net_arch": [16, 16], "batch_size": 8, "device": "cpu", "learning_rate": 1e-3}


@dataclass(frozen=True)
class Kind:
    """An agent, small, and what makes it a variant."""

    agent: type[ActorCriticAgent[Any]]
    hyper: dict[str, Any]
    moves: str = "box"

    def make(self, **kwargs: Any) -> Any:
        dataset = kwargs.pop("dataset", DATA[self.moves])
        return self.agent("MlpPolicy", dataset=dataset, **SMALL, **self.hyper, **kwargs)


ROUNDS = {"value_steps": 8, "actor_steps": 20}
KINDS = {
    "BC": Kind(BC, {"normalize_obs": True}),
    "BC, discrete": Kind(BC, {}, "discrete"),
    "BC, best": Kind(BC, {"keep_best": 0.5}),
    "IQL": Kind(IQL, {}),
    "IQL, discrete": Kind(IQL, {"normalize_obs": True}, "discrete"),
    "IQL, ascending": Kind(IQL, {"extraction": "ddpg+bc"}),
    "TD3+BC": Kind(TD3BC, {"max_grad_norm": 1.0}),
    "ReBRAC": Kind(TD3BC, {"normalize_obs": False, "layer_norm": True, "actor_critic": "least", "critic_bc_coef": 1.0}),
    "HDCR": Kind(HDCR, ROUNDS),
    "HDCR, discrete": Kind(HDCR, ROUNDS | {"normaliser": "dataset", "target_divergence": 0.1}, "discrete"),
    "HDCR, batch": Kind(HDCR, ROUNDS | {"normaliser": "batch", "temperature": 2.0}),
    "ABM": Kind(ABM, {"normalize_obs": True, "target_update_interval": 7}),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def alike(one: Any, other: Any, tolerance: float) -> None:
    """Assert that two agents have the same weights and are at the same place."""
    theirs = other.modules.state()
    for name, tensor in one.modules.state().items():
        assert torch.allclose(tensor, theirs[name], atol=tolerance, rtol=tolerance), name
    assert (one.num_timesteps, one.updates, one.seed) == (other.num_timesteps, other.updates, other.seed)
    same_tree(one.parts["generators"].state(), other.parts["generators"].state())


@every_kind
def test_seeds_at_once_equal_separate_runs(kind: Kind) -> None:
    """Products of stacks and of single networks round differently, in the seventh digit; forty steps carry that on."""
    seeds = [3, 5]
    stack = kind.make(seeds=seeds, seed=1).learn(40)
    for index, seed in enumerate(seeds):
        alone = kind.make(seed=seed).learn(40)
        member = stack.member(index)
        alike(member, alone, 2e-4)
        obs = np.linspace(-1, 1, 5, dtype=np.float32).reshape(5, 1)
        assert np.allclose(
            member.predict(obs, deterministic=True)[0], alone.predict(obs, deterministic=True)[0], atol=1e-4
        )
    others = stack.member(0).modules.state()
    assert any(not torch.equal(t, others[name]) for name, t in stack.member(1).modules.state().items())


@pytest.mark.parametrize("name", ["IQL", "HDCR", "HDCR, discrete", "TD3+BC"])
def test_a_stack_is_saved_by_its_members(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = KINDS[name]
    stack = kind.make(seeds=[3, 5]).learn(60, Stop(35))
    for index in range(2):
        stack.member(index).save_checkpoint(tmp_path / str(index))
    stack.learn(stack.remaining_timesteps, reset_num_timesteps=False)
    resumed = [kind.agent.resume(tmp_path / str(index), dataset=DATA[kind.moves]) for index in range(2)]
    assert not caplog.records
    together = kind.make(seeds=[3, 5])
    together.take_up(resumed)
    together.learn(together.remaining_timesteps, reset_num_timesteps=False)
    same_tree(together.modules.state(), stack.modules.state())
    for index in range(2):
        alone = kind.agent.resume(tmp_path / str(index), dataset=DATA[kind.moves])
        alone.learn(alone.remaining_timesteps, reset_num_timesteps=False)
        alike(alone, stack.member(index), 2e-4)


def test_a_stack_does_not_act() -> None:
    stack = KINDS["IQL"].make(seeds=[3, 5])
    for act in (lambda: stack.predict(np.zeros(1, np.float32)), lambda: stack.save("nowhere")):
        with pytest.raises(ValueError, match=r"use agent.member\(i\), for i below 2"):
            act()
    returns, _ = evaluate_policy(stack.member(1), vec(), n_eval_episodes=2)
    assert returns < 0


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1, 1], "different from each other"),
        ([], "one at least"),
        (3, "seeds must be several integers, got 3"),
        ([0.5], "several integers"),
    ],
)
def test_seeds_that_are_none(seeds: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        KINDS["IQL"].make(seeds=seeds)


def test_members_that_do_not_fit() -> None:
    kind = KINDS["IQL"]
    stack, one = kind.make(seeds=[3, 5]), kind.make(seed=3)
    with pytest.raises(ValueError, match="a stack of 2 takes up as many members of its own configuration, got 1"):
        stack.take_up([one])
    with pytest.raises(ValueError, match="of its own configuration"):
        stack.take_up([one, kind.make(seed=5, expectile=0.9)])
    with pytest.raises(ValueError, match="at different ones"):
        stack.take_up([one, kind.make(seed=5).learn(3)])
    with pytest.raises(ValueError, match="not of several"):
        one.take_up([one])


# -- data that do not fit ----------------------------------------------------------------------------------------------


def wide(data: Dataset) -> Dataset:
    obs, final = (part.expand(-1, 2) for part in (data.obs, data.final_obs))  # type: ignore[union-attr]
    return replace(data, observation_space=spaces.Box(-3, 3, (2,)), obs=obs, final_obs=final)


@every_kind
def test_data_of_other_spaces_are_refused(kind: Kind, tmp_path: Path) -> None:
    agent = kind.make(seed=0).learn(3)
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"the dataset's observation space is .* was made for"):
        kind.agent.load(tmp_path / "a", dataset=wide(DATA[kind.moves]))
    more = {"box": spaces.Box(-2, 2, (1,)), "discrete": spaces.Discrete(7)}
    further = replace(DATA[kind.moves], action_space=more[kind.moves])
    with pytest.raises(ValueError, match="the dataset's action space is"):
        kind.agent.load(tmp_path / "a", dataset=further)


def test_what_is_no_data() -> None:
    with pytest.raises(TypeError, match=r"dataset must be recorded steps, .* got 'ns/name-v0'"):
        IQL("MlpPolicy", dataset="ns/name-v0")


@every_kind
def test_without_data_nothing_is_learnt(kind: Kind, tmp_path: Path) -> None:
    data = DATA[kind.moves]
    agent: Any = kind.agent("MlpPolicy", SpacesOnlyVecEnv(data.observation_space, data.action_space), **SMALL)
    for learn in (lambda: agent.learn(3), lambda: agent.train(3)):
        with pytest.raises(ValueError, match=f"{kind.agent.__name__} has no data to learn from: pass dataset="):
            learn()


def test_a_run_goes_on_with_its_data(tmp_path: Path) -> None:
    kind = KINDS["IQL"]
    kind.make(seed=0).learn(3).save_checkpoint(tmp_path)
    fewer = DATA["box"].select([0, 1])
    with pytest.raises(ValueError, match="learnt from 39 steps of data, this agent has 14: pass the same dataset="):
        IQL.resume(tmp_path, dataset=fewer)
    with pytest.raises(ValueError, match="this agent has none"):
        IQL.resume(tmp_path)
    assert IQL.load(tmp_path / "checkpoint-000000000003.zip").predict(np.zeros(1, np.float32))[0].shape == (1,)


def test_normalised_observations_are_those_of_the_data(tmp_path: Path) -> None:
    agent = KINDS["TD3+BC"].make(seed=0).learn(2)
    scaler, obs = agent.actor.module.features, DATA["box"].obs
    scaled = scaler(obs)
    assert torch.allclose(scaled.mean(0), torch.zeros(1), atol=1e-5)
    assert torch.allclose(scaled.std(0, correction=0), torch.ones(1), atol=1e-5)
    assert scaler(torch.full((1, 1), 1e6)).item() == 10
    agent.save(tmp_path / "a")
    assert torch.equal(TD3BC.load(tmp_path / "a").actor.module.features(obs), scaled)
    plain: Any = HDCR("MlpPolicy", vec(), device="cpu")
    assert plain.actor.module.features(torch.full((1, 1), 1e6)).item() == 1e6
    with pytest.raises(ValueError, match="normalize_obs scales vectors, and this is Dict"):
        TD3BC("MultiInputPolicy", dataset=played(Point(form="image in a dict"), 2), device="cpu")


# -- on, in an environment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BC", "TD3+BC", "ABM"])
def test_agents_that_do_not_go_online(name: str) -> None:
    agent = KINDS[name].make(seed=0).learn(2)
    with pytest.raises(ValueError, match=f"{type(agent).__name__} learns from data alone: leave the environment out"):
        agent.set_env(vec())


def test_what_goes_online_by_itself_only() -> None:
    kind = KINDS["IQL"]
    with pytest.raises(ValueError, match=r"go on with agent.member\(i\)"):
        kind.make(seeds=[0, 1]).set_env(vec())
    with pytest.raises(ValueError, match="the data are not as VecNormalize shows them"):
        kind.make(seed=0).set_env(VecNormalize(vec()))


ONLINE = {
    "IQL": (KINDS["IQL"], {"learning_starts": 4}),
    "IQL, discrete": (KINDS["IQL, discrete"], {"learning_starts": 4}),
    "HDCR": (KINDS["HDCR"], {"train_freq": 14, "buffer_size": 40, "learning_starts": 4}),
    "HDCR, discrete": (KINDS["HDCR, discrete"], {"train_freq": 14, "buffer_size": 40, "learning_starts": 4}),
}


@pytest.mark.parametrize("name", ONLINE)
def test_going_on_online_resumes_in_the_middle_of_a_round(name: str, tmp_path: Path) -> None:
    kind, hyper = ONLINE[name]
    data = DATA[kind.moves]

    def begun() -> Any:
        agent, env = kind.make(seed=0, **hyper).learn(33), vec(moves=kind.moves)
        env.seed(4)
        agent.set_env(env)
        return agent

    straight = begun().learn(70, reset_num_timesteps=False)
    assert straight.num_timesteps == 103
    assert len(straight.store) == min(70, 40 if "HDCR" in name else 200_000)
    agent = begun()
    add = agent.metrics.add
    last = straight.updates - 9

    def stop_soon(values: Any) -> None:
        add(values)
        if agent.updates == last - 1:
            agent.request_stop()

    agent.metrics.add = stop_soon
    agent.learn(70, reset_num_timesteps=False)
    assert agent.updates == last
    agent.save_checkpoint(tmp_path)
    resumed = kind.agent.resume(tmp_path, vec(moves=kind.moves), dataset=data)
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    for part in ("generators", "store", "counters"):
        same_tree(straight.parts[part].state(), resumed.parts[part].state())
    same_tree(straight.modules.state(), resumed.modules.state())
    batch = straight.sample(10)
    assert (straight.data.obs == batch.obs[:, None]).any(1).sum() >= 5  # half of a batch is of the data
    with pytest.raises(ValueError, match="this agent has none"):
        kind.agent.resume(tmp_path, vec(moves=kind.moves))


@pytest.mark.parametrize("name", ONLINE)
def test_going_on_in_several_environments(name: str, tmp_path: Path) -> None:
    """And back to the data alone, within a round."""
    kind, hyper = ONLINE[name]
    agent = kind.make(seed=0, **hyper).learn(13)
    assert agent.store.capacity_per_env == 1  # nothing is collected, and images would not fit
    agent.set_env(vec(3, moves=kind.moves))
    agent.learn(84, reset_num_timesteps=False)
    assert (agent.num_timesteps, agent.n_envs) == (13 + 84, 3)
    assert len(agent.store) == min(84, 39 if "HDCR" in name else 84)
    agent.save(tmp_path / "a")
    again = kind.agent.load(tmp_path / "a", env=vec(2, moves=kind.moves), dataset=DATA[kind.moves])
    assert again.learn(28, reset_num_timesteps=False).num_timesteps == 13 + 84 + 28
    data = DATA[kind.moves]
    agent.set_env(SpacesOnlyVecEnv(data.observation_space, data.action_space, 3))
    before = agent.updates
    assert agent.learn(5, reset_num_timesteps=False).updates >= before + 5
    with pytest.raises(ValueError, match="was trained for"):
        kind.make(seed=0).set_env("Pendulum-v1")


def test_every_agent_from_data_is_here() -> None:
    """But for TDT, which learns from windows of steps, not from steps, and has tests of its own."""
    ours = {cls for cls in AGENTS.values() if issubclass(cls, OfflineAgent) and cls.__module__.startswith("headway.")}
    assert {kind.agent for kind in KINDS.values()} == ours - {TDT}
