"""Deep solvers of mean field games: losses by hand, limits in which they are exact, and what they reach."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from headway.agents.core.config import describe
from headway.agents.core.data import Transitions
from headway.agents.core.files.trees import pack
from headway.agents.core.spaces import VectorFeatures
from headway.agents.mean_field import (
    AverageConfig,
    AverageDQN,
    BestResponseConfig,
    BestResponseDQN,
    DeepSolution,
    Iteration,
    MirrorDescentConfig,
    MirrorDescentDQN,
    NashConvCallback,
    agent,
    average_fictitious_play,
    deep_fictitious_play,
    deep_mirror_descent,
    exploitability_of,
    fictitious_play_with,
    log_iterations,
    tabular_policy,
)
from headway.agents.mean_field.agent import Logits, MemberDQN, Places, Reservoir, imitation_loss, munchausen_target
from headway.envs.mean_field import MFGame, best_response, exploitability, flow, make_game, solve
from headway.envs.mean_field.member import MeanFieldAgentBatch, MeanFieldAgentEnv
from headway.envs.mean_field.regularisers import Entropy
from headway.wrappers.sb3 import BatchedVecEnv
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from support import Stop
from torch import Tensor

TINY: dict[str, Any] = {"episodes": 20, "learning_starts": 0, "train_freq": 4, "batch_size": 16, "net_arch": (16,)}
AVERAGE = TINY | {"average_episodes": 10, "average_steps": 20, "average_batch_size": 16}
RUNS: dict[str, Callable[..., DeepSolution]] = {
    "mirror_descent": lambda game, **kw: deep_mirror_descent(game, MirrorDescentConfig(**TINY), **kw),
    "fictitious_play": lambda game, **kw: deep_fictitious_play(game, BestResponseConfig(**TINY), **kw),
    "average": lambda game, **kw: average_fictitious_play(game, AverageConfig(**AVERAGE), **kw),
}


@pytest.fixture(scope="module")
def ring() -> MFGame:
    """A small crowd_modelling."""
    return make_game("crowd_modelling", size=4, horizon=3)


def quiet_ring(horizon: int = 3) -> MFGame:
    """The same without noise, and with a wall: state 3 has no action 2."""
    ring = make_game("crowd_modelling", size=4, horizon=horizon)
    legal = torch.ones(4, 3, dtype=torch.bool)
    legal[3, 2] = False
    return MFGame(name="quiet", S=4, A=3, H=horizon, mu0=ring.mu0, r_state=ring.r_state, legal=legal, post=ring.post)


def five_rows() -> tuple[Transitions, Tensor, Tensor, Tensor]:
    """Transitions with an end, an illegal action and a very unlikely one; probabilities before and after; values."""
    generator = torch.Generator().manual_seed(0)
    prior, next_prior = (torch.rand(5, 3, generator=generator).softmax(1) for _ in range(2))
    prior[1] = torch.tensor([1e-9, 1 - 1e-9, 0.0])
    next_prior[2] = torch.tensor([0.0, 1e-8, 1 - 1e-8])
    obs, ended = torch.eye(5), torch.tensor([False, False, False, True, False])
    rewards = torch.randn(5, generator=generator)
    batch = Transitions(obs, torch.tensor([0, 0, 2, 1, 1]), rewards, ended, torch.zeros(5, dtype=torch.bool), obs)
    return batch, prior, next_prior, 5 * torch.randn(5, 3, generator=generator)


def member(kind: type[MemberDQN], game: MFGame, seed: int = 0, **hyper: Any) -> Any:
    """An agent, small and seeded."""
    tiny = AVERAGE if kind is AverageDQN else TINY
    return kind(game=game, seed=seed, device="cpu", **{**tiny, **hyper})


LEARNERS = (MirrorDescentDQN, BestResponseDQN, AverageDQN)
every_learner = pytest.mark.parametrize("kind", LEARNERS, ids=lambda kind: kind.__name__)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_munchausen_target_by_hand() -> None:
    batch, prior, next_prior, next_q = five_rows()
    tau, alpha, gamma = 3.0, 0.9, 0.95
    found = munchausen_target(batch, prior, next_prior, next_q, tau, alpha, gamma)
    for i in range(5):
        wanted = float(batch.rewards[i]) + alpha * tau * math.log(max(float(prior[i, batch.actions[i]]), 1e-6))
        if not batch.terminated[i]:
            for p, q in zip(next_prior[i].tolist(), next_q[i].tolist(), strict=True):
                wanted += gamma * p * (q - tau * math.log(max(p, 1e-6)))
        assert float(found[i]) == pytest.approx(wanted, abs=1e-4)  # float32
    assert float(found[1]) < alpha * tau * math.log(1e-6) + 30  # the cut was reached, and no more than it


def test_imitation_loss_by_hand() -> None:
    torch.manual_seed(0)
    actor = Logits(VectorFeatures(8), 3, (8,), "relu", (), "float32")
    obs, actions = torch.eye(5, 8), torch.tensor([0, 2, 1, 1, 0])
    legal = torch.tensor([[True, True, False]] * 5)
    legal[1] = torch.tensor([False, True, True])
    outputs = actor(obs).detach()
    logs = []
    for i, a in enumerate(actions.tolist()):
        total = sum(math.exp(float(outputs[i, b])) for b in range(3) if legal[i, b])
        logs.append(float(outputs[i, a]) - math.log(total))
    assert imitation_loss(actor, obs, legal, actions).item() == pytest.approx(-sum(logs) / 5, rel=1e-5)


def test_best_responses_look_for_legal_actions_only() -> None:
    """Where a wall stands, its value, made the highest, counts neither in targets nor in actions."""
    game = quiet_ring()
    learner = member(BestResponseDQN, game, net_arch=(), episodes=40)
    with torch.no_grad():
        for network in (learner.q.module, learner.q.target):
            network.mlp.weights[0].zero_()
            network.mlp.biases[0].copy_(torch.tensor([[1.0, 2.0, 100.0]]))
    seen = learner.places.observations
    assert (tabular_policy(learner, game)[0].argmax(-1) == torch.tensor([2, 2, 2, 1])).all()
    actions, _ = learner.predict(seen.numpy(), deterministic=True)
    assert (torch.from_numpy(actions) == learner.places.legal.long() @ torch.tensor([0, 0, 1]) + 1).all()
    learner.learn(learner.iteration, callback=Stop(3))  # the whole round is collected, and no step taken
    batch = learner.store.sample(200)
    walls = learner.places.find(batch.next_obs) % 4 == 3
    expected = batch.rewards + torch.where(batch.terminated, 0.0, torch.where(walls, 2.0, 100.0))
    assert 0 < walls.sum() < len(walls)
    torch.testing.assert_close(learner._targets(batch, learner.q.target), expected)


# ---- experience ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crowd_modelling", "four_rooms", "predator_prey"])
def test_places_are_found(name: str) -> None:
    game = make_game(name, horizon=5)
    places = Places(game, torch.device("cpu"))
    assert torch.equal(places.find(places.observations), torch.arange(6 * game.S))
    assert torch.equal(places.legal, game.legal.repeat(6, 1))


def test_members_live_as_the_policy_says() -> None:
    game = make_game("four_rooms", horizon=6)
    learner = member(MirrorDescentDQN, game, episodes=2000, members=2000, exploration=0.0, train_freq=1e4)
    policy = tabular_policy(learner, game)
    learner.learn(learner.iteration)
    mu = flow(game, policy)[0]
    states = learner.store.sample(50_000)
    seen = torch.bincount(learner.places.find(states.obs), minlength=7 * game.S).view(7, game.S) / 50_000 * 6
    # Of 2000 members and of 50,000 draws, 8,333 at each time: 4.5 standard errors of both together.
    assert (seen - mu)[:6].abs().max() < 4.5 * math.sqrt(0.25 / 2000 + 0.25 / 8333)
    assert learner.places.legal[learner.places.find(states.obs), states.actions].all()
    assert (states.terminated == (learner.places.find(states.next_obs) // game.S == 6)).all()
    start = learner.places.find(states.obs) == mu[0].argmax()
    taken = torch.bincount(states.actions[start], minlength=game.A) / start.sum()
    chance = policy[0, 0, mu[0].argmax()].float()
    torch.testing.assert_close(taken, chance, atol=4.5 * math.sqrt(0.25 / 2000 + 0.25 / 8333), rtol=0)


def test_rounds_hold_what_the_buffer_holds(ring: MFGame) -> None:
    cfg = BestResponseConfig(episodes=100, members=40, buffer_size=30, learning_starts=0)
    learner = BestResponseDQN(game=ring, config=cfg, device="cpu")
    assert learner.n_envs == 10  # of 3 decisions each
    assert learner.learn_against(flow(ring, ring.uniform_policy()), 0.0) == learner.iteration == 300
    assert len(learner.store) == 30
    assert learner._n_updates == 300 // 40


def test_reservoir_is_a_uniform_sample() -> None:
    kept = Reservoir(500, torch.Generator().manual_seed(0), 1000, 3)
    for start in range(0, 3000, 300):
        numbers = torch.arange(start, start + 300)
        kept.add(numbers, numbers + 1)
        kept.sample(1)
    ((_, places, actions),) = kept.state()
    assert len(places) == len(places.unique()) == 500
    assert torch.equal(actions, places + 1)
    assert abs(float(places.double().mean()) - 1500) < 4 * 3000 / math.sqrt(12 * 500)  # 4 standard errors


def test_the_average_is_shown_the_best_response(ring: MFGame) -> None:
    learner = member(AverageDQN, ring, average_episodes=25, episodes=40, members=10)
    learner.learn(2 * learner.iteration)
    assert learner.iteration == (40 + 30) * 3  # 25 of them in rounds of 10 members
    (joined,) = learner.reservoir.state()
    places, actions = joined[1], joined[2]
    assert len(places) == 2 * 25 * 3
    best = learner._respond(learner.places.observations).argmax(1)  # of the second iteration, whose decisions are last
    assert torch.equal(actions[75:], best[places[75:]])
    assert len(learner.store) == 120


# ---- limits that are exact -------------------------------------------------------------------------------------------


def test_linear_network_on_a_table_follows_exact_mirror_descent() -> None:
    """Without noise every target can be met exactly, so that what is left is Adam's last steps, of some 1e-3."""
    game = quiet_ring()
    cfg = MirrorDescentConfig(
        temperature=0.5, alpha=1.0, inputs="table", net_arch=(), learning_rate=0.05, exploration=0.5,
        episodes=400, learning_starts=0, train_freq=0.8, target_update_interval=40, batch_size=64,
    )  # fmt: skip
    policies: list[Tensor] = []
    first = deep_mirror_descent(game, cfg, iterations=0).policy
    deep_mirror_descent(game, cfg, iterations=3, on_iteration=lambda done: policies.append(done.policy))
    for k, found in enumerate(policies, 1):
        wanted = solve(game, "munchausen_mirror_descent", k, policy=first, learning_rate=2.0).policy
        assert (found - wanted).abs().max() < 5e-3, k
        assert (wanted - first).abs().max() > 0.1


