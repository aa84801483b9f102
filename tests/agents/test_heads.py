from collections.abc import Callable
from typing import Any

import pytest
import torch
from headway.agents.core.nets import (
    Actor,
    ActorValue,
    Categorical,
    Critics,
    DeterministicActor,
    Gaussian,
    Head,
    QValues,
    SquashedGaussianActor,
    StateCritics,
    Temperature,
    orthogonal_,
)
from headway.agents.core.nets.heads import SATURATION
from headway.agents.core.nets.policies import BoundedGaussian, DensityActor, LayerNormCritics
from headway.agents.core.spaces import VectorFeatures
from stable_baselines3 import PPO
from torch import Tensor, nn
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution


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
    mean, noise, gaussian = torch.randn(6, 2), torch.randn(6, 2), Gaussian(2, log_std_init=-0.5)
    actions, log_prob = gaussian.sample(mean, noise)
    expected = Independent(Normal(gaussian.mode(mean), gaussian.log_std.exp()), 1).log_prob(actions)
    assert torch.allclose(log_prob, expected, atol=1e-5)
    assert torch.allclose(gaussian.evaluate(mean, actions)[0], expected, atol=1e-5)
    for actor in (DeterministicActor(VectorFeatures(3), 2, (8,)), SquashedGaussianActor(VectorFeatures(3), 2, (8,))):
        mode = actor.mode(torch.randn(6, 3))
        assert mode.shape == (6, 2)
        assert (mode.abs() <= 1).all()


