"""Text for the zoo: documents to tokens of a BPE of 2,048, some held out; batches and fixed windows."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from nbhelpers.files import read_tensors, reading, write_tensors, write_text
from nbhelpers.inputs.text import SPEECHES, read_documents
from nbhelpers.inputs.zoo import stable_seed
from nbhelpers.zoo.settings import MASKED_SHARE, VOCABULARY

SOURCES = (SPEECHES, "moby-dick")  # what the zoo was trained on
BOS, MASK = "<bos>", "<mask>"
BOS_ID, MASK_ID = 0, 1
SPLITS = ("train", "validation", "measurement")
HELD_OUT_EVERY = 20  # of so many documents one goes to validation and one to measurement
HELD_OUT = {HELD_OUT_EVERY // 4: "validation", 3 * HELD_OUT_EVERY // 4: "measurement"}
SHORTEST_DOCUMENT = 1000  # characters; a shorter piece (a title) is put before the next
TOKENS = "tokens.safetensors"


@dataclass(frozen=True)
class Corpus:
    """Tokens of documents in three splits."""

    tokens: dict  # per split, the tokens of its documents one after the other
    ends: dict  # per split, where each document ends
    folder: Path  # holds the tokenizer, of :data:`VOCABULARY` tokens
    fingerprint: str  # SHA-256 of tokens and tokenizer, 16 digits
    sources: list  # names of the texts

    def tokenizer(self, *, bos=False):
        """Return the tokenizer, which sets <bos> by itself if asked."""
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        file = str(self.folder / "tokenizer.json")
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token=BOS, mask_token=MASK)
        if bos:
            template = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
            tokenizer.backend_tokenizer.post_processor = template
        return tokenizer

    def starts(self, split, length):
        """Return, per document, the first start of a window of `length` tokens inside it, and how many."""
        ends = self.ends[split].long()
        first = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
        return first, (ends - first - length + 1).clamp_min(0)

    def batch(self, n, length, *, seed, step):
        """Return `n` training windows at random places, the same for the same seed and step, (n, length)."""
        first, count = self.starts("train", length)
        total = int(count.sum())
        if total < n:
            raise ValueError(f"The training text has {total} places for a window of {length} tokens.")
        generator = torch.Generator().manual_seed(stable_seed("batch", seed, step))
        drawn, ends = torch.randint(total, (n,), generator=generator), count.cumsum(0)
        document = torch.searchsorted(ends, drawn, right=True)
        start = first[document] + drawn - (ends[document] - count[document])
        return self.tokens["train"][start[:, None] + torch.arange(length)].long()

    def windows(self, split, n, length):
        """Return `n` fixed windows of a split that do not overlap, spread evenly over it, (n, length)."""
        first, count = self.starts(split, length)
        documents = zip(first.tolist(), count.tolist(), strict=True)
        places = [start + skip for start, n_starts in documents for skip in range(0, n_starts, length)]
        if len(places) < n:
            raise ValueError(f"The {split} text has room for {len(places)} windows of {length}, not {n}.")
        chosen = torch.tensor(places)[torch.arange(n) * len(places) // n]
        return self.tokens[split][chosen[:, None] + torch.arange(length)].long()


def inputs_and_labels(windows, *, causal, bos, seed=0):
    """Return what a model reads of windows (batch, position + 1) and is to predict (−100: nothing).

    Without a causal mask, :data:`MASKED_SHARE` of the positions are <mask> and predicted; `bos` sets <bos>.
    """
    ids = windows[:, :-1].clone()  # (batch, position)
    if bos:
        ids[:, 0] = BOS_ID
    if causal:
        return ids, windows[:, 1:]
    masked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < MASKED_SHARE
    masked[:, 0] &= not bos
    return ids.masked_fill(masked, MASK_ID), windows[:, :-1].masked_fill(~masked, -100)


def prepare(texts, out):
    """Return the corpus in `out`, made of texts if there is none: some held out, the BPE of the others."""
    out = Path(out)
    if (out / TOKENS).exists():
        return load_corpus(out)
    documents = [document for text in texts for document in _merged(read_documents(text))]
    by_split = {name: [] for name in SPLITS}
    for index, document in enumerate(documents):
        by_split[HELD_OUT.get(index % HELD_OUT_EVERY, "train")].append(document)
    tokenizer = _train_tokenizer(by_split["train"])
    tensors = {}
    for name, mine in by_split.items():
        encoded = [torch.tensor(e.ids, dtype=torch.int32) for e in tokenizer.encode_batch(mine)]
        tensors[name] = torch.cat(encoded).to(torch.uint16)
        tensors[f"{name}_ends"] = torch.tensor([len(e) for e in encoded]).cumsum(0)
    write_text(out / "tokenizer.json", tokenizer.to_str())
    # Last: a folder with tokens is whole.
    write_tensors(tensors, out / TOKENS, {"sources": [Path(text).name for text in texts]})
    return load_corpus(out)


def load_corpus(folder):
    """Read what :func:`prepare` wrote."""
    folder = Path(folder)
    with reading(folder / TOKENS, "; delete it, and train-all makes it again."):
        tensors, header = read_tensors(folder / TOKENS)
        digest = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    for name in SPLITS:
        digest.update(tensors[name].numpy().tobytes())
    tokens = {name: tensors[name].int() for name in SPLITS}
    ends = {name: tensors[f"{name}_ends"] for name in SPLITS}
    return Corpus(tokens, ends, folder, digest.hexdigest()[:16], header["sources"])


def _merged(pieces):
    """Yield the pieces with short ones, such as titles, put before the next; a short end is dropped."""
    pending = ""
    for piece in pieces:
        pending = f"{pending}\n\n{piece.strip()}".strip()
        if len(pending) >= SHORTEST_DOCUMENT:
            yield pending
            pending = ""


def _train_tokenizer(documents):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"vocab_size": VOCABULARY, "special_tokens": [BOS, MASK], "show_progress": False}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    return tokenizer
