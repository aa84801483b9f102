"""Networks with what trains them, and their optimisers."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from headway.agents.core.nets import (
    SGD,
    Adam,
    Critics,
    DeterministicActor,
    Gaussian,
    LeanAdam,
    Optimiser,
    StackedMLP,
    Tracked,
    TrackedModules,
    clip_,
)
from headway.agents.core.nets.optimisers import NEGLIGIBLE, SWEEP
from headway.agents.core.spaces import VectorFeatures
from torch import Tensor, nn

CPU = torch.device("cpu")


def tracked(target: bool = True, max_grad_norm: float | None = None) -> TrackedModules:
    torch.manual_seed(0)
    modules = TrackedModules(CPU, 1e-2)
    modules.add("net", nn.Linear(3, 2), target=target, max_grad_norm=max_grad_norm)
    return modules


def test_minimise_touches_one_network_only() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    modules = TrackedModules(CPU, 1e-2)
    handle = modules.add("first", first)
    modules.add("second", second)
    before = second.weight.clone()
    handle.minimise(second(first(torch.ones(4, 2))).sum())
    assert torch.equal(second.weight, before)
    assert second.weight.grad is None
    assert first.weight.grad is not None


def test_follow_moves_by_tau() -> None:
    (handle,) = tracked()
    assert handle.target is not None
    with torch.no_grad():
        handle.module.weight.fill_(1.0)
        handle.target.weight.fill_(0.0)
    handle.follow(0.25)
    assert torch.equal(handle.target.weight, torch.full((2, 3), 0.25))
    assert not any(parameter.requires_grad for parameter in handle.target.parameters())
    handle.follow(1.0)
    assert torch.equal(handle.target.weight, handle.module.weight)


def test_gradients_are_clipped_by_norm() -> None:
    (handle,) = tracked(max_grad_norm=0.1)
    handle.minimise(1e3 * handle.module(torch.ones(4, 3)).square().sum())
    norm = torch.cat([parameter.grad.flatten() for parameter in handle.parameters]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-4)


def test_state_round_trip_continues_the_optimiser() -> None:
    straight, broken = tracked(), tracked()
    x = torch.randn(5, 3)

    def step(modules: TrackedModules) -> None:
        (handle,) = modules
        handle.minimise(handle.module(x).square().sum())
        handle.follow(0.1)

    for _ in range(4):
        step(straight)
    for _ in range(2):
        step(broken)
    saved = {name: tensor.clone() for name, tensor in broken.state().items()}
    fresh = tracked()
    fresh.load_state(saved)
    for _ in range(2):
        step(fresh)
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, fresh.state()[name]), name


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    modules = tracked()
    before = {name: tensor.clone() for name, tensor in modules.state().items()}
    for spoil in ({"net.online.weight": torch.zeros(1, 3)}, {"net.online.more": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"net\.online"):
            modules.load_state(modules.state() | spoil)
    assert all(torch.equal(tensor, before[name]) for name, tensor in modules.state().items())


def test_the_schedule_scales_every_networks_own_rate() -> None:
    modules = tracked()
    modules.add("slow", nn.Linear(2, 2), optimiser=Adam(learning_rate=1e-3))
    modules.add("fixed", nn.Linear(2, 2), frozen=True)
    modules.scale_learning_rates(0.5)
    groups = [group for handle in modules if handle.optimizer is not None for group in handle.optimizer.param_groups]
    assert [group["lr"] for group in groups] == [5e-3, 5e-4]
    assert set(modules.networks()) == {"net", "net_target", "slow", "fixed"}


OPTIMISERS: dict[str, tuple[Optimiser, Callable[[Any], torch.optim.Optimizer]]] = {
    "Adam": (Adam(betas=(0.8, 0.9), eps=1e-5), lambda p: torch.optim.Adam(p, 1e-2, (0.8, 0.9), 1e-5)),
    "decay": (Adam(weight_decay=0.1), lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1)),
    "AdamW": (Adam(weight_decay=0.1, decoupled=True), lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1)),
    "SGD": (SGD(learning_rate=0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (
        SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    ),
}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_are_torchs_also_where_a_loss_does_not_reach(name: str) -> None:
    """The right head is in one loss of three; the trunk's bias is not trained; files go on where they stopped."""
    torch.manual_seed(0)
    ours, theirs, resumed = TwoHeads(), TwoHeads(), TwoHeads()
    theirs.load_state_dict(ours.state_dict())
    for net in (ours, theirs, resumed):
        net.trunk.bias.requires_grad_(False)
    optimiser, make = OPTIMISERS[name]
    modules = TrackedModules(CPU, 1e-2)
    handle, peer = (
        modules.add("net", ours, optimiser=optimiser),
        make([p for p in theirs.parameters() if p.requires_grad]),
    )
    for step in range(12):
        x = torch.randn(8, 3)
        losses = []
        for net in (ours, theirs):
            hidden = net.trunk(x).tanh()
            losses.append(net.left(hidden).square().mean() + (net.right(hidden).mean() if step % 3 == 0 else 0))
        handle.minimise(losses[0])
        peer.zero_grad()
        losses[1].backward()
        peer.step()
        if step == 4:  # go on with a fresh agent
            fresh = TrackedModules(CPU, 1e-2)
            handle = fresh.add("net", resumed, optimiser=optimiser)
            fresh.load_state({key: tensor.clone() for key, tensor in modules.state().items()})
            ours = resumed
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_a_frozen_network_is_in_files_and_not_trained() -> None:
    modules = TrackedModules(CPU, 1e-2)
    handle = modules.add("net", nn.Linear(2, 1), frozen=True)
    assert set(modules.state()) == {"net.online.weight", "net.online.bias"}
    assert handle.optimizer is None
    with pytest.raises(RuntimeError, match="Linear is frozen"):
        handle.minimise(handle.module(torch.ones(1, 2)).sum())
    handle.module.weight.requires_grad_()  # freed later
    before = handle.module.bias.clone()
    handle.minimise(handle.module(torch.ones(1, 2)).sum())
    assert "net.optimizer.0.exp_avg" in modules.state()
    assert torch.equal(before, handle.module.bias)


