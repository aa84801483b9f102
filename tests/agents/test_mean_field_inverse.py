"""Rewards of crowds: planted ones are found, real crowds are predicted, and the pieces are what they say."""

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from headway.agents.mean_field.inverse import MCEConfig, cycle_invariant, fit, gauge_error, recovery
from headway.agents.mean_field.inverse.crowd_models import CrowdModel, jsd, moved, score
from headway.agents.mean_field.inverse.fitting import reward_cycles
from headway.agents.mean_field.inverse.forecasts import RNN, VAR, MeanCrowd, Persistence, PooledMoves, select_order
from headway.agents.mean_field.inverse.gcl import (
    GCLConfig,
    Samples,
    clipped,
    effective_samples,
    follow,
    log_weights,
    policy_head,
    reward_loss,
    solve_policy,
)
from headway.agents.mean_field.inverse.matrix_policies import (
    DirichletNet,
    DirichletScalar,
    PolicyHead,
    SoftmaxGaussian,
    dirichlet_log_prob,
    dirichlet_score,
)
from headway.agents.mean_field.inverse.mce import Equilibrium, Members, externality, soft_policy
from headway.agents.mean_field.inverse.rewards import LinearReward, MembersReward, PaperNetwork, PopulationReward
from headway.envs.mean_field import Entropy, MFGame, exploitability, flow, solve
from headway.envs.mean_field.cohorts import Trajectories, load_cohorts, observe, synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tqdm import tqdm

U = torch.tensor([[0, 1, -0.5], [0.3, 0, 0.8], [-0.2, 0.4, 0]], dtype=torch.float64)
TAU = 0.5
START = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
needs_sequenzo = pytest.mark.skipif(
    importlib.util.find_spec("sequenzo") is None,
    reason="the data files of sequenzo are not here (pip install --no-deps sequenzo)",
)


def instance(a: float = 0.0, c: float = 0.0, N: int = 4, mu0: Tensor = START) -> MFGame:
    """Three states, u_ij - a log pi_i - c pi_i: A without a and c, B with a = 1, C with c = 2."""
    return MFGame(
        name="instance",
        S=3,
        A=3,
        H=N,
        mu0=mu0,
        r_state=lambda t, mu: -a * mu.log() - c * mu,
        r_action=lambda t, mu: U.expand(*mu.shape, 3),
        post=torch.arange(3).expand(3, 3).contiguous(),
        regulariser=Entropy(TAU),
    )


def played(game: MFGame, people: int | None = None, seed: int = 0) -> Trajectories:
    """The equilibrium, watched."""
    return observe(game, solve(game, "fixed_point", 300, damping=0.9, evaluate_every=300).policy, people, seed)


def starts(n: int = 8, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(3), n)).unsqueeze(1)


def members(model: LinearReward, N: int = 4, **config: Any) -> Members:
    return Members(model, MCEConfig(tau=TAU, **config), torch.ones(3, 3, dtype=torch.bool), N)


def linear(d: int = 3, **values: Any) -> LinearReward:
    """A linear reward with numbers."""
    model = LinearReward(d, list(values))
    for name, value in values.items():
        getattr(model, name).data.copy_(torch.as_tensor(value))
    return model


# -- what a member does ------------------------------------------------------------------------------------------------


def test_soft_policy_is_the_closed_form() -> None:
    """Instance A: phi^n = K phi^(n+1), K = exp(u / tau), P_ij = K_ij phi_j^(n+1) / phi_i^n."""
    log_p = soft_policy(U.expand(4, 3, 3), torch.zeros(3, dtype=torch.float64), TAU, torch.ones(3, 3).bool())
    K, phi = (U / TAU).exp(), torch.ones(3, dtype=torch.float64)
    for n in reversed(range(4)):
        torch.testing.assert_close(log_p[n].exp(), K * phi / (K @ phi).unsqueeze(-1))
        phi = K @ phi
    expected = [
        [0.1477667556, 0.8291205974, 0.0231126470],
        [0.3887277620, 0.1620021847, 0.4492700532],
        [0.2406463755, 0.6067149630, 0.1526386614],
    ]
    torch.testing.assert_close(log_p[0].exp(), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_moves_that_do_not_exist_are_not_made() -> None:
    moves = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]]).bool()
    reward = U.clone().requires_grad_()
    log_p = soft_policy(reward.expand(3, 3, 3), torch.zeros(3, dtype=torch.float64), TAU, moves)
    assert (log_p.exp()[:, ~moves] == 0).all()
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 3, dtype=torch.float64))
    log_p[:, moves].sum().backward()
    assert reward.grad is not None
    assert reward.grad.isfinite().all()
    assert (reward.grad[~moves] == 0).all()


