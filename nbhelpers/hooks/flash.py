"""The key profile in two passes of a fused attention kernel, at memory proportional to the length.

A fused kernel never holds the matrix; beside its output it gives the log-sum-exp of each row's scores. The
first pass gives it for the queries, λ_i = log Σ_j exp s_ij. What a key receives is Σ_i exp(s_ij − λ_i), again
a sum of exponentials: of a second pass in which keys and queries change roles and λ is an extra column of
the vectors, q̃_i = (q_i, −λ_i), k̃_j = (k_j, 1). Read from the end, a causal mask is causal again.
"""

import torch

from .reductions import KeyProfile

LEAST_KEYS = 2048  # below, blocks of the matrix fit and serve all reductions at once


def plain(layout, weight, mask, options):
    """Return whether a layer's attention is the softmax of products alone, with at most a causal mask."""
    bare = all(options.get(name) is None for name in ("softcap", "position_bias", "s_aux"))
    return bare and weight is None and mask is None and layout.n_queries == layout.n_keys


def pays(layout):
    """Return whether two fused passes are faster than blocks."""
    return layout.device.type == "cuda" and layout.n_keys >= LEAST_KEYS


def suits(reductions, layout, weight, mask, options):
    """Return whether two fused passes give what is asked: the key profile alone, of plain attention."""
    alone = all(type(reduction) is KeyProfile for reduction in reductions)
    return alone and pays(layout) and plain(layout, weight, mask, options)


def key_sums(query, key, *, scaling, causal):
    """Return the attention that each key receives, summed over the queries, (batch, head, key) in float32."""
    query = query.float() * scaling  # (batch, head, query, head_dim)
    key = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)  # (batch, head, key, head_dim)
    rows = log_sum_exp(query, key, causal)[..., None]  # (batch, head, query, 1)
    # Kernels take head widths that are multiples of 8.
    spare = query.new_zeros(*query.shape[:-1], 7)
    queries = torch.cat([query, -rows, spare], -1).flip(-2)  # (batch, head, query, head_dim + 8)
    keys = torch.cat([key, torch.ones_like(rows), spare], -1).flip(-2)  # (batch, head, key, head_dim + 8)
    return log_sum_exp(keys, queries, causal).flip(-1).exp()


def log_sum_exp(query, key, causal):
    """Return log Σ_j exp(q_i · k_j) of each row, (batch, head, query), without holding the scores."""
    if query.device.type == "cuda":
        narrow = key[..., :8].contiguous()  # the values are of no interest, only what weighs them
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        found = kernel(query, key, narrow, None, True, 0.0, causal, scale=1.0)[1]
        return found[..., : query.shape[-2]]  # padded to a multiple of 32
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, key, 0.0, causal, attn_mask=None, scale=1.0)[1]
