"""Crowds as environments: the game on a graph, a whole crowd, one member of it, and as many members as one likes."""

import itertools
from dataclasses import replace
from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from headway.agents import SAC as HeadwaySAC
from headway.envs import BatchedEnv
from headway.envs.mean_field import (
    MFGame,
    Solution,
    best_response,
    exploitability,
    flow,
    make_game,
    policy_value,
    solve,
)
from headway.envs.mean_field.graph import (
    REWARDS,
    GraphReward,
    LinearCongestion,
    Network,
    RowEntropy,
    build_graph_game,
    graph_game,
    make_reward,
    rows_from_logits,
    total_reward,
    trajectory,
)
from headway.envs.mean_field.member import MeanFieldAgentBatch, MeanFieldAgentEnv, encode
from headway.envs.mean_field.n_agents import NAgentEnv, deviation_gain
from headway.envs.mean_field.population import MeanFieldPopulationBatch, MeanFieldPopulationEnv
from headway.wrappers import BatchedVecEnv, as_batched, capture, restore
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor, nn

U = [[0.0, 1.0, -0.5], [0.3, 0.0, 0.8], [-0.2, 0.4, 0.0]]
PI0 = (0.6, 0.3, 0.1)
COMMON: dict[str, Any] = {"u": U, "tau": 0.5}
A: dict[str, Any] = {"reward": "entropy", **COMMON}
B: dict[str, Any] = {"reward": "entropy + log_congestion", "a": 1.0, **COMMON}
C: dict[str, Any] = {"reward": "entropy + linear_congestion", "c": 2.0, **COMMON}
INSTANCES = {"A": A, "B": B, "C": C}


def doubles(numbers: Any) -> Tensor:
    return torch.as_tensor(numbers, dtype=torch.float64)


def instance(parameters: dict[str, Any]) -> MFGame:
    return graph_game(pi0=PI0, horizon=4, **parameters)


@cache
def solved(name: str) -> Solution:
    return solve(instance(INSTANCES[name]), "fixed_point", 1500, damping=0.98, evaluate_every=1500)


def some_moves(*sizes: int, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(*sizes, d, dtype=torch.float64, generator=generator).softmax(-1),
        torch.randn(*sizes, d, d, dtype=torch.float64, generator=generator).softmax(-1),
    )


# ---- the game on a graph ---------------------------------------------------------------------------------------------


def test_instance_a_has_its_closed_form() -> None:
    solution = solved("A")
    K, phi = (doubles(U) / 0.5).exp(), [torch.ones(3, dtype=torch.float64)]
    for _ in range(4):
        phi.insert(0, K @ phi[0])
    P = torch.stack([K * phi[n + 1] / phi[n].unsqueeze(1) for n in range(4)])
    assert (solution.policy[0] - P).abs().max() < 1e-12
    values = best_response(instance(A), solution.flow).values[0]
    assert (values - 0.5 * torch.stack(phi).log()).abs().max() < 1e-12
    expected = doubles([3.9461776222, 3.7625555205, 3.5023308823])
    assert (values[0] - expected).abs().max() < 1e-10
    assert abs(float(values[0] @ doubles(PI0)) - 3.8467063177) < 1e-10
    first = [[0.1477667556, 0.8291205974, 0.0231126470], [0.3887277620, 0.1620021847, 0.4492700532]]
    assert (P[0] - doubles([*first, [0.2406463755, 0.6067149630, 0.1526386614]])).abs().max() < 1e-10
    assert (solution.flow[0, 4] - doubles([0.1916993848, 0.3978770243, 0.4104235909])).abs().max() < 1e-10


def test_instance_b() -> None:
    solution = solved("B")
    values = best_response(instance(B), solution.flow).values[0, 0]
    assert (values - doubles([7.5147500314, 8.3707736892, 9.0023267213])).abs().max() < 1e-10
    expected = [
        [0.2900593370, 0.4652844637, 0.2446561993],
        [0.3005850674, 0.4044117085, 0.2950032241],
        [0.3039493130, 0.4096506376, 0.2864000493],
        [0.1799896781, 0.4727662491, 0.3472440728],
    ]
    assert (solution.flow[0, 1:] - doubles(expected)).abs().max() < 1e-10
    assert solution.exploitability.abs() < 1e-8


def test_instance_c() -> None:
    solution = solved("C")
    expected = doubles([[0.2882171632, 0.4858657882, 0.2259170486], [0.1812480968, 0.4646050090, 0.3541468942]])
    assert (solution.flow[0, [1, 4]] - expected).abs().max() < 1e-10
    welfare = total_reward(make_reward(**{"name": C["reward"], "c": 2.0, **COMMON}), doubles(PI0), solution.policy[0])
    assert abs(float(welfare) - 0.7707454287) < 1e-10
    assert abs(float(policy_value(instance(C), solution.policy)) - 0.7707454287) < 1e-10
    assert solution.exploitability.abs() < 1e-8


