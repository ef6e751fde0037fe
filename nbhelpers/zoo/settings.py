"""What is chosen about a run: sizes, arms, and the order in which all of them are trained."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from nbhelpers.inputs.zoo import ENCODINGS, ZooConfig

LENGTH = 256  # tokens of a training sequence
VOCABULARY = 2048
N_CHECKPOINTS = 44
MASKED_SHARE = 0.3  # of the tokens, under the masked objective; 0.15 gives half as many targets to learn from
WEIGHT_DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0  # of AdamW; the largest norm of a gradient
WARMUP_SHARE, LAST_SHARE = 0.05, 0.05  # of the updates; of the learning rate, at the end of the cosine
# What learned positions need under the masked objective, or they stay at the unigram's loss (README.md).
LONG_WARMUP_SHARE, SMALL_POSITIONS = 0.7, 0.002
KEPT = {"rope": (0, 10, 100, 1000), "alibi": (1000,), "learned": (1000,)}  # checkpoints that are shipped


class Preset(NamedTuple):
    """A size: width, layers, heads (of 32 dimensions each), tokens to train on and sequences per step."""

    hidden_size: int
    n_layers: int
    n_heads: int
    n_tokens: int = 12_000_000
    batch_size: int = 16
    learning_rate: float = 3e-3


PRESETS = {
    "test": Preset(32, 2, 2, n_tokens=20_480, batch_size=2),  # seconds; of no use but for tests
    "pico": Preset(64, 2, 2),  # 0.2 M parameters
    "micro": Preset(96, 3, 3),  # 0.5 M
    "nano": Preset(128, 4, 4),  # 1 M
    "mini": Preset(160, 6, 5, learning_rate=2.5e-3),  # 2.2 M
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides what a run learns; two runs with equal settings and text are the same run."""

    preset: str = "nano"  # of PRESETS
    encoding: str = "rope"  # of ENCODINGS
    causal: bool = True  # next tokens under a causal mask, or masked tokens without one
    bos: bool = False  # whether <bos> stands for the first token of every sequence
    seed: int = 0  # of weights, order of the data and masked positions
    n_tokens: int | None = None  # the preset's if None; with own_recipe as many predictions as a causal run's
    precision: str = "bfloat16"  # (autocast) or float32

    def __post_init__(self):
        if self.encoding not in ENCODINGS:
            raise ValueError(f"There is no encoding {self.encoding!r}; there are {', '.join(ENCODINGS)}.")
        if self.n_tokens is None:
            n_tokens = round(self.size.n_tokens / MASKED_SHARE) if self.own_recipe else self.size.n_tokens
            object.__setattr__(self, "n_tokens", n_tokens)

    @property
    def own_recipe(self):
        """Whether the arm is trained unlike the others: learned positions under the masked objective."""
        return self.encoding == "learned" and not self.causal

    @property
    def size(self):
        return PRESETS[self.preset]

    @property
    def tokens_per_step(self):
        return self.size.batch_size * LENGTH

    @property
    def n_steps(self):
        return self.n_tokens // self.tokens_per_step

    @property
    def warmup_share(self):
        return LONG_WARMUP_SHARE if self.own_recipe else WARMUP_SHARE

    @property
    def mask(self):
        """The attention mask in a word, as tables name it."""
        return "causal" if self.causal else "bidirectional"

    @property
    def arm(self):
        """The name without the seed: "rope" for a plain nano run, "rope-bidirectional", "rope-mini"."""
        words = [self.encoding, "" if self.causal else "bidirectional", "bos" if self.bos else ""]
        words.append("" if self.preset == "nano" else self.preset)
        return "-".join(filter(None, words))

    @property
    def name(self):
        """Name of the run and its folder: "rope-seed0", "rope-bos-mini-seed2"."""
        return f"{self.arm}-seed{self.seed}"

    def config(self):
        own = {"position_initializer_range": SMALL_POSITIONS} if self.own_recipe else {}
        own |= {"hidden_size": self.size.hidden_size, "num_hidden_layers": self.size.n_layers}
        own |= {"num_attention_heads": self.size.n_heads, "vocab_size": VOCABULARY, "train_length": LENGTH}
        return ZooConfig(position_encoding=self.encoding, is_causal=self.causal, **own)

    def learning_rate(self, step):
        """Return the learning rate of the update after `step` updates: linear warm-up, then a cosine."""
        warmup = max(1, round(self.warmup_share * self.n_steps))
        peak = self.size.learning_rate
        if step < warmup:
            return peak * (step + 1) / warmup
        done = (step - warmup) / max(1, self.n_steps - warmup)
        return peak * (LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * done)) / 2)

    def checkpoints(self):
        """Return the steps that are measured: about 44, evenly spaced in their logarithm, the ends, tens."""
        if self.n_steps < N_CHECKPOINTS:
            return list(range(self.n_steps + 1))
        tens = {10**k for k in range(len(str(self.n_steps)))}
        n_points, steps = N_CHECKPOINTS, set()
        while len(steps) < N_CHECKPOINTS:  # small steps coincide after rounding, so more points are needed
            ratio = math.log(self.n_steps) / (n_points - 1)
            steps = {0, self.n_steps} | tens | {round(math.exp(ratio * k)) for k in range(n_points)}
            n_points += 1
        return sorted(steps)

    def kept_steps(self):
        """Return the checkpoints whose weights are kept, beside their measurements."""
        plain = self.causal and not self.bos and self.preset == "nano" and self.seed == 0
        kept = KEPT.get(self.encoding, ()) if plain else ()
        return [*(step for step in kept if step < self.n_steps), self.n_steps]


def arms():
    """Return the settings of every run in the order of training: causal, without mask, with BOS, sizes."""
    seeds, sizes = range(3), ("pico", "micro", "mini")
    runs = [{"encoding": encoding, "seed": seed} for seed in seeds for encoding in ENCODINGS]
    runs += [{"encoding": e, "causal": False, "seed": seed} for seed in seeds for e in ("rope", "learned")]
    runs += [{"bos": True, "seed": seed} for seed in seeds]
    runs += [{"preset": preset, "seed": seed} for preset in sizes for seed in seeds]
    return [Settings(**run) for run in runs]
