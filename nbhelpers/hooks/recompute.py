"""Keep what attention is computed from, so that the matrix of any head can be formed again without the model.

Queries and keys of all layers take 4 · layers · (heads + KV heads) · tokens · head_dim bytes (24 MB for
SmolLM2-135M at 256 tokens), the matrices 4 · layers · heads · tokens² (71 MB). Forming one layer's matrices
from them is one product and one softmax: milliseconds.
"""

import torch

from nbhelpers.inputs.families import family_of, kind_of
from nbhelpers.inputs.models import input_device, unwrap

from .attention import Recorder, innermost_attention, interface_route, module_route, score_blocks, stream_of


class AttentionCache:
    """The attention of one sequence, a layer at a time; made by :func:`cache_attention`.

    Attributes
    ----------
    n_layers : int
    nbytes : int
        Bytes of the queries and keys that are held; 0 where the model must run again for each layer.
    """

    def __init__(self, network, token_ids, calls, n_layers):
        self._network = network
        self._ids = token_ids
        self._calls = calls
        self.n_layers = n_layers
        self._last = (None, None)

    @property
    def nbytes(self):
        return sum(call[part].nbytes for call in self._calls for part in (1, 2))

    def at_hand(self, layer):
        """Return whether :meth:`layer` answers without running the model."""
        return bool(self._calls) or self._last[0] == layer

    def layer(self, layer):
        """Return the attention of all heads of a layer.

        Parameters
        ----------
        layer : int
            From 0.

        Returns
        -------
        torch.Tensor, shape (head, query, key)
            float32, on the CPU; the matrices of the last layer asked for are kept.

        Raises
        ------
        IndexError
            If there is no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise IndexError(
                f"layer {layer} was asked for; the model has the layers 0 to {self.n_layers - 1}"
            )
        held, attn = self._last
        if held != layer:
            form = self._from_scores if self._calls else self._from_the_model
            attn = form(layer).cpu()
            self._last = (layer, attn)
        return attn

    @torch.inference_mode()
    def _from_scores(self, layer):
        module, query, key, mask, options = self._calls[layer]
        n_keys = key.shape[2]
        with torch.autocast(query.device.type, enabled=False):
            blocks = score_blocks(module, query, key, mask, query.shape[2], **options)
            parts = [torch.nn.functional.pad(attn, (0, n_keys - attn.shape[-1])) for _, _, attn in blocks]
        return torch.cat(parts, -2)[0].float()  # (head, query, key)

    @torch.inference_mode()
    def _from_the_model(self, layer):
        recorder = _OneLayer(self._network, layer)
        _run(self._network, self._ids, recorder)
        if recorder.found is None:
            raise RuntimeError(
                f"layer {layer} gave no attention; {recorder.seen} layers did. Register the family with "
                "register_family(Family(..., route='module'))."
            )
        return recorder.found


class _QueryKey(Recorder):
    """Keeps queries and keys of each layer of the stream."""

    def __init__(self, network):
        super().__init__(network, [], stream=_stream(network), causal=_causal(network))
        self.calls = []

    def observe(self, module, query, key, mask, **options):
        self.calls.append((module, query, key, mask, options))


class _OneLayer(Recorder):
    """Keeps the probabilities of one layer of the stream."""

    def __init__(self, network, layer):
        super().__init__(network, [], stream=_stream(network), causal=_causal(network))
        self.layer = layer
        self.seen = 0
        self.found = None

    def observe_probabilities(self, attn):
        if self.seen == self.layer:
            self.found = attn[0].float()  # (head, query, key)
        self.seen += 1


def cache_attention(model, token_ids):
    """Run a model over one sequence and keep what its attention is computed from.

    Families that do not show queries and keys (`Family.route` is "module") keep nothing here; their model
    runs again whenever another layer is asked for.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
        Of an encoder-decoder, the encoder is read.
    token_ids : torch.LongTensor, shape (1, position)

    Returns
    -------
    AttentionCache

    Raises
    ------
    ValueError
        For more than one sequence.
    RuntimeError
        When no attention was seen.
    """
    network = unwrap(model)
    ids = torch.as_tensor(token_ids)
    if ids.ndim != 2 or len(ids) != 1:
        raise ValueError(f"cache_attention takes one sequence (1, position), got {tuple(ids.shape)}")
    if family_of(network.config.get_text_config()).route == "module":
        return AttentionCache(network, ids, [], network.config.get_text_config().num_hidden_layers)
    recorder = _QueryKey(network)
    with torch.inference_mode():
        _run(network, ids, recorder)
    if not recorder.calls:
        raise RuntimeError(
            f"no attention was seen ({recorder.n_calls} calls); if it is computed outside transformers' "
            "AttentionInterface, say so: register_family(Family(..., route='module'), replace=True)"
        )
    return AttentionCache(network, ids, recorder.calls, len(recorder.calls))


def attention_modules(model):
    """Return the attention modules of the stream that is read, one per layer, in order.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel

    Returns
    -------
    list of torch.nn.Module
    """
    network = unwrap(model)
    stream, double = _stream(network), bool(getattr(network.config, "is_encoder_decoder", False))
    names = {module: name for name, module in network.named_modules()}
    return [m for m in innermost_attention(network) if stream_of(names[m], double) == stream]


def _stream(network):
    return "encoder" if getattr(network.config, "is_encoder_decoder", False) else "self"


def _causal(network):
    return _stream(network) == "self" and kind_of(network.config.get_text_config()) == "decoder"


def _run(network, ids, recorder):
    inputs = {"input_ids": ids.to(input_device(network))}
    if network.config.is_encoder_decoder:
        backbone = network.get_encoder()
    else:
        backbone = network.base_model
        if kind_of(network.config.get_text_config()) == "decoder":
            inputs["use_cache"] = False
    route = family_of(network.config.get_text_config()).route
    with (module_route if route == "module" else interface_route)(network, recorder) as extra:
        backbone(**inputs, **extra)