def optimum(parameters: dict[str, Any], objective: Any) -> tuple[Tensor, GraphReward]:
    """Follow the gradient through the crowd's trajectory; :return: the best moves (4, 3, 3), and the reward."""
    reward = make_reward(parameters["reward"], **{key: part for key, part in parameters.items() if key != "reward"})
    logits = torch.zeros(4, 3, 3, dtype=torch.float64, requires_grad=True)
    everywhere = torch.ones(3, 3, dtype=torch.bool)
    ascent = torch.optim.LBFGS(
        [logits], max_iter=100, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        ascent.zero_grad()
        value = -total_reward(reward, doubles(PI0), rows_from_logits(logits, everywhere), objective)
        value.backward()
        return value

    ascent.step(loss)  # type: ignore[no-untyped-call]
    return rows_from_logits(logits.detach(), everywhere), reward


def test_with_log_congestion_the_planner_is_at_a_nash_equilibrium() -> None:
    P, reward = optimum(B, "population")
    assert abs(float(total_reward(reward, doubles(PI0), P)) - 7.9203147977) < 1e-9
    assert (trajectory(doubles(PI0), P) - solved("B").flow[0]).abs().max() < 1e-5


def test_with_linear_congestion_only_the_potential_leads_to_the_nash_equilibrium() -> None:
    equilibrium = solved("C").flow[0]
    P, reward = optimum(C, "potential")
    assert (trajectory(doubles(PI0), P) - equilibrium).abs().max() < 1e-6
    assert abs(float(total_reward(reward, doubles(PI0), P)) - 0.7707454287) < 1e-6
    P, reward = optimum(C, "population")
    planned = trajectory(doubles(PI0), P)
    assert abs(float(total_reward(reward, doubles(PI0), P)) - 0.7862465033) < 1e-9
    expected = doubles([[0.3006403919, 0.4431117666, 0.2562478415], [0.1787834859, 0.4804229616, 0.3407935525]])
    assert (planned[[1, 4]] - expected).abs().max() < 1e-5
    assert abs(float((planned - equilibrium).abs().max()) - 0.0428) < 1e-3
    assert abs(float(exploitability(instance(C), P.unsqueeze(0))) - 0.0196345790) < 1e-6


def by_loops(name: str, pi: Tensor, P: Tensor) -> list[float]:
    u, d = doubles(U), range(3)
    pairs = {
        "linear": lambda i: sum(P[i, j] * u[i, j] for j in d),
        "entropy": lambda i: sum(P[i, j] * (u[i, j] - 0.5 * P[i, j].log()) for j in d),
        "quadratic": lambda i: sum(P[i, j] * u[i, j] - 1.5 * P[i, j] ** 2 for j in d),
        "log_congestion": lambda i: -0.7 * pi[i].log(),
        "linear_congestion": lambda i: -2 * pi[i],
        "twitter_hand": lambda i: sum(P[i, j] * P[i, j] * (pi[j] - pi[i]) for j in d),
    }
    return [float(pairs[name](i)) for i in d]


PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"u": U},
    "entropy": COMMON,
    "quadratic": {"b": U, "scale": 3.0},
    "log_congestion": {"a": 0.7},
    "linear_congestion": {"c": 2.0},
    "twitter_hand": {},
}


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_by_loops(name: str) -> None:
    reward = make_reward(name, **PARAMETERS[name])
    pi, P = some_moves(2, 5)
    found = reward.reward_per_state(pi, P)
    for row in itertools.product(range(2), range(5)):
        assert found[row].tolist() == pytest.approx(by_loops(name, pi[row], P[row]), abs=1e-12)
    assert torch.allclose(reward.population_reward(pi, P), (pi * found).sum(-1), atol=1e-14)
    both = reward + LinearCongestion(1.0)
    assert torch.allclose(both.reward_per_state(pi, P), found - pi, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in REWARDS if name != "twitter_hand"])
def test_the_rewards_of_states_are_the_gradient_of_the_potential(name: str) -> None:
    """Moves held fixed; up to one number for all states, which no crowd of mass 1 feels."""
    pi, P = some_moves()
    pi.requires_grad_()
    reward = make_reward(name, **PARAMETERS[name])
    (slope,) = torch.autograd.grad(reward.potential(pi, P), pi)
    difference = slope - reward.reward_per_state(pi, P)
    assert (difference - difference.mean()).abs().max() < 1e-12


def test_quadratic_rewards_without_a_goal_spread_everybody_evenly() -> None:
    game = graph_game("quadratic", PI0, 4)
    solution = solve(game, "fixed_point", 3)
    assert torch.allclose(solution.policy, torch.full_like(solution.policy, 1 / 3), atol=1e-14)
    values = best_response(game, solution.flow).values[0]
    assert torch.allclose(values, -(4 - torch.arange(5.0).double()).unsqueeze(1).expand(5, 3) / 6, atol=1e-14)


