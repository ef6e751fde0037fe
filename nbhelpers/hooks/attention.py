"""Where attention is met inside a transformers model: one recorder, two routes, one forward pass.

*interface*: attention functions are exchanged for ones that return the same and give query, key, value and
mask to the recorder, which forms the probabilities. *module*: forward hooks take probabilities that attention
modules form by themselves. The context says whose call it is: threads, models, nested captures never meet.
"""

import contextlib
import inspect
import itertools
import types
from contextvars import ContextVar

import torch
from transformers import AttentionMaskInterface

from nbhelpers.inputs import families
from nbhelpers.inputs.models import input_device, is_causal
from nbhelpers.inputs.probes import fresh_rotations, innermost_attention
from nbhelpers.kernels.entropy import SUM_TOLERANCE, SUM_TOLERANCE_HALF
from nbhelpers.profiles import Profiles

from . import fused, proof
from .exchange import as_written, attention_entries, exchanged, holding
from .layers import layer_numbers, names_of
from .reductions import Block, Layout

OUTER_AXES = ("sequence", "layer", "head")
RECORDER = ContextVar("nbhelpers_recorder", default=None)
UNCHANGED = types.MappingProxyType({})
CHANGES = ContextVar("nbhelpers_changes", default=UNCHANGED)  # see `hooks.ablation`
BY_MODULE = "register_family(Family(..., route='module'), replace=True)"  # what a way out says
UNDERSTOOD = {"scaling", "is_causal", "softcap", "position_bias", "s_aux"}  # of an attention call
# What has no influence on the weights, or acts through the mask.
WITHOUT_INFLUENCE = {
    "position_ids", "cache_position", "use_cache", "sliding_window", "output_attentions", "logits_to_keep",
    "output_hidden_states", "output_router_logits", "return_dict",
}  # fmt: skip
MASKED = -1e30  # finite, so that 0 times a masked score is 0 and not NaN; exp of it is exactly 0
CPU_BLOCK_BYTES = 2 * 2**20  # stays in the caches of the cores between softmax and reductions
CUDA_BLOCK_BYTES = 256 * 2**20  # enough work for each kernel launch