@pytest.mark.parametrize("game", [instance(), instance(a=1.0), instance(c=2.0)], ids="ABC")
def test_the_cycle_invariant_holds_at_every_time(game: MFGame) -> None:
    data = played(game)
    invariant = cycle_invariant(data.matrices(), TAU)
    torch.testing.assert_close(invariant, reward_cycles(U).expand_as(invariant), atol=1e-10, rtol=0)


def test_predictions_are_equilibria() -> None:
    """Instance B by its reward, against the digits that are known and the core's solver."""
    model = members(linear(u=U, log_congestion=1.0))
    with torch.no_grad():
        found, matrices = model.settle(START, 0.05, 3000)
    last = torch.tensor([0.1799896781, 0.4727662491, 0.3472440728], dtype=torch.float64)
    torch.testing.assert_close(found[0, 4], last, atol=1e-9, rtol=0)
    assert exploitability(instance(a=1.0), matrices) < 1e-12
    torch.testing.assert_close(flow(instance(a=1.0), matrices), found)


def test_a_planner_minds_what_members_do_not() -> None:
    """Instance C: the optimum of the crowd's sum is another than its equilibrium."""
    with torch.no_grad():
        reward = linear(u=U, linear_congestion=2.0)
        nash, _ = members(reward).settle(START, 0.05, 3000)
        best, matrices = members(reward, objective="planner").settle(START, 0.05, 3000)
    for found, n, wanted in [
        (nash, 1, [0.2882171632, 0.4858657882, 0.2259170486]),
        (nash, 4, [0.1812480968, 0.4646050090, 0.3541468942]),
        (best, 1, [0.3006403919, 0.4431117666, 0.2562478415]),
        (best, 4, [0.1787834859, 0.4804229616, 0.3407935525]),
    ]:
        torch.testing.assert_close(found[0, n], torch.tensor(wanted, dtype=torch.float64), atol=1e-7, rtol=0)
    earned = MembersReward(reward, TAU)(best[:, :-1], matrices).sum()
    assert abs(float(earned.detach()) - 0.7862465033) < 1e-9
    gain = float(exploitability(instance(c=2.0), matrices))
    assert abs(gain - 0.0196345790) < 1e-7


def test_externalities_are_derivatives() -> None:
    rng = np.random.default_rng(0)
    pi = torch.from_numpy(rng.dirichlet(np.ones(3), (2, 4)))
    joint = pi.unsqueeze(-1) * torch.from_numpy(rng.dirichlet(np.ones(3), (2, 4, 3)))
    reward = linear(popularity=1.5, log_congestion=0.7, linear_congestion=0.3)
    found = externality(reward, joint, pi, torch.zeros(4, 1)).detach()
    crowd, arrived = joint.sum(-1), joint.sum(-2)
    torch.testing.assert_close(found, 1.5 * (arrived - crowd) - 0.7 - 0.3 * crowd)
    assert (externality(linear(u=U), joint, pi, torch.zeros(4, 1)) == 0).all()


# -- planted rewards are found -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowds() -> Trajectories:
    """Eight crowds in instance B, with eight moves each."""
    return played(instance(a=1.0, N=8, mu0=starts()))


@pytest.mark.parametrize("flow", ["data", "model"])
def test_exact_flows_tell_the_reward(crowds: Trajectories, flow: str) -> None:
    found = fit(crowds, "u,log_congestion", tau=TAU, l2=0.0, flow=flow)
    assert found.converged
    assert gauge_error(found.parameters["u"], U).abs().max() < 1e-5
    assert abs(float(found.parameters["log_congestion"]) - 1) < 1e-4
    assert (found.predict(crowds.pi[:, 0]) - crowds.pi).abs().max() < 1e-6
    assert (found.response(crowds.pi) - crowds.matrices()).abs().max() < 1e-6
    rollout = found.rollout(crowds.pi[:, 0])
    assert exploitability(found.game(crowds.pi[:, :1]), rollout.matrices.unsqueeze(1)).max() < 1e-12


