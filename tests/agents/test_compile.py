"""Gradient steps that are recorded and replayed: what they are given, when they are recorded anew, the bits."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from headway.agents import ABM, BC, DCAC, DQN, HDCR, IQL, MBPO, PGPS, PPO, SAC, TD3, TD3BC, TDT
from headway.agents.core.compile import WARM_UP, Captured, captured, compiled
from headway.agents.core.data import Transitions
from headway.agents.core.nets import TrackedModules
from headway.wrappers import RandomDelay
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn
from toys import Errand, Point, played

CPU = torch.device("cpu")


class Tape(Captured[dict[str, Tensor]]):
    """Records on the CPU: repeats the step on the arguments that were kept, and writes over the first results."""

    recorded = 0

    def _warm_up(self, args: Any) -> dict[str, Tensor]:
        return self.step(*args)

    def _record(self, args: Any) -> tuple[Callable[[], None], dict[str, Tensor]]:
        self.recorded += 1
        results: dict[str, Tensor] = {}

        def replay() -> None:
            for name, value in self.step(*args).items():
                results.setdefault(name, torch.empty_like(value)).copy_(value)

        return replay, results


def a_line(rate: float = 0.1) -> TrackedModules:
    modules = TrackedModules(CPU, rate)
    torch.manual_seed(0)
    modules.add("line", nn.Linear(3, 1), target=True)
    return modules


@dataclass(frozen=True)
class Rows:
    obs: dict[str, Tensor]
    wanted: Tensor


def some_rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(count, 3, generator=generator)
    return Rows({"x": obs}, obs.sum(1, keepdim=True))


def regression(modules: TrackedModules) -> Callable[..., dict[str, Tensor]]:
    def step(rows: Rows, pair: tuple[Tensor, float], follows: bool) -> dict[str, Tensor]:
        (line,) = modules
        loss = ((line.module(rows.obs["x"]) - rows.wanted - pair[0]) * pair[1]).square().mean()
        line.minimise(loss)
        if follows:
            line.follow(0.5)
        return {"loss": loss.detach()}

    return step


def steps_of(taken: Callable[..., dict[str, Tensor]], count: int) -> list[float]:
    return [
        float(taken(some_rows(4 + (k % 5 == 4), k), (torch.full((), 0.1 * k), 2.0), k % 3 == 0)["loss"])
        for k in range(count)
    ]


def test_a_recorded_step_does_what_the_step_does() -> None:
    plain, recorded = a_line(), a_line()
    tape = Tape(regression(recorded), recorded, torch.Generator())
    assert steps_of(tape, 60) == steps_of(regression(plain), 60)
    for name, tensor in plain.state().items():
        assert torch.equal(recorded.state()[name], tensor)
    assert tape.recorded == 4  # of 4 and of 5 rows, with and without the target


def test_arguments_are_copied() -> None:
    modules = a_line()
    tape = Tape(regression(modules), modules, torch.Generator())
    rows, offset = some_rows(4, 0), torch.zeros(())
    for _ in range(WARM_UP + 1):
        tape(rows, (offset, 1.0), False)
    before = rows.obs["x"].clone()
    tape(some_rows(4, 1), (offset + 1, 1.0), False)
    assert torch.equal(rows.obs["x"], before)
    assert offset == 0


@pytest.mark.parametrize("exchange", ["weights", "target", "moments", "learning rate", "nothing"])
def test_what_was_exchanged_is_recorded_anew(exchange: str) -> None:
    modules = a_line()
    tape = Tape(regression(modules), modules, torch.Generator())
    steps_of(tape, 60)
    (line,) = modules
    assert line.target is not None
    assert line.optimizer is not None
    if exchange == "weights":
        line.module.load_state_dict({k: v.clone() for k, v in line.module.state_dict().items()}, assign=True)
    elif exchange == "target":
        line.target.load_state_dict({k: v.clone() for k, v in line.target.state_dict().items()}, assign=True)
    elif exchange == "moments":
        line.optimizer.load_state_dict(copy.deepcopy(line.optimizer.state_dict()))
    elif exchange == "learning rate":  # a number; on a GPU it is a tensor, which a recording reads anew
        line.scale_learning_rate(0.5)
    steps_of(tape, 60)
    assert tape.recorded == (4 if exchange == "nothing" else 8)


def test_a_learning_rate_that_is_a_tensor_is_written_into() -> None:
    modules = a_line()
    (line,) = modules
    assert line.optimizer is not None
    for group in line.optimizer.param_groups:
        group["lr"] = torch.full((), group["lr"])
    twin = a_line()
    tape, plain = Tape(regression(modules), modules, torch.Generator()), regression(twin)
    losses = []
    for taken, tracked in ((tape, modules), (plain, twin)):
        losses.append(steps_of(taken, 60))
        tracked.scale_learning_rates(0.5)
        losses[-1] += steps_of(taken, 60)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # a float32 rate against a float64 one
    assert tape.recorded == 4


def test_recordings_are_not_copied() -> None:
    modules = a_line()
    tape = Tape(_Halving().halve, modules, torch.Generator())
    for _ in range(WARM_UP + 2):
        tape(torch.ones(1))
    for twin in (copy.deepcopy(tape), pickle.loads(pickle.dumps(tape))):
        assert not twin._recordings
        assert twin(torch.full((1,), 3.0))["half"] == 1.5
        assert twin.step.__self__ is not tape.step.__self__


class _Halving:
    def halve(self, x: Tensor) -> dict[str, Tensor]:
        return {"half": x / 2}


@pytest.mark.parametrize("mode", ["off", "default", "reduce-overhead", "max-autotune"])
def test_a_cpu_records_nothing(mode: str) -> None:
    step = _Halving().halve
    assert captured(step, mode, a_line(), torch.Generator()) == step
    if mode == "off":
        assert compiled(step, mode, CPU) == step


def test_a_gpu_records_whole_steps_instead_of_losses() -> None:
    step = _Halving().halve
    assert compiled(step, "reduce-overhead", torch.device("cuda")) == step


# -- on a GPU ----------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def delayed() -> gym.Env[Any, Any]:
    return RandomDelay(gym.make("Pendulum-v1"), "uniform:0-2", "uniform:0-1")


DATA = {moves: played(Point(moves=moves), 10) for moves in ("box", "discrete")}
SMALL_MODEL = {"model_net_arch": [32, 32], "n_models": 3, "n_elites": 2, "rollouts_per_step": 20, "learning_starts": 60}
MBPO_LIKE = SMALL_MODEL | {"net_arch": [32, 32], "gradient_steps": 2, "model_train_freq": 50}
POPULATION = {"net_arch": [32, 32], "population_size": 6, "learning_starts": 0, "surrogate_start": 60, "n_blocks": 2}
REBRAC = {"layer_norm": True, "critic_bc_coef": 1.0, "actor_critic": "least"}

AGENTS: dict[str, tuple[Callable[..., Any], int]] = {
    "SAC": (lambda **k: SAC("MlpPolicy", "Pendulum-v1", **k), 160),
    "SAC, seldom following": (lambda **k: SAC("MlpPolicy", "Pendulum-v1", target_update_interval=3, **k), 160),
    "SAC, fixed": (lambda **k: SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.2, max_grad_norm=1.0, **k), 160),
    "SAC, bfloat16": (lambda **k: SAC("MlpPolicy", "Pendulum-v1", precision="bfloat16", **k), 160),
    "TD3": (lambda **k: TD3("MlpPolicy", "Pendulum-v1", **k), 160),
    "TD3, linear": (lambda **k: TD3("MlpPolicy", "Pendulum-v1", learning_rate_schedule="linear", **k), 160),
    "DQN": (lambda **k: DQN("MlpPolicy", "CartPole-v1", learning_starts=60, train_freq=1, **k), 160),
    "DCAC": (lambda **k: DCAC("MultiInputPolicy", delayed(), learning_starts=100, **k), 160),
    "PPO": (lambda **k: PPO("MlpPolicy", "Pendulum-v1", n_steps=96, batch_size=40, n_epochs=4, **k), 192),
    "PPO, linear": (
        lambda **k: PPO(
            "MlpPolicy",
            "CartPole-v1",
            n_steps=64,
            batch_size=32,
            clip_range_schedule="linear",
            learning_rate_schedule="linear",
            **k,
        ),
        192,
    ),
    "PPO, watched": (lambda **k: PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, target_kl=0.01, **k), 192),
    "MBPO": (lambda **k: MBPO("MlpPolicy", Point(), **MBPO_LIKE, **k), 160),
    "PS": (lambda **k: MBPO("MlpPolicy", Point(), variant="ps", **MBPO_LIKE, **k), 160),
    "PGPS": (lambda **k: PGPS("MlpPolicy", Point(), guided_margin=0.0, **POPULATION, **k), 160),
    "BC": (lambda **k: BC("MlpPolicy", dataset=DATA["box"], **k), 160),
    "IQL": (lambda **k: IQL("MlpPolicy", dataset=DATA["box"], **k), 160),
    "IQL, ascending": (lambda **k: IQL("MlpPolicy", dataset=DATA["box"], extraction="ddpg+bc", **k), 160),
    "IQL, choices": (lambda **k: IQL("MlpPolicy", dataset=DATA["discrete"], normalize_obs=True, **k), 160),
    "TD3BC": (lambda **k: TD3BC("MlpPolicy", dataset=DATA["box"], **k), 160),
    "ReBRAC": (lambda **k: TD3BC("MlpPolicy", dataset=DATA["box"], **REBRAC, **k), 160),
    "HDCR": (lambda **k: HDCR("MlpPolicy", dataset=DATA["box"], value_steps=30, actor_steps=40, **k), 160),
    "ABM": (lambda **k: ABM("MlpPolicy", dataset=DATA["box"], target_update_interval=20, **k), 160),
    "TDT": (lambda **k: TDT("MultiInputPolicy", dataset=played(Errand(), 10), **k), 160),
}


def recorded_steps_of(agent: Any) -> list[Any]:
    if isinstance(agent, PGPS):
        return [agent.gradient_learner._critic_step, agent.gradient_learner._actor_step]
    return [agent._step, agent.fit._step] if isinstance(agent, MBPO) else [agent._step]


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps == 150:
            self.model.request_stop()  # type: ignore[attr-defined]
        return True


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", AGENTS)
def test_recorded_steps_compute_the_same_bits(name: str, tmp_path: Path) -> None:
    make, steps = AGENTS[name]
    plain, recorded, half = (
        make(seed=0, device="cuda", compile=mode) for mode in ("off", "reduce-overhead", "reduce-overhead")
    )
    plain.learn(steps)
    recorded.learn(steps)
    assert all(step._recordings for step in recorded_steps_of(recorded)) is (name != "PPO, watched")
    half.learn(steps, callback=Stop())
    assert half.num_timesteps < steps
    half.save_checkpoint(tmp_path)
    worlds = {"DCAC": delayed, "MBPO": Point, "PS": Point, "PGPS": Point}
    source = {"dataset": plain.dataset} if hasattr(plain, "dataset") else {"env": worlds.get(name, lambda: None)()}
    rest = type(half).resume(tmp_path, device="cuda", **source)
    rest.learn(rest.remaining_timesteps, reset_num_timesteps=False)
    exact = name != "PPO, linear"  # clips by a float32 instead of a float64
    for key, tensor in plain.modules.state().items():
        assert torch.equal(recorded.modules.state()[key], rest.modules.state()[key])
        if exact:
            assert torch.equal(recorded.modules.state()[key], tensor), key
        else:
            assert torch.allclose(recorded.modules.state()[key], tensor, atol=1e-4), key
    means, wanted = recorded.metrics.flush(), plain.metrics.flush()
    assert means == (wanted if exact else pytest.approx(wanted, rel=1e-2, abs=1e-3))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["BC", "IQL", "TD3BC", "ReBRAC", "HDCR", "ABM"])
def test_several_seeds_are_recorded(name: str) -> None:
    make, steps = AGENTS[name]
    plain, tape = (make(seeds=[3, 5], device="cuda", compile=mode).learn(steps) for mode in ("off", "reduce-overhead"))
    assert tape._step._recordings
    for key, tensor in plain.modules.state().items():
        assert torch.equal(tape.modules.state()[key], tensor), key


@pytest.mark.gpu
@needs_gpu
def test_a_step_that_waits_cannot_be_recorded() -> None:
    modules = TrackedModules(torch.device("cuda"), 0.1)
    waits = Captured(lambda x: x * x.item(), modules, torch.Generator("cuda"))
    for _ in range(WARM_UP):
        waits(torch.ones(1, device="cuda"))
    with pytest.raises(RuntimeError, match=r"cannot be recorded as a CUDA graph .*: use compile='off'"):
        waits(torch.ones(1, device="cuda"))
    assert (torch.ones(2, device="cuda") * 2).sum() == 4  # the device goes on


@pytest.mark.gpu
@needs_gpu
def test_weights_that_are_put_in_place_count() -> None:
    agents = [SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cuda", compile=m) for m in ("off", "reduce-overhead")]
    for agent in agents:
        agent.learn(130)
        module = agent.actor.module
        module.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()}, assign=True)
        agent.train(10)
        agent.set_parameters(agent.get_parameters())
        agent.train(10)
    for key, tensor in agents[0].modules.state().items():
        assert torch.equal(agents[1].modules.state()[key], tensor), key


@pytest.mark.gpu
@needs_gpu
def test_batches_of_dicts_are_recorded() -> None:
    modules = TrackedModules(torch.device("cuda"), 0.1)
    twice = Captured(lambda batch: {"sum": batch.obs["x"].sum()}, modules, torch.Generator("cuda"))
    for k in range(WARM_UP + 3):
        obs = {"x": torch.full((4, 2), float(k), device="cuda")}
        row = torch.zeros(4, device="cuda")
        assert twice(Transitions(obs, row, row, row > 0, row > 0, obs))["sum"] == 8 * k
