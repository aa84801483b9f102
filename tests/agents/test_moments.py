"""What a search teaches: moments without bias, losses with their minima where they belong, a bandit that is solved."""

import pytest
import torch
from headway.agents.tpo.moments import (
    Correction,
    a0c_loss,
    advantage_loss,
    bound_loss,
    cross_entropy,
    gaussian_kl,
    log_probs,
    moment_kl,
    moment_loss,
    moments,
)
from torch import Tensor

LEAST = torch.tensor(0.05)


@pytest.mark.parametrize("candidates", [4, 8, 16])
def test_a_search_that_finds_nothing_teaches_nothing(candidates: int) -> None:
    generator, rows = torch.Generator().manual_seed(0), 40_000
    std = torch.tensor([0.5, 2.0]).expand(rows, 2)
    actions = 1.0 + std.unsqueeze(1) * torch.randn(rows, candidates, 2, generator=generator)
    weights = torch.full((rows, candidates), 1 / candidates)
    for correction, share in (("raw", (candidates - 1) / candidates), ("corrected", 1.0), ("shrunk", 1.0)):
        least = torch.zeros(())
        mean, found = moments(actions, weights, 10 * std, least, correction)  # type: ignore[arg-type]
        torch.testing.assert_close(mean.mean(0), torch.ones(2), atol=0.02, rtol=0)
        torch.testing.assert_close(found.square().mean(0), share * std[0].square(), atol=0, rtol=0.015)


def test_one_candidate_is_copied_and_its_spread_is_left() -> None:
    actions, std = torch.tensor([[[0.3, -2.0]]]), torch.tensor([[0.4, 0.7]])
    mean, found = moments(actions, torch.ones(1, 1), std, LEAST)
    assert torch.equal(mean, actions[:, 0])
    assert torch.equal(found, std)


def test_spreads_keep_their_bounds() -> None:
    actions, std = torch.tensor([[[-9.0], [9.0]], [[1.0], [1.0]]]), torch.ones(2, 1)
    _, found = moments(actions, torch.full((2, 2), 0.5), std, LEAST)
    assert found.flatten().tolist() == pytest.approx([1.5, 0.05])
    assert moments(actions, torch.full((2, 2), 0.5), 0.01 * std, LEAST)[1].flatten().tolist() == pytest.approx(
        [0.05] * 2
    )