def test_a_graph_forbids_moves() -> None:
    ring = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    game = graph_game("entropy", PI0, 4, ring, **COMMON)
    assert game.legal.tolist() == [[True, True, False], [False, True, True], [True, False, True]]
    P = rows_from_logits(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), game.legal)
    assert ((P > 0) == game.legal).all()
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    reward = make_reward("entropy", **COMMON)
    total_reward(reward, doubles(PI0), rows_from_logits(logits, game.legal).unsqueeze(0)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[game.legal].abs().min() > 0


def test_a_batch_of_starts_is_a_batch_of_games() -> None:
    starts = [PI0, (0.2, 0.2, 0.6)]
    together = solve(graph_game(pi0=starts, horizon=4, **C), "fixed_point", 50, damping=0.5)
    for row, start in enumerate(starts):
        alone = solve(graph_game(pi0=start, horizon=4, **C), "fixed_point", 50, damping=0.5)
        assert (together.flow[row] - alone.flow).abs().max() < 1e-12
    built = build_graph_game(C["reward"], PI0, c=2.0, u=U, tau=0.5)
    assert torch.equal(flow(built, built.uniform_policy()), flow(instance(C), built.uniform_policy()))
    assert build_graph_game(num_states=5).mu0.tolist() == [[0.2] * 5]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_reward("entrpy"), "did you mean entropy"),
        (lambda: make_reward("entropy + quadratics"), "did you mean quadratic"),
        (lambda: make_reward("entropy", taus=1), "has no parameter 'taus': did you mean tau"),
        (lambda: make_reward("entropy", tau=0.0), r"tau must be a finite number above 0, got 0"),
        (lambda: make_reward("log_congestion", a=float("nan")), "a must be a finite number, got nan"),
        (lambda: make_reward("linear"), "needs u"),
        (lambda: make_reward("linear", u=[[1.0, 2.0]]), r"must be \(d, d\) finite numbers, got \(1, 2\)"),
        (lambda: make_reward("twitter_hand").potential(*some_moves()), "has no potential: take objective='population'"),
        (lambda: Network(lambda pi, P: pi).potential(*some_moves()), "nothing is known of a potential"),
        (lambda: Network(lambda pi, P: P).reward_per_state(*some_moves()), r"it returned \(3, 3\)"),
        (lambda: graph_game("twitter_hand", PI0, 4), "TwitterHand is no reward of"),
        (lambda: graph_game("entropy + quadratic", PI0, 4), "one term that spreads rows, got Entropy"),
        (lambda: graph_game("entropy", (0.5, 0.5), 4, u=U), r"are \(3, 3\), the crowd has 2 states"),
        (lambda: graph_game(RowEntropy(1.0), PI0, 4, tau=1.0), "tau: parameters belong to rewards given by name"),
        (lambda: graph_game("entropy", PI0, 4, [[1]]), r"graph must be \(d, d\) = \(3, 3\), got \(1, 1\)"),
        (lambda: make_reward("linear", u=U).total("potentials", *some_moves()), "'population' or 'potential'"),  # type: ignore[arg-type]
    ],
)
def test_what_graphs_refuse(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# ---- a whole crowd ---------------------------------------------------------------------------------------------------

POPULATION = "headway/MeanFieldPopulation-v0"


def logits_of(P: Tensor) -> Any:
    return P.log().flatten().numpy()


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_crowd_of_instance_a_earns_its_value(shift: float) -> None:
    env = gym.make(POPULATION, pi0=PI0, horizon=4, **A)
    solution = solved("A")
    obs, _ = env.reset(seed=0)
    assert obs.tolist() == [*PI0, 0.0]
    total, constants = 0.0, np.repeat([0.0, shift, -shift], 3)
    for n in range(4):
        obs, reward, terminated, truncated, info = env.step(logits_of(solution.policy[0, n]) + constants)
        total += float(reward)
        assert info["P"] == pytest.approx(solution.policy[0, n].numpy(), abs=1e-12)
        assert info["pi_next"] == pytest.approx(solution.flow[0, n + 1].numpy(), abs=1e-12)
        assert reward == pytest.approx(float(info["reward_per_state"] @ solution.flow[0, n].numpy()), abs=1e-12)
        assert obs[:3] == pytest.approx(info["pi_next"])
        assert (obs[3], terminated, truncated) == ((n + 1) / 4, n == 3, False)
    assert abs(total - 3.8467063177) < 1e-9


def test_objectives_differ_by_what_crowds_do_to_each_other() -> None:
    rewards = {}
    for objective in ("population", "potential"):
        env = gym.make(POPULATION, pi0=PI0, horizon=4, objective=objective, **C)
        env.reset()
        rewards[objective] = float(env.step(np.zeros(9, np.float32))[1])
    crowding = sum(mass * mass for mass in PI0)
    assert rewards["potential"] - rewards["population"] == pytest.approx(2.0 / 2 * crowding, abs=1e-12)


# the paper's logits reach further than the [-1, 1] that both checkers recommend
@pytest.mark.filterwarnings("ignore:.*[Ww]e recommend (you to use|using) a symmetric and normalized:UserWarning")
def test_population_checkers() -> None:
    env = gym.make(POPULATION, num_states=4, horizon=5)
    assert isinstance(env.unwrapped, MeanFieldPopulationEnv)
    check_env(env.unwrapped)
    sb3_check_env(env)
    assert env.observation_space == gym.spaces.Box(0.0, 1.0, (5,), np.float64)
    assert env.action_space == gym.spaces.Box(-10.0, 10.0, (16,), np.float32)
    assert gym.make(POPULATION).action_space.shape == (225,)


def test_a_population_is_made_again_from_its_spec() -> None:
    env = gym.make(POPULATION, pi0=PI0, horizon=4, graph=[[0, 1, 0], [0, 0, 1], [1, 0, 0]], **C)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for each in (env, again):
        each.reset(seed=0)
    action = np.linspace(-1, 1, 9, dtype=np.float32)
    assert env.step(action)[1] == again.step(action)[1]


STARTS = {"dirichlet": "dirichlet", "data": [[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]], "fixed": PI0}


@pytest.mark.parametrize("start", STARTS)
def test_rows_of_a_population_are_single_ones(start: str) -> None:
    options = {"horizon": 3, "pi0": STARTS[start], "num_states": 3, **B}
    rows: Any = gym.make_vec(POPULATION, 4, **options)
    single = SyncVectorEnv([partial(gym.make, POPULATION, **options)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    assert rows.observation_space == single.observation_space
    first = rows.reset(seed=7)[0]
    assert (first == single.reset(seed=7)[0]).all()
    assert (len(np.unique(first, axis=0)) == 1) == (start == "fixed")
    rng = np.random.default_rng(0)
    for _ in range(8):
        actions = rng.uniform(-2, 2, (4, 9)).astype(np.float32)
        found, expected = rows.step(actions), single.step(actions)
        assert found[0] == pytest.approx(expected[0], abs=1e-14)
        assert found[1] == pytest.approx(expected[1], abs=1e-13)
        assert (found[2] == expected[2]).all()
        assert found[4].keys() == expected[4].keys()
        if found[2].any():
            assert found[4]["final_info"]["P"] == pytest.approx(expected[4]["final_info"]["P"], abs=1e-14)
            assert np.stack(found[4]["final_obs"]) == pytest.approx(np.stack(expected[4]["final_obs"]), abs=1e-14)


def test_a_population_goes_on_from_its_state() -> None:
    batch = MeanFieldPopulationBatch(3, num_states=3, horizon=3)
    batch.reset(seed=1)
    actions = torch.linspace(-1, 1, 27).view(3, 9)
    batch.step(actions)
    saved = batch.state()
    futures = []
    for _ in range(2):
        futures.append([batch.step(actions)[0] for _ in range(5)])
        batch.load_state(saved)
    assert all(torch.equal(a, b) for a, b in zip(*futures, strict=True))
    assert not torch.equal(futures[0][1], futures[0][4])
    with pytest.raises(ValueError, match=r"'pi' is .*, expected"):
        batch.load_state(MeanFieldPopulationBatch(3, num_states=4).state())


def test_rows_that_are_left_alone_rest_until_they_are_reset() -> None:
    batch = MeanFieldPopulationBatch(2, num_states=3, horizon=2, autoreset_mode=AutoresetMode.DISABLED)
    actions = torch.zeros(2, 9)
    with pytest.raises(ResetNeeded):
        batch.step(actions)
    batch.reset(seed=0)
    batch.step(actions)
    batch.reset(options={"reset_mask": [False, True]})
    obs, _, terminated, _, _ = batch.step(actions)
    assert terminated.tolist() == [True, False]
    again, rewards, terminated, _, info = batch.step(actions)
    assert terminated.tolist() == [True, True]
    assert torch.equal(again[0], obs[0])
    assert (float(rewards[0]), float(rewards[1])) == (0.0, pytest.approx(-1 / 6))
    assert info["episode"]["l"].tolist() == [2, 2]
    assert info["episode"]["r"].tolist() == pytest.approx([-1 / 3, -1 / 3])


def test_a_learned_reward() -> None:
    class Learned(nn.Module):
        def forward(self, pi: Tensor, P: Tensor) -> Tensor:
            return pi[..., :1] * P[..., 0, 0].unsqueeze(-1)

    env = MeanFieldPopulationEnv(reward=Learned(), pi0=PI0, horizon=2)
    env.reset(seed=0)
    reward, info = env.step(np.zeros(9))[1::3]
    assert reward == pytest.approx(0.2)
    assert info["reward_per_state"] == pytest.approx([0.2] * 3)


def nan_reward(pi: Tensor, P: Tensor) -> Tensor:
    return pi.log() * 0 if (P == 1 / 3).all() else pi * torch.nan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"horizon": 2.5}, "horizon must be at least 1, got 2.5: a whole number"),
        ({"num_states": 3, "reward": "linear", "u": [[0.0, 1.0], [1.0, 0.0]]}, r"moves are \(2, 2\), the crowd has 3"),
        ({"num_states": 0}, "num_states must be at least 1, got 0"),
        ({"num_envs": 0}, "at least one row"),
        ({"objective": "nash"}, "objective is 'nash'"),
        ({"reward": "twitter_hand", "objective": "potential"}, "has no potential"),
        ({"pi0": "uniform"}, "pi0 is 'uniform'"),
        ({"pi0": (0.5, 0.6)}, "row 0 is"),
        ({"pi0": [(0.5, 0.5), (1.5, -0.5)]}, "row 1 is"),
        ({"pi0": (0.5, 0.5), "num_states": 3}, "with d = 3 states"),
        ({"concentration": 0.0}, "concentration must lie in"),
        ({"graph": [[1, 1]], "num_states": 2}, r"graph must be \(d, d\) = \(2, 2\)"),
        ({"autoreset_mode": AutoresetMode.NEXT_STEP}, "take SAME_STEP"),
        ({"taus": 3.0}, "has no parameter 'taus'"),
    ],
)
def test_what_populations_refuse(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MeanFieldPopulationBatch(**options)


def test_what_a_step_of_a_population_refuses() -> None:
    batch = MeanFieldPopulationBatch(2, num_states=3)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=r"of shape \(2, 3\), step takes a tensor of shape \(2, 9\)"):
        batch.step(torch.zeros(2, 3))
    actions = torch.zeros(2, 9)
    actions[1, 4] = torch.nan
    with pytest.raises(ValueError, match="actions must be finite logits, row 1"):
        batch.step(actions)
    blind = MeanFieldPopulationBatch(2, num_states=3, reward="log_congestion")  # does not see what they choose
    blind.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be finite logits, row 1"):
        blind.step(actions)
    with pytest.raises(ValueError, match="3 seeds for 2 rows"):
        batch.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="for 2 rows"):
        batch.reset(options={"reset_mask": [True]})
    batch = MeanFieldPopulationBatch(1, reward=nan_reward, num_states=3)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match="the reward of row 0 is nan"):
        batch.step(torch.arange(9.0).view(1, 9))


