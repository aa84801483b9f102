"""Members that play in workers of Ray: to the bits of one process, whatever happens to the workers."""

import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.wrappers import TimeLimit
from headway.agents import CEM, PGPS
from headway.agents.core.nets import DeterministicActor
from headway.agents.core.spaces import ObservationCodec, actions_of
from headway.agents.core.spaces.observations import VectorFeatures
from headway.agents.pgps import Population, distributed, evaluate, flatten
from headway.envs import make_batched
from headway.wrappers import as_batched
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from toys import PLACE, Mortal, Point

ray = pytest.importorskip("ray", reason="the extra distributed is not installed")

SEARCH = {"net_arch": [13, 7], "population_size": 6, "horizon": 40, "initial_horizon": 20, "horizon_interval": 200}
COUPLED = SEARCH | {"batch_size": 16, "buffer_size": 800, "learning_starts": 60, "surrogate_start": 200}
COUPLED |= {"candidates": 4, "n_blocks": 2, "probe_states": 8, "surrogate_states": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of few resources, which the agents find connected."""
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def trap() -> Any:
    return make_batched("headway/Trap-v0", 6, max_episode_steps=30)


def points(rows: int = 6, **how: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(Point(**how)) for _ in range(rows)])


def content(agent: Any) -> dict[str, Any]:
    """All that must not depend on who has played: weights, moments, the search, fitness, store, account."""
    parts = {name: agent.parts[name].state() for name in ("search", "population", "collector", "counters", "episodes")}
    parts |= {name: agent.parts[name].state() for name in ("store", "coupling", "generators") if name in agent.parts}
    parts["episodes"]["infos"] = [(info["r"], info["l"]) for info in parts["episodes"]["infos"]]
    return {"networks": agent.modules.state(), **parts}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return len(one) == len(other) and all(map(same, one, other)) if isinstance(one, (list, tuple)) else one == other


def trained(
    steps: int, make: Callable[[], Any] = trap, agent: Any = PGPS, callback: BaseCallback | None = None, **how: Any
) -> Any:
    hyper = COUPLED if agent is PGPS else SEARCH | {"population_size": 3}
    return agent("MlpPolicy", make(), seed=4, device="cpu", **hyper, **how).learn(steps, callback)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What a run of PGPS in one process leads to."""
    agent = trained(600)
    assert agent.generation > 3
    assert 0 in agent.origins  # elite
    assert agent.scores.any()
    return content(agent)


@pytest.mark.parametrize("workers", [2, 4])  # one: below, where runs are resumed
def test_workers_are_as_one_process(cluster: None, alone: dict[str, Any], workers: int) -> None:
    agent = trained(600, workers=workers)
    assert same(content(agent), alone)


def test_rows_that_act_one_by_one(cluster: None) -> None:
    """Two episodes of three members in rounds of five rows."""
    how: dict[str, Any] = {"make": partial(points, 5), "agent": CEM, "member_episodes": 2}
    assert same(*(content(trained(100, **how, workers=workers)) for workers in (None, 1)))


# -- workers by themselves ---------------------------------------------------------------------------------------------


def settings() -> tuple[DeterministicActor, ObservationCodec, torch.Tensor]:
    torch.manual_seed(1)
    single = DeterministicActor(VectorFeatures(1), 1, (13, 7), activation="elu")
    return single, ObservationCodec(PLACE), 0.3 * torch.randn(5, len(flatten(single)))


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mortals") / "orders"


def mortals(orders: Path) -> Any:
    return as_batched(DummyVecEnv([lambda: Monitor(Mortal(str(orders))) for _ in range(2)]))


@pytest.fixture(scope="module")
def crew(cluster: None, orders: Path) -> Iterator[distributed.Workers]:
    single, codec, _ = settings()
    workers = distributed.Workers("CEM", 2, None, mortals(orders), single, codec, 4)
    yield workers
    workers.close()


def here(orders: Path, count: int, episodes: int) -> Any:
    single, codec, members = settings()
    actions = actions_of(Point().action_space, torch.device("cpu"), True)
    how: dict[str, Any] = {"episodes": episodes, "horizon": 5, "seed": 9, "keep": True}
    return evaluate(Population(single, members[:count]), mortals(orders), codec, actions, **how)[1]


@pytest.mark.parametrize(("count", "episodes"), [(5, 1), (5, 2), (3, 1), (2, 2)])
def test_any_number_of_members(crew: distributed.Workers, orders: Path, count: int, episodes: int) -> None:
    """One worker has more than the other, or a single one, or both have."""
    found = crew.play(settings()[2][:count], episodes, 5, 9, lambda: False)
    assert same(vars(found), vars(here(orders, count, episodes)))


def test_what_an_environment_raises(crew: distributed.Workers, orders: Path) -> None:
    orders.write_text("fail")
    with pytest.raises(ArithmeticError, match="the point has no place"):
        crew.play(settings()[2], 1, 5, 9, lambda: False)


def test_a_killed_worker_is_replaced(crew: distributed.Workers, orders: Path, caplog: pytest.LogCaptureFixture) -> None:
    orders.write_text("die")
    found = crew.play(settings()[2], 1, 5, 9, lambda: False)
    assert found is not None
    assert not orders.exists()
    assert same(vars(found), vars(here(orders, 5, 1)))
    (told,) = caplog.messages
    assert re.match("a worker was lost, and its members play again in a new one: .*actor.* died", told)


def test_workers_that_die_again_and_again(
    crew: distributed.Workers, orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.write_text("always die")
    monkeypatch.setattr(distributed, "LOSSES", 0)
    with pytest.raises(ConnectionError, match="workers were lost in a generation, 1 of them, the last one so: "):
        crew.play(settings()[2], 1, 5, 9, lambda: False)
    orders.unlink()


def test_nobody_waits_who_is_to_stop(crew: distributed.Workers) -> None:
    """The last with these workers, which go on with what they were given up with."""
    assert crew.play(settings()[2], 1, 5, 9, lambda: True) is None


def test_an_episode_within_an_episode_is_refused(cluster: None) -> None:
    single, codec, members = settings()
    env = as_batched(DummyVecEnv([lambda: TimeLimit(Monitor(Point()), 3)]))
    workers = distributed.Workers("CEM", 1, None, env, single, codec, 1)
    with pytest.raises(ValueError, match="restarts in the midst of what its Monitor counts as one episode"):
        workers.play(members[:1], 1, 6, 0, lambda: False)
    workers.close()


# -- stopping and going on ---------------------------------------------------------------------------------------------


class Stop(BaseCallback):
    """Asks a run to stop: at a step, or when a generation is to begin."""

    def __init__(self, step: int = -1, generation: int = -1) -> None:
        super().__init__()
        self.step, self.generation = step, generation

    def _on_rollout_start(self) -> None:
        if self.model.generation == self.generation:
            self.model.request_stop()

    def _on_step(self) -> bool:
        return self.n_calls != self.step


@pytest.mark.parametrize(
    ("stop", "workers", "then"),
    [(Stop(step=70), 1, None), (Stop(generation=2), 1, 1), (Stop(step=70), None, 1)],
    ids=["inside a generation, on in one process", "while waiting", "inside one of this process, on with a worker"],
)
def test_resuming_is_exact(
    cluster: None, alone: dict[str, Any], tmp_path: Path, stop: Stop, workers: int | None, then: int | None
) -> None:
    stopped = trained(600, callback=stop, workers=workers)
    assert 0 < stopped.num_timesteps < 500
    assert stopped.collector.in_progress is (stop.step > 0)
    stopped.save_checkpoint(tmp_path)
    resumed = PGPS.resume(tmp_path, device="cpu", workers=then)  # whose environment is made of its spec
    resumed.learn(resumed.remaining_timesteps, reset_num_timesteps=False)
    assert same(content(resumed), alone)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"CEM with workers needs Ray: pip install 'headway-rl\[distributed\]'"):
        CEM("MlpPolicy", points(1), workers=2)
    CEM("MlpPolicy", points(1), workers=0)


@pytest.mark.parametrize("workers", [-1, 2.0, True, "2"])
def test_a_number_of_workers_that_is_none(workers: Any) -> None:
    with pytest.raises(ValueError, match="CEM's workers must be a whole number of at least 0, got "):
        CEM("MlpPolicy", points(1), workers=workers)


def test_an_address_without_workers() -> None:
    with pytest.raises(
        ValueError, match=r"ray_address='10.0.0.1:6379' says where workers are: say how many, workers=4"
    ):
        CEM("MlpPolicy", points(1), ray_address="10.0.0.1:6379")


@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    monkeypatch.setattr(distributed, "ANSWER", 1.0)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        if silent:
            opened.listen()
        address = f"127.0.0.1:{opened.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
            trained(150, agent=CEM, workers=1, ray_address=address)


def test_another_cluster_than_the_one_connected(cluster: None) -> None:
    with pytest.raises(ValueError, match=r"ray_address is 10\.0\.0\.1:6379, and Ray is connected to .* already"):
        trained(150, agent=CEM, workers=1, ray_address="10.0.0.1:6379")


def test_environments_that_workers_cannot_have() -> None:
    with pytest.raises(ValueError, match="statistics of VecNormalize follow each step in its turn"):
        trained(150, agent=CEM, make=lambda: VecNormalize(points()), workers=1)
    subprocesses = SubprocVecEnv([lambda: Monitor(Point())])
    with pytest.raises(TypeError, match="rows of a SubprocVecEnv cannot be reached one by one: use a DummyVecEnv"):
        trained(150, agent=CEM, make=lambda: subprocesses, workers=1)
    subprocesses.close()
