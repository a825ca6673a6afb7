"""The CPU's attention against diffusers' own."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from geodistill.prior import attention
from geodistill.prior.attention import CachedAttention


def _attend(processor: object, context: torch.Tensor | None, **more: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the same layer makes of the same states, and the gradient of its query weights."""
    torch.manual_seed(0)
    layer = Attention(query_dim=24, cross_attention_dim=None if context is None else 16, heads=3, dim_head=8, **more)
    layer.set_processor(processor)
    output = layer(torch.randn(2, 10, 24), encoder_hidden_states=context)
    output.square().sum().backward()
    gradient = layer.to_q.weight.grad
    assert gradient is not None
    return output.detach(), gradient


@pytest.mark.parametrize("context", [None, torch.linspace(-1, 1, 2 * 7 * 16).view(2, 7, 16)], ids=["self", "cross"])
@pytest.mark.parametrize("together", [100, 250, 2**20], ids=["a head at a time", "some", "all at once"])
def test_same_as_unfused_attention_to_the_bit_however_many_heads_at_a_time(
    monkeypatch: pytest.MonkeyPatch, context: torch.Tensor | None, together: int
) -> None:
    monkeypatch.setattr(attention, "_TOGETHER", together)
    output, gradient = _attend(CachedAttention(), context)
    plain, plain_gradient = _attend(AttnProcessor(), context)
    assert torch.equal(output, plain)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-5, atol=1e-6)


def test_scores_over_the_cache_are_left_to_the_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_TOGETHER", 99)
    output, gradient = _attend(CachedAttention(), None)
    fused, fused_gradient = _attend(AttnProcessor2_0(), None)
    assert torch.equal(output, fused)
    assert torch.equal(gradient, fused_gradient)


def test_a_layer_that_does_more_keeps_doing_it() -> None:
    output, _ = _attend(CachedAttention(), None, residual_connection=True)
    expected, _ = _attend(AttnProcessor2_0(), None, residual_connection=True)
    assert torch.equal(output, expected)
    assert not torch.allclose(output, _attend(CachedAttention(), None)[0])
