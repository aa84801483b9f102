"""Ensembles of probabilistic networks: members by themselves, bounds, what is recovered, when training ends."""

import copy
import math
from typing import Any

import pytest
import torch
from headway.agents.core.nets import Adam, Tracked
from headway.agents.mbpo import Dynamics, Fit, FitSettings, keep_weights
from headway.agents.mbpo.dynamics import DECAY, decay_loss, gaussian_loss
from support import same_tree
from torch import Tensor, nn
from torch.nn import functional as F

O, A = 3, 2  # noqa: E741 (the field's name)


def model(members: int = 4, seed: int = 0, **options: Any) -> Dynamics:
    torch.manual_seed(seed)
    return Dynamics(O, A, members=members, **{"net_arch": (16, 16), **options})


def fit(dynamics: Dynamics, seed: int = 1, rate: float = 1e-3, **settings: Any) -> Fit:
    tracked = Tracked(dynamics, rate, optimiser=Adam())
    return Fit(dynamics, tracked, FitSettings(**settings), torch.Generator().manual_seed(seed))


def rows(count: int = 60, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, O + A, generator=generator)
    return inputs, torch.randn(count, 1 + O, generator=generator)


# -- networks --------------------------------------------------------------------------------------------------------


def one_of(dynamics: Dynamics, member: int) -> Dynamics:
    single = Dynamics(O, A, members=1, net_arch=(16, 16))
    state = {
        name: part[member : member + 1] if name.startswith("mlp.") else part
        for name, part in dynamics.state_dict().items()
    }
    single.load_state_dict(state)
    return single


def test_a_member_is_a_network_of_its_own() -> None:
    dynamics, (inputs, targets) = model(), rows()
    dynamics.fit_scales(inputs, targets)
    mean, log_var = dynamics(inputs)
    for member in range(4):
        for own, all_ in zip(one_of(dynamics, member)(inputs), (mean, log_var), strict=True):
            torch.testing.assert_close(own[0], all_[member], atol=1e-6, rtol=0)
    layers: list[nn.Module] = []
    for weight, bias in zip(dynamics.mlp.weights, dynamics.mlp.biases, strict=True):
        layer = nn.Linear(*weight.shape[1:])
        layer.weight.data, layer.bias.data = weight[2].data.T, bias[2, 0].data
        layers += [layer, nn.SiLU()]
    plain = nn.Sequential(*layers[:-1])((inputs - inputs.mean(0)) / inputs.std(0, correction=0))
    torch.testing.assert_close(plain[:, : 1 + O], mean[2], atol=1e-6, rtol=1e-5)
    raw = plain[:, 1 + O :]
    bounded = 0.5 - F.softplus(0.5 - raw)
    torch.testing.assert_close(-10 + F.softplus(bounded + 10), log_var[2], atol=1e-5, rtol=1e-5)


def test_weights_begin_as_the_program_has_them() -> None:
    for weight, bias in zip(*(model(64).mlp.weights, model(64).mlp.biases), strict=True):
        std = 1 / (2 * math.sqrt(weight.shape[1]))
        assert float(weight.detach().abs().max()) <= 2 * std
        assert float(weight.detach().std()) == pytest.approx(0.88 * std, rel=0.05)  # of a normal cut at two deviations
        assert not bias.any()


def test_stacked_steps_are_those_of_each_member() -> None:
    inputs, targets = rows(32)
    together = model(3)
    apart = [one_of(together, member) for member in range(3)]
    for each in [together, *apart]:
        for bound in (each.min_log_var, each.max_log_var):
            bound.requires_grad_(False)  # what members share
    trainers = [Tracked(each, 1e-3, optimiser=Adam()) for each in [together, *apart]]
    data = torch.stack([inputs.roll(member, 0) for member in range(3)])
    for _ in range(100):
        for trainer, own in zip(trainers, [data, *data.unsqueeze(1)], strict=True):
            loss = gaussian_loss(*trainer.module(own), targets.expand(len(own), *targets.shape))
            trainer.minimise(loss + decay_loss(trainer.module))
    for member, each in enumerate(apart):
        for own, all_ in zip(each.mlp.parameters(), together.mlp.parameters(), strict=True):
            torch.testing.assert_close(own[0], all_[member], atol=1e-6, rtol=1e-5)


