"""Keep what attention is computed from, so that the matrix of any head can be formed again without the model.

For SmolLM2-135M at 256 tokens queries and keys take 24 MB, the matrices 71 MB.
"""

import torch

from nbhelpers.inputs.families import family_of, require_heads
from nbhelpers.inputs.models import unwrap
from nbhelpers.inputs.probes import innermost_attention

from .attention import Calls, Recorder, forward, score_blocks, stream_of, streams_of
from .layers import names_of, require_layer
from .reductions import Block, LagLogits, Layout

ROWS = 64  # queries whose scores are formed at a time where no matrix is wanted


class AttentionCache:
    """The attention of one sequence, a layer at a time; made by :func:`cache_attention`."""

    def __init__(self, network, token_ids, calls, layers):
        self._network, self._ids, self._calls = network, token_ids, calls
        self.layers = layers  # the numbers of those that have attention
        self._last = (None, None)

    @property
    def nbytes(self):
        """Bytes of the queries and keys that are held; 0 where the model must run again for each layer."""
        return sum(query.nbytes + key.nbytes for _, query, key, _, _ in self._calls)

    def at_hand(self, layer):
        """Return whether :meth:`layer` answers without running the model."""
        return bool(self._calls) or self._last[0] == layer

    def layer(self, layer):
        """Return the attention of a layer, (head, query, key), float32 on the CPU; the last one is kept."""
        require_layer(layer, self.layers)
        if self._last[0] != layer:
            if self._calls:
                attn = self.first_rows(layer, self._ids.shape[1])
            else:
                recorder = _OneLayer(self._network, self.layers.index(layer))
                forward(self._network, recorder, self._ids)
                recorder.require_layers(recorder.found)
                attn = recorder.found[0][0]
            self._last = (layer, attn.float().cpu())
        return self._last[1]

    def call(self, layer):
        """Return (module, query, key, mask, options) of a layer; None where queries and keys are not kept."""
        return self._calls[self.layers.index(layer)] if self._calls else None

    @torch.inference_mode()
    def lag_logits(self, layer, *, causal):
        """Return the mean score before the softmax at each distance, (head, lag), as `LagLogits` has it."""
        module, query, key, mask, options = self.call(layer)
        _, n_heads, n, _ = query.shape
        layout = Layout(1, n_heads, n, n, causal, query.device, (n - 1,), torch.tensor([n]))
        reduction = LagLogits()
        state = reduction.start(layout)
        for start, scores, attn in score_blocks(module, query, key, mask, ROWS, **options):
            reduction.update(state, Block(attn, scores, start, None), layout)
        return reduction.finish(state, layout)[0].cpu()

    @torch.inference_mode()
    def first_rows(self, layer, rows):
        """Return the attention of the first queries of a layer, (head, query, key); later keys may lack."""
        module, query, key, mask, options = self.call(layer)
        with torch.autocast(query.device.type, enabled=False):
            _, _, attn = next(score_blocks(module, query, key, mask, rows, **options))
        return attn[0]


class _OneLayer(Recorder):
    """Keeps the probabilities of the layer at a place in the stream."""

    def __init__(self, network, place):
        super().__init__(network)
        self.place, self.found = place, []

    def observe_probabilities(self, attn):
        if len(self.called) == self.place + 1:
            self.found.append(attn)


def cache_attention(model, token_ids):
    """Run a model over one sequence, (1, position), and keep what its attention is computed from; families
    that do not show queries and keys keep nothing, and their model runs again for another layer."""
    network, ids = unwrap(model), torch.as_tensor(token_ids)
    if ids.ndim != 2 or len(ids) != 1:
        raise ValueError(f"cache_attention takes one sequence (1, position), got {tuple(ids.shape)}")
    config = network.config.get_text_config()
    require_heads(config)
    if family_of(config).route == "module":
        return AttentionCache(network, ids, [], list(range(config.num_hidden_layers)))
    calls = []
    recorder = Calls(network, lambda *call: calls.append(call))
    forward(network, recorder, ids)
    recorder.proof()
    return AttentionCache(network, ids, calls, recorder.layers())


def attention_modules(model):
    """Return the attention modules that :func:`cache_attention` reads, in order."""
    network = unwrap(model)
    names, double, stream = names_of(network), network.config.is_encoder_decoder, streams_of(network)[0]
    return [m for m in innermost_attention(network) if stream_of(names[m][0], double) == stream]
