import torch

DTYPES = [torch.float32, torch.float64]


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def attention(*shape, causal=False, scale=1.0, **options):
    """Return the softmax of normal scores (..., query, key)."""
    scores = scale * normal(*shape, **options)
    later = torch.ones(shape[-2:], dtype=torch.bool).triu(1) if causal else torch.tensor(False)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def uniform(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