def test_another_members_data_do_not_matter() -> None:
    inputs, targets = rows(8)
    grads = []
    for other in (inputs, inputs + 5):
        dynamics = model(2)
        loss = gaussian_loss(*dynamics(torch.stack((inputs, other))), targets.expand(2, 8, 1 + O))
        grads.append(torch.autograd.grad(loss, list(dynamics.mlp.parameters())))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(*grads, strict=True))
    assert not torch.equal(grads[0][0][1], grads[1][0][1])


def test_losses_are_what_they_say() -> None:
    mean, log_var, targets = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    weights = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    total, weighted = 0.0, 0.0
    for e in range(2):
        for b in range(3):
            row = sum(
                float((mean[e, b, d] - targets[e, b, d]) ** 2 * math.exp(-log_var[e, b, d]) + log_var[e, b, d])
                for d in range(4)
            )
            total += row / 4 / 3
            weighted += float(weights[e, b]) * row / 4 / max(float(weights[e].sum()), 1)
    assert float(gaussian_loss(mean, log_var, targets)) == pytest.approx(total, rel=1e-5)
    assert float(gaussian_loss(mean, log_var, targets, weights)) == pytest.approx(weighted, rel=1e-5)
    deep = model(2, net_arch=(4, 4, 4, 4))
    by_hand = 0.01 * (0.5 + 10) * (1 + O) + sum(
        c * 0.5 * float(w.detach().square().sum()) for c, w in zip(DECAY, deep.mlp.weights, strict=True)
    )
    assert float(decay_loss(deep).detach()) == pytest.approx(by_hand, rel=1e-5)
    grads = torch.autograd.grad(3 * decay_loss(deep), [*deep.mlp.weights, deep.max_log_var])
    for share, weight, grad in zip(DECAY, deep.mlp.weights, grads, strict=False):
        torch.testing.assert_close(grad, 3 * share * weight.detach())
    assert (grads[-1] == torch.tensor(0.03)).all()


def test_bfloat16_is_float32_within_rounding() -> None:
    half, exact, (inputs, _) = model(precision="bfloat16", prior_scale=1.0), model(prior_scale=1.0), rows()
    for ours, truth in zip(half(inputs), exact(inputs), strict=True):
        assert ours.dtype is torch.float32
        assert 1e-5 < float((ours - truth).detach().norm() / truth.detach().norm()) < 2.0**-6
    obs, actions = inputs.split((O, A), 1)  # type: ignore[no-untyped-call]
    for every, alone in zip(half.predict(obs, actions), half.predict(obs, actions, member=2), strict=True):
        torch.testing.assert_close(every[2], alone)


def test_bounds_hold_and_move() -> None:
    dynamics, (inputs, targets) = model(), rows()
    with torch.no_grad():
        dynamics.mlp.weights[-1].mul_(1000)
    log_var = dynamics(inputs)[1].detach()
    assert float(log_var.min()) >= -10
    assert float(log_var.max()) <= 0.5 + 2.8e-5
    trained = model()
    training = fit(trained)
    training.begin(inputs, targets)
    training.advance(inputs, targets)
    for bound, start in ((trained.min_log_var, -10.0), (trained.max_log_var, 0.5)):
        assert (bound != start).all()


@pytest.mark.parametrize("target", ["delta", "absolute"])
@pytest.mark.parametrize("scales", [False, True])
def test_predictions_are_in_the_units_of_the_environment(target: Any, scales: bool) -> None:
    """By a model of weights 0, which expects the mean of its targets; the reward is the first column."""
    dynamics = model(2, target=target, scales_targets=scales)
    obs, actions, rewards = torch.randn(50, O), torch.randn(50, A), torch.randn(50) * 3 + 7
    next_obs = obs * 0.5 + 2
    targets = dynamics.targets(obs, rewards, next_obs)
    assert torch.equal(targets[:, 0], rewards)
    assert torch.equal(targets[:, 1:], next_obs - obs if target == "delta" else next_obs)
    dynamics.fit_scales(torch.cat((obs, actions), 1), targets)
    with torch.no_grad():
        for part in dynamics.mlp.parameters():
            part.zero_()
    expected = targets.mean(0) if scales else torch.zeros(1 + O)
    found = dynamics.predict(obs, actions)
    torch.testing.assert_close(found.rewards, expected[0].expand(2, 50))
    shift = obs if target == "delta" else 0
    torch.testing.assert_close(found.next_obs, (expected[1:] + shift).expand(2, 50, O))
    noise = torch.ones(2, 50, 1 + O)
    spread = dynamics.predict(obs, actions, noise).rewards - found.rewards
    deviation = math.exp(0.5 * float(dynamics(torch.cat((obs, actions), 1))[1].detach()[0, 0, 0])) * (
        float(targets[:, 0].std(correction=0)) if scales else 1
    )
    torch.testing.assert_close(spread, torch.full_like(spread, deviation))


