"""Hold attention as capture forms it against what the model's own function made of it.

Whatever a model does to its scores, its function gives A·V. Formed again from captured attention and the
values, the last rows must come out the same; those rows see most keys, so masks that begin late show.
"""

import torch

ROWS = 4  # of each layer and batch
TOLERANCE = 1e-3  # relative to the largest entry of the head's output
TOLERANCE_HALF = 0.1  # the model's own scores, not those of capture, are rounded to 8 or 11 bits


def difference(attn, start, value, mask, output):
    """Return by how much A·V misses the output, a float32 scalar, relative to the largest entry of a head.

    `attn` (batch, head, row, key) holds the rows from `start` on; keys beyond its last column have zero.
    `value` is (batch, kv_head, key, width) and `output` (batch, query, head, width), as the model's attention
    function takes and gives them, `mask` what it takes. Rows that see no key count for nothing.
    """
    batch, n_heads, n_rows, n_keys = attn.shape
    n_kv, width = value.shape[1], value.shape[-1]
    values = value[:, :, :n_keys].to(attn.dtype).reshape(batch * n_kv, n_keys, width)
    mixed = torch.bmm(attn.reshape(batch * n_kv, -1, n_keys), values).view(batch, n_heads, n_rows, width)
    own = output[:, start : start + n_rows].transpose(1, 2).to(attn.dtype)  # (batch, head, row, width)
    off = (mixed - own).abs()
    if mask is not None:
        rows = mask if mask.shape[-2] == 1 else mask[..., start : start + n_rows, :]
        hidden = ~shown(rows).any(-1, keepdim=True)  # (batch, head, row, 1)
        off, own = off.masked_fill(hidden, 0), own.masked_fill(hidden, 0)
    scale = own.abs().amax((-2, -1)).clamp_min(torch.finfo(attn.dtype).tiny)  # (batch, head)
    return (off.amax((-2, -1)) / scale).max().float()


def shown(mask):
    """Return where a mask, boolean or to be added, shows a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