def test_a_loss_that_reaches_nothing_is_an_error() -> None:
    (handle,) = tracked()
    with pytest.raises(RuntimeError, match="does not depend on any trained parameter"):
        handle.minimise(nn.Parameter(torch.zeros(())) * 2)


# -- what is not cached cannot lie -------------------------------------------------------------------------------------


def steps(handle: Tracked[Any], count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        handle.minimise(handle.module(torch.randn(5, 3, generator=generator)).square().sum())


def test_replaced_parameters_are_trained_followed_and_saved() -> None:
    """By load_state_dict(assign=True), by attribute, and by a whole new layer: a network goes on as if written into."""
    for replace in ("assign", "attribute"):
        written, replaced = tracked(), tracked()
        (ours,), (theirs,) = written, replaced
        for handle in (ours, theirs):
            steps(handle, 3, seed=1)
        values = {name: torch.full_like(value, 0.3) for name, value in ours.module.state_dict().items()}
        ours.module.load_state_dict(values)
        if replace == "assign":
            theirs.module.load_state_dict(values, assign=True)
        else:
            theirs.module.weight = nn.Parameter(values["weight"].clone())
            theirs.module.bias = nn.Parameter(values["bias"].clone())
        for handle in (ours, theirs):
            steps(handle, 3, seed=2)
            handle.follow(0.5)
        expected, found = written.state(), replaced.state()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), replace