def test_priors_stay_as_they_were_drawn() -> None:
    dynamics, (inputs, targets) = model(prior_scale=2.0), rows()
    assert dynamics.prior is not None
    before = copy.deepcopy(dynamics.prior.state_dict())
    training = fit(dynamics)
    training.begin(inputs, targets)
    training.advance(inputs, targets)
    same_tree(dict(before), dict(dynamics.prior.state_dict()))
    x = (inputs - dynamics.input_mean) / dynamics.input_std
    own = dynamics.mlp(x).chunk(2, -1)[0]
    torch.testing.assert_close(dynamics(inputs)[0], own + 2 * dynamics.prior(x))


def test_scales_of_columns_that_hardly_vary() -> None:
    inputs, targets = rows(400)
    inputs[:, 0] = 3.0
    inputs[:, 1] = 1e4 + 1e-2 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    dynamics = model()
    dynamics.fit_scales(inputs, targets)
    scaled = (inputs - dynamics.input_mean) / dynamics.input_std
    assert not scaled[:, 0].any()
    assert float(dynamics.input_std[0]) == 1
    expected = inputs[:, 1].double()
    torch.testing.assert_close(
        float(dynamics.input_std[1]), float(expected.std(correction=0)), rtol=1e-5, atol=0
    )  # which float32 sums would miss
    assert float(scaled[:, 1].std()) == pytest.approx(1, rel=0.1)


# -- training --------------------------------------------------------------------------------------------------------


def test_linear_dynamics_are_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = 0.3 * torch.randn(O + A, 1 + O, generator=generator)
    deviations = torch.tensor([0.1, 0.05, 0.1, 0.2])
    inputs = torch.randn(3000, O + A, generator=generator)
    targets = inputs @ matrix + deviations * torch.randn(3000, 1 + O, generator=generator)
    dynamics = model(3, net_arch=(32, 32))
    training = fit(dynamics, batch_size=64)
    for _ in range(5):  # calls, each of which goes on from the last; variances take longer than means
        training.begin(inputs, targets)
        while not training.advance(inputs, targets)[0]:
            assert training.passes < 200
    fresh = torch.randn(1000, O + A, generator=generator)
    mean, log_var = (part.detach() for part in dynamics(fresh))
    assert float((mean.mean(0) - fresh @ matrix).square().mean().sqrt()) < 0.03
    ratios = (0.5 * log_var).exp().mean((0, 1)) / deviations
    assert all(0.9 < float(ratio) < 1.1 for ratio in ratios)
    far = dynamics(4 * fresh)[0].detach()
    assert float(far.std(0).mean() / mean.std(0).mean()) > 3
    assert 0.8 < float(training.calibration) < 1.2
    assert 0 < float(training.spread) < 0.1
    torch.testing.assert_close(training.errors.mean(), deviations.square().mean(), rtol=0.15, atol=0)


