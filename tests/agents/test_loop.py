"""Phases, parts and optimisers of an agent's own: a stop anywhere between two gradient steps goes on exactly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from headway.agents.core.config import OffPolicyConfig
from headway.agents.core.nets import SGD, Adam, Critics, DeterministicActor
from headway.agents.core.off_policy import OffPolicyAgent
from headway.agents.core.spaces import Obs
from torch import Tensor
from toys import vec


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
