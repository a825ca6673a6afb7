"""The CPU's attention and projections against diffusers' and PEFT's own."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from geodistill.prior import attention
from geodistill.prior.attention import CachedAttention, project

CONTEXTS = {"self": None, "cross": torch.linspace(-1, 1, 2 * 7 * 16).view(2, 7, 16)}


def _attend(
    processor: object, context: torch.Tensor | None, dtype: torch.dtype = torch.bfloat16, **more: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the same layer makes of the same states, and the gradient of its query weights."""
    torch.manual_seed(0)
    layer = Attention(query_dim=24, cross_attention_dim=None if context is None else 16, heads=3, dim_head=8, **more)
    layer.to(dtype).set_processor(processor)
    states = torch.randn(2, 10, 24).to(dtype)
    output = layer(states, encoder_hidden_states=None if context is None else context.to(dtype))
    output.square().sum().backward()
    gradient = layer.to_q.weight.grad
    assert gradient is not None
    return output.detach(), gradient


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("together", [100, 250, 2**20], ids=["a head at a time", "some", "all at once"])
def test_same_as_unfused_attention_to_the_bit_however_many_heads_at_a_time(
    monkeypatch: pytest.MonkeyPatch, context: torch.Tensor | None, together: int
) -> None:
    monkeypatch.setattr(attention, "_TOGETHER", together)
    output, gradient = _attend(CachedAttention(), context)
    plain, plain_gradient = _attend(AttnProcessor(), context)
    assert torch.equal(output, plain)
    torch.testing.assert_close(gradient, plain_gradient)


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize(("dtype", "together"), [(torch.float32, 2**20), (torch.bfloat16, 69)])
def test_float32_and_scores_over_the_cache_are_left_to_the_fused_attention(
    monkeypatch: pytest.MonkeyPatch, context: torch.Tensor | None, dtype: torch.dtype, together: int
) -> None:
    monkeypatch.setattr(attention, "_TOGETHER", together)
    output, gradient = _attend(CachedAttention(), context, dtype)
    fused, fused_gradient = _attend(AttnProcessor2_0(), context, dtype)
    assert torch.equal(output, fused)
    assert torch.equal(gradient, fused_gradient)


def test_a_layer_that_does_more_keeps_doing_it() -> None:
    output, _ = _attend(CachedAttention(), None, residual_connection=True)
    expected, _ = _attend(AttnProcessor2_0(), None, residual_connection=True)
    assert torch.equal(output, expected)
    assert not torch.allclose(output, _attend(CachedAttention(), None)[0])


def _adapted(*, bias: bool, scaling: float) -> nn.ModuleDict:
    """Return three layers over the same 12 features, of 8, 8 and 20 outputs, with adapters that are not zero."""
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {name: nn.Linear(12, width, bias=bias) for name, width in zip("abc", (8, 8, 20), strict=True)}
    )
    layers.requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=2 * scaling, target_modules=list("abc"))
    inject_adapter_in_model(config, layers)
    for name, weight in layers.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    return layers


def _learn(outputs: list[torch.Tensor], layers: nn.Module, states: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients of an uneven sum of `outputs`: of the adapters', then of `states`."""
    total = sum(((index + 1) * output.sin()).sum() for index, output in enumerate(outputs))
    assert isinstance(total, torch.Tensor)
    learned = [p for p in layers.parameters() if p.requires_grad]
    return list(torch.autograd.grad(total, [*learned, states]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("names", ["abc", "c"])
def test_projections_are_those_of_an_adapters_own_layers(names: str, bias: bool) -> None:
    layers = _adapted(bias=bias, scaling=0.5)
    chosen = nn.ModuleList(layers[name] for name in names)
    states = torch.randn(2, 5, 12, requires_grad=True)
    ours, theirs = project(list(chosen), states), [layer(states) for layer in chosen]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_learn(ours, chosen, states), _learn(theirs, chosen, states))


def test_projections_are_of_the_type_of_frozen_weights_and_gradients_of_the_learned_ones() -> None:
    layers = _adapted(bias=True, scaling=1)
    chosen = nn.ModuleList(layers.values())
    states = torch.randn(2, 5, 12, requires_grad=True)
    exact = _learn([layer(states) for layer in chosen], chosen, states)
    for layer in chosen:
        layer.base_layer.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        projected = project(list(chosen), states)
    assert {one.dtype for one in projected} == {torch.bfloat16}
    rough = _learn(projected, chosen, states)
    assert {one.dtype for one in rough} == {torch.float32}
    for one, other in zip(rough, exact, strict=True):
        assert 0 < float((one - other).norm() / other.norm()) < 0.05


def test_layers_that_learn_whole_keep_their_gradient() -> None:
    layers = _adapted(bias=True, scaling=1)
    layers.requires_grad_(True)
    chosen = nn.ModuleList(layers.values())
    states = torch.randn(2, 5, 12, requires_grad=True)
    ours, theirs = project(list(chosen), states), [layer(states) for layer in chosen]
    assert all(map(torch.equal, _learn(ours, chosen, states), _learn(theirs, chosen, states)))