def test_sampled_people_tell_the_reward(crowds: Trajectories) -> None:
    """5000 people: u within .15. Their noisy shares attenuate a, which solving for the flow repairs."""
    assert crowds.planted is not None
    data = observe(crowds.planted.games(), crowds.planted.policy, 5000, seed=1)
    by_data = fit(data, "u,log_congestion", tau=TAU, l2=0.0)
    by_model = fit(data, "u,log_congestion", tau=TAU, l2=0.0, flow="model")
    for found in (by_data, by_model):
        assert gauge_error(found.parameters["u"], U).abs().max() < 0.15
    assert 0.4 < float(by_data.parameters["log_congestion"]) < 0.9
    assert abs(float(by_model.parameters["log_congestion"]) - 1) < 0.2
    assert by_model.log_likelihood(data) > by_model.log_likelihood(data[:1]) - 1  # a number, per move
    assert -math.log(3) < by_model.log_likelihood(data) < 0


def test_a_planner_is_half_as_averse() -> None:
    """Read as a planner's, crowds of members who mind company by c = 2 seem to mind it by 1."""
    data = played(instance(c=2.0))
    for objective, wanted in (("individual", 2.0), ("planner", 1.0)):
        found = fit(data, "u,linear_congestion", tau=TAU, l2=0.0, objective=objective)
        assert abs(float(found.parameters["linear_congestion"]) / wanted - 1) < 0.05
        assert gauge_error(found.parameters["u"], U).abs().max() < 1e-4
        assert (found.predict(data.pi[:, 0]) - data.pi).abs().max() < 1e-6
        assert found.log_likelihood(data) < 0


def test_terminal_values_are_found_up_to_potentials() -> None:
    final = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64)
    data = played(
        MFGame(
            name="ends",
            S=3,
            A=3,
            H=4,
            mu0=starts(),
            r_state=lambda t, mu: torch.zeros_like(mu),
            r_action=lambda t, mu: U.expand(*mu.shape, 3),
            terminal=lambda mu: final.expand_as(mu),
            post=torch.arange(3).expand(3, 3).contiguous(),
            regulariser=Entropy(TAU),
        )
    )
    learned = fit(data, "u", tau=TAU, l2=0.0, terminal="learned")
    assert gauge_error(learned.parameters["u"], U, shaped=True).abs().max() < 1e-5
    assert (learned.predict(data.pi[:, 0]) - data.pi).abs().max() < 1e-6
    known = fit(data, "u", tau=TAU, l2=0.0, terminal=tuple(final.tolist()))
    assert gauge_error(known.parameters["u"], U).abs().max() < 1e-5
    wrong = fit(data, "u", tau=TAU, l2=0.0)
    assert gauge_error(wrong.parameters["u"], U).abs().max() > 0.05
    assert exploitability(known.game(data.pi[:, :1]), data.matrices().unsqueeze(1)).max() < 1e-10


class Own(nn.Module):
    """u_ij - a log pi_i, as somebody might write it."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.a = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(()))

    def forward(self, pi: Tensor) -> Tensor:
        return self.u - self.a * pi.log().unsqueeze(-1)


def test_any_module_is_a_reward(crowds: Trajectories) -> None:
    found = fit(crowds, Own(), tau=TAU, l2=0.0)
    assert gauge_error(found.parameters["module.u"], U).abs().max() < 1e-5
    assert abs(float(found.parameters["module.a"]) - 1) < 1e-4


def test_perceptrons_learn_rewards(crowds: Trajectories) -> None:
    """Not found exactly, but the moves are: closer than by any reward that does not see the crowd."""
    plain = fit(crowds, "u", tau=TAU)
    deep = fit(crowds, "mlp", tau=TAU, max_iterations=150, l2=1e-7)
    errors = [float((found.response(crowds.pi) - crowds.matrices()).abs().max()) for found in (plain, deep)]
    assert errors[1] < 0.5 * errors[0]
    again = fit(crowds, "mlp", tau=TAU, max_iterations=150, l2=1e-7)
    assert all(torch.equal(part, again.parameters[name]) for name, part in deep.parameters.items())


def test_crowds_settle_where_damped_sweeps_go_round_in_circles() -> None:
    """This fit's weight of congestion is negative: all go where all are."""
    data = synthetic(3, 50, d=3, horizon=4, tau=0.5)
    found = fit(data, "stay,popularity,log_congestion", max_iterations=200)
    predicted = found.rollout(data.pi[:, 0])
    assert torch.allclose(found.response(predicted.flow), predicted.matrices, atol=1e-8)
    assert float(exploitability(found.game(data.pi[:, :1]), predicted.matrices.unsqueeze(1)).max()) < 1e-8