@pytest.mark.parametrize("stack", [(), (3,), (3, 2)])
def test_gaussian_gradients_are_its_equations(stack: tuple[int, ...]) -> None:
    """First and second derivatives against finite differences; actions are shared by all members."""
    torch.manual_seed(0)
    gaussian, mean = Gaussian(2, stack=stack).double(), torch.randn(*stack, 5, 2).double().requires_grad_()
    actions = torch.randn(5, 2).double().requires_grad_()
    log_std = (0.3 * torch.randn(*stack, 1, 2)).double().requires_grad_()

    def density(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(gaussian, {"log_std": log_std}, (mean, actions))
        return found

    gaussian.forward = lambda mean, actions: gaussian.evaluate(mean, actions)[0]  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(density, (mean, log_std, actions))
    assert torch.autograd.gradgradcheck(density, (mean, log_std, actions))
    if not stack:  # a transformation of torch.func takes the plain form
        rows = torch.func.vmap(torch.func.grad(lambda m: density(m[None], log_std, actions[:1]).sum()))(mean)
        (whole,) = torch.autograd.grad(density(mean, log_std, actions[:1].expand(5, 2)).sum(), [mean])
        assert torch.allclose(rows, whole)


def test_temperature_is_positive_and_free_of_gradient() -> None:
    temperature = Temperature(0.3)
    assert temperature.alpha.item() == pytest.approx(0.3)
    assert not temperature.alpha.requires_grad
    assert torch.allclose(Temperature(0.3, (2,)).alpha, torch.tensor([0.3, 0.3]))


def test_gaussian_entropy_is_torchs() -> None:
    torch.manual_seed(0)
    gaussian, mean, actions = Gaussian(2, log_std_init=0.3), torch.randn(6, 2), torch.randn(6, 2)
    log_prob, entropy = gaussian.evaluate(mean, actions)
    expected = Independent(Normal(mean, gaussian.log_std.exp()), 1)
    assert torch.allclose(log_prob, expected.log_prob(actions), atol=1e-5)
    assert torch.allclose(entropy.expand(6), expected.entropy(), atol=1e-5)


def test_categorical_density_is_torchs() -> None:
    torch.manual_seed(0)
    policy, logits = Categorical(5), torch.randn(6, 5)
    expected = TorchCategorical(logits=logits)
    actions, log_prob = policy.sample(logits, policy.noise(6, torch.Generator().manual_seed(0)))
    assert actions.shape == (6,)
    assert actions.dtype == torch.int64
    assert torch.allclose(log_prob, expected.log_prob(actions), atol=1e-6)
    evaluated = policy.evaluate(logits, actions)
    assert torch.equal(evaluated[0], log_prob)
    assert torch.allclose(evaluated[1], expected.entropy(), atol=1e-6)
    assert torch.equal(policy.mode(logits), expected.probs.argmax(-1))


def test_several_choices_are_independent_ones() -> None:
    torch.manual_seed(0)
    policy, logits = Categorical([4, 2, 3]), torch.randn(6, 9, requires_grad=True)
    expected = [TorchCategorical(logits=part) for part in logits.split([4, 2, 3], -1)]
    actions, log_prob = policy.sample(logits, policy.noise(6, torch.Generator().manual_seed(0)))
    assert actions.shape == (6, 3)
    assert (actions.amax(0) < torch.tensor([4, 2, 3])).all()
    sums = [sum(part.log_prob(a) for part, a in zip(expected, actions.unbind(1), strict=True))]
    sums.append(sum(part.entropy() for part in expected))
    evaluated = policy.evaluate(logits, actions)
    assert all(map(torch.allclose, evaluated, sums))
    assert torch.allclose(log_prob, sums[0])
    (grad,) = torch.autograd.grad(evaluated[1].sum(), [logits])
    assert torch.isfinite(grad).all()
    assert torch.equal(policy.mode(logits), torch.stack([part.probs.argmax(-1) for part in expected], -1))


@pytest.mark.parametrize("choices", [4, [4, 2]])
def test_categorical_samples_have_the_probabilities(choices: int | list[int]) -> None:
    torch.manual_seed(0)
    policy, rows = Categorical(choices), 20_000
    logits = torch.randn(1, policy.outputs).expand(rows, -1)
    actions, _ = policy.sample(logits, policy.noise(rows, torch.Generator().manual_seed(0)))
    probabilities = policy.log_probs(logits[:1]).exp().squeeze(0)  # (K, most)
    for k, column in enumerate(actions.view(rows, -1).unbind(1)):
        shares = column.bincount(minlength=4) / rows
        assert (shares - probabilities[k]).abs().max() < 5 * (0.25 / rows) ** 0.5  # five standard errors at most


def test_values_of_states_and_of_every_action() -> None:
    torch.manual_seed(0)
    obs = torch.randn(6, 3)
    assert [part.shape for part in ActorValue(VectorFeatures(3), Categorical(4), (8,))(obs)] == [(6, 4), (6,)]
    assert StateCritics(VectorFeatures(3), (8,))(obs).shape == (2, 6)
    assert QValues(VectorFeatures(3), 4, (8,))(obs).shape == (1, 6, 4)


HEADS: dict[str, Callable[..., Head]] = {
    "squashed": lambda features, **kw: SquashedGaussianActor(features, 2, (8,), **kw),
    "gaussian": lambda features, **kw: ActorValue(features, Gaussian(2, stack=kw.get("stack", ())), (8,), **kw),
    "deterministic": lambda features, **kw: DeterministicActor(features, 2, (8,), **kw),
    "categorical": lambda features, **kw: ActorValue(features, Categorical(4, stack=kw.get("stack", ())), (8,), **kw),
    "several": lambda features, **kw: ActorValue(features, Categorical([4, 2], stack=kw.get("stack", ())), (8,), **kw),
    "critics": lambda features, **kw: Critics(features, 2, (8,), **kw),
    "states": lambda features, **kw: StateCritics(features, (8,), **kw),
    "q": lambda features, **kw: QValues(features, 4, (8,), n_critics=2, **kw),
}


def outputs(head: Any, obs: Tensor, noise: Tensor | None, actions: Tensor) -> list[Tensor]:
    """All that a head says."""
    if isinstance(head, Critics):
        return [head(obs, actions), head.first(obs, actions), head(obs, actions, frozen=True)]
    if isinstance(head, ActorValue):
        said, values = head(obs)
        middle = torch.full_like(head.policy.noise(said.shape[-2], torch.Generator()), 0.5)
        drawn, _ = head.policy.sample(said, middle)
        return [said, values, head.policy.mode(said), *head.policy.evaluate(said, drawn)]
    if not isinstance(head, Actor):
        return [head(obs)]
    return [head.mode(obs), *(() if noise is None else head.sample(obs, noise))]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_a_population_is_its_members(name: str, shared: bool) -> None:
    torch.manual_seed(0)
    P, B = 3, 5
    population = HEADS[name](VectorFeatures(4), stack=(P,))
    obs = torch.randn(B, 4) if shared else torch.randn(P, B, 4)
    actions = torch.rand(P, B, 2)
    noise = None
    if isinstance(population, Actor) and population.noise_dim:
        noise = population.noise(B, torch.Generator().manual_seed(0))
    together = outputs(population, obs, noise, actions)
    for p in range(P):
        member = HEADS[name](VectorFeatures(4))
        member.load_state_dict({key: value[p] for key, value in population.state_dict().items()})
        alone = outputs(member, obs if shared else obs[p], None if noise is None else noise[p], actions[p])
        for ours, expected in zip(together, alone, strict=True):
            assert torch.allclose(ours[p], expected, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_takes_a_precision(name: str) -> None:
    head = HEADS[name](VectorFeatures(4), precision="bfloat16")
    assert head.mlp.precision == "bfloat16"
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


def test_heads_of_agents_that_learn_from_data_take_what_others_do() -> None:
    options: dict[str, Any] = {"stack": (3,), "precision": "bfloat16", "activation": "elu"}
    policy = BoundedGaussian(2, stack=(3,))
    critics, actor = (
        LayerNormCritics(VectorFeatures(4), 2, (8,), n_critics=5, **options),
        DensityActor(VectorFeatures(4), policy, (8,), **options),
    )
    assert critics(torch.zeros(6, 4), torch.zeros(3, 6, 2)).shape == (3, 5, 6)
    assert actor.mode(torch.zeros(6, 4)).shape == (3, 6, 2)
    assert {(head.mlp.precision, head.mlp.activation) for head in (critics, actor)} == {("bfloat16", "elu")}


def test_orthogonal_start_is_the_peers() -> None:
    """Stable-Baselines3 initialises layer by layer with the same gains, so the same seed gives the same weights."""
    peer = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu").policy
    layers = {
        "actor": [*peer.mlp_extractor.policy_net, peer.action_net],
        "value": [*peer.mlp_extractor.value_net, peer.value_net],
    }
    heads: dict[str, Head] = {
        "actor": DeterministicActor(VectorFeatures(3), 1, (64, 64)),
        "value": Head(VectorFeatures(3), 1, (64, 64), "tanh", (), "float32"),
    }
    for name, gain in (("actor", 0.01), ("value", 1.0)):
        linears = [layer for layer in layers[name] if isinstance(layer, nn.Linear)]
        torch.manual_seed(1)
        orthogonal_(heads[name], gain)
        torch.manual_seed(1)
        for index, layer in enumerate(linears):
            layer.apply(lambda m, g=gain, last=index == 2: peer.init_weights(m, g if last else 2**0.5))
            assert torch.equal(heads[name].mlp.weights[index].T, layer.weight)
            assert not heads[name].mlp.biases[index].any()


def test_each_member_starts_orthogonal_and_so_do_features() -> None:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(6, 6))
    features.features_dim = 6  # type: ignore[assignment]
    head = QValues(features, 4, (8,), stack=(2,), n_critics=3)
    orthogonal_(head, 0.5)
    assert torch.allclose(features[0].weight @ features[0].weight.T, 2 * torch.eye(6), atol=1e-5)  # type: ignore[operator]
    first, last = head.mlp.weights
    assert torch.allclose(first @ first.mT, (2 * torch.eye(6)).expand(2, 3, 6, 6), atol=1e-5)
    assert torch.allclose(last.mT @ last, (0.25 * torch.eye(4)).expand(2, 3, 4, 4), atol=1e-5)
    assert not torch.equal(first[0, 0], first[1, 2])


def test_a_bounded_gaussian_is_around_tanh() -> None:
    """Its density is torch's, before clipping; samples are reparametrised; the deviation is bounded."""
    torch.manual_seed(0)
    policy = BoundedGaussian(2, log_std_init=-0.5, bounds=(-5.0, 1.0), stack=(3,))
    policy.raw_log_std.data += torch.randn(3, 1, 2)
    policy.raw_log_std.data[0, 0, 0] = 9.0
    outputs, noise = torch.randn(3, 7, 2), torch.randn(3, 7, 2)
    law = Independent(Normal(outputs.tanh(), policy.log_std.exp()), 1)
    actions, log_prob = policy.sample(outputs, noise)
    assert torch.allclose(actions, outputs.tanh() + noise * policy.log_std.exp())
    assert torch.allclose(log_prob, law.log_prob(actions), atol=1e-5)
    beyond = torch.full((3, 7, 2), 1.5)
    assert torch.allclose(policy.log_prob(outputs, beyond), law.log_prob(beyond), atol=1e-5)
    assert policy.log_std[0, 0, 0] == 1.0
    assert torch.equal(policy.mode(outputs), outputs.tanh())
    gradient, wanted = (
        torch.autograd.grad(density(given).sum(), [given, policy.raw_log_std])
        for density, given in (
            (lambda x: policy.log_prob(x, beyond), outputs.clone().requires_grad_()),
            (
                lambda x: Independent(Normal(x.tanh(), policy.log_std.exp()), 1).log_prob(beyond),
                outputs.clone().requires_grad_(),
            ),
        )
    )
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(gradient, wanted, strict=True))


def test_the_log_probability_of_choices_alone() -> None:
    torch.manual_seed(0)
    policy, logits, picks = Categorical(4, stack=(3,)), torch.randn(3, 7, 4), torch.randint(4, (3, 7))
    assert torch.equal(policy.log_prob(logits, picks), policy.evaluate(logits, picks)[0])
