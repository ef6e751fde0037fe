"""One small transformer with seven position encodings, as a transformers model.

Everything but the encoding is the same: layer norm before each block, attention, an MLP of four times the
width with GELU, no biases, output embedding tied to the input embedding. Attention goes through transformers'
AttentionInterface, so `nbhelpers.capture` sees these models as it sees any other.

- rope: queries and keys are rotated, every pair of dimensions (Su et al., arXiv:2104.09864)
- prope: the same, but the slowest quarter of the pairs stays unrotated (Barbero et al., 2410.06205)
- learned: a trained vector for each position is added to the token embedding
- sinusoidal: a fixed vector for each position is added to the token embedding (Vaswani et al., 1706.03762)
- alibi: −slope · distance is added to the scores, a fixed slope for each head (Press et al., 2108.12409)
- t5: a trained bias for each head and bucket of distances is added to the scores, the same in all layers
- nope: only the causal mask tells positions apart (Kazemnejad et al., 2305.19466)
"""

import hashlib
import math

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nbhelpers.kernels import rope

ENCODINGS = ("rope", "prope", "learned", "sinusoidal", "alibi", "t5", "nope")
ROTARY_SHARE = {"rope": 1.0, "prope": 0.75}
T5_BUCKETS, T5_DISTANCE = 32, 128


class ZooConfig(PreTrainedConfig):
    """What one model of the zoo is."""

    model_type = "nbhelpers_zoo"

    vocab_size: int = 2048
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    position_encoding: str = "rope"  # one of ENCODINGS
    is_causal: bool = True  # sees the positions up to its own and predicts the next; else fills masked tokens
    train_length: int = 256  # tokens of a training sequence; only `learned` is limited to it
    rope_theta: float = 1000.0  # for 256 tokens: about the ratio of Pythia, 10000 for 2048
    position_initializer_range: float = 0.02  # standard deviation of learned position vectors at the start
    initializer_range: float = 0.02  # and of other weights; over √(2 · layers) in what adds to the stream
    bos_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.position_encoding not in ENCODINGS:
            known = ", ".join(ENCODINGS)
            raise ValueError(f"position_encoding is {self.position_encoding!r}; the zoo has {known}.")
        multiple = 2 * self.num_attention_heads
        if self.hidden_size % multiple:
            raise ValueError(f"hidden_size is {self.hidden_size}; it must be a multiple of {multiple}.")

    @property
    def max_position_embeddings(self):
        """Longest sequence in tokens; None where the encoding sets no limit."""
        return self.train_length if self.position_encoding == "learned" else None

    @property
    def partial_rotary_factor(self):
        """Share of each head's dimensions that rotates; None where nothing does."""
        return ROTARY_SHARE.get(self.position_encoding)


def frequencies(config):
    """Return the angular frequency of each pair in radians/token, (pair,); None where nothing rotates."""
    if config.partial_rotary_factor is None:
        return None
    head_dim = config.hidden_size // config.num_attention_heads
    frequency = rope.inverse_frequencies(head_dim, theta=config.rope_theta)  # (pair,)
    n_rotated = round(config.partial_rotary_factor * len(frequency))  # the fastest pairs
    return torch.where(torch.arange(len(frequency)) < n_rotated, frequency, 0.0)


@torch.compiler.assume_constant_result  # compiled, each layer would compute it anew
def rotations(config, length, device):
    """Return (cos, sin) of the rotation angles, (position, pair) each; None where nothing rotates."""
    if (frequency := frequencies(config)) is None:
        return None
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency  # (position, pair)
    return angle.cos().to(device, torch.float32), angle.sin().to(device, torch.float32)


def rotate(x, cos, sin):
    """Return x, (batch, head, position, head_dim), with pair (k, k + head_dim / 2) rotated."""
    first, second = x.chunk(2, -1)  # (batch, head, position, pair) each
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, is_causal=None, **options):
    """Return attention written out, (batch, position, head, head_dim), and the probabilities."""
    batch, n_heads, length, head_dim = query.shape
    if attention_mask is None:
        hidden = torch.full((1, 1, length, length), -math.inf, dtype=query.dtype, device=query.device).triu(1)
        attention_mask = hidden if module.is_causal else torch.zeros_like(hidden)
    mask = attention_mask.to(query.dtype).expand(batch, n_heads, length, length).flatten(0, 1)
    # (batch·head, position, head_dim)
    query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    # Mask and product in one step: on a CPU in bfloat16 training is 1.4 to 1.9 times as fast as with SDPA.
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scaling)  # (batch·head, query, key)
    attn = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    mixed = torch.bmm(attn, value).view(batch, n_heads, length, head_dim).transpose(1, 2)
    return mixed, attn.view(batch, n_heads, length, length)


class ZooAttention(nn.Module):
    """Multi-head attention whose scores are computed by the function that the configuration names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.is_causal = config.is_causal
        self.n_heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, mask, rotation, *, seen=None, **options):
        batch, length, width = x.shape
        parts = self.query_key_value(x).view(batch, length, 3, self.n_heads, width // self.n_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (batch, head, position, head_dim) each
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        implementation = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        own = {"scaling": query.shape[-1] ** -0.5, "is_causal": self.is_causal, "dropout": 0.0}
        mixed, attn = attend(self, query, key, value, mask, **own, **options)
        if seen is not None:
            seen.append(attn)
        return self.output(mixed.reshape(batch, length, width))


class ZooLayer(nn.Module):
    """Attention, then an MLP; each reads a layer norm of the residual stream and adds to the stream."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = ZooAttention(config)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x, mask, rotation, **options):
        x = x + self.attention(self.attention_norm(x), mask, rotation, **options)
        hidden = functional.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")
        return x + self.mlp_out(hidden)  # (batch, position, hidden)