@pytest.mark.parametrize("agent", [SAC, PPO])
def test_agents_of_stable_baselines_train_on_populations(agent: Any) -> None:
    env = gym.make(POPULATION, num_states=3, horizon=4)
    small = {"learning_starts": 8} if agent is SAC else {"n_steps": 16, "batch_size": 16}
    model = agent("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **small)
    model.learn(24)
    action, _ = model.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(action)


def test_headways_agents_train_on_populations() -> None:
    batch = gym.make_vec(POPULATION, 4, device="cpu", num_states=3, horizon=4)
    assert isinstance(batch, BatchedEnv)
    before = [1 / 3] * 3
    agent = HeadwaySAC("MlpPolicy", batch, net_arch=[8], learning_starts=8, batch_size=8, seed=0, device="cpu")
    agent.learn(32)
    assert agent.num_timesteps == 32
    action, _ = agent.predict(np.array([*before, 0.0], np.float32))
    assert agent.action_space.contains(action)


# ---- one member ------------------------------------------------------------------------------------------------------

MEMBER = "headway/MeanFieldAgent-v0"


def drifting(size: int = 5, horizon: int = 4) -> MFGame:
    """Two populations on a line, one move forbidden; whoever steps right where it is crowded may be held back, the time
    matters to rewards, and the end pays."""
    states = torch.arange(size)
    legal = torch.ones(size, 3, dtype=torch.bool)
    legal[0, 0] = legal[-1, 2] = False
    ahead = (states.unsqueeze(1) + torch.tensor([-1, 0, 1])).clamp(0, size - 1)
    succ_idx = torch.stack((states.unsqueeze(1).expand(-1, 3), ahead), 2)

    def transition(t: Any, mu: Tensor) -> Tensor:
        held = (0.1 + 0.8 * mu).unsqueeze(-1).expand(*mu.shape, 3)
        return torch.stack((held, 1 - held), -1)

    return MFGame(
        name="drifting",
        S=size,
        A=3,
        H=horizon,
        mu0=torch.stack([torch.linspace(1, 2, size).double(), torch.linspace(3, 1, size).double()]).softmax(1),
        r_state=lambda t, mu: -mu.sum(-2, keepdim=True) + 0.1 * torch.as_tensor(t) * mu,
        r_action=lambda t, mu: torch.tensor([-0.5, 0.0, -0.25], dtype=torch.float64).expand(1, 1, 3),
        terminal=lambda mu: torch.arange(float(size)).double() / size - mu,
        legal=legal,
        succ_idx=succ_idx,
        transition=transition,
    )


def sines(game: MFGame) -> Tensor:
    """A policy without symmetry."""
    shape = (game.n_pop, game.H, game.S, game.A)
    logits = torch.arange(float(np.prod(shape))).double().mul(1.7).sin().view(shape)
    return logits.masked_fill(~game.legal, -torch.inf).softmax(-1)


GAMES: dict[str, Any] = {
    "two_stages": lambda: make_game("crowd_modelling"),
    "noisy_populations": lambda: make_game("predator_prey", horizon=4),
    "no_noise": lambda: instance(C),
    "drifting": drifting,
}


@pytest.mark.parametrize("name", GAMES)
def test_members_go_with_the_flow_and_earn_its_value(name: str) -> None:
    game = GAMES[name]()
    policy, count = sines(game), 10_000
    mu = flow(game, policy)
    generator = torch.Generator().manual_seed(0)
    unpaid = replace(game, regulariser=None)
    for population in range(min(game.n_pop, 2)):
        batch = MeanFieldAgentBatch(count, game, population=population, mean_field=mu, dtype=torch.float64)
        obs, info = batch.reset(seed=3 + population)
        for t in range(game.H):
            close_to(info["state"], mu[population, t])
            assert torch.equal(obs, encode(game, info["state"], info["time"]))
            assert (info["time"] == t).all()
            assert torch.equal(info["action_mask"], game.legal[info["state"]])
            probabilities = policy[population, t][info["state"]]
            actions = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
            obs, _, terminated, _, info = batch.step(actions)
            assert bool(terminated.all()) == (t == game.H - 1)
        close_to(batch.final_info["state"], mu[population, game.H])
        close_to(info["state"], mu[population, 0])  # of the next episode
        returns = info["episode"]["r"]
        error = float(returns.std()) / count**0.5
        assert abs(returns.mean() - policy_value(unpaid, policy, mu)[population]) < 4 * error + 1e-9


def close_to(states: Tensor, masses: Tensor) -> None:
    """Assert that sampled members are where they should be, within five standard errors."""
    share = torch.bincount(states, minlength=len(masses)) / len(states)
    assert ((share - masses).abs() <= 5 * (masses * (1 - masses) / len(states)).sqrt() + 1e-9).all()


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("name", GAMES)
def test_rows_of_members_are_single_ones(name: str, aware: bool) -> None:
    game = GAMES[name]()
    options: dict[str, Any] = {
        "game": game,
        "population": game.n_pop - 1,
        "population_aware": aware,
        "illegal": "random",
        "mean_field": flow(game, sines(game)),
    }
    rows = gym.make_vec(MEMBER, 5, **options)
    single = SyncVectorEnv([partial(MeanFieldAgentEnv, **options)] * 5, autoreset_mode=AutoresetMode.SAME_STEP)
    assert rows.single_observation_space == single.single_observation_space
    found: Any = rows.reset(seed=11)
    expected: Any = single.reset(seed=11)
    rng = np.random.default_rng(0)
    for _ in range(2 * game.H + 3):
        assert (found[0] == expected[0]).all()
        told = [found[-1], expected[-1]]
        if "final_info" in told[0]:
            assert (np.stack(told[0]["final_obs"]) == np.stack(told[1]["final_obs"])).all()
            told += [info["final_info"] for info in told]
        for ours, theirs in (told[:2], told[2:] or told[:2]):
            assert ours.keys() == theirs.keys()
            assert all((ours[key] == theirs[key]).all() for key in ("state", "time", "action_mask"))
        actions = rng.integers(game.A, size=5)
        found, expected = rows.step(actions), single.step(actions)
        assert found[1] == pytest.approx(expected[1], abs=1e-12)
        assert (found[2] == expected[2]).all()


def test_observations_of_a_grid() -> None:
    game = make_game("four_rooms", horizon=3)
    mu = flow(game, game.uniform_policy())
    state, time = torch.tensor([1 + 13 * 4, 7]), torch.tensor([2, 3])
    obs = encode(game, state, time)
    assert obs.shape == (2, 13 + 13 + 4)
    assert obs.nonzero()[:, 1].view(2, 3).tolist() == [[1, 13 + 4, 26 + 2], [7, 13, 26 + 3]]
    seen = encode(game, state, time, mu)
    assert torch.equal(seen[:, :30], obs)
    assert torch.equal(seen[:, 30:], mu[0, time].float())
    with pytest.raises(ValueError, match="states of four_rooms are 0 to 168, got 7 to 169"):
        encode(game, torch.tensor([7, 169]), time)
    with pytest.raises(ValueError, match="times of four_rooms are 0 to 3, got -1 to 2"):
        encode(game, state, torch.tensor([2, -1]))
    single = encode(make_game("crowd_modelling"), torch.tensor([3]), torch.tensor([10]))
    assert single.nonzero()[:, 1].tolist() == [3, 20]


@pytest.mark.parametrize("env_id", [MEMBER, "headway/NAgentMFG-v0"])
def test_member_checkers(env_id: str) -> None:
    for options in ({}, {"game": "four_rooms", "horizon": 5, "illegal": "random", "population_aware": True}):
        env = gym.make(env_id, **options)
        check_env(env.unwrapped)
        sb3_check_env(env)
        assert env.spec is not None
        again = gym.make(EnvSpec.from_json(env.spec.to_json()))
        assert (env.reset(seed=5)[0] == again.reset(seed=5)[0]).all()
        assert [env.step(1)[1] for _ in range(3)] == [again.step(1)[1] for _ in range(3)]


def test_illegal_actions_of_members() -> None:
    game = make_game("four_rooms", horizon=2)
    env: Any = MeanFieldAgentEnv(game)
    _, info = env.reset(seed=0)
    legal = np.flatnonzero(info["action_mask"]).tolist()
    wrong = next(action for action in range(5) if action not in legal)
    with pytest.raises(ValueError, match=rf"action {wrong} is not legal in state {info['state']}; legal are \{legal}"):
        env.step(wrong)
    with pytest.raises(ValueError, match="action 5 is not legal"):
        env.step(5)
    assert env.step(legal[0])[4]["time"] == 1  # the refused ones took no time
    env.step(2)  # standing still is always legal
    with pytest.raises(ResetNeeded):
        env.step(0)
    batch = MeanFieldAgentBatch(2, game)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=rf"in row 1, action {wrong} is not legal"):
        batch.step(torch.tensor([legal[0], wrong]))
    with pytest.raises(ValueError, match="actions of four_rooms are 0 to 4, got 0 to 5"):
        batch.step(torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"integers; got torch\.float32"):
        batch.step(torch.zeros(2))
    many = MeanFieldAgentBatch(3000, replace(game, noise_idx=None, noise_p=None), illegal="random")
    many.reset(seed=0)
    *_, info = many.step(torch.full((3000,), wrong))
    assert game.post is not None
    counts = torch.bincount(info["state"], minlength=169)[game.post[14, legal]]
    assert (counts - 1000).abs().max() < 5 * 26  # 3 legal ones, 5 standard errors
    assert counts.sum() == 3000


