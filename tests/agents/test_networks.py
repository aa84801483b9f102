import math

import pytest
import torch
from headway.agents.core.nets import (
    Activation,
    Critics,
    DeterministicActor,
    GaussianActor,
    SquashedGaussianActor,
    StackedMLP,
    Temperature,
)
from headway.agents.core.nets.heads import SATURATION
from headway.agents.core.spaces import VectorFeatures
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

ACTIVATIONS: list[Activation] = ["relu", "tanh", "elu"]
LAYERS = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}


def reference(mlp: StackedMLP, member: int) -> nn.Sequential:
    """One member as a chain of torch's own layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        linear = nn.Linear(*weight.shape[1:]).to(weight.dtype)
        linear.weight.data, linear.bias.data = weight[member].detach().T.clone(), bias[member, 0].detach().clone()
        layers += [linear, LAYERS[mlp.activation]()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("net_arch", [(), (5,), (6, 4)])
@pytest.mark.parametrize("shared", [True, False])
def test_stacked_mlp_equals_separate_networks(activation: Activation, net_arch: tuple[int, ...], shared: bool) -> None:
    torch.manual_seed(0)
    mlp = StackedMLP(3, 4, 2, net_arch, activation).double()
    x = torch.randn((7, 4) if shared else (3, 7, 4), dtype=torch.float64, requires_grad=True)
    out = mlp(x)
    assert out.shape == (3, 7, 2)
    target = torch.randn_like(out)
    loss = (out * target).sum()
    grads = torch.autograd.grad(loss, [x, *mlp.parameters()])
    for member in range(3):
        network = reference(mlp, member)
        inputs = (x if shared else x[member]).detach().requires_grad_()
        expected = network(inputs)
        assert torch.allclose(out[member], expected, atol=1e-12)
        assert torch.allclose(mlp._plain(x.expand(3, -1, -1), _interleaved(mlp))[member], expected, atol=1e-12)
        expected_grads = torch.autograd.grad((expected * target[member]).sum(), [inputs, *network.parameters()])
        for index, name in enumerate(["weights", "biases"] * len(mlp.weights)):
            ours = grads[1 + (index // 2) + (len(mlp.weights) if name == "biases" else 0)][member]
            theirs = expected_grads[1 + index]
            assert torch.allclose(ours if name == "biases" else ours.T, theirs, atol=1e-12)
        if not shared:
            assert torch.allclose(grads[0][member], expected_grads[0], atol=1e-12)
    assert torch.autograd.gradcheck(mlp, (x,))


def _interleaved(mlp: StackedMLP) -> list[Tensor]:
    return [p for pair in zip(mlp.weights, mlp.biases, strict=True) for p in pair]


def test_frozen_and_partial_evaluation() -> None:
    torch.manual_seed(0)
    critics = Critics(VectorFeatures(3), 2, (8, 8), n_critics=4)
    obs, actions = torch.randn(5, 3), torch.randn(5, 2, requires_grad=True)
    full, frozen = critics(obs, actions), critics(obs, actions, frozen=True)
    assert full.shape == (4, 5)
    assert torch.equal(full, frozen)
    assert torch.allclose(critics.first(obs, actions), full[0], atol=1e-6)
    (with_weights,) = torch.autograd.grad(full.sum(), [actions], retain_graph=True)
    (without,) = torch.autograd.grad(frozen.sum(), [actions], retain_graph=True)
    assert torch.allclose(with_weights, without, atol=1e-6)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(frozen.sum(), list(critics.parameters()))


def test_members_start_as_torch_layers_do() -> None:
    torch.manual_seed(0)
    weight = StackedMLP(200, 25, 7, ()).weights[0]
    assert weight.abs().max() <= 1 / math.sqrt(25)
    assert weight.std().item() == pytest.approx(nn.Linear(25, 7000).weight.std().item(), rel=0.02)
    assert not torch.equal(weight[0], weight[1])


def test_squashed_gaussian_density_is_torchs() -> None:
    torch.manual_seed(0)
    actor = SquashedGaussianActor(VectorFeatures(3), 2, (8,)).double()
    obs, noise = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    actions, log_prob = actor.sample(obs, noise)
    mean, log_std = actor.head(obs).chunk(2, -1)
    gaussian = Independent(Normal(mean, log_std.exp()), 1)
    squashed = TransformedDistribution(gaussian, [TanhTransform(cache_size=1)])
    pre = mean + log_std.exp() * noise
    exact = gaussian.log_prob(pre) - torch.log(1 - pre.tanh().square()).sum(-1)
    assert torch.allclose(actions, pre.tanh())
    assert torch.allclose(exact, squashed.log_prob(actions), atol=1e-6)
    # SATURATION shifts the density by at most log(1 + eps / slope) in each dimension.
    bound = torch.log1p(SATURATION / (1 - actions.square())).sum(-1)
    assert ((log_prob - exact).abs() <= bound + 1e-12).all()


def test_squashed_gaussian_is_finite_where_tanh_saturates() -> None:
    actor = SquashedGaussianActor(VectorFeatures(1), 1, ())
    obs = torch.tensor([[1e6]])
    actions, log_prob = actor.sample(obs, torch.tensor([[3.0]]))
    assert torch.isfinite(log_prob).all()
    grads = torch.autograd.grad((actions.sum() + log_prob.sum()), list(actor.parameters()))
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_gaussian_density_and_modes() -> None:
    torch.manual_seed(0)
    obs, noise = torch.randn(6, 3), torch.randn(6, 2)
    gaussian = GaussianActor(VectorFeatures(3), 2, (8,), log_std_init=-0.5)
    actions, log_prob = gaussian.sample(obs, noise)
    expected = Independent(Normal(gaussian.mode(obs), gaussian.log_std.exp()), 1).log_prob(actions)
    assert torch.allclose(log_prob, expected, atol=1e-5)
    assert torch.allclose(gaussian.log_prob(obs, actions), expected, atol=1e-5)
    for actor in (DeterministicActor(VectorFeatures(3), 2, (8,)), SquashedGaussianActor(VectorFeatures(3), 2, (8,))):
        mode = actor.mode(obs)
        assert mode.shape == (6, 2)
        assert (mode.abs() <= 1).all()


def test_temperature_is_positive_and_free_of_gradient() -> None:
    temperature = Temperature(0.3)
    assert temperature.alpha.item() == pytest.approx(0.3)
    assert not temperature.alpha.requires_grad