def test_what_predictions_refuse(crowds: Trajectories) -> None:
    found = fit(crowds, "u", tau=TAU, max_iterations=2)
    for bad, words in (
        (torch.tensor([[0.5, 0.5]]), r"starts must be \(n, d\) = \(n, 3\), got \(1, 2\)"),
        (crowds.pi[0, 0], r"got \(3,\)"),
        (3 * crowds.pi[:, 0], "starts must be distributions, row 0 is"),
    ):
        with pytest.raises(ValueError, match=words):
            found.predict(bad)
    with pytest.raises(ValueError, match=r"crowds at the times of moves must be \(n, N, d\) = "):
        found.response(crowds.pi[:, 1:])


def test_planted_topics_are_found() -> None:
    data = synthetic(days=4, people=2000, d=5, horizon=6, tau=0.3, sweeps=300, seed=1)
    errors = {}
    for flow_of in ("data", "model"):
        found = fit(data, "stay,popularity", tau=0.3, l2=0.0, flow=flow_of)
        report = recovery(found, data)
        assert set(report.parameters) == {"stay", "popularity"}
        assert abs(report.parameters["stay"][0] - 0.2) < 0.02
        assert report.exploitability is not None
        assert 0 <= report.exploitability < 1e-2
        assert 0 <= report.kl < 1e-2
        assert report.jsd_mean < 1e-3
        errors[flow_of] = abs(report.parameters["popularity"][0] - 1)
    assert errors["model"] < 0.3
    exact = synthetic(days=4, people=None, d=5, horizon=6, tau=0.3, sweeps=300, seed=1)
    report = recovery(fit(exact, "stay,popularity", tau=0.3, l2=0.0), exact)
    assert abs(report.parameters["popularity"][0] - 1) < 1e-5
    assert report.kl < 1e-12
    with pytest.raises(ValueError, match="not sampled from a known reward"):
        recovery(found, Trajectories(data.pi, data.counts))