def default_chunk(batch, n_heads, n_keys, device):
    """Return how many query rows to hold at once: a multiple of 8 whose block fits the device's cache."""
    budget = CUDA_BLOCK_BYTES if torch.device(device).type == "cuda" else CPU_BLOCK_BYTES
    rows = budget // (4 * batch * n_heads * n_keys)
    return max(8, rows // 8 * 8)


def streams_of(model):
    """Return the attention streams of a model, the one that is read unless another is asked for first."""
    return ("encoder", "decoder", "cross") if model.config.is_encoder_decoder else ("self",)


def stream_of(name, is_encoder_decoder):
    """Return the stream of an attention module from its qualified name: self, encoder, decoder or cross."""
    lowered = name.lower()
    if any(word in lowered for word in ("encdecattention", "encoder_attn", "crossattention", "cross_att")):
        return "cross"
    if not is_encoder_decoder:
        return "self"
    return "decoder" if "decoder." in lowered else "encoder"


class Recorder:
    """Reduces the attention of each layer of one stream as the model computes it, for one batch.

    What is kept of a layer stays on its device until the pass is over: the host reads nothing in between.
    `attention_mask`, (batch, query of the stream) with 1 for real queries, is best left on the CPU. `chunk`
    query rows are held at once; `kernels` is what :func:`nbhelpers.hooks.fused.compiled` gave.
    """

    def __init__(self, model, reductions=(), *, stream=None, attention_mask=None, chunk=None, kernels=None):
        config = model.config.get_text_config()
        self.reductions, self.attention_mask = reductions, attention_mask
        self.chunk, self.kernels = chunk, kernels
        self.stream = stream or streams_of(model)[0]
        # Whether a query of this stream sees only keys up to itself.
        self.causal = self.stream == "decoder" or (self.stream == "self" and is_causal(model))
        self.fused = []  # per layer, whether these measured its rows
        self.arrays = {reduction.name: [] for reduction in reductions}
        self.layouts = {}  # one for each device that layers lie on; they differ in nothing else
        self.n_calls = 0
        self.called = []  # the attention modules of the stream, in order
        self.cross = set()  # modules that were given what the encoder made
        self.n_encoded = None  # positions of what the encoder made
        self.n_kv_heads = []  # per layer
        self.ahead = []  # whether real queries see later keys, per layer or mask
        self.masks = {}  # that were looked at, by identity
        self.errors = []  # per layer, by how much rows miss a sum of 1; NaN where something is not finite
        self.differences = []  # per layer, by how much the model's own output is missed (see proof)
        self.tolerance, self.allowed = SUM_TOLERANCE, proof.TOLERANCE  # of these two
        self.route, self.names = families.family_of(config).route, names_of(model)
        self._config, self._is_encoder_decoder = config, model.config.is_encoder_decoder

    def wants(self, module, n_queries, n_keys):
        """Count the call and say whether the module belongs to the model and to the stream; raise
        NotImplementedError if it does and its keys are not the positions that the stream reads."""
        if module not in self.names:
            return False
        self.n_calls += 1
        name = self.names[module][0]
        stream = "cross" if module in self.cross else stream_of(name, self._is_encoder_decoder)
        if stream != self.stream:
            return False
        self.called.append(module)
        n_read = self.n_encoded or n_keys if stream == "cross" else n_queries
        if n_keys != n_read:
            raise NotImplementedError(
                f"{self._config.model_type}: {name} weighs {n_keys} keys where {n_read} positions are read; "
                "keys that stand for no position (compressed blocks, landmarks, self and cross attention in "
                "one softmax) have no place in profiles."
            )
        return True

    def observe(self, module, query, key, value, mask, output, **options):
        """Reduce what query and key of a layer give; `output` (batch, query, head, width) is the model's."""
        batch, n_heads, n_queries, _ = query.shape
        layout = self._layout(batch, n_heads, n_queries, key.shape[2], query.device)
        self.n_kv_heads.append(key.shape[1])
        causal, scaling = scores_of(module, query, mask, **options)
        if mask is None:
            self.ahead.append(torch.tensor(not causal))
        elif id(mask) not in self.masks:
            self.masks[id(mask)] = mask  # held, or another could have its identity
            shown = proof.shown(mask)[..., : layout.n_keys]
            self._look_ahead(shown.expand(*shown.shape[:-2], n_queries, -1), layout)
        # A softmax sums to 1 unless a score is not finite: 0 times the sums is 0, or NaN if anything is not.
        self.errors.append(0 * (query.sum(dtype=torch.float32) + key.sum(dtype=torch.float32)))
        with torch.autocast(query.device.type, enabled=False):
            found, left = {}, self.reductions
            if self.kernels and fused.suits(layout, query, causal, self.attention_mask, mask, options):
                found, attn = fused.measure(self.kernels, left, query, key, layout, scaling)
                self._hold(attn, layout.n_queries - attn.shape[2], value, mask, output)
                left = [reduction for reduction in left if reduction.name not in found]
            for name, array in found.items():
                self.arrays[name].append(array)
            self.fused.append(bool(found))
            if left:
                blocks = score_blocks(module, query, key, mask, self._rows(layout), **options)
                self._reduce(layout, self._proved(layout, blocks, value, mask, output), left)
            if left and found:  # held twice: one number for each layer
                self.differences[-2:] = [torch.maximum(*self.differences[-2:])]

    def _proved(self, layout, blocks, value, mask, output):
        """Pass blocks on, and hold the last rows that are not padding in every sequence."""
        end = max(layout.last_query) + 1
        for start, scores, attn in blocks:
            if start < end <= start + attn.shape[2]:
                first = max(start, end - proof.ROWS)
                self._hold(attn[:, :, first - start : end - start], first, value, mask, output)
            yield start, scores, attn

    def _hold(self, attn, start, value, mask, output):
        self.differences.append(proof.difference(attn, start, value, mask, output))
        if torch.finfo(output.dtype).bits < 32 or torch.get_float32_matmul_precision() != "highest":
            self.allowed = proof.TOLERANCE_HALF

    def observe_probabilities(self, attn):
        """Reduce the probabilities (batch, head, query, key) that a module gave."""
        layout = self._layout(*attn.shape, attn.device)
        if attn.dtype.itemsize < 4 or torch.is_autocast_enabled(attn.device.type):
            self.tolerance = SUM_TOLERANCE_HALF
        off = (attn.sum(-1, dtype=torch.float32) - 1).abs()  # (batch, head, query)
        if layout.weight is not None:
            off = off.masked_fill(layout.weight[:, None] == 0, 0.0)
        self.errors.append(off.max())
        rows = self._rows(layout)
        starts = range(0, layout.n_queries, rows)
        blocks = ((start, None, attn[:, :, start : start + rows].float()) for start in starts)
        self._look_ahead(attn > 0, layout)
        with torch.autocast(attn.device.type, enabled=False):
            self._reduce(layout, blocks, self.reductions)

    def _look_ahead(self, shown, layout):
        """Note whether real queries see later keys; `shown` (batch, head, query, key) is what they see."""
        ahead = shown.triu(1).any(-1).any(1)  # (batch, query)
        self.ahead.append((ahead if layout.weight is None else ahead & (layout.weight > 0)).any())

    def _require_causality(self, layout):
        """Raise RuntimeError if queries see later keys where none was expected to, or the other way round."""
        shows = self.stream in ("self", "decoder") and layout.n_real.max() >= 2
        if shows and bool(gathered(self.ahead, 0).any()) == self.causal:
            seen = "causal, but queries see" if self.causal else "not causal, but no query sees"
            raise RuntimeError(
                f"{self._config.model_type}: attention was taken to be {seen} later keys, so lags would be "
                "wrong. Nothing is kept; register_family(Family(..., kind=...), replace=True) says which it "
                "is where a short probe of the model cannot."
            )

    def require_layers(self, found):
        """Raise RuntimeError, saying what to do, unless attention was found."""
        if found:
            return
        if self.n_calls:
            advice = "Those were of other streams: this model has no such attention."
        elif self.route == "interface":
            advice = f"If it computes attention by itself, call {BY_MODULE}."
        else:
            advice = "Its attention modules give no probabilities, so there are none to read."
        raise RuntimeError(
            f"{self._config.model_type}: no attention was seen in the {self.stream!r} stream through the "
            f"{self.route!r} route ({self.n_calls} calls). {advice}"
        )

    def layers(self):
        """Return the numbers of the layers that were seen."""
        self.require_layers(self.called)
        return layer_numbers(self.called, self.names, self._config)

    def proof(self):
        """Return the largest difference from the model's own output, or that there is none to compare."""
        if not self.differences:
            return f"not proved: the {self.route!r} route shows no values"
        bad, largest = self._beyond(self.differences, self.allowed)
        if bad:
            raise RuntimeError(
                f"{self._config.model_type}: the attention formed for layers {bad} is not the one that the "
                f"model uses: with its values it misses the model's own output by {largest:.3g} of the "
                f"largest entry (allowed {self.allowed:g}). Nothing is kept. Capture does not know all that "
                f"this family does to its scores; {BY_MODULE} reads the probabilities that the model gives "
                "itself, unproved."
            )
        return largest

    def _beyond(self, values, allowed):
        """Return the layers whose value, one for each, is beyond what is allowed or NaN, and the largest."""
        values = gathered(values, 0)
        bad = [at for at, value in enumerate(values.tolist()) if not value <= allowed]
        return [self.layers()[at] for at in bad], values.max().item()

    def profiles(self):
        """Return the Profiles of the forward pass, or say why there are none."""
        self.require_layers(self.layouts)
        layers = self.layers()
        bad, largest = self._beyond(self.errors, self.tolerance)
        if bad:
            raise ValueError(
                f"The attention of layers {bad} is not a distribution: its row sums miss 1 by up to "
                f"{largest:.3g} (allowed {self.tolerance:g}). NaN or infinity in the weights, or overflow in "
                "half precision, are the usual causes; try dtype='float32' or 'bfloat16'."
            )
        layout = next(iter(self.layouts.values()))
        self._require_causality(layout)
        axes = {each.name: (*OUTER_AXES, *([each.axis] if each.axis else [])) for each in self.reductions}
        coordinates = {each.name: each.coordinates(layout) for each in self.reductions}
        # Heads that share keys in any layer are not independent.
        n_kv_heads = min(self.n_kv_heads) if self.n_kv_heads else families.n_kv_heads_of(self._config)
        groups = [head * n_kv_heads // layout.n_heads for head in range(layout.n_heads)]
        arrays = {name: gathered(layers, 1).float() for name, layers in self.arrays.items()}
        facts = {"proof": self.proof()}
        if self.kernels:
            facts["fused"] = [*itertools.compress(layers, self.fused)]
        return Profiles(arrays, axes, coordinates, layout.n_real.long().cpu(), groups, facts, layers)

    def _rows(self, layout):
        return self.chunk or default_chunk(layout.batch, layout.n_heads, layout.n_keys, layout.device)

    def _layout(self, batch, n_heads, n_queries, n_keys, device):
        for known in self.layouts.values():
            if known.n_heads != n_heads:
                both = f"{known.n_heads} and {n_heads}"
                raise NotImplementedError(f"Layers have {both} heads; profiles need equal numbers.")
        if device not in self.layouts:
            weight, last = None, (n_queries - 1,) * batch
            n_real = torch.full((batch,), float(n_queries), device=device)
            if self.attention_mask is not None:
                last = tuple((n_queries - 1 - self.attention_mask.flip(1).argmax(1)).tolist())
                weight = self.attention_mask.to(device, torch.float32)  # (batch, query)
                n_real = weight.sum(1)
            size = batch, n_heads, n_queries, n_keys
            self.layouts[device] = Layout(*size, self.causal, device, last, n_real, weight)
        return self.layouts[device]

    def _reduce(self, layout, blocks, reductions):
        states = [reduction.start(layout) for reduction in reductions]
        for start, scores, attn in blocks:
            rows = None if layout.weight is None else layout.weight[:, start : start + attn.shape[-2]]
            block = Block(attn, scores, start, rows)
            for reduction, state in zip(reductions, states, strict=True):
                reduction.update(state, block, layout)
        for reduction, state in zip(reductions, states, strict=True):
            self.arrays[reduction.name].append(reduction.finish(state, layout))


class Calls(Recorder):
    """Gives the attention calls of the stream to ``take(module, query, key, mask, options)``."""

    def __init__(self, model, take):
        super().__init__(model)
        self.take = take

    def observe(self, module, query, key, value, mask, output, **options):
        self.take(module, query, key, mask, options)
        first = max(0, query.shape[2] - proof.ROWS)  # the last rows are held against the model's output
        for start, _, attn in score_blocks(module, query, key, mask, proof.ROWS, first=first, **options):
            self._hold(attn, start, value, mask, output)


def gathered(layers, dim):
    """Return the tensors of all layers stacked on the CPU; they meet on the first's device, for one copy."""
    return torch.stack([layer.to(layers[0].device) for layer in layers], dim).cpu()


def score_blocks(module, query, key, mask, rows, *, first=0, **options):
    """Yield (first row, scores, probabilities) in float32 for blocks of so many query rows, from `first` on.

    Query (batch, head, query, head_dim) and key (batch, kv_head, key, head_dim) are as the model gives them,
    the mask boolean (True is visible) or additive; None means what `is_causal`, of the options, says.
    """
    batch, n_heads, n_queries, head_dim = query.shape
    n_kv, n_keys = key.shape[1], key.shape[2]
    triangular, scaling = scores_of(module, query, mask, **options)
    wide = torch.promote_types(query.dtype, torch.float32)  # half precision loses most in the scores
    keys = key.to(wide).reshape(batch * n_kv, n_keys, head_dim).transpose(1, 2)  # (batch·kv, head_dim, key)
    for start in range(first, n_queries, rows):
        stop = min(start + rows, n_queries)
        visible = stop if triangular else n_keys
        # The heads of a KV group are extra rows of one product, so keys are never repeated.
        queries = query[:, :, start:stop].to(wide) * scaling  # (batch, head, row, head_dim)
        scores = torch.bmm(queries.reshape(batch * n_kv, -1, head_dim), keys[:, :, :visible])
        scores = scores.view(batch, n_heads, stop - start, visible)
        _adjust(scores, mask, start, stop, triangular, **options)
        if (sinks := options.get("s_aux")) is None:
            yield start, scores, torch.softmax(scores, -1)
            continue
        # Attention sinks: a score per head, (head,) in GPT-OSS, or per query, (batch, head, query, 1) in
        # Inkling 2, takes its share away: rows sum to less than 1, and scores do not tell entropies.
        sinks = sinks.reshape(1, -1, 1, 1) if sinks.ndim == 1 else sinks[:, :, start:stop]
        column = sinks.float().expand(*scores.shape[:3], 1)
        yield start, None, torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]


def scores_of(module, query, mask, *, is_causal=None, scaling=None, **options):
    """Return whether the causal mask is to be applied here, and the factor of the scores."""
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    triangular = mask is None and is_causal and query.shape[2] > 1
    return triangular, query.shape[-1] ** -0.5 if scaling is None else scaling


def _adjust(scores, mask, start, stop, triangular, *, softcap=None, position_bias=None, **options):
    """Apply soft cap, position bias and mask to the scores of rows start…stop, in this order, in place."""
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if position_bias is not None:
        scores += position_bias[:, :, start:stop, : scores.shape[-1]]
    if triangular:
        hidden = scores.new_ones(stop - start, stop - start, dtype=torch.bool).triu_(1)
        scores[..., start:stop].masked_fill_(hidden, MASKED)
    elif mask is not None:
        rows = (mask if mask.shape[-2] == 1 else mask[..., start:stop, :])[..., : scores.shape[-1]]
        if mask.dtype == torch.bool:
            scores.masked_fill_(~rows, MASKED)
        else:
            scores.add_(rows).clamp_(min=MASKED)


def recorded(original):
    """Return an attention function that does what `original` does, on queries and keys that a block changes,
    and shows the call to the recorder."""
    behind = list(inspect.signature(original).parameters)[5:]  # what may follow the mask without a name

    def attention(module, query, key, value, attention_mask=None, *args, **options):
        recorder, change = RECORDER.get(), CHANGES.get().get(module)
        if change is not None:
            options |= dict(zip(behind, args, strict=False))
            args, (query, key, options) = (), change(query, key, options)
        if recorder is None and change is None:
            return original(module, query, key, value, attention_mask, *args, **options)
        # One function may call another that is exchanged too.
        with holding(RECORDER, None), holding(CHANGES, UNCHANGED):
            result = original(module, query, key, value, attention_mask, *args, **options)
        if recorder is not None and recorder.wants(module, query.shape[2], key.shape[2]):
            options = known_options(module, options | dict(zip(behind, args, strict=False)))
            recorder.observe(module, query, key, value, attention_mask, result[0], **options)
        return result

    return attention


def known_options(module, options):
    """Return those options of an attention call, by the names used here, that say what the weights are."""
    options = {"s_aux" if name == "sinks" else name: value for name, value in options.items()}
    for name, value in options.items():
        if name not in UNDERSTOOD | WITHOUT_INFLUENCE and (torch.is_tensor(value) or value):
            shown = f"a tensor {tuple(value.shape)}" if torch.is_tensor(value) else repr(value)
            call = f"{type(module).__name__} calls its attention function with {name} = {shown}"
            raise NotImplementedError(f"{call}, which capture does not know, so nothing is kept.")
    return {name: value for name, value in options.items() if name in UNDERSTOOD}


@contextlib.contextmanager
def interface_route(model, recorder):
    """Show the model's attention calls to the recorder, and undo it in any case."""
    implementation = model.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        way_out = "load it with load_model or call model.set_attn_implementation('sdpa') first"
        raise ValueError(f"The model runs {implementation!r} attention, which hides its mask; {way_out}.")
    with exchanged(attention_entries(recorder.names), recorded), holding(RECORDER, recorder):
        yield {}


@contextlib.contextmanager
def module_route(model, recorder):
    """Take probabilities out of the output of each attention module with hooks, and remove these after."""

    def hook(module, args, output):
        if RECORDER.get() is not recorder or not isinstance(output, (tuple, list, dict)):
            return output
        parts = dict(output if isinstance(output, dict) else enumerate(output))
        found = [key for key, part in parts.items() if torch.is_tensor(part) and part.ndim == 4]
        if not found:
            return output
        attn, parts[found[-1]] = parts[found[-1]], None
        if recorder.wants(module, *attn.shape[2:]):
            scores = found[-1] == "attention_score"  # SqueezeBERT
            recorder.observe_probabilities(attn.softmax(-1) if scores else attn)
        return parts if isinstance(output, dict) else type(output)(parts.values())

    # Falcon on SDPA gives probabilities without the causal mask, unless that is one to be added.
    masks = [(AttentionMaskInterface._global_mapping, "sdpa")]
    with contextlib.ExitStack() as undo, exchanged(masks, additive_for_modules), holding(RECORDER, recorder):
        for module in innermost_attention(model):
            undo.callback(module.register_forward_hook(hook).remove)
        yield {"output_attentions": True}


def additive_for_modules(original):
    """Return a mask function: eager attention's for a recorder of the module route, else `original`."""

    def mask(*args, **options):
        here = getattr(RECORDER.get(), "route", None) == "module"
        return (AttentionMaskInterface._global_mapping["eager"] if here else original)(*args, **options)

    return mask


@contextlib.contextmanager
def cross_attention_seen(model, recorder):
    """Tell the recorder which modules of a decoder read what the encoder made."""
    made = []

    def keep(module, args, output):
        if RECORDER.get() is recorder:
            made[:] = [output[0]]
            recorder.n_encoded = output[0].shape[1]

    def compare(module, args, options=None):  # without, where another thread meets it as it is removed
        given = (*args, *(options or {}).values())
        if RECORDER.get() is recorder and any(part is one for part in given for one in made):
            recorder.cross.add(module)

    with contextlib.ExitStack() as undo:
        if recorder.stream in ("decoder", "cross"):
            undo.callback(model.get_encoder().register_forward_hook(keep).remove)
            for module in innermost_attention(model):
                undo.callback(module.register_forward_pre_hook(compare, with_kwargs=True).remove)
        yield


@torch.inference_mode()
def forward(model, recorder, ids, *, attention_mask=None, decoder_ids=None, decoder_mask=None, **extra):
    """Run the model once for what the recorder sees; `extra` are further inputs of the model, or None."""
    device, inputs = input_device(model), {"input_ids": ids, "attention_mask": attention_mask}
    if recorder.stream != "encoder":
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = decoder_ids
            # Without one, T5Gemma hides padding tokens unless a cache is kept.
            seen = torch.ones_like(decoder_ids) if decoder_mask is None else decoder_mask
            inputs["decoder_attention_mask"] = seen
        if families.kind_of(model.config.get_text_config()) != "encoder":
            inputs["use_cache"] = False
    inputs |= {name: value for name, value in extra.items() if value is not None}
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    route = (module_route if recorder.route == "module" else interface_route)(model, recorder)
    with fresh_rotations(model), cross_attention_seen(model, recorder), as_written(), route as asked:
        backbone_of(model, recorder.stream)(**inputs, **asked)


def backbone_of(model, stream):
    """Return what computes a stream, without the language-model head: its logits are most of the memory."""
    return model.get_encoder() if stream == "encoder" else model.base_model


def takes(model, stream, name):
    """Return whether the forward pass of a stream takes an input of this name."""
    return name in inspect.signature(backbone_of(model, stream).forward).parameters


def positions_of(model, stream, ids, mask, name="position_ids"):
    """Return the positions, (sequence, position), that tokens have without the padding of a mask, or None
    where the model finds them itself: padding behind moves nothing, and some relate positions only."""
    config = model.config.get_text_config()
    if not bool((mask.diff(dim=1) > 0).any()) and families.rotations_by_length(config, 0) is None:
        return None
    if takes(model, stream, name):
        reserved = families.n_reserved(families.max_positions_of(config), model)
        if not reserved:
            return (mask.cumsum(1) - 1).clamp(min=0)
        counted = mask * (ids != reserved - 1)  # such tables count tokens that are not the padding token
        return counted.cumsum(1) * counted + reserved - 1
    if families.position_encoding_of(config) in ("learned", "sinusoidal"):
        moved = "padding before the text would move its tokens; put the padding behind it"
        raise ValueError(f"{config.model_type} looks positions up and takes no {name}, so {moved}.")
    return None


def shifted_right(model, ids, mask=None):
    """Return what a decoder reads to predict `ids`: its start token, then all of them but the last."""
    config, generation = model.config, getattr(model, "generation_config", None)
    where = config if hasattr(config, "decoder_start_token_id") else generation
    start = getattr(where, "decoder_start_token_id", None)
    start = start if start is not None else (getattr(config, "pad_token_id", None) or 0)
    shifted = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    if mask is not None:
        first = torch.nn.functional.pad(mask, (1, 0)).diff(dim=1) > 0  # (sequence, position)
        shifted = shifted.masked_fill(first, start)
    return shifted
