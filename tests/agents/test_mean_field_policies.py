"""Policy tables of agents, what is left to gain, and crowds that follow a learner."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from headway.agents.mean_field.policies import (
    CrowdFollowsLearner,
    NashConvCallback,
    action_probabilities,
    averaged,
    exploitability_of,
    tabular_policy,
)
from headway.envs.mean_field import MFGame, best_response, exploitability, flow, make_game, solve
from headway.envs.mean_field.member import Encoder, MeanFieldAgentBatch, MeanFieldAgentEnv, encode
from headway.envs.mean_field.n_agents import NAgentEnv
from headway.wrappers import BatchedVecEnv
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch import Tensor

NET = {"net_arch": [8]}


def crowd(**parameters: Any) -> MFGame:
    return make_game("crowd_modelling", **{"size": 6, "horizon": 4, **parameters})


def member(game: MFGame, **options: Any) -> Any:
    return Monitor(MeanFieldAgentEnv(game, illegal="random", **options))


def ppo(env: Any, **options: Any) -> PPO:
    small = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu", "policy_kwargs": NET}
    return PPO("MlpPolicy", env, **{**small, **options})


def place(game: MFGame, observations: Tensor) -> tuple[Tensor, Tensor]:
    """:return: times and states that observations show."""
    return observations[:, game.S : game.S + game.H + 1].argmax(1), observations[:, : game.S].argmax(1)


class Table:
    """A model that is a policy table (H, S, A), found again from observations."""

    def __init__(self, game: MFGame, policy: Tensor, population_aware: bool = False) -> None:
        self.game, self.table = game, policy
        self.observation_space = Encoder(game, population_aware).space
        self.action_space = spaces.Discrete(game.A)

    def action_probabilities(self, observations: Tensor) -> Tensor:
        return self.table[place(self.game, observations)]


class Actor:
    """A model that only says which action it takes."""

    def __init__(self, game: MFGame, actions: Tensor) -> None:
        self.game, self.actions = game, actions

    def predict(self, obs: Any, deterministic: bool) -> tuple[Any, None]:
        assert deterministic
        return self.actions[place(self.game, torch.from_numpy(obs))].numpy(), None


class Rows(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        for key, value in key_values.items():
            self.seen.setdefault(key, []).append(value)

    def close(self) -> None:
        pass


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_is_read_back() -> None:
    game = crowd()
    policy = solve(game, iterations=5).policy
    found = tabular_policy(Table(game, policy[0]), game)
    assert found.shape == (1, 4, 6, 3)
    assert torch.allclose(found, policy, atol=1e-14)
    assert exploitability_of(Table(game, policy[0]), game) == pytest.approx(float(exploitability(game, policy)))
    best = best_response(game, flow(game, policy), tie="first").policy
    assert torch.equal(tabular_policy(Actor(game, best[0].argmax(-1)), game), best)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_distributions_of_stable_baselines(algorithm: Any) -> None:
    game = crowd()
    model = algorithm("MlpPolicy", member(game), seed=0, device="cpu", policy_kwargs=NET)
    policy = tabular_policy(model, game)
    for t, x in ((0, 0), (2, 5), (3, 1)):
        obs = encode(game, torch.tensor([x]), torch.tensor([t]))
        expected = model.policy.get_distribution(obs).distribution.probs[0]
        assert torch.allclose(policy[0, t, x], expected.double(), atol=1e-6)
    assert not model.policy.training
    value = exploitability_of(model, game)
    assert value == pytest.approx(float(exploitability(game, policy)), abs=1e-12)
    assert value > 0.1


def test_illegal_actions_have_no_place() -> None:
    game = make_game("four_rooms", horizon=3)
    model = ppo(member(game))
    policy = tabular_policy(model, game)
    assert (policy[..., ~game.legal] == 0).all()
    game.check_policy(policy)
    obs = encode(game, torch.tensor([14]), torch.tensor([0]))
    probs = model.policy.get_distribution(obs).distribution.probs[0].double() * game.legal[14]  # type: ignore[union-attr]
    assert torch.allclose(policy[0, 0, 14], probs / probs.sum(), atol=1e-6)


def test_where_nothing_legal_is_left_all_legal_actions_are_equally_likely() -> None:
    game = crowd()
    obs = encode(game, torch.arange(6), torch.zeros(6, dtype=torch.int64))
    legal = torch.tensor([False, True, True]).expand(6, 3)
    found = action_probabilities(Actor(game, torch.zeros(4, 6, dtype=torch.int64)), obs, legal)
    assert found.tolist() == [[0.0, 0.5, 0.5]] * 6


def test_action_values_are_taken_greedily_or_by_temperature() -> None:
    game = make_game("four_rooms", horizon=3)
    model = DQN("MlpPolicy", member(game), seed=0, device="cpu", policy_kwargs=NET, buffer_size=10)
    states = torch.arange(169)
    obs = encode(game, states, torch.full((169,), 1))
    values = model.policy.q_net(obs).detach().double().masked_fill(~game.legal, -torch.inf)  # type: ignore[union-attr,operator]
    greedy = tabular_policy(model, game)[0, 1]
    assert torch.equal(greedy.argmax(1), values.argmax(1))
    assert ((greedy == 0) | (greedy == 1)).all()
    warm = tabular_policy(model, game, temperature=0.5)[0, 1]
    assert torch.allclose(warm, (values / 0.5).softmax(1), atol=1e-6)
    with pytest.raises(ValueError, match="temperature must lie in"):
        tabular_policy(model, game, temperature=-1.0)


def test_models_that_learnt_on_normalised_observations() -> None:
    game = crowd()
    env = VecNormalize(DummyVecEnv([lambda: member(game)]))
    model = ppo(env)
    model.learn(32)
    obs = encode(game, torch.tensor([3]), torch.tensor([1]))
    shown = torch.from_numpy(env.normalize_obs(obs.numpy()))  # type: ignore[arg-type]
    expected = model.policy.get_distribution(shown.float()).distribution.probs[0]  # type: ignore[union-attr]
    assert torch.allclose(tabular_policy(model, game)[0, 1, 3], expected.double(), atol=1e-6)
    raw = model.policy.get_distribution(obs).distribution.probs[0]  # type: ignore[union-attr]
    assert not torch.allclose(raw, expected, atol=1e-4)


def test_one_model_for_each_population() -> None:
    game = make_game("predator_prey", horizon=3)
    models = [ppo(member(game, population=p), seed=p) for p in range(3)]
    policy = tabular_policy(models, game)
    assert policy.shape == (3, 3, 25, 5)
    assert torch.equal(policy[1:2], tabular_policy(models[1], game))
    assert exploitability_of(models, game) == pytest.approx(float(exploitability(game, policy)))
    with pytest.raises(ValueError, match="has 3 populations, got 2 models"):
        tabular_policy(models[:2], game)
    with pytest.raises(ValueError, match="has 3 populations, got one model"):
        exploitability_of(models[0], game)


class Avoids(Table):
    """Sees the crowd, and the more of it is here, the more often takes the last action."""

    def __init__(self, game: MFGame) -> None:
        super().__init__(game, torch.zeros(0), population_aware=True)

    def action_probabilities(self, observations: Tensor) -> Tensor:
        game = self.game
        here = (observations[:, : game.S] * observations[:, -game.n_pop * game.S :][:, : game.S]).sum(1)
        last = torch.nn.functional.one_hot(torch.tensor(game.A - 1), game.A)
        return here.unsqueeze(1) * last + (1 - here).unsqueeze(1) / game.A


def test_models_that_see_the_crowd() -> None:
    game = crowd()
    shown = flow(game, solve(game, iterations=20).policy)
    given = tabular_policy(Avoids(game), game, mean_field=shown)
    here = shown[0, :4].float().double()
    assert torch.allclose(given[0, :, :, 2], here + (1 - here) / 3, atol=1e-6)
    own = tabular_policy(Avoids(game), game)
    again = tabular_policy(Avoids(game), game, mean_field=flow(game, own))
    assert torch.allclose(own, again, atol=1e-6)
    assert not torch.allclose(own, given, atol=1e-3)
    assert exploitability_of(Avoids(game), game) == pytest.approx(float(exploitability(game, own)))
    several = make_game("predator_prey", horizon=3)
    with pytest.raises(ValueError, match="sees the crowds of 3 populations"):
        tabular_policy(ppo(member(several, population_aware=True)), several)


def test_what_tables_refuse() -> None:
    game = crowd()
    with pytest.raises(ValueError, match=r"reads observations of shape \(11,\), those of .* have 13 numbers, or 21"):
        tabular_policy(ppo(member(crowd())), crowd(size=8))
    with pytest.raises(ValueError, match="has 3 actions"):
        tabular_policy(ppo(gym.make("CartPole-v1")), game)
    with pytest.raises(TypeError, match="a str is no model"):
        tabular_policy("PPO", game)
    with pytest.raises(ValueError, match=r"gave probabilities .* not all at least 0"):
        tabular_policy(Table(game, -torch.ones(4, 6, 3)), game)
    diverged = DQN("MlpPolicy", member(game), device="cpu")
    for weights in diverged.q_net.parameters():
        weights.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="DQN gave action values that are NaN: its learning diverged"):
        tabular_policy(diverged, game)
    games = make_game("crowd_modelling", crowd_aversion_coef=torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"crowd_modelling is a batch of \(2,\) games: take one of them"):
        exploitability_of(ppo(member(game)), games)


# ---- callbacks -------------------------------------------------------------------------------------------------------


def test_nash_conv_is_logged_while_an_agent_learns() -> None:
    game = crowd()
    model, rows = ppo(member(game)), Rows()
    model.set_logger(Logger(None, [rows]))
    callback = NashConvCallback(game, every=20)
    model.learn(48, callback=callback, log_interval=1)
    assert [steps for steps, _ in callback.history] == [20, 40, 48]
    assert callback.history[-1][1] == pytest.approx(exploitability_of(model, game))
    assert rows.seen["mean_field/nash_conv"][0] == callback.history[0][1]


def test_nash_conv_of_one_population_among_others() -> None:
    game = make_game("predator_prey", horizon=3)
    others = solve(game, iterations=3).policy
    callback = NashConvCallback(game, every=16, population=1, policy=others)
    model = ppo(member(game, population=1))
    model.learn(16, callback=callback)
    expected = others.clone()
    expected[1] = tabular_policy(model, game)[0]
    assert callback.history[-1][1] == pytest.approx(float(exploitability(game, expected)))


def flows_of(env: Any) -> list[Tensor]:
    return [torch.as_tensor(mu) for mu in env.get_attr("mean_field")]


@pytest.mark.parametrize("kind", ["single", "batch", pytest.param("processes", marks=pytest.mark.slow)])
def test_the_crowd_follows_the_learner(kind: str) -> None:
    game = crowd()
    env: Any = DummyVecEnv([lambda: member(game)])
    if kind == "batch":
        env = BatchedVecEnv(MeanFieldAgentBatch(2, game))
    if kind == "processes":
        env = SubprocVecEnv([lambda: Monitor(MeanFieldAgentEnv("crowd_modelling", size=6, horizon=4))] * 2)
    callback = CrowdFollowsLearner(game, every=16, weight=1.0)
    model = ppo(env)
    model.learn(64, callback=callback)
    assert callback.updates == 4
    assert all(torch.equal(mu, callback.flow) for mu in flows_of(env))
    assert torch.allclose(callback.flow, flow(game, callback.policy), atol=1e-12)
    assert not torch.allclose(callback.policy, game.uniform_policy(), atol=1e-5)
    env.close()


def test_the_crowd_averages_what_the_learner_did() -> None:
    game = crowd()
    callback = CrowdFollowsLearner(game, every=16)
    policies: list[Tensor] = []
    learners = callback.learners
    callback.learners = lambda *given: policies.append(learners(*given)) or policies[-1]  # type: ignore[method-assign,func-returns-value]
    model, rows = ppo(member(game)), Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(48, callback=callback, log_interval=1)
    average = sum((flow(game, policy) for policy in [game.uniform_policy(), *policies]), torch.zeros(1)) / 4
    assert len(policies) == 3
    assert torch.allclose(callback.flow, average, atol=1e-12)
    assert rows.seen["mean_field/crowd_nash_conv"][-1] <= 10
    assert len(rows.seen["mean_field/flow_change"]) >= 2
    assert rows.seen["mean_field/flow_change"][-1] > 0


def test_other_agents_follow_the_learner() -> None:
    game = crowd()
    env = NAgentEnv(game, 5)
    callback = CrowdFollowsLearner(game, every=16, weight=0.5)
    ppo(Monitor(env)).learn(16, callback=callback)
    assert torch.equal(env.policy, callback.policy)
    assert not torch.equal(env.policy, game.uniform_policy())


def test_an_average_of_policies_goes_with_the_average_of_crowds() -> None:
    game = crowd()
    first, second = solve(game, iterations=4).policy, best_response(game, flow(game, game.uniform_policy())).policy
    mixed = averaged(game, first, second, 0.3)
    assert torch.allclose(flow(game, mixed), 0.7 * flow(game, first) + 0.3 * flow(game, second), atol=1e-12)
    rooms = make_game("four_rooms", horizon=2)
    assert torch.equal(averaged(rooms, rooms.uniform_policy(), rooms.uniform_policy(), 0.5), rooms.uniform_policy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_averages_are_policies_where_hardly_anybody_is(dtype: torch.dtype) -> None:
    game = make_game("four_rooms", noise_intensity=1e-9, dtype=dtype)
    policy = game.uniform_policy()
    for k in range(1, 4):
        policy = averaged(game, policy, best_response(game, flow(game, policy), tie="first").policy, 1 / (k + 1))
        game.check_policy(policy)
    game.check_policy(solve(game, "fictitious_play", 4).policy)


def test_a_learner_that_is_followed_gets_closer_to_equilibrium() -> None:
    game = make_game("left_right")
    batch = MeanFieldAgentBatch(64, game)
    start = game.uniform_policy()
    start[..., 0], start[..., 1] = 0.05, 0.95
    callback = CrowdFollowsLearner(game, every=512, policy=start)
    options = {"n_steps": 8, "batch_size": 512, "n_epochs": 8, "learning_rate": 0.02, "gamma": 1.0}
    ppo(BatchedVecEnv(batch), **options).learn(512 * 16, callback=callback)
    assert float(exploitability(game, start)) > 1
    assert float(exploitability(game, callback.policy)) < 0.2
    assert abs(float(callback.policy[0, 0, 0, 0]) - 2 / 3) < 0.15


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every must be at least 1 step, got 0"),
        ({"population": 1}, "population is 1"),
        ({"weight": 0.0}, r"weight must lie in \(0, 1\], got 0"),
        ({"policy": torch.zeros(1, 4, 6, 3)}, "must hold distributions"),
    ],
)
def test_what_callbacks_refuse(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CrowdFollowsLearner(crowd(), **options)


def test_an_environment_without_a_crowd_is_refused() -> None:
    with pytest.raises(ValueError, match="the environment has no crowd"):
        ppo(gym.make("CartPole-v1")).learn(16, callback=CrowdFollowsLearner(crowd()))


def test_rows_sum_to_one_even_of_tiny_probabilities() -> None:
    game = crowd()
    tiny = torch.full((4, 6, 3), 1e-300, dtype=torch.float64)
    policy = tabular_policy(Table(game, tiny), game)
    assert np.allclose(policy.sum(-1), 1)