def test_equilibria_have_the_derivatives_they_say() -> None:
    reward = linear(u=U, log_congestion=1.0, popularity=0.4)
    model, pi0 = members(reward), starts(3)[:, 0]

    def moment() -> Tensor:
        solver = Equilibrium(model, pi0, pi0.unsqueeze(1).expand(-1, 4, -1))
        found = solver.solve()
        assert solver.solved
        return (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum()

    parameters = list(reward.parameters())
    slopes = torch.autograd.grad(moment(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        for place in range(parameter.numel()):
            flat, values = parameter.data.view(-1), []
            for change in (1e-5, -2e-5):
                flat[place] += change
                values.append(float(moment().detach()))
            flat[place] += 1e-5
            assert abs((values[0] - values[1]) / 2e-5 - float(slope.view(-1)[place])) < 1e-7


def test_gauge_errors_forgive_what_no_data_can_tell() -> None:
    potential = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    shaped = U + 3 + potential - potential.unsqueeze(-1)
    assert gauge_error(U + 3, U).abs().max() < 1e-12
    assert gauge_error(shaped, U).abs().max() > 0.5
    assert gauge_error(shaped, U, shaped=True).abs().max() < 1e-12
    spoilt = U.clone()
    spoilt[0, 2] += 5
    seen = torch.ones(3, 3).bool()
    seen[0, 2] = False
    assert gauge_error(spoilt, U, seen).abs().max() < 1e-12


# -- guided cost learning ----------------------------------------------------------------------------------------------


def test_the_score_of_the_published_policy_has_mean_zero() -> None:
    """And that of the authors' code, with alpha in the place of c alpha, has not."""
    rng, c, theta = np.random.default_rng(0), 1e4, 8.64
    pi = torch.from_numpy(-np.sort(-rng.dirichlet(np.ones(15))))
    head = DirichletScalar(theta, 0.0, c)
    matrices = head.sample(pi.expand(2000, 15), rng)
    scores = head.score(pi.expand(2000, 15), matrices)
    assert abs(float(scores.mean())) < 3 * float(scores.std()) / math.sqrt(2000)
    gain = pi - pi.unsqueeze(-1)
    alpha, slopes = nn.functional.softplus(theta * gain), gain * torch.sigmoid(theta * gain)
    published = dirichlet_score(matrices, alpha.expand(2000, -1, -1), slopes)
    assert abs(float(published.mean())) > 100 * float(published.std()) / math.sqrt(2000)


def test_the_score_is_the_derivative_of_the_density() -> None:
    rng = np.random.default_rng(1)
    pi = torch.from_numpy(rng.dirichlet(np.ones(4), 6))
    head = DirichletScalar(2.0, 0.1, 30.0)
    matrices = head.sample(pi, rng)
    by_row = torch.stack(
        [torch.autograd.grad(p, head.theta, retain_graph=True)[0] for p in head.log_prob(pi, matrices)]
    )
    torch.testing.assert_close(head.score(pi, matrices), by_row)
    known = torch.distributions.Dirichlet(head.concentrations(pi)).log_prob(matrices).sum(-1)
    torch.testing.assert_close(dirichlet_log_prob(matrices, head.concentrations(pi)), known)


HEADS: dict[str, PolicyHead] = {
    "dirichlet_scalar": DirichletScalar(1.0, 0.0, 3.0),
    "dirichlet_net": DirichletNet(2, (4,), 3.0),
    "softmax_gaussian": SoftmaxGaussian(2, (4,), 0.8),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_densities_integrate_to_one_and_samples_follow_them(head: PolicyHead) -> None:
    """Two states: a matrix is two numbers, P_00 and P_10, on a grid of midpoints."""
    grid = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    matrices = torch.stack([torch.stack([first, 1 - first], -1), torch.stack([second, 1 - second], -1)], -2)
    pi = torch.tensor([0.7, 0.3], dtype=torch.float64)
    with torch.no_grad():
        density = head.log_prob(pi.expand(300, 300, 2), matrices).exp() / 300**2
    assert abs(float(density.sum()) - 1) < 1e-3
    drawn = head.sample(pi.expand(20_000, 2), np.random.default_rng(0))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20_000, 2, dtype=torch.float64))
    for place, values in ((0, first), (1, second)):
        mean, spread = float((density * values).sum()), float(drawn[:, place, 0].std())
        assert abs(float(drawn[:, place, 0].mean()) - mean) < 5 * spread / math.sqrt(20_000) + 1e-3


def test_weighted_samples_estimate_the_normaliser() -> None:
    """R = P_00 + 2 P_10 over two steps: Z = ((e - 1) (e^2 - 1) / 2)^2; without weights it comes out wrong."""
    rng, heads = np.random.default_rng(0), [DirichletScalar(t, 0.0, c) for t, c in ((2.0, 2.0), (0.0, 1.5))]
    pi0 = torch.tensor([[0.7, 0.3]], dtype=torch.float64).expand(20_000, -1)
    parts = [follow(head, pi0, 2, rng) for head in heads]
    samples = Samples(torch.cat([part.pi for part in parts]), torch.cat([part.matrices for part in parts]))
    earned = (samples.matrices[..., 0, 0] + 2 * samples.matrices[..., 1, 0]).sum(-1)
    logs = log_weights(samples, heads)
    wanted = 2 * math.log((math.e - 1) * (math.e**2 - 1) / 2)
    nothing = torch.zeros(1, dtype=torch.float64)
    assert abs(float(reward_loss(nothing, earned, logs)) - wanted) < 0.05
    assert abs(float(reward_loss(nothing, earned, torch.zeros_like(logs))) - wanted) > 0.1
    assert 1 < effective_samples(logs + earned) < 40_000


def test_weights_are_kept_near_their_median() -> None:
    logs = torch.tensor([-900.0, 1, 2, 3, 800])
    assert clipped(logs, 10.0).tolist() == [-8, 1, 2, 3, 12]
    assert effective_samples(torch.zeros(7)) == pytest.approx(7)
    assert effective_samples(logs) == pytest.approx(1)


def test_the_papers_network_is_as_published() -> None:
    network = PaperNetwork(15)
    sizes = {name: tuple(part.shape) for name, part in network.named_parameters() if name.endswith("weight")}
    assert sizes == {
        "first.weight": (1, 1, 5, 5),
        "second.weight": (2, 1, 3, 3),
        "wide.weight": (8, 450),
        "narrow.weight": (4, 23),
        "out.weight": (1, 4),
    }
    pi, matrix = torch.full((2, 3, 15), 1 / 15).double(), torch.eye(15).double().expand(2, 3, 15, 15)
    assert network.eval()(pi, matrix).shape == (2, 3)
    assert network(pi, matrix).abs().max() < 1
    assert torch.equal(network(pi, matrix), network(pi, matrix))
    assert float(network.penalty().detach()) > 0


SHORT: dict[str, Any] = {"iterations": 2, "episodes": 2, "final_episodes": 3, "reward_steps": 20}


@pytest.mark.parametrize(("policy", "weights"), [*((policy, "on") for policy in HEADS), ("dirichlet_scalar", "off")])
def test_guided_cost_learning_runs_and_repeats(crowds: Trajectories, policy: str, weights: str) -> None:
    options = SHORT | {"policy": policy, "importance_weights": weights, "seed": 5}
    before = torch.get_rng_state()
    first, second = (fit(crowds, "network", "gcl_population", **options) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.history == second.history
    assert all(torch.equal(part, second.parameters[name]) for name, part in first.parameters.items())
    third = fit(crowds, "network", "gcl_population", **(options | {"seed": 6}))
    assert first.history != third.history
    assert len(first.history) == 2
    rollout = first.rollout(crowds.pi[:, 0])
    torch.testing.assert_close(rollout.flow.sum(-1), torch.ones(8, 9, dtype=torch.float64))
    torch.testing.assert_close(moved(crowds.pi[:, 0], rollout.matrices), rollout.flow)
    for happened in first.history:
        assert 1 <= happened.effective_samples <= 50 + 1e-9
        assert 1 <= happened.clipped_samples <= 50 + 1e-9
    if weights == "off":
        assert happened.effective_samples == happened.clipped_samples


def test_linear_rewards_of_a_crowd_know_no_time() -> None:
    data = synthetic(3, 50, d=3, horizon=4, tau=0.5)
    with pytest.raises(ValueError, match="leave the term 'drift' out, or fit by 'mce_individual'"):
        fit(data, "u,drift", "gcl_population")
    found = fit(data, "stay,popularity", "gcl_population", iterations=1, episodes=2, final_episodes=2)
    assert set(recovery(found, data).parameters) == {"stay", "popularity"}


class Follow(PopulationReward):
    """What moves to the first state is worth."""

    def forward(self, pi: Tensor, matrix: Tensor) -> Tensor:
        return 5 * (pi.unsqueeze(-2) @ matrix)[..., 0, 0]


@pytest.mark.parametrize("policy", ["dirichlet_net", "softmax_gaussian"])
def test_policies_learn_what_pays(crowds: Trajectories, policy: str) -> None:
    """The first state pays, so ever more go there."""
    torch.manual_seed(0)
    config = GCLConfig(policy=policy, noise=0.5, policy_learning_rate=1e-2)
    head, rng, pi0 = policy_head(config, 3), np.random.default_rng(0), crowds.pi[:, 0]

    def going() -> float:
        return float((pi0.unsqueeze(1) @ head.mean(pi0))[:, 0, 0].mean())

    before = going()
    solve_policy(Follow(), head, pi0, 3, 100, config, rng, tqdm(disable=True))
    assert going() > before + 0.3


def test_observed_crowds_come_to_earn_more_than_sampled_ones(crowds: Trajectories) -> None:
    options = SHORT | {"iterations": 4, "reward_learning_rate": 1e-2, "reward_steps": 100}
    found = fit(crowds, "network", "gcl_population", importance_weights="off", **options)
    gaps = [happened.observed - happened.sampled for happened in found.history]
    assert gaps[-1] > 0.1
    assert gaps[-1] > gaps[0]


# -- measures and baselines --------------------------------------------------------------------------------------------

shares = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda x: sum(x) > 1e-3)


@given(shares, shares)
@settings(deadline=None)
def test_divergence_is_a_bounded_symmetric_measure(p: list[float], q: list[float]) -> None:
    first, second = (torch.tensor(x, dtype=torch.float64) / sum(x) for x in (p, q))
    here = float(jsd(first, second))
    assert here == pytest.approx(float(jsd(second, first)), abs=1e-15)
    assert 0 <= here <= math.log(2)
    assert float(jsd(first, first)) < 1e-15


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.5, 0.5]).double()
    assert float(jsd(p, q)) == pytest.approx(0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2))
    assert float(jsd(p, 1 - p)) == pytest.approx(math.log(2))


