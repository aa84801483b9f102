"""Stacks of perceptrons: one network each, whatever torch does to their parameters, in either precision."""

import itertools
import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from headway.agents.core.nets import Activation, LayerNormCritics, StackedMLP
from headway.agents.core.nets.stacks import LayerNormMLP
from headway.agents.core.spaces import VectorFeatures
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, stack_module_state, vmap
from torch.nn.utils import parametrize

ACTIVATIONS: list[Activation] = ["relu", "tanh", "elu", "silu"]
LAYERS = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}


def reference(mlp: StackedMLP, member: tuple[int, ...]) -> nn.Sequential:
    """One member as a chain of torch's own layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        linear = nn.Linear(*weight.shape[-2:]).to(weight.dtype)
        linear.weight.data, linear.bias.data = weight[member].detach().T.clone(), bias[member][0].detach().clone()
        layers += [linear, LAYERS[mlp.activation]()]
    return nn.Sequential(*layers[:-1])


def members(stack: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, stack)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("net_arch", [(), (5,), (6, 4)])
@pytest.mark.parametrize(
    ("stack", "lead"),
    [((), ()), ((3,), ()), ((3,), (3,)), ((2, 3), ()), ((2, 3), (2, 1)), ((2, 3), (3,)), ((2, 1, 2), (2, 1, 1))],
)
def test_a_stack_equals_separate_networks(
    activation: Activation, net_arch: tuple[int, ...], stack: tuple[int, ...], lead: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    mlp = StackedMLP(stack, 4, 2, net_arch, activation).double()
    x = torch.randn(*lead, 7, 4, dtype=torch.float64, requires_grad=True)
    out = mlp(x)
    assert out.shape == (*stack, 7, 2)
    target = torch.randn_like(out)
    grads = torch.autograd.grad((out * target).sum(), [x, *mlp.weights, *mlp.biases])
    by_weight, by_bias = grads[1 : 1 + len(mlp.weights)], grads[1 + len(mlp.weights) :]
    total = torch.zeros_like(x)
    for member in members(stack):
        network = reference(mlp, member)
        expected = network(x.expand(*stack, 7, 4)[member])
        assert torch.allclose(out[member], expected, atol=1e-12)
        x_grad, *theirs = torch.autograd.grad((expected * target[member]).sum(), [x, *network.parameters()])
        total += x_grad
        for k in range(len(mlp.weights)):
            assert torch.allclose(by_weight[k][member].T, theirs[2 * k], atol=1e-12)
            assert torch.allclose(by_bias[k][member][0], theirs[2 * k + 1], atol=1e-12)
    assert torch.allclose(grads[0], total, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("stack", [(), (3,), (2, 3)])
def test_layer_norms_are_torchs(activation: Activation, stack: tuple[int, ...]) -> None:
    """After each non-linearity, with the gains and shifts of each member."""
    torch.manual_seed(0)
    mlp = LayerNormMLP(stack, 4, 2, (6, 5), activation).double()
    for parameter in (*mlp.gains, *mlp.shifts):
        parameter.data += torch.randn_like(parameter)
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    out = mlp(x)
    target = torch.randn_like(out)
    parameters = [*mlp.weights, *mlp.biases, *mlp.gains, *mlp.shifts]
    grads = torch.autograd.grad((out * target).sum(), [x, *parameters])
    total = torch.zeros_like(x)
    for member in members(stack):
        plain, norms = reference(mlp, member), [nn.LayerNorm(width).double() for width in (6, 5)]
        for norm, gain, shift in zip(norms, mlp.gains, mlp.shifts, strict=True):
            norm.weight.data, norm.bias.data = gain[member][0].detach().clone(), shift[member][0].detach().clone()
        network = nn.Sequential(*plain[:2], norms[0], *plain[2:4], norms[1], plain[4])
        expected = network(x)
        assert torch.allclose(out[member], expected, atol=1e-12)
        wanted = torch.autograd.grad((expected * target[member]).sum(), [x, *norms[0].parameters()])
        total += wanted[0]
        assert torch.allclose(grads[7][member][0], wanted[1], atol=1e-12)  # the first gain
        assert torch.allclose(grads[9][member][0], wanted[2], atol=1e-12)
    assert torch.allclose(grads[0], total, atol=1e-12)
    frozen = torch.autograd.grad((mlp(x, frozen=True) * target).sum(), [x, *parameters], allow_unused=True)
    assert torch.allclose(frozen[0], total, atol=1e-12)
    assert all(grad is None for grad in frozen[1:])


def test_critics_with_layer_norms() -> None:
    torch.manual_seed(0)
    critics = LayerNormCritics(VectorFeatures(3), 2, (8,), n_critics=2, stack=(4,))
    assert critics(torch.randn(7, 3), torch.randn(4, 7, 2)).shape == (4, 2, 7)
    with pytest.raises(ValueError, match="evaluated whole"):
        critics.first(torch.randn(7, 3), torch.randn(7, 2))
    half = LayerNormCritics(VectorFeatures(3), 2, (8,), precision="bfloat16")
    assert half(torch.randn(7, 3), torch.randn(7, 2)).dtype is torch.float32


@pytest.mark.parametrize("stack", [(), (2,), (2, 2)])
def test_no_rows_and_inputs_that_do_not_fit(stack: tuple[int, ...]) -> None:
    mlp = StackedMLP(stack, 3, 2, (4,))
    assert mlp(torch.zeros(0, 3)).shape == (*stack, 0, 2)
    with pytest.raises(RuntimeError, match="expand"):
        mlp(torch.zeros(5, *stack, 7, 3))


def test_members_along_the_last_axis() -> None:
    torch.manual_seed(0)
    mlp, x = StackedMLP((2, 3), 4, 2, (5,)), torch.randn(7, 4, requires_grad=True)
    part = mlp(x, members=slice(2), frozen=True)
    assert torch.allclose(part, mlp(x)[:, :2], atol=1e-6)
    grads = torch.autograd.grad(part.sum(), [x, *mlp.parameters()], allow_unused=True)
    assert grads[0] is not None
    assert all(found is None for found in grads[1:])


def test_one_member_of_the_last_axis() -> None:
    torch.manual_seed(0)
    for stack in ((3,), (2, 3)):
        mlp, x = StackedMLP(stack, 4, 2, (5,), "silu"), torch.randn(7, 4, requires_grad=True)
        alone, together = mlp(x, members=1), mlp(x)[..., 1, :, :]
        torch.testing.assert_close(alone, together)
        grads = [torch.autograd.grad(out.square().sum(), [x, *mlp.parameters()]) for out in (alone, together)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)
        frozen = torch.autograd.grad(mlp(x, members=1, frozen=True).sum(), list(mlp.parameters()), allow_unused=True)
        assert all(found is None for found in frozen)


def test_members_start_as_torch_layers_do() -> None:
    torch.manual_seed(0)
    weight = StackedMLP((200,), 25, 7, ()).weights[0]
    assert weight.abs().max() <= 1 / math.sqrt(25)
    assert weight.std().item() == pytest.approx(nn.Linear(25, 7000).weight.std().item(), rel=0.02)
    assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize(("name", "value"), [("activation", "gelu"), ("precision", "bf16")])
def test_unknown_names_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        StackedMLP((), 2, 1, (3,), **{name: value})  # type: ignore[arg-type]


# -- what is not cached cannot lie -------------------------------------------------------------------------------------


def doubled(mlp: StackedMLP) -> StackedMLP:
    """The truth: a network whose parameters are twice those of another."""
    twice = deepcopy(mlp)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.mul_(2)
    return twice


def call_functionally(mlp: StackedMLP) -> Callable[[Tensor], Tensor]:
    return lambda x: functional_call(mlp, {k: 2 * v for k, v in mlp.named_parameters()}, (x,))


def load_by_assignment(mlp: StackedMLP) -> Callable[[Tensor], Tensor]:
    mlp.load_state_dict(doubled(mlp).state_dict(), assign=True)
    return mlp


def set_by_assignment(mlp: StackedMLP) -> Callable[[Tensor], Tensor]:
    for part in (mlp.weights, mlp.biases):
        for index, parameter in enumerate(part):
            part[index] = nn.Parameter(2 * parameter.detach())
    return mlp


def write_into_data(mlp: StackedMLP) -> Callable[[Tensor], Tensor]:
    mlp(torch.zeros(1, 4))  # a cache would be filled now, and no version counter tells it of what follows
    for parameter in mlp.parameters():
        parameter.data.mul_(2)
    return mlp


class Twice(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


def parametrized(mlp: StackedMLP) -> Callable[[Tensor], Tensor]:
    for part in (mlp.weights, mlp.biases):
        for index in range(len(part)):
            parametrize.register_parametrization(part, str(index), Twice())
    return mlp


def parametrized_and_back(mlp: StackedMLP) -> Callable[[Tensor], Tensor]:
    """torch then puts the parameters back in another order."""
    for part in (mlp.weights, mlp.biases):
        parametrize.register_parametrization(part, "0", Twice())
        parametrize.remove_parametrizations(part, "0")
        for parameter in list(part)[1:]:
            parameter.data.mul_(2)
    return mlp


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "change",
    [
        call_functionally,
        load_by_assignment,
        set_by_assignment,
        write_into_data,
        parametrized,
        parametrized_and_back,
        lambda mlp: deepcopy(doubled(mlp)),
    ],
)
def test_a_network_computes_with_the_parameters_it_has(
    change: Callable[[StackedMLP], Callable[[Tensor], Tensor]], precision: str
) -> None:
    torch.manual_seed(0)
    mlp = StackedMLP((2,), 4, 3, (8, 8), precision=precision)  # type: ignore[arg-type]
    x = torch.randn(5, 4)
    truth, before = doubled(mlp)(x), mlp(x)
    out = change(mlp)(x)
    assert torch.equal(out, truth)
    assert not torch.allclose(out, before, atol=0.1)


def test_vmap_over_parameters_and_gradients_by_function() -> None:
    torch.manual_seed(0)
    networks = [StackedMLP((2,), 4, 3, (8,)).double() for _ in range(3)]
    parameters, buffers = stack_module_state(networks)
    x = torch.randn(5, 4, dtype=torch.float64)

    def evaluate(one: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(networks[0], one, (x,))  # type: ignore[no-any-return]

    assert not buffers
    out = vmap(evaluate, (0, None))(parameters, x)
    assert torch.allclose(out, torch.stack([network(x) for network in networks]), atol=1e-12)
    per_row = vmap(grad(lambda one, x: evaluate(one, x.unsqueeze(0)).square().sum()), (None, 0))(
        dict(networks[0].named_parameters()), x
    )
    expected = torch.autograd.grad(networks[0](x).square().sum(), [*networks[0].parameters()])
    assert all(torch.allclose(p.sum(0), e, atol=1e-10) for p, e in zip(per_row.values(), expected, strict=True))


@pytest.mark.parametrize("activation", ["tanh", "elu", "silu"])
@pytest.mark.parametrize("stack", [(), (2,), (1, 2)])
def test_first_and_second_derivatives_are_those_of_finite_differences(
    activation: Activation, stack: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    mlp = StackedMLP(stack, 3, 2, (4,), activation).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in mlp.named_parameters()]

    def evaluate(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(mlp, dict(zip(names, parameters, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(evaluate, (x, *mlp.parameters()))
    assert torch.autograd.gradgradcheck(evaluate, (x, *mlp.parameters()))


def test_a_gradient_penalty_reaches_the_weights() -> None:
    torch.manual_seed(0)
    mlp = StackedMLP((), 3, 1, (4,), "tanh").double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    grads = []
    for network in (mlp, reference(mlp, ())):
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(slope.square().sum(), next(network.parameters()))[0])
    assert torch.allclose(grads[0], grads[1].T, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own forward mode uses it
def test_forward_derivatives_are_the_backward_ones() -> None:
    torch.manual_seed(0)
    mlp, x = StackedMLP((2,), 3, 2, (4,), "tanh").double(), torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(jacfwd(mlp)(x), torch.autograd.functional.jacobian(mlp, x), atol=1e-12)


def test_many_gradients_at_once() -> None:
    torch.manual_seed(0)
    mlp, x = StackedMLP((2,), 3, 2, (4,)), torch.randn(5, 3)
    jacobian, loop = (torch.autograd.functional.jacobian(mlp, x, vectorize=many) for many in (True, False))
    assert torch.allclose(jacobian, loop, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("free", [(0,), (1,), (2, 3), (5,)])
def test_parts_that_are_not_trained(free: tuple[int, ...], precision: str) -> None:
    """Each parameter's gradient is asked for by itself, not by what the first one needs."""
    torch.manual_seed(0)
    mlp = StackedMLP((2,), 4, 3, (8, 8), precision=precision)  # type: ignore[arg-type]
    x, order = torch.randn(5, 4), [p for pair in zip(mlp.weights, mlp.biases, strict=True) for p in pair]
    full = torch.autograd.grad(mlp(x).square().sum(), order)
    mlp.requires_grad_(False)
    for index in free:
        order[index].requires_grad_()
    grads = torch.autograd.grad(mlp(x).square().sum(), [order[index] for index in free])
    assert all(torch.equal(found, full[index]) for found, index in zip(grads, free, strict=True))