def test_each_member_keeps_its_own_best(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamics, (inputs, targets) = model(3), rows()
    training = fit(dynamics)
    errors = [[5.0, 5, 5]] + [[9.0, 9, 4]] + [[9.0, 9, 3.99]] * 6  # the third improves once more; then nobody by 1 %
    told = iter(torch.tensor([*errors, [0.3, 0.1, 0.2]]))
    monkeypatch.setattr(training, "_errors", lambda *_: next(told))
    training.begin(inputs, targets)
    kept = []
    for turn in range(8):
        ended, _ = training.advance(inputs, targets)
        if turn < 2:
            kept.append([part.detach().clone() for part in dynamics.mlp.parameters()])
        assert ended is (turn == 7)
    assert training.passes == 8
    for part, first, second in zip(dynamics.mlp.parameters(), *kept, strict=True):
        assert torch.equal(part[:2], first[:2])
        assert torch.equal(part[2], second[2])
    assert training.elites.tolist() == [1, 2, 0]
    assert not training.in_progress


def test_stopped_in_the_midst_it_goes_on_exactly() -> None:
    inputs, targets = rows(200)
    straight, broken = model(), model()
    one, other = fit(straight, batch_size=32), fit(broken, batch_size=32)
    for training in (one, other):
        training.begin(inputs, targets)
        training.advance(inputs, targets)
    again = copy.deepcopy(broken)
    tracked = Tracked(again, 1e-3, optimiser=Adam())
    for parameter, old in zip(tracked.parameters, other.tracked.parameters, strict=True):
        tracked.optimizer.state[parameter] = copy.deepcopy(other.tracked.optimizer.state[old])  # type: ignore[union-attr]
    resumed = Fit(again, tracked, other.settings, torch.Generator().manual_seed(7))
    resumed.load_state(other.state())
    resumed.generator.set_state(other.generator.get_state())
    while not one.advance(inputs, targets)[0]:
        assert not resumed.advance(inputs, targets)[0]
    assert resumed.advance(inputs, targets)[0]
    same_tree(dict(straight.state_dict()), dict(again.state_dict()))
    same_tree(one.state(), resumed.state())
    with pytest.raises(ValueError, match="the training of the model"):
        resumed.load_state({**other.state(), "best": {}})


def spread(bootstrap: Any, calls: int) -> float:
    """How far members differ, relative to what the data leave open, for the mean of 40 numbers, after many calls.

    Members are single biases here, which a step of the whole gradient brings to the weighted mean of their rows.
    """
    generator = torch.Generator().manual_seed(0)
    count, members = 40, 200
    data = torch.randn(count, generator=generator)
    weights = keep_weights(count, members, generator).float()
    estimates = torch.zeros(members)
    for call in range(calls):
        if bootstrap == "redrawn":
            drawn = torch.randint(count, (members, count), generator=generator)
            goal = data[drawn].mean(1)
        else:
            goal = (weights.T @ data) / weights.sum(0)
        estimates = estimates + (goal - estimates) / (call + 1)  # warm-started members average over the calls
    return float(estimates.std() / (data.std() / math.sqrt(count)))


def test_weights_that_are_kept_keep_members_apart() -> None:
    assert spread("kept", 100) == pytest.approx(1, abs=0.15)
    assert spread("redrawn", 1) == pytest.approx(1, abs=0.15)
    assert spread("redrawn", 100) == pytest.approx(0.1, abs=0.03)


def test_kept_weights_choose_what_a_member_learns_from() -> None:
    """Two halves of the rows contradict each other, and each member counts one of them alone."""
    inputs, targets = torch.zeros(200, O + A), torch.ones(200, 1 + O)
    targets[100:] = -1
    weights = torch.zeros(200, 2, dtype=torch.uint8)
    weights[:100, 0] = weights[100:, 1] = 2
    dynamics = model(2)
    training = fit(dynamics, rate=1e-2, bootstrap="kept", batch_size=40)
    training.begin(inputs, targets)
    for _ in range(60):
        if training.advance(inputs, targets, weights)[0]:
            training.begin(inputs, targets)
    mean = dynamics(inputs[:1])[0].detach()
    assert float((mean[0] - 1).abs().max()) < 0.3
    assert float((mean[1] + 1).abs().max()) < 0.3


def test_poisson_weights() -> None:
    drawn = keep_weights(4000, 5, torch.Generator().manual_seed(0))
    assert drawn.dtype is torch.uint8
    assert float(drawn.float().mean()) == pytest.approx(1, abs=0.03)
    assert float(drawn.float().var()) == pytest.approx(1, abs=0.06)
    assert abs(float(torch.corrcoef(drawn.float().T)[0, 1])) < 0.05


def test_rows_that_cannot_be_learnt_from_are_refused() -> None:
    training = fit(model())
    with pytest.raises(ValueError, match=r"4 rows are too few to hold out a share of 0.2 of them: at least 5"):
        training.begin(*rows(4))
    inputs, targets = rows(10)
    targets[7, 2] = math.nan
    with pytest.raises(ValueError, match=r"row 7 has a next observation\[1\] of nan"):
        training.begin(inputs, targets)
    targets[7, 2], targets[3, 0] = 0, math.inf
    with pytest.raises(ValueError, match="row 3 has a reward of inf"):
        training.begin(inputs, targets)