class ZooPreTrainedModel(PreTrainedModel):
    """What all heads of the zoo share: names, and how weights start."""

    config_class = ZooConfig
    base_model_prefix = "model"
    _input_embed_layer = "token"
    _no_split_modules = ("ZooLayer",)
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module, generator=None):
        std = self.config.initializer_range
        if module is getattr(self.base_model, "position", None):
            std = self.config.position_initializer_range
        if isinstance(module, nn.Linear):
            writes = module.out_features == self.config.hidden_size  # into the residual stream
            scale = math.sqrt(2 * self.config.num_hidden_layers) if writes else 1.0
            init.normal_(module.weight, std=std / scale, generator=generator)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std, generator=generator)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)


class ZooModel(ZooPreTrainedModel):
    """Token ids to the last hidden states."""

    def __init__(self, config):
        super().__init__(config)
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ZooLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)
        if config.position_encoding == "learned":
            self.position = nn.Embedding(config.train_length, config.hidden_size)
        if config.position_encoding == "t5":
            self.bias = nn.Embedding(T5_BUCKETS, config.num_attention_heads)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, use_cache=None, output_attentions=False, **options):
        """Return the last hidden states, (batch, position, hidden), and the attention of "eager" if asked."""
        length, device = input_ids.shape[1], input_ids.device
        x = self.token(input_ids) + self.position_vectors(length, device)
        # As large as the position vectors must be beside what the layers add; Adam moves both alike.
        x = x * math.sqrt(self.config.hidden_size)  # (batch, position, hidden)
        mask = self.additive_mask(attention_mask, length, device, x.dtype)
        rotation = rotations(self.config, length, device)
        seen = [] if output_attentions else None
        for layer in self.layers:
            x = layer(x, mask, rotation, seen=seen, **options)
        return BaseModelOutput(last_hidden_state=self.norm(x), attentions=tuple(seen) if seen else None)

    def position_vectors(self, length, device):
        """Return what is added to the token embeddings, (position, hidden), or 0.0."""
        config = self.config
        if config.position_encoding == "learned":
            if length > config.train_length:
                raise ValueError(f"{length} tokens; this model learned {config.train_length} positions.")
            return self.position.weight[:length]
        if config.position_encoding == "sinusoidal":
            table = rope.sinusoidal_embedding(length, config.hidden_size)
            return (config.initializer_range * table).to(device, self.token.weight.dtype)
        return 0.0

    def score_bias(self, length, device):
        """Return what is added to the scores, (head, query, key), or None."""
        config = self.config
        position = torch.arange(length, device=device)
        relative = position - position[:, None]  # key − query, (query, key)
        if config.position_encoding == "alibi":
            slopes = rope.alibi_slopes(config.num_attention_heads).to(device, torch.float32)
            return -slopes[:, None, None] * relative.abs()
        if config.position_encoding == "t5":
            options = {"n_buckets": T5_BUCKETS, "max_distance": T5_DISTANCE}
            bucket = rope.t5_bucket(relative, bidirectional=not config.is_causal, **options)
            return self.bias(bucket).permute(2, 0, 1)
        return None

    def additive_mask(self, attention_mask, length, device, dtype):
        """Return bias and mask in one, broadcastable to (batch, head, query, key), or None."""
        bias = self.score_bias(length, device)
        if bias is None and attention_mask is None:
            return None  # the attention function then applies the causal mask by itself, which is fastest
        visible = torch.ones(length, length, dtype=torch.bool, device=device)
        visible = (visible.tril() if self.config.is_causal else visible)[None, None]  # (1, 1, query, key)
        if attention_mask is not None:
            real = attention_mask[:, None, None, :].bool()  # (batch, 1, 1, key)
            # Left padding leaves rows without any key: a query always sees itself, so that no row is NaN.
            visible = visible & real | torch.eye(length, dtype=torch.bool, device=device)
        bias = torch.zeros((), dtype=dtype, device=device) if bias is None else bias.to(dtype)[None]
        return torch.where(visible, bias, torch.finfo(dtype).min)


class ZooForLanguageModeling(ZooPreTrainedModel):
    """Logits over the vocabulary: of the next token if causal, of the token itself otherwise."""

    _tied_weights_keys = {"lm_head.weight": "model.token.weight"}  # noqa: RUF012 (as transformers declares it)

    def __init__(self, config):
        super().__init__(config)
        self.model = ZooModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **options):
        """Return logits, (batch, position, vocabulary), and the mean loss in nats of labels (−100: none)."""
        output = self.model(input_ids, attention_mask=attention_mask, **options)
        hidden = output.last_hidden_state
        if labels is not None:  # logits only where they are needed: they cost as much as two layers
            predicts = labels != -100
            hidden, labels = hidden[predicts], labels[predicts]  # (target, hidden), (target,)
        logits = self.lm_head(hidden)
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return CausalLMOutput(loss=loss, logits=logits, attentions=output.attentions)


def build(config, *, seed=0):
    """Return a model in train mode whose fresh weights depend on the seed and on each weight's name alone."""
    with torch.random.fork_rng(devices=[]):
        model = ZooForLanguageModeling(config)
    for name, module in model.named_modules():
        if name != "lm_head":  # tied to the token embedding
            model._init_weights(module, torch.Generator().manual_seed(stable_seed(seed, name)))
    return model.train()


def stable_seed(*parts):
    """Return a seed of 63 bits from numbers and names, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


AutoConfig.register(ZooConfig.model_type, ZooConfig, exist_ok=True)
AutoModel.register(ZooConfig, ZooModel, exist_ok=True)
AutoModelForCausalLM.register(ZooConfig, ZooForLanguageModeling, exist_ok=True)
