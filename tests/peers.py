"""Weights of Stable-Baselines3's networks in ours, and how far the two are apart."""

import torch
from headway.agents.core.nets import StackedMLP
from torch import nn

TOLERANCE = 1e-5
"""On every parameter. Both sides compute in float32, but sum in another order, and Adam divides by small numbers."""


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def copy_into(mlp: StackedMLP, member: int, layers: list[nn.Linear]) -> None:
    """Copy a chain of linear layers into one member."""
    with torch.no_grad():
        for weight, bias, layer in zip(mlp.weights, mlp.biases, layers, strict=True):
            weight.view(-1, *weight.shape[-2:])[member].copy_(layer.weight.T)
            bias.view(-1, layer.out_features)[member].copy_(layer.bias)


@torch.no_grad()
def gap(mlp: StackedMLP, member: int, layers: list[nn.Linear]) -> float:
    """Largest difference between one member and a chain of linear layers."""
    found = 0.0
    for weight, bias, layer in zip(mlp.weights, mlp.biases, layers, strict=True):
        found = max(
            found,
            float((weight.view(-1, *weight.shape[-2:])[member] - layer.weight.T).abs().max()),
            float((bias.view(-1, layer.out_features)[member] - layer.bias).abs().max()),
        )
    return found
