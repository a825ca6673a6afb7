"""Attention and adapter projections with a fast backward pass on the CPU."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from peft.tuners.lora import Linear as AdaptedLinear
from torch import Tensor, nn
from torch.nn import functional as F

# Number of attention scores computed together: this many fit into a core's cache, 2 MB in bf16.
_TOGETHER = 2**20


class CachedAttention:
    """Attention processor that handles as many heads at a time as keep their scores in the cache.

    In bf16, a training step of the compact U-Net takes 1.15 to 1.25 times as long with torch's fused attention (one
    core of an AMD EPYC with AVX-512 BF16, 64 latents, torch 2.13). In float32, fused attention is faster and is used.
    It is also used if the scores of one head exceed the cache, because storing them would fill the memory. Layers that
    do more than attend use diffusers' stock processor, which is fused too.
    """

    def __init__(self) -> None:
        self._stock = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return [n, tokens, width]: `hidden_states` after attention to `encoder_hidden_states` or to themselves."""
        if attention_mask is not None or _does_more(attn):
            done: Tensor = self._stock(attn, hidden_states, encoder_hidden_states, attention_mask)
            return done
        if encoder_hidden_states is None:
            projected = project((attn.to_q, attn.to_k, attn.to_v), hidden_states)
        else:
            projected = project((attn.to_q,), hidden_states)
            projected += project((attn.to_k, attn.to_v), encoder_hidden_states)
        scores = projected[0].shape[1] * projected[1].shape[1]
        fused = scores > _TOGETHER or projected[0].dtype == torch.float32
        attended = _fused(attn, projected) if fused else _in_parts(attn, projected, _TOGETHER // scores)
        (output,) = project((attn.to_out[0],), attended)
        dropped: Tensor = attn.to_out[1](output)
        return dropped


def _fused(attn: Attention, projected: Sequence[Tensor]) -> Tensor:
    queries, keys, values = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in projected)
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def _in_parts(attn: Attention, projected: Sequence[Tensor], heads: int) -> Tensor:
    queries, keys, values = (attn.head_to_batch_dim(part).split(heads) for part in projected)
    parts: Any = zip(queries, keys, values, strict=True)
    attended: Tensor = attn.batch_to_head_dim(
        torch.cat([torch.bmm(attn.get_attention_scores(q, k), v) for q, k, v in parts])
    )
    return attended


def _does_more(attn: Attention) -> bool:
    """Return whether the layer has its own norm or residual; those in a U-Net's transformers have neither."""
    norms = attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k
    return attn.residual_connection or any(norm is not None and norm is not False for norm in norms)


def project(layers: Sequence[nn.Module], states: Tensor) -> list[Tensor]:
    """Return each layer's output for `states` [n, tokens, width]; adapted layers share one product."""
    adapted = [layer for layer in layers if isinstance(layer, AdaptedLinear) and not layer.weight.requires_grad]
    if len(adapted) < len(layers):
        return [layer(states) for layer in layers]
    names = [layer.active_adapters[0] for layer in adapted]
    bases: Any = [layer.base_layer for layer in adapted]
    weight = torch.cat([base.weight for base in bases])
    bias = None if bases[0].bias is None else torch.cat([base.bias for base in bases])
    down = torch.cat([layer.lora_A[name].weight for layer, name in zip(adapted, names, strict=True)])
    ups = [layer.scaling[name] * layer.lora_B[name].weight for layer, name in zip(adapted, names, strict=True)]
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    tensors = (states, weight, bias, down, torch.block_diag(*ups))
    inputs = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
    output: Tensor = _LowRank.apply(*inputs)  # type: ignore[no-untyped-call]
    return list(output.split([base.out_features for base in bases], dim=-1))


class _LowRank(torch.autograd.Function):
    """states @ weight^T + bias + states @ down^T @ up^T, where only `down` and `up` are trained.

    Both passes add up the products in place. PEFT's layer goes over the tokens again for each addition, which makes a
    step 2 to 4 % longer (as above).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        flat = states.flatten(0, -2)
        narrow = flat @ down.T
        output = F.linear(flat, weight, bias).addmm_(narrow, up.T)
        ctx.save_for_backward(flat, weight, down, up, narrow)
        return output.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, down, up, narrow = ctx.saved_tensors
        coming = gradient.flatten(0, -2)
        squeezed = coming @ up
        of_states = None
        if ctx.needs_input_grad[0]:
            of_states = (coming @ weight).addmm_(squeezed, down).view(*gradient.shape[:-1], -1)
        return of_states, None, None, squeezed.T @ flat, coming.T @ narrow