def test_a_flow_set_from_outside_is_what_members_meet() -> None:
    game = make_game("left_right")
    env: Any = gym.make(MEMBER, game="left_right", mean_field=None).unwrapped
    env.reset(seed=0)
    assert env.step(0)[1] == pytest.approx(-0.5)
    mu = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.2, 0.8]]], dtype=torch.float64)
    env.set_mean_field(mu)
    env.reset()
    assert env.step(0)[1] == pytest.approx(-0.2)
    env.reset()
    assert env.step(1)[1] == pytest.approx(-1.6)
    batch = MeanFieldAgentBatch(3, game, population_aware=True)
    batch.set_mean_field(mu.numpy())
    obs, _ = batch.reset(seed=0)
    assert obs[0, -3:].tolist() == [1.0, 0.0, 0.0]
    final = batch.step(torch.tensor([0, 1, 0]))[4]["final_obs"]
    assert final[:, -3:].tolist() == [pytest.approx([0.0, 0.2, 0.8])] * 3
    saved = batch.state()
    other = MeanFieldAgentBatch(3, game, population_aware=True)
    other.load_state(saved)
    assert torch.equal(other.mean_field, mu)
    assert torch.equal(other.step(torch.tensor([0, 1, 0]))[1], torch.tensor([-0.2, -1.6, -0.2]))
    for wrong, words in (
        (mu[:, :1], "a flow of left_right is"),
        (mu * 0.9, "must hold distributions"),
        (mu[None], "one flow"),
    ):
        with pytest.raises(ValueError, match=words):
            batch.set_mean_field(wrong)