def test_a_new_layer_is_trained_from_the_next_step() -> None:
    torch.manual_seed(0)
    modules = TrackedModules(CPU, 1e-2)
    handle = modules.add("net", nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    steps(handle, 2, seed=1)
    handle.module[1] = nn.Linear(4, 3)
    before = [parameter.clone() for parameter in handle.module.parameters()]
    steps(handle, 1, seed=2)
    assert not any(map(torch.equal, before, handle.module.parameters()))
    assert modules.state()["net.optimizer.2.exp_avg"].shape == (3, 4)
    assert modules.state()["net.optimizer.0.step"] == 3
    assert modules.state()["net.optimizer.2.step"] == 1


def test_what_two_parts_share_follows_once() -> None:
    shared = nn.Linear(1, 1)
    handle = TrackedModules(CPU, 1e-2).add("net", nn.Sequential(shared, shared), target=True)
    assert handle.target is not None
    with torch.no_grad():
        shared.weight.add_(1.0)
    start = handle.target[0].weight.clone()
    handle.follow(0.25)
    assert torch.allclose(handle.target[0].weight, start + 0.25)


def test_buffers_follow() -> None:
    handle = TrackedModules(CPU, 1e-2).add("net", nn.Sequential(nn.BatchNorm1d(2)), target=True)
    handle.module(torch.ones(4, 2))
    handle.follow(0.5)
    assert handle.target is not None
    assert handle.target[0].num_batches_tracked == 1
    assert torch.allclose(handle.target[0].running_mean, torch.full((2,), 0.05))


def one_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], grad: float) -> None:
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, grad)
    optimizer.step()


def pairs() -> tuple[list[nn.Parameter], list[nn.Parameter], LeanAdam, torch.optim.Adam]:
    ours, theirs = ([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))] for _ in range(2))
    return ours, theirs, LeanAdam(ours, 1e-2), torch.optim.Adam(theirs, 1e-2, fused=True)


def test_lean_adam_goes_on_from_a_loaded_state() -> None:
    ours, theirs, lean, peer = pairs()
    saved = []
    for optimizer, parameters in ((lean, ours), (peer, theirs)):
        one_step(optimizer, parameters, 1.0)
        saved.append(deepcopy(optimizer.state_dict()))
        one_step(optimizer, parameters, -5.0)
    for optimizer, parameters, state in ((lean, ours, saved[0]), (peer, theirs, saved[1])):
        optimizer.load_state_dict(state)
        one_step(optimizer, parameters, 2.0)
    assert all(map(torch.equal, ours, theirs))
    assert lean.state[ours[0]]["step"] == 2


def test_lean_adam_takes_up_further_parameters_and_copies() -> None:
    ours, theirs, lean, peer = pairs()
    for optimizer, parameters in ((lean, ours), (peer, theirs)):
        one_step(optimizer, parameters, 1.0)
        parameters.append(nn.Parameter(torch.ones(4)))
        optimizer.add_param_group({"params": [parameters[-1]], "lr": 1e-3})
        one_step(optimizer, parameters, 3.0)
    assert all(map(torch.equal, ours, theirs))
    copy_of, copied = deepcopy((lean, ours))
    one_step(copy_of, copied, 1.0)
    one_step(lean, ours, 1.0)
    assert all(map(torch.equal, ours, copied))


# -- gradient norms ----------------------------------------------------------------------------------------------------


def with_grads(module: nn.Module, seed: int = 0) -> None:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("stack", [(3,), (2, 3)])
def test_each_member_of_a_stack_is_clipped_by_its_own_norm(stack: tuple[int, ...]) -> None:
    module = nn.ModuleList([StackedMLP(stack, 4, 2, (5,)), Gaussian(2, stack=stack)])
    with_grads(module)
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    with torch.no_grad():
        for grad in grads:
            grad[0] *= 1e-3  # these are below the limit, and stay
    before = [grad.clone() for grad in grads]
    clip_(module, 0.5)
    for index in torch.cartesian_prod(*map(torch.arange, stack)).view(-1, len(stack)).tolist():
        member = [nn.Parameter(torch.zeros_like(grad[tuple(index)])) for grad in before]
        for parameter, grad in zip(member, before, strict=True):
            parameter.grad = grad[tuple(index)].clone()
        nn.utils.clip_grad_norm_(member, 0.5)
        for parameter, grad in zip(member, grads, strict=True):
            assert torch.allclose(grad[tuple(index)], parameter.grad, atol=1e-7)  # type: ignore[arg-type]