def test_scores_by_hand() -> None:
    seen = torch.tensor([[[1.0, 0], [0, 1]], [[1, 0], [1, 0]]]).double()
    still = seen[:, :1].expand(-1, 2, -1)
    found = score(still, seen)
    assert found.jsd_final == pytest.approx(math.log(2) / 2)
    assert found.jsd_mean == pytest.approx(math.log(2) / 4)
    assert (found.l1_final, found.l1_mean) == (1.0, 0.5)
    assert found.jsd_final_sd == pytest.approx(math.log(2) / math.sqrt(2))
    with pytest.raises(ValueError, match=r"must both be \(n, N \+ 1, d\)"):
        score(still[:1], seen)


def moving(matrix: Tensor, n: int = 6, N: int = 8, seed: int = 0) -> Trajectories:
    """Infinitely many people who move by a matrix."""
    d = len(matrix)
    pi = moved(torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(d), n)), matrix.expand(n, N, d, d))
    return Trajectories(pi, pi[:, :-1, :, None] * matrix)


MATRIX = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.0, 0.4, 0.6]], dtype=torch.float64)


@pytest.mark.parametrize("make", [VAR, PooledMoves, lambda data: PooledMoves(data, by_time=True)])
def test_linear_crowds_are_predicted_exactly(make: Any) -> None:
    train, test = moving(MATRIX), moving(MATRIX, seed=1)
    assert (make(train).predict(test.pi[:, 0]) - test.pi).abs().max() < 1e-10