def test_a_frozen_evaluation_of_what_needs_no_gradient_gives_none() -> None:
    mlp = StackedMLP((), 2, 1, (3,))
    mlp(torch.ones(4, 2), frozen=True).sum().backward()
    assert all(parameter.grad is None for parameter in mlp.parameters())


# -- precision ---------------------------------------------------------------------------------------------------------

ROUNDING = 2.0**-8
"""bfloat16 has 8 bits: its numbers are this far apart, relative to themselves."""


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("stack", [(), (2,), (2, 2)])
def test_bfloat16_is_float32_within_rounding(activation: Activation, stack: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    half = StackedMLP(stack, 17, 5, (64, 64), activation, "bfloat16")
    exact = StackedMLP(stack, 17, 5, (64, 64), activation)
    exact.load_state_dict(half.state_dict())
    x = torch.randn(256, 17, requires_grad=True)
    results = []
    for mlp in (half, exact):
        out = mlp(x)
        results.append([out, *torch.autograd.grad(out.square().mean(), [x, *mlp.parameters()])])
    for ours, truth in zip(*results, strict=True):
        assert ours.dtype == truth.dtype == torch.float32
        # Inputs, weights, three layers and their gradients are rounded, about ten times in all, by half a spacing each:
        # errors add up like random ones, sqrt(10) / 2, and cancellation may double that. Where relu cuts, a share
        # ROUNDING of the units is so close to zero that rounding switches them, which is an error of its square root.
        bound = ROUNDING**0.5 if activation == "relu" else 4 * ROUNDING
        assert (ours - truth).norm() < bound * truth.norm()
    assert (results[0][0] - results[1][0]).norm() > 0.1 * ROUNDING * results[1][0].norm()  # it was really bfloat16


def test_bfloat16_by_separate_operations_is_the_same() -> None:
    """Under vmap and in second derivatives; to a rounding or two, as activations are computed in float32 there too."""
    torch.manual_seed(0)
    mlp = StackedMLP((2,), 6, 3, (16,), "tanh", "bfloat16")
    x = torch.randn(4, 9, 6, requires_grad=True)
    mapped = vmap(mlp)(x)
    one_by_one = torch.stack([mlp(part) for part in x])
    assert torch.allclose(mapped, one_by_one, atol=4 * ROUNDING)
    (slope,) = torch.autograd.grad(mlp(x[0]).sum(), x, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(slope.square().sum(), [*mlp.weights])[0]).all()


def test_bfloat16_relu_keeps_what_is_not_a_number() -> None:
    """It is computed on the bits as integers; a divergence must show, with either sign."""
    mlp = StackedMLP((), 1, 1, (1,), "relu", "bfloat16")
    with torch.no_grad():
        for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
            weight.fill_(1.0)
            bias.zero_()
    negative_nan = torch.tensor(-4194304, dtype=torch.int32).view(torch.float32)  # what x86 makes of inf - inf
    assert mlp(torch.stack([negative_nan, -negative_nan]).unsqueeze(1)).isnan().all()
    values = torch.tensor([-torch.inf, -2.0, -1e-38, -0.0, 0.0, 1e-38, 3.0, torch.inf]).unsqueeze(1)
    assert torch.equal(mlp(values), values.bfloat16().relu().float())


@pytest.mark.filterwarnings("ignore")  # what torch's own compiler warns of is not ours
def test_bfloat16_compiles() -> None:
    torch.manual_seed(0)
    mlp, x = StackedMLP((2,), 6, 3, (16,), "relu", "bfloat16"), torch.randn(9, 6)
    compiled = torch.compile(lambda x: mlp(x), fullgraph=True)
    grads = [torch.autograd.grad(f(x).square().sum(), [*mlp.weights]) for f in (mlp, compiled)]
    for ours, theirs in zip(*grads, strict=True):
        assert (ours - theirs).norm() < ROUNDING**0.5 * ours.norm()  # as above
