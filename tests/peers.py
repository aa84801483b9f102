"""Weights of Stable-Baselines3's networks in ours, and how far the two are apart."""

from collections.abc import Iterator

import torch
from headway.agents.core.nets import StackedMLP
from torch import Tensor, nn

TOLERANCE = 1e-5
"""On every parameter. Both sides compute in float32, but sum in another order, and Adam divides by small numbers."""


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def places(mlp: StackedMLP, member: int, layers: list[nn.Linear]) -> Iterator[tuple[Tensor, Tensor]]:
    """One member's weights and biases, and the layers'; of a member, outputs beyond the layer's are left out."""
    for weight, bias, layer in zip(mlp.weights, mlp.biases, layers, strict=True):
        for ours, theirs in ((weight, layer.weight.T), (bias, layer.bias.unsqueeze(0))):
            yield ours.view(-1, *ours.shape[-2:])[member, :, : layer.out_features], theirs


@torch.no_grad()
def copy_into(mlp: StackedMLP, member: int, layers: list[nn.Linear]) -> None:
    """Copy a chain of linear layers into one member."""
    for ours, theirs in places(mlp, member, layers):
        ours.copy_(theirs)


@torch.no_grad()
def gap(mlp: StackedMLP, member: int, layers: list[nn.Linear]) -> float:
    """Largest difference between one member and a chain of linear layers."""
    return max(float((ours - theirs).abs().max()) for ours, theirs in places(mlp, member, layers))