def test_simple_baselines() -> None:
    data = moving(MATRIX)
    assert torch.equal(Persistence(data).predict(data.pi[:, 0])[:, 5], data.pi[:, 0])
    assert torch.equal(MeanCrowd(data).predict(data.pi[:1, 0])[0, 5], data.pi[:, 5].mean(0))
    assert torch.equal(MeanCrowd(data).predict(data.pi[:1, 0])[0, 0], data.pi[0, 0])


def swinging(n: int = 6, N: int = 10) -> Trajectories:
    """pi^n = c - .9 (pi^(n-2) - c) + noise end to end: nothing that one step back could tell."""
    rng = np.random.default_rng(0)
    line = [np.array([0.2, -0.2]), np.array([0.1, -0.1])]
    for _ in range(n * (N + 1) - 2):
        line.append(-0.9 * line[-2] + 0.01 * rng.standard_normal() * np.array([1, -1]))
    pi = torch.from_numpy(0.5 + np.array(line)).view(n, N + 1, 2)
    return Trajectories(pi, pi[:, :-1, :, None] * pi[:, 1:, None, :])


def test_longer_memory_is_chosen_where_it_helps() -> None:
    data = swinging()
    assert select_order(data, (1, 2), validation=2, repeats=4) == 2
    scores = [VAR(data[:4], order, joined=True).score(data[4:]).jsd_mean for order in (1, 2)]  # goes on where it ended
    assert scores[1] < 0.3 * scores[0]
    by_hand = VAR(data[:4], 2, joined=True)
    following = by_hand.predict(data.pi[4:, 0], data.pi[3:5, -1:])
    assert by_hand.score(data[4:]) == score(following, data.pi[4:])
    with pytest.raises(ValueError, match=r"order must lie in \[1, 10\]"):
        VAR(data, 11)
    with pytest.raises(ValueError, match=r"validation must lie in \[1, 5\]"):
        select_order(data, validation=6)


def test_recurrent_networks_learn_to_predict() -> None:
    train, test = moving(MATRIX), moving(MATRIX, seed=1)
    model = RNN(train, steps=300)
    assert model.score(test).jsd_mean < 0.2 * Persistence(train).score(test).jsd_mean
    assert torch.equal(model.predict(test.pi[:, 0]), RNN(train, steps=300).predict(test.pi[:, 0]))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        RNN(train, steps=0)


# -- real crowds -------------------------------------------------------------------------------------------------------


