"""Attention whose gradient is quick on the CPU."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

# Scores computed together: so many stay in a core's cache, 2 MB in bf16.
_TOGETHER = 2**20


class CachedAttention:
    """Softmax of the scores times the values, for as many heads at a time as leave their scores in the cache.

    On the CPU the gradient of torch's fused attention takes about twice as long. Where the scores of one head are more
    than the cache holds, keeping them would fill the memory, and the fused attention is taken, as it is where a layer
    does more than attend.
    """

    def __init__(self) -> None:
        self._fused = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return [n, tokens, width] of `hidden_states`, attending to `encoder_hidden_states` or to themselves."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        scores = hidden_states.shape[1] * context.shape[1]
        if scores > _TOGETHER or attention_mask is not None or _does_more(attn):
            fused: Tensor = self._fused(attn, hidden_states, encoder_hidden_states, attention_mask)
            return fused
        queries, keys, values = (
            attn.head_to_batch_dim(project(states))
            for project, states in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        heads = _TOGETHER // scores
        parts: Any = zip(queries.split(heads), keys.split(heads), values.split(heads), strict=True)
        attended = torch.cat([torch.bmm(attn.get_attention_scores(q, k), v) for q, k, v in parts])
        output: Tensor = attn.batch_to_head_dim(attended)
        for layer in attn.to_out:
            output = layer(output)
        return output


def _does_more(attn: Attention) -> bool:
    """Whether the layer has a norm or a residual of its own, as those in a U-Net's transformers have not."""
    norms = attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k
    return attn.residual_connection or any(norm is not None and norm is not False for norm in norms)