def settled(loss: object, steps: int = 4000) -> tuple[Tensor, Tensor]:
    """:return: mean and standard deviation at which a loss of them is least"""
    mean, log_std = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    optimiser = torch.optim.Adam((mean, log_std), 0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(mean, log_std).backward()  # type: ignore[operator]
        optimiser.step()
    return mean.detach(), log_std.detach().exp()


def test_losses_are_least_where_they_should_be() -> None:
    generator = torch.Generator().manual_seed(1)
    actions, weights = torch.randn(1, 6, 2, generator=generator), torch.rand(1, 6, generator=generator).softmax(1)
    std = torch.tensor([[0.8, 0.6]])
    raw, aim = (moments(actions, weights, std, LEAST, correction) for correction in ("raw", "shrunk"))  # type: ignore[arg-type]
    spread = (weights.unsqueeze(-1) * (actions - raw.mean.unsqueeze(1)).square()).sum(1).sqrt()
    mean, found = settled(lambda mean, log_std: cross_entropy(log_probs(mean, log_std, actions), weights))
    torch.testing.assert_close(mean, raw.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(found, spread, atol=0.01, rtol=0)
    for loss in (
        lambda mean, log_std: moment_kl(mean, log_std, aim),
        lambda mean, log_std: moment_loss(mean, log_std, aim, std, 0.5),
    ):
        mean, found = settled(loss)
        torch.testing.assert_close(mean, aim.mean, atol=2e-3, rtol=0)
        torch.testing.assert_close(found, aim.std, atol=2e-3, rtol=0)
    at = (aim.mean.requires_grad_(), aim.std.log().requires_grad_())
    moment_kl(*at, aim._replace(mean=aim.mean.detach())).backward()
    assert all(part.grad is not None and part.grad.abs().max() < 1e-6 for part in at)


def test_the_moment_loss_leaves_spreads_alone_if_told() -> None:
    aim = moments(torch.randn(5, 4, 2), torch.full((5, 4), 0.25), torch.ones(5, 2), LEAST)
    log_std = torch.zeros(5, 2, requires_grad=True)
    mean = torch.zeros(5, 2, requires_grad=True)
    loss = moment_loss(mean, log_std, aim, torch.ones(5, 2), 0.0)
    loss.backward()
    assert not log_std.grad.any()  # type: ignore[union-attr]
    assert loss > 0
    assert moment_loss(aim.mean, aim.std.log(), aim, torch.ones(5, 2), 0.5) == 0
    shared = moment_loss(aim.mean, torch.zeros(1, 2), aim, torch.ones(5, 2), 1.0)
    torch.testing.assert_close(shared, aim.std.log().mean(0).square().mean())


def test_losses_against_loops() -> None:
    generator = torch.Generator().manual_seed(2)
    actions, mean = torch.randn(5, 3, 2, generator=generator), torch.randn(5, 2, generator=generator)
    log_std, visits = (
        torch.randn(5, 2, generator=generator),
        torch.tensor([[4.0, 0, 2], [1, 1, 1], [0, 0, 3], [2, 2, 0], [5, 1, 0]]),
    )
    normal = torch.distributions.Normal(mean.unsqueeze(1), log_std.exp().unsqueeze(1))
    found = log_probs(mean, log_std, actions)
    torch.testing.assert_close(found, normal.log_prob(actions).sum(-1))
    expected = sum(
        float(found[b, k] - 0.3 * visits[b, k].log()) * found[b, k] for b in range(5) for k in range(3) if visits[b, k]
    )
    torch.testing.assert_close(a0c_loss(found, visits, 0.3), torch.as_tensor(expected) / 5)
    weights, old = visits / visits.sum(1, keepdim=True), found + torch.randn(5, 3, generator=generator)
    q = torch.randn(5, 3, generator=generator)
    total = 0.0
    for b in range(5):
        for k in range(3):
            ratio = float((found[b, k] - old[b, k]).exp())
            total += float(weights[b, k]) * min(ratio * float(q[b, k]), min(max(ratio, 0.8), 1.2) * float(q[b, k]))
    assert float(advantage_loss(found, old, q, weights, 0.2, whiten=False)) == pytest.approx(-total / 5, rel=1e-5)
    shifted = advantage_loss(found, old, 7 * q - 3, weights, 0.2, whiten=True)
    torch.testing.assert_close(shifted, advantage_loss(found, old, q, weights, 0.2, whiten=True))
    one, other = (torch.distributions.Normal(m, s.exp()) for m, s in ((mean, log_std), (mean + 1, log_std - 0.3)))
    torch.testing.assert_close(
        gaussian_kl(mean, log_std, mean + 1, log_std - 0.3), torch.distributions.kl_divergence(one, other).sum(-1)
    )
    low, high = torch.full((2,), -0.5), torch.full((2,), 0.5)
    beyond = sum(max(0.0, abs(float(x)) - 0.5) ** 2 for x in mean.flatten())
    assert float(bound_loss(mean, low, high)) == pytest.approx(0.5 * beyond / 5, rel=1e-5)


def bandit(correction: Correction, simulations: int, noise: float = 0.0) -> tuple[float, float]:
    """Fit policies, half-way, to searches of one step: the best of six numbers is 0.8, and Q exact or noisy.

    :return: mean and standard deviation after 60 rounds of 64 searches of 8 candidates each, averaged over 8 policies
    """
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.zeros(8, 6), torch.full((8, 6), 0.5)
    for _ in range(60):
        shape = (8, 64, 8)
        actions = mean.view(8, 1, 1, 6) + std.view(8, 1, 1, 6) * torch.randn(*shape, 6, generator=generator)
        q = -(actions - 0.8).square().sum(-1) + noise * torch.randn(shape, generator=generator)
        visits = torch.zeros(shape)
        for _ in range(simulations):  # PUCT of one step, c = 1.25; of what was not tried the mean is expected
            tried, total = visits > 0, visits.sum(-1, keepdim=True)
            low = q.masked_fill(~tried, torch.inf).amin(-1, keepdim=True)
            high = q.masked_fill(~tried, -torch.inf).amax(-1, keepdim=True)
            known = torch.where(tried, q, (visits * q).sum(-1, keepdim=True) / (1 + total))
            scaled = torch.where(high > low, (known - low) / (high - low), 0.0).clamp(0, 1)
            score = scaled + 1.25 / 8 * total.clamp_min(1).sqrt() / (1 + visits)
            visits.scatter_add_(-1, score.argmax(-1, keepdim=True), torch.ones(8, 64, 1))
        given = (actions.flatten(0, 1), visits.flatten(0, 1) / simulations, std.repeat_interleave(64, 0))
        aim = moments(*given, torch.zeros(()), correction)
        mean = 0.5 * (mean + aim.mean.view(8, 64, 6).mean(1))
        std = (0.5 * (std.log() + aim.std.view(8, 64, 6).log().mean(1))).exp()
    return float(mean.mean()), float(std.mean())


@pytest.mark.parametrize("simulations", [16, 32])
def test_the_default_arrives_and_raw_moments_stall(simulations: int) -> None:
    mean, std = bandit("shrunk", simulations)
    assert abs(mean - 0.8) < 0.02
    assert std > 0.05
    mean, std = bandit("raw", simulations)
    assert mean < 0.7
    assert std < 0.01


def test_noise_is_no_reason_to_be_sure() -> None:
    found = {correction: bandit(correction, 32, noise=3.0) for correction in ("raw", "corrected", "shrunk")}  # type: ignore[arg-type]
    assert found["shrunk"][0] > 0.65
    assert found["shrunk"][1] > 0.2  # and it goes on
    assert found["raw"][0] < found["corrected"][0] < 0.4
    assert found["corrected"][1] < 0.02