def test_a_plain_network_is_clipped_as_torch_does() -> None:
    joint = nn.ModuleList([StackedMLP((), 2, 2, (3,)), Gaussian(2), nn.Linear(2, 2)])
    same = deepcopy(joint)
    with_grads(joint)
    with_grads(same)
    clip_(joint, 0.5)
    nn.utils.clip_grad_norm_(same.parameters(), 0.5)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(joint.parameters(), same.parameters(), strict=True))  # type: ignore[arg-type]


def test_gradients_that_are_transposed_views_are_clipped_too() -> None:
    mlp = StackedMLP((2,), 3, 4, ())
    weight = mlp.weights[0]
    weight.grad = torch.ones(2, 4, 3).mT
    clip_(mlp, 1.0)
    assert torch.allclose(weight.grad.flatten(1).norm(dim=1), torch.ones(2), atol=1e-4)


def test_one_loss_trains_an_actor_and_a_critic() -> None:
    """PPO's: both in one module, one backward pass, one norm."""
    torch.manual_seed(0)
    features = VectorFeatures(3)
    joint = nn.ModuleDict({"actor": DeterministicActor(features, 1, (4,)), "critics": Critics(features, 1, (4,))})
    handle = TrackedModules(CPU, 1e-2).add("joint", joint, max_grad_norm=0.5)
    before = [parameter.clone() for parameter in joint.parameters()]
    obs = torch.randn(6, 3)
    actions: Tensor = joint["actor"].mode(obs)
    handle.minimise(joint["critics"](obs, actions.detach()).square().mean() + actions.square().mean())
    assert not any(map(torch.equal, before, joint.parameters()))


def test_lean_adam_is_torchs_bit_for_bit() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [LeanAdam(list(nets[0].parameters()), 1e-2), torch.optim.Adam(nets[1].parameters(), 1e-2, fused=True)]
    for step in range(25):
        x = torch.randn(8, 5)
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizers[0].state[ours][name], optimizers[1].state[theirs][name])


def test_lean_adam_leaves_no_denormals_and_the_same_weights() -> None:
    torch.manual_seed(0)
    nets = [nn.Linear(6, 6) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [LeanAdam(list(nets[0].parameters()), 1e-2), torch.optim.Adam(nets[1].parameters(), 1e-2, fused=True)]
    for step in range(12 * SWEEP):
        for net, optimizer in zip(nets, optimizers, strict=True):
            # Half the outputs get a gradient at first, then none: dead units.
            alive = 6 if step < 10 else 3
            optimizer.zero_grad()
            net(torch.ones(2, 6))[:, :alive].square().sum().backward()
            optimizer.step()
    tiny = torch.finfo(torch.float32).tiny
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        moments = [optimizer.state[p]["exp_avg"].abs() for optimizer, p in zip(optimizers, (ours, theirs), strict=True)]
        assert ((moments[1] > 0) & (moments[1] < tiny)).any()
        assert not ((moments[0] > 0) & (moments[0] < NEGLIGIBLE * 1e-6)).any()


def test_files_of_single_networks_as_stacks_of_one_are_read() -> None:
    modules = TrackedModules(CPU, 1e-2)
    modules.add("net", StackedMLP((), 3, 2, (4,)), target=True)
    old = {name: torch.rand(1, *tensor.shape) for name, tensor in modules.state().items() if "step" not in name}
    modules.load_state(modules.state() | old)
    assert all(torch.equal(modules.state()[name], tensor[0]) for name, tensor in old.items())


def test_hooks_around_a_lean_step_are_refused() -> None:
    """Its steps are not wrapped, so a hook would never be called."""
    optimizer = LeanAdam([nn.Parameter(torch.zeros(1))], 1e-2)
    for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
        with pytest.raises(NotImplementedError, match="no hooks"):
            register(lambda *_: None)
