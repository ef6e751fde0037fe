"""What a head reads, by the rules that heads are named after."""

import torch

from nbhelpers.arguments import checked, token_ids

__all__ = ["SCORES", "read_by_rule"]

SCORES = ("previous_token_score", "duplicate_token_score", "induction_score")


@checked(token_ids=token_ids)
def read_by_rule(attn, token_ids):
    """Return the mean attention that queries give to the keys that three rules name, (..., score).

    With t the tokens (1, position) of one text, the rules of :data:`SCORES` name for query q the key q − 1;
    the earlier k < q with t_k = t_q; and the k ≤ q with t_{k−1} = t_q and k − 1 < q, after an earlier
    occurrence (Olsson et al., arXiv:2209.11895). A mean is over the queries for which the rule's token
    exists, q ≥ 1 and those whose token came before; NaN where there is none. `attn` (..., query, key) has the
    rows from the first query on; there may be fewer queries, and of causal attention fewer keys.
    """
    n_queries, n_keys = attn.shape[-2:]
    ids = token_ids[0, :n_keys].to(attn.device)
    before = torch.arange(n_keys, device=attn.device) < torch.arange(n_queries, device=attn.device)[:, None]
    same = (ids[:n_queries, None] == ids) & before  # (query, key)
    previous = torch.zeros_like(same)
    previous.diagonal(-1).fill_(True)
    after = torch.nn.functional.pad(same[:, :-1], (1, 0))
    rules = torch.stack([previous, same, after])  # (score, query, key)
    counted = torch.stack([previous, same, same]).any(-1).sum(-1)  # (score,), queries
    total = attn.flatten(-2) @ rules.flatten(1).to(attn.dtype).T  # (..., score)
    return torch.where(counted > 0, total / counted, torch.nan)