def test_what_was_set_stays_whatever_its_owner_does_to_it() -> None:
    game = drifting()
    mu = flow(game, game.uniform_policy())
    member, others = MeanFieldAgentEnv(game, mean_field=mu), NAgentEnv(game, n_agents=3)
    policy = game.uniform_policy()
    others.set_policy(policy)
    mu[:], policy[:] = 7, 0
    assert torch.equal(member.tables.mu, flow(game, game.uniform_policy()))
    assert torch.equal(others.policy, game.uniform_policy())


def test_members_go_on_from_their_state() -> None:
    batch = MeanFieldAgentBatch(4, "crowd_modelling", size=6)
    batch.reset(seed=1)
    batch.reset(options={"reset_mask": [True, False, False, True]})
    batch.step(torch.zeros(4, dtype=torch.int64))
    saved, actions = batch.state(), torch.tensor([0, 1, 2, 1])
    futures = []
    for _ in range(2):
        futures.append([batch.step(actions)[0] for _ in range(25)])
        batch.load_state(saved)
    assert all(torch.equal(a, b) for a, b in zip(*futures, strict=True))


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        (MEMBER, {"horizon": 6}),
        (POPULATION, {"num_states": 3, "horizon": 6}),
        ("headway/NAgentMFG-v0", {"n_agents": 6, "horizon": 6}),
    ],
)
def test_single_environments_go_on_from_their_state(env_id: str, options: dict[str, Any]) -> None:
    env: Any = gym.make(env_id, **options)
    env.reset(seed=1)
    action: Any = np.linspace(-1, 1, 9, dtype=np.float32) if env_id == POPULATION else 2
    env.step(action)
    saved = capture(env)
    ways = []
    for _ in range(2):
        ways.append([env.step(action)[0].tolist() for _ in range(5)])
        ways[-1] += [env.reset()[0].tolist(), env.step(action)[0].tolist()]
        restore(env, saved)
    assert ways[0] == ways[1]
    assert ways[0][0] != ways[0][-1]