def test_noise_is_averaged_out(ring: MFGame) -> None:
    """With noise targets vary, and values with them by some of Adam's last steps of 0.01 and 0.005."""
    cfg = MirrorDescentConfig(
        temperature=1.0, alpha=1.0, inputs="table", net_arch=(), learning_rate_schedule="linear", exploration=0.3,
        episodes=2000, members=2000, learning_starts=0, train_freq=6, target_update_interval=120, batch_size=256,
    )  # fmt: skip
    found = deep_mirror_descent(ring, cfg, iterations=2)
    first = deep_mirror_descent(ring, cfg, iterations=0).policy
    wanted = solve(ring, "munchausen_mirror_descent", 2, policy=first, learning_rate=1.0).policy
    assert (found.policy - wanted).abs().max() < 0.03
    assert (wanted - first).abs().max() > 0.08


class Oracle:
    """Knows the best response, and counts how often it was asked to learn."""

    def __init__(self, env: Any) -> None:
        self.batch: MeanFieldAgentBatch = env.batched
        self.num_timesteps = 0

    def learn(self, total_timesteps: int, *, reset_num_timesteps: bool) -> None:
        assert not reset_num_timesteps
        self.num_timesteps += total_timesteps
        response = best_response(self.batch.game, self.batch.mean_field).policy
        self.policy = response[self.batch.population]

    def action_probabilities(self, observations: Tensor) -> Tensor:
        return self.policy.reshape(-1, self.policy.shape[-1])  # asked for all times and states, in this order

    def predict(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize("name", ["crowd_modelling", "predator_prey", "sis"])
@pytest.mark.parametrize("restart", [False, True])
def test_with_exact_responses_it_is_fictitious_play(name: str, restart: bool) -> None:
    game = make_game(name, horizon=6)
    made: list[Oracle] = []
    found = fictitious_play_with(
        game, lambda env: made.append(Oracle(env)) or made[-1], iterations=5, timesteps=10, members=2, restart=restart
    )
    wanted = solve(game, "fictitious_play", 5)
    torch.testing.assert_close(found.history.exploitability, wanted.history.exploitability, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.flow, wanted.flow, rtol=0, atol=1e-12)
    assert found.history.steps == tuple(10 * game.n_pop * k for k in range(6))
    assert len(made) == game.n_pop * (5 if restart else 1)
    assert found.learners == tuple(made[-game.n_pop :])


def test_weight_of_new_responses(ring: MFGame) -> None:
    found = fictitious_play_with(ring, Oracle, iterations=4, learning_rate=0.3, members=1)
    wanted = solve(ring, "fictitious_play", 4, learning_rate=0.3)
    torch.testing.assert_close(found.flow, wanted.flow, rtol=0, atol=1e-12)


def test_best_response_is_learnt_the_best_response() -> None:
    """Without noise values are learnt to less than the gaps between actions, 0.02 and more, that are not as good."""
    game = quiet_ring()
    mu = flow(game, game.uniform_policy())
    cfg = BestResponseConfig(
        **TINY | {"inputs": "table", "net_arch": (), "episodes": 500, "exploration": 0.5, "learning_rate": 0.05}
    )
    learner = BestResponseDQN(game=game, config=cfg, seed=0, device="cpu")
    for _ in range(6):
        learner.learn_against(mu, 0.0)
    response = best_response(game, mu)
    worth = response.q_values[0].gather(-1, tabular_policy(learner, game)[0].argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(worth, response.values[0, :-1], rtol=0, atol=0.02)


# ---- what is reached -------------------------------------------------------------------------------------------------


def test_mirror_descent_reaches_what_the_exact_one_reaches() -> None:
    game = make_game("crowd_modelling")
    cfg = MirrorDescentConfig(train_freq=16, episodes=500, members=500, batch_size=64)
    found = deep_mirror_descent(game, cfg, iterations=6).history.exploitability
    exact = solve(game, "online_mirror_descent", 6).history.exploitability
    assert found[-1] < exact[-1] + 0.5 < 2 < found[0]


def test_sanity_thresholds() -> None:
    """Those that OpenSpiel asks of its own, with its tests' settings; ours are tighter where they can be."""
    game = make_game("crowd_modelling", compat="openspiel")
    common: dict[str, Any] = {"exploration": 0.1, "learning_rate": 0.01}
    mirror = MirrorDescentConfig(
        **common, alpha=0.9, episodes=100, members=10, learning_starts=500, buffer_size=2000, target_update_interval=50
    )
    assert deep_mirror_descent(game, mirror, iterations=10).exploitability <= 3
    average = AverageConfig(
        **common, episodes=50, members=10, batch_size=32, net_arch=(128,), train_freq=32, learning_starts=32,
        buffer_size=2000, target_update_interval=32, average_episodes=50, average_steps=10, average_batch_size=32,
    )  # fmt: skip
    assert average_fictitious_play(game, average, iterations=5).exploitability <= 15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_defaults_reach(seed: int) -> None:
    game = make_game("crowd_modelling")
    assert deep_fictitious_play(game, iterations=10, seed=seed).exploitability <= 1.06
    assert average_fictitious_play(game, iterations=5, seed=seed).exploitability <= 15
    assert deep_mirror_descent(game, iterations=20, seed=seed).exploitability <= 1.2


# ---- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_seeds_reproduce_bit_for_bit(name: str, ring: MFGame) -> None:
    state = torch.get_rng_state()
    one, same, other = (RUNS[name](ring, iterations=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.policy, same.policy)
    assert torch.equal(one.history.exploitability, same.history.exploitability)
    assert not torch.equal(one.policy, other.policy)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's stream was used


@pytest.mark.parametrize("name", RUNS)
def test_populations_learn_side_by_side(name: str) -> None:
    game = make_game("predator_prey", size=3, horizon=4)
    found = RUNS[name](game, iterations=2)
    assert found.policy.shape == (3, 4, 9, 5)
    assert len(found.learners) == 3
    assert not torch.equal(found.policy[0], found.policy[1])
    torch.testing.assert_close(found.flow, flow(game, found.policy))
    torch.testing.assert_close(found.exploitability, exploitability(game, found.policy))
    assert found.history.iterations == (0, 1, 2)
    per_iteration = 3 * 4 * (20 if name != "average" else 40)
    assert found.history.steps == (0, per_iteration, 2 * per_iteration)


def test_agents_of_stable_baselines_respond(ring: MFGame) -> None:
    makers: dict[str, Callable[[Any], Any]] = {
        "ppo": partial(PPO, "MlpPolicy", seed=0, n_steps=16, batch_size=32, device="cpu"),
        "a2c": partial(A2C, "MlpPolicy", seed=0, device="cpu"),
        "dqn": partial(DQN, "MlpPolicy", seed=0, learning_starts=50, buffer_size=1000, device="cpu"),
    }
    for name, make in makers.items():
        found = fictitious_play_with(ring, make, iterations=2, timesteps=200, members=4)
        again = fictitious_play_with(ring, make, iterations=2, timesteps=200, members=4)
        assert torch.equal(found.policy, again.policy), name
        assert found.history.steps[-1] == found.learners[0].num_timesteps >= 400
        torch.testing.assert_close(found.exploitability, exploitability(ring, found.policy))


@pytest.mark.parametrize("restart", [False, True])
def test_the_seed_counts_whatever_an_agent_seeds_its_environment_with(ring: MFGame, restart: bool) -> None:
    make = partial(PPO, "MlpPolicy", seed=0, n_steps=16, batch_size=32, device="cpu")
    options: dict[str, Any] = {"iterations": 2, "timesteps": 64, "members": 4, "restart": restart}
    first, again, other = (fictitious_play_with(ring, make, seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(first.policy, again.policy)
    assert not torch.equal(first.policy, other.policy)


def test_agents_that_know_no_masks_meet_walls() -> None:
    game = make_game("four_rooms", horizon=4)
    make = partial(PPO, "MlpPolicy", seed=0, n_steps=16, batch_size=32, device="cpu")
    found = fictitious_play_with(game, make, iterations=1, timesteps=64, members=4)
    assert (found.policy[..., ~game.legal] == 0).all()


def test_stopping_at_a_tolerance(ring: MFGame) -> None:
    found = fictitious_play_with(ring, Oracle, iterations=50, members=1, tolerance=0.1)
    assert found.history.iterations[-1] < 50
    assert found.exploitability <= 0.1 < found.history.exploitability[-2]


def test_ctrl_c_returns_the_last_whole_iteration(ring: MFGame, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Iteration] = []

    def interrupt(done: Iteration) -> None:
        seen.append(done)
        if done.number == 2:
            raise KeyboardInterrupt

    found = RUNS["mirror_descent"](ring, iterations=5, on_iteration=interrupt, progress=True)
    assert found.interrupted
    assert torch.equal(found.policy, seen[1].policy)
    assert found.history.iterations == (0, 1, 2)
    assert "exploitability=" in capsys.readouterr().err
    assert not RUNS["mirror_descent"](ring, iterations=1).interrupted


def test_iterations_are_logged(ring: MFGame, tmp_path: Path) -> None:
    logger = configure(str(tmp_path), ["csv", "tensorboard"])
    found = RUNS["fictitious_play"](ring, iterations=2, on_iteration=log_iterations(logger))
    logger.close()
    lines = (tmp_path / "progress.csv").read_text().split()
    column = lines[0].split(",").index("mean_field/exploitability")
    logged = [float(line.split(",")[column]) for line in lines[1:]]
    assert logged == pytest.approx(found.history.exploitability[1:].tolist())
    assert list(tmp_path.glob("events.*"))


def test_learning_rate_falls_to_zero(ring: MFGame) -> None:
    rates: list[float] = []
    mu = flow(ring, ring.uniform_policy())
    learner = member(AverageDQN, ring, learning_rate_schedule="linear", learning_rate=0.01)
    for done in (0.0, 0.5, 0.9):
        learner.learn_against(mu, done)
        rates.append(learner.q.optimizer.param_groups[0]["lr"])
        assert learner.average.optimizer.param_groups[0]["lr"] == 0.01  # no schedule lowers it
    assert rates == pytest.approx([0.01, 0.005, 0.001])


OTHER: dict[str, Any] = {
    "learning_rate": 0.05, "learning_rate_schedule": "linear", "gamma": 0.5, "batch_size": 8, "net_arch": (8,),
    "activation": "tanh", "max_grad_norm": 1e-3, "inputs": "table", "episodes": 10, "members": 10, "buffer_size": 30,
    "learning_starts": 50, "train_freq": 2, "target_update_interval": 8, "exploration": 0.9, "temperature": 1.0,
    "alpha": 0.5, "average_episodes": 5, "average_steps": 10, "average_batch_size": 8, "average_learning_rate": 0.05,
    "average_max_grad_norm": 1e-3, "reservoir_size": 20,
}  # fmt: skip
"""Another value of every setting that decides what is learnt."""


@pytest.mark.parametrize("name", RUNS)
def test_every_setting_does_something(name: str, ring: MFGame, monkeypatch: pytest.MonkeyPatch) -> None:
    choices: dict[str, Any] = {
        "mirror_descent": (deep_mirror_descent, MirrorDescentConfig, {"temperature": 0.1}),  # far from uniform
        "fictitious_play": (deep_fictitious_play, BestResponseConfig, {}),
        "average": (average_fictitious_play, AverageConfig, AVERAGE),
    }
    solver, config, more = choices[name]

    def learnt(**values: Any) -> list[Tensor]:
        given = config.from_dict(TINY | more | {"members": 5} | values)
        learners = solver(ring, given, iterations=2).learners
        tracked = [learners[0].q, *([learners[0].average] if name == "average" else [])]
        return [parameter.detach() for part in tracked for parameter in part.parameters]

    first = learnt()
    assert all(map(torch.equal, first, learnt()))
    for field in set(describe(config)) - {"compile", "precision"}:  # whose tests are those of all networks
        other = learnt(**{field: OTHER[field]})
        assert not all(map(torch.equal, first, other)), field
    modes: list[str] = []
    monkeypatch.setattr(agent, "compiled", lambda loss, mode, device: modes.append(mode) or loss)
    learnt(compile="max-autotune")
    assert set(modes) == {"max-autotune"}
    assert len(modes) == (2 if name == "average" else 1)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_fields_are_documented() -> None:
    for config in (MirrorDescentConfig, BestResponseConfig, AverageConfig):
        for name, info in describe(config).items():
            assert info.doc, name
        assert {field.name for field in fields(config)} == set(describe(config))


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"temperature": 0.0}, ValueError, r"MirrorDescentConfig.temperature must lie in \(0, inf\), got 0.0"),
        ({"alpha": 1.5}, ValueError, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"exploration": -0.1}, ValueError, "exploration"),
        ({"episodes": 0}, ValueError, "episodes"),
        ({"train_freq": 0}, ValueError, "train_freq"),
        ({"inputs": "pixels"}, TypeError, "inputs must be Literal"),
        ({"net_arch": (0,)}, ValueError, "net_arch"),
        ({"temperatur": 1.0}, TypeError, "did you mean temperature"),
    ],
)
def test_bad_hyper_parameters(values: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        MirrorDescentConfig.from_dict(values)


def test_bad_games_and_numbers(ring: MFGame, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_game("crowd_modelling", crowd_aversion_coef=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"batch \(2,\) of games"):
        deep_mirror_descent(batch)
    paying = MFGame(
        name="paying", S=4, A=3, H=2, mu0=ring.mu0, r_state=ring.r_state, post=ring.post, regulariser=Entropy(1)
    )
    with pytest.raises(ValueError, match="pays for how choices are spread"):
        deep_fictitious_play(paying)
    with pytest.raises(ValueError, match="an iteration collects 30 and keeps 30"):
        average_fictitious_play(ring, AverageConfig(episodes=10, learning_starts=31))
    with pytest.raises(ValueError, match="every 64 transitions, but an iteration collects 60"):
        deep_mirror_descent(ring, MirrorDescentConfig(episodes=20, learning_starts=0))
    with pytest.raises(ValueError, match="iterations must be at least 0, got -1"):
        RUNS["mirror_descent"](ring, iterations=-1)
    for options, words in (
        ({"learning_rate": 1.5}, r"\(0, 1\], got 1.5"),
        ({"timesteps": 0}, "timesteps must be at least 1"),
        ({"members": 0}, "members must be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            fictitious_play_with(ring, Oracle, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(agent, "MOST_INPUTS", 15)
    with pytest.raises(ValueError, match="16 inputs, one for each state and time; 15 fit at most"):
        member(MirrorDescentDQN, ring, inputs="table")
    with pytest.raises(ValueError, match=r"a member has to know its game: BestResponseDQN\(game="):
        BestResponseDQN("MlpPolicy", "CartPole-v1")
    aware = BatchedVecEnv(MeanFieldAgentBatch(2, ring, population_aware=True))
    with pytest.raises(ValueError, match="reads one-hot coordinates and time, 8 numbers in crowd_modelling"):
        BestResponseDQN("MlpPolicy", aware, game=ring)


@every_learner
def test_divergence_is_named(kind: type[MemberDQN], ring: MFGame) -> None:
    learner = member(kind, ring)
    learner.learn(learner.iteration)
    with torch.no_grad():
        for tracked in learner.modules:
            tracked.module.mlp.biases[0].fill_(torch.nan)
    for act in (lambda: tabular_policy(learner, ring), lambda: learner.learn(learner.iteration)):
        with pytest.raises(ValueError, match="outputs are no longer finite: lower the learning_rate"):
            act()


# ---- files, resume, callbacks ----------------------------------------------------------------------------------------


def same(first: MemberDQN, second: MemberDQN) -> bool:
    """Whether networks, moments, experience, streams and what is left to do are equal, bit for bit."""
    parts = [{n: p.state() for n, p in one.parts.items() if n != "global_streams"} for one in (first, second)]
    for found in parts:
        found["episodes"] = [(info["r"], info["l"]) for info in found["episodes"]["infos"]]  # without the clock
    (tree, tensors), (other, others) = map(pack, parts)
    tensors, others = tensors | first.modules.state(), others | second.modules.state()
    return (
        tree == other and tensors.keys() == others.keys() and all(torch.equal(tensors[k], others[k]) for k in tensors)
    )


@every_learner
def test_a_learner_goes_on_from_its_file(kind: type[MemberDQN], ring: MFGame, tmp_path: Path) -> None:
    learner = member(kind, ring)
    learner.learn(learner.iteration)
    learner.save(tmp_path / "policy")
    loaded = kind.load(tmp_path / "policy.zip", game=ring, device="cpu")
    assert loaded.config == learner.config
    assert torch.equal(tabular_policy(loaded, ring), tabular_policy(learner, ring))
    assert exploitability_of(loaded, ring) == float(exploitability(ring, tabular_policy(learner, ring)))
    loaded.learn(loaded.iteration, reset_num_timesteps=False)
    assert loaded.num_timesteps == 2 * learner.iteration
    with pytest.raises(ValueError, match="a member has to know its game"):
        kind.load(tmp_path / "policy.zip")


@every_learner
@pytest.mark.parametrize("updates", [1, 9, 17, 29])
def test_a_learner_resumes_between_two_gradient_steps(
    kind: type[MemberDQN], updates: int, ring: MFGame, tmp_path: Path
) -> None:
    """Windows are of 5 gradient steps and rounds bring 7 and 8, so that stops lie inside and at the ends of windows;
    the average's own, of which there are 20, come after 15."""
    mu = flow(ring, ring.uniform_policy())
    hyper: dict[str, Any] = {"members": 10, "target_update_interval": 20, "learning_rate_schedule": "linear"}
    hyper |= {"reservoir_size": 20} if kind is AverageDQN else {}
    whole, cut = member(kind, ring, **hyper), member(kind, ring, **hyper)
    for done in (0.0, 0.5):
        whole.learn_against(mu, done)
    add = cut.metrics.add

    def stopping(values: dict[str, Tensor]) -> None:
        """What the loop calls once per gradient step."""
        add(values)
        if cut._n_updates == updates - 1:  # this one is counted next
            cut.request_stop()

    cut.metrics.add = stopping
    for done in (0.0, 0.5):
        with contextlib.suppress(KeyboardInterrupt):
            cut.learn_against(mu, done)
        if cut._n_updates == updates:
            break
    assert cut._n_updates == updates
    assert cut.pending_updates > 0
    cut.save_checkpoint(tmp_path)
    resumed = kind.resume(tmp_path, game=ring, device="cpu")
    assert same(resumed, cut)
    resumed.learn(resumed.remaining_timesteps, log_interval=None, reset_num_timesteps=False)
    if done == 0.0:
        resumed.learn_against(mu, 0.5)
    assert same(resumed, whole)
    assert not same(resumed, cut)


def test_a_checkpoint_is_of_one_population(tmp_path: Path) -> None:
    game = make_game("predator_prey", size=3, horizon=4)
    learner = member(BestResponseDQN, game, population=1)
    assert learner.batched_env.population == 1
    learner.learn(learner.iteration)
    learner.save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="the checkpoint is of population 1, got 0"):
        BestResponseDQN.resume(tmp_path, game=game)
    assert same(BestResponseDQN.resume(tmp_path, game=game, population=1, device="cpu"), learner)


def test_callbacks_watch_and_stop(ring: MFGame, tmp_path: Path) -> None:
    watch, keep = NashConvCallback(ring, every=60), CheckpointCallback(3, str(tmp_path))
    found = RUNS["mirror_descent"](ring, iterations=3, callback=[watch, keep])
    assert [steps for steps, _ in watch.history] == [60, 120, 180]
    assert len(list(tmp_path.glob("*.zip"))) == 3
    assert not found.interrupted
    stopped = RUNS["mirror_descent"](ring, iterations=3, callback=Stop(70))  # inside the second iteration, of 3 steps
    assert stopped.interrupted
    assert stopped.history.iterations == (0, 1)
    assert torch.equal(stopped.policy, RUNS["mirror_descent"](ring, iterations=1).policy)
    assert stopped.learners[0].remaining_timesteps == 40
    other = fictitious_play_with(
        ring, partial(A2C, "MlpPolicy", seed=0, device="cpu"), iterations=1, timesteps=50, members=2, callback=Stop(10)
    )
    assert other.history.steps[-1] == 10


def test_a_member_learns_by_itself(ring: MFGame) -> None:
    """Without a solver: iterations follow one another among the same crowd, in environments of the user's own."""
    envs = DummyVecEnv([lambda: MeanFieldAgentEnv(ring) for _ in range(4)])
    learner = BestResponseDQN("MlpPolicy", envs, game=ring, seed=0, device="cpu", **TINY)
    learner.learn(2 * learner.iteration)
    assert learner.num_timesteps == 120
    assert learner._n_updates == 30