@needs_sequenzo
def test_biofam_baselines() -> None:
    """To the digits that an independent program found."""
    train, test = load_cohorts("biofam").split(21)
    models: list[tuple[CrowdModel, float, float]] = [
        (Persistence(train), 0.573, 0.278),
        (PooledMoves(train), 0.0479, 0.0582),
        (VAR(train), 0.0359, 0.0347),
        (MeanCrowd(train), 0.0343, 0.0272),
        (PooledMoves(train, by_time=True), 0.0341, 0.0267),
    ]
    for model, final, mean in models:
        found = model.score(test)
        assert abs(found.jsd_final - final) < 6e-4, type(model).__name__
        assert abs(found.jsd_mean - mean) < 6e-4, type(model).__name__


@needs_sequenzo
def test_biofam_cohorts_are_predicted_by_what_they_want() -> None:
    train, test = load_cohorts("biofam").split(21)
    constant, drifting = (fit(train, terms, terminal="learned", max_iterations=100) for terms in ("u", "u,drift"))
    assert int(constant.members.moves.sum()) == 26
    assert constant.score(test).jsd_final < 0.036
    assert constant.score(test).jsd_mean < 0.037
    assert drifting.score(test).jsd_mean < 0.029
    assert drifting.score(test).jsd_mean < VAR(train).score(test).jsd_mean
    assert drifting.score(test).jsd_final < VAR(train).score(test).jsd_final


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("v", {}, "no reward term 'v'"),
        ("u,stay", {}, "u holds what staying is worth already"),
        ("u,u", {}, "each once"),
        ("", {}, "no reward term ''"),
        ("network", {}, "goes with method='gcl_population'"),
        (nn.Linear(3, 3), {}, r"must be \(4, 5, 3, 3\), got \(4, 5, 3\)"),
        ("u", {"method": "mce_individuals"}, "no method 'mce_individuals': did you mean mce_individual"),
        ("u", {"tau": 0.0}, r"MCEConfig.tau must lie in \(0, inf\), got 0.0"),
        ("u", {"terminal": (1.0,)}, "terminal must be 3 values, one for each state, got 1"),
        ("u", {"flow": "model", "objective": "planner"}, "leave one of them out"),
    ],
)
def test_fits_that_cannot_be(model: Any, config: dict[str, Any], message: str) -> None:
    data = moving(MATRIX)
    with pytest.raises(ValueError, match=message):
        fit(data, model, **config)


def test_fields_that_are_none() -> None:
    data = moving(MATRIX)
    with pytest.raises(TypeError, match="MCEConfig has no field 'temperature'"):
        fit(data, temperature=1.0)
    with pytest.raises(TypeError, match=r"GCLConfig\.policy must be"):
        fit(data, "network", "gcl_population", policy="gaussian")
    with pytest.raises(ValueError, match=r"GCLConfig.gamma must lie in \[0, 1\]"):
        fit(data, "network", "gcl_population", gamma=2.0)
    with pytest.raises(ValueError, match=r"GCLConfig.hidden must lie in \[1, inf\), got 0"):
        fit(data, "network", "gcl_population", hidden=[8, 0])


def test_rewards_that_are_not_finite_are_refused() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.u = nn.Parameter(torch.zeros(3, 3))

        def forward(self, pi: Tensor) -> Tensor:
            return self.u / 0 * pi.unsqueeze(-1)

    with pytest.raises(ValueError, match="loss became nan"):
        fit(moving(MATRIX), Broken())


def test_unsettled_crowds_and_planners_say_so() -> None:
    data = played(instance(c=2.0))
    found = fit(data, "u,linear_congestion", tau=TAU, objective="planner")
    with pytest.raises(RuntimeError, match="had not settled after 3 sweeps"):
        found.rollout(data.pi[:, 0], sweeps=3)
    with pytest.raises(ValueError, match="members of a planner's crowd"):
        found.response(data.pi)


def test_moves_never_seen_have_no_probability() -> None:
    data = moving(MATRIX)
    found = fit(data)
    assert (found.response(data.pi)[..., MATRIX == 0] == 0).all()
    other = moving(torch.full((3, 3), 1 / 3, dtype=torch.float64))
    assert found.log_likelihood(other) == -math.inf
    assert fit(data, moves="all").log_likelihood(other) > -math.inf