@pytest.mark.parametrize("kind", [MeanFieldAgentBatch, MeanFieldAgentEnv, NAgentEnv])
def test_what_members_refuse(kind: Any) -> None:
    make = partial(kind, 2) if kind is MeanFieldAgentBatch else kind
    batch_of_games = graph_game(pi0=[PI0, PI0], horizon=2, **A)
    for options, words in (
        ({"game": "crowd_modeling"}, "did you mean crowd_modelling"),
        ({"game": "crowd_modelling", "sise": 4}, "did you mean size"),
        ({"game": drifting(), "size": 4}, "size: parameters are for a game given by name"),
        ({"game": drifting(), "population": 2}, "population is 2: drifting has 2"),
        ({"game": batch_of_games}, r"is a batch of \(2,\) games"),
        ({"game": drifting(), "illegal": "ignore"}, "illegal is 'ignore'"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**options)


def test_members_for_stable_baselines() -> None:
    batch = gym.make_vec(MEMBER, 8, device="cpu", game="crowd_modelling")
    assert isinstance(batch, MeanFieldAgentBatch)
    assert as_batched(gym.make_vec(MEMBER, 8)).num_envs == 8
    model = PPO(
        "MlpPolicy", BatchedVecEnv(batch), n_steps=8, batch_size=32, policy_kwargs={"net_arch": [8]}, device="cpu"
    )
    model.learn(64)
    assert model.num_timesteps == 64


# ---- as many members as one likes ------------------------------------------------------------------------------------


def test_the_learner_is_one_of_the_crowd() -> None:
    env = NAgentEnv("left_right", 4, population_aware=True)
    left = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    left[..., 0] = 1.0
    env.set_policy(left)
    obs, info = env.reset(seed=0)
    assert info["mean_field"].tolist() == [[1.0, 0.0, 0.0]]
    assert obs.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    obs, reward, terminated, _, info = env.step(1)
    assert (reward, terminated) == (-0.5, True)  # twice the quarter of them that went right
    assert info["mean_field"].tolist() == [[0.0, 0.75, 0.25]]
    assert obs[-3:].tolist() == [0.0, 0.75, 0.25]
    env.reset()
    assert env.step(0)[1] == -1.0
    with pytest.raises(ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("name", ["noisy_populations", "drifting"])
def test_many_agents_make_the_mean_field(name: str) -> None:
    game = GAMES[name]()
    policy = sines(game)
    mu = flow(game, policy)
    env = NAgentEnv(game, 20_000, population=1, policy=policy, illegal="random")
    _, info = env.reset(seed=0)
    for t in range(game.H):
        crowd, state = torch.as_tensor(info["mean_field"]), info["state"]
        assert (crowd - mu[:, t]).abs().max() < 0.02
        _, reward, _, _, info = env.step(1)
        expected = game.r_state(t, crowd).expand(game.n_pop, game.S)[1, state]
        if t == game.H - 1 and game.terminal is not None:
            expected = expected + game.terminal(torch.as_tensor(info["mean_field"]))[1, info["state"]]
        assert reward == pytest.approx(float(expected), abs=1e-9)  # action 1 costs nothing in either game
    assert (torch.as_tensor(info["mean_field"]) - mu[:, game.H]).abs().max() < 0.02


@pytest.mark.parametrize("agents", [1, 2, 10, 200])
def test_the_gain_of_a_deviation_is_exact_up_to_its_error(agents: int) -> None:
    """Left or right, all others by a coin: going left for sure saves half of mean (1 + (N - 1) / 2) / N."""
    game = make_game("left_right")
    found = deviation_gain(game, game.uniform_policy(), agents, 4000, seed=1)
    gain, error = found.total
    assert abs(gain - (agents + 1) / (4 * agents)) < 4 * error
    assert error < 0.02
    assert found.gain.shape == found.standard_error.shape == (1,)


def test_gains_approach_exploitability_and_vanish_at_equilibrium() -> None:
    game = make_game("left_right")
    assert float(exploitability(game, game.uniform_policy())) == pytest.approx(0.25)
    equilibrium = game.uniform_policy()
    equilibrium[0, 0, 0] = doubles([2 / 3, 1 / 3])
    gain, error = deviation_gain(game, equilibrium, 300, 4000, seed=0).total
    assert abs(gain) < 0.01 + 4 * error
    crowd = make_game("crowd_modelling", horizon=4)
    policy = sines(crowd)
    gain, error = deviation_gain(crowd, policy, 300, 1500, seed=0).total
    assert abs(gain - float(exploitability(crowd, policy))) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("name", ["drifting", "no_noise"])
def test_gains_in_games_of_every_kind(name: str) -> None:
    """Two populations whose moves depend on the crowd; a bonus that belongs to the policy."""
    game = GAMES[name]()
    policy = sines(game)
    found = deviation_gain(game, policy, 200, 500, seed=0, at_once=50_000)
    gain, error = found.total
    assert abs(gain - float(exploitability(game, policy))) < 4 * error + 0.01
    again = deviation_gain(game, policy, 200, 500, seed=0, at_once=50_000)
    assert torch.equal(found.gain, again.gain)


def test_what_many_agents_refuse() -> None:
    game = make_game("left_right")
    with pytest.raises(ValueError, match=r"n_agents\) are \(1, 1, 4\), here \(1, 1, 3\)"):
        NAgentEnv(game, 3).load_state(NAgentEnv(game, 4).state())
    with pytest.raises(ValueError, match="n_agents must be at least 1, got 0"):
        NAgentEnv(game, 0)
    with pytest.raises(ValueError, match="episodes must be at least 2"):
        deviation_gain(game, game.uniform_policy(), 3, 1)
    with pytest.raises(ValueError, match="one policy"):
        deviation_gain(game, game.uniform_policy().unsqueeze(0), 3, 10)
    with pytest.raises(ValueError, match="at population 0, time 0, state 0 it sums to"):
        NAgentEnv(game, 3, policy=2 * game.uniform_policy())
    env = NAgentEnv("four_rooms", 3, horizon=2)
    _, info = env.reset(seed=0)
    with pytest.raises(ValueError, match="is not legal in state"):
        env.step(int(np.flatnonzero(~info["action_mask"])[0]))
