"""Networks that read the shares of a crowd."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with tanh between them, in float64 as crowds are.

    :param inputs: numbers read
    :param hidden: widths between
    :param outputs: numbers given
    :return: the network, initialised as torch does
    """
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs)).double()
