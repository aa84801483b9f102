import pytest
import torch
from headway.agents.core.nets import TrackedModules
from headway.agents.core.nets.adam import NEGLIGIBLE, SWEEP, LeanAdam
from torch import nn


def tracked(target: bool = True, max_grad_norm: float | None = None) -> TrackedModules:
    torch.manual_seed(0)
    modules = TrackedModules(torch.device("cpu"))
    modules.add("net", nn.Linear(3, 2), 1e-2, target=target, max_grad_norm=max_grad_norm)
    return modules


def test_minimise_touches_one_network_only() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    modules = TrackedModules(torch.device("cpu"))
    handle = modules.add("first", first, 1e-2)
    modules.add("second", second, 1e-2)
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


def test_learning_rate_reaches_every_optimiser() -> None:
    modules = tracked()
    modules.set_learning_rate(0.5)
    assert [group["lr"] for handle in modules for group in handle.optimizer.param_groups] == [0.5]
    assert set(modules.networks()) == {"net", "net_target"}


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
