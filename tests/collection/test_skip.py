import dataclasses

import nbformat
import papermill
import pytest

from nbhelpers.collection.run import load_runs, run_notebooks
from nbhelpers.collection.skip import NotebookSkipped, fitting_lengths, nearest_head, require_decoder

pytestmark = pytest.mark.usefixtures("warm_kernels")
REASON = "no decoder; take another model"
SKIPPING = f"from nbhelpers.collection.skip import skip_notebook\nskip_notebook({REASON!r})"


def described(model, **changes):
    return dataclasses.replace(model.description, **changes)


def test_a_skipped_notebook_is_neither_passed_nor_failed_and_is_kept(notebook, folder, tmp_path, capsys):
    notebook("01_skips", "print('before')", SKIPPING, "print('after')")
    notebook("02_good", "print('good')")
    options = {"folder": folder, "out": tmp_path / "out"}
    first = run_notebooks(**options)
    assert [(run.status, run.error) for run in first] == [("skipped", REASON), ("passed", None)]
    assert load_runs(options["out"]) == first
    cells = nbformat.read(first[0].output, as_version=4).cells
    shown = [output.text for cell in cells for output in cell.get("outputs", [])]
    assert shown == ["before\n", f"Skipped: {REASON}\n"]
    told = capsys.readouterr().out
    assert f"    {REASON}\n" in told
    assert "2 notebooks: 1 passed, 0 kept, 0 failed, 1 skipped" in told
    assert [run.status for run in run_notebooks(**options)] == ["kept", "kept"]
    assert f"was skipped)\n    {REASON}\n" in capsys.readouterr().out


def test_plain_papermill_ends_without_an_error(notebook, tmp_path):
    target = tmp_path / "executed.ipynb"
    source = notebook("01_skips", SKIPPING, "raise ValueError('ran on')")
    papermill.execute_notebook(source, target, progress_bar=False)
    *_, skipping, last = nbformat.read(target, as_version=4).cells
    assert skipping.outputs[0].traceback == [f"Skipped: {REASON}"]
    assert last.execution_count is None


def test_a_decoder_is_required_of_encoders_only(tiny_llama):
    require_decoder(described(tiny_llama), "it compares causal attention")
    with pytest.raises(NotebookSkipped, match=r"mini .* is no decoder.*: it compares causal attention"):
        require_decoder(described(tiny_llama, name="mini", causal=False), "it compares causal attention")


def test_the_nearest_head_is_taken_and_named(tiny_llama, capsys):
    assert nearest_head(described(tiny_llama, n_layers=6, n_heads=9), 5, 8) == (5, 8)
    assert capsys.readouterr().out == ""
    assert nearest_head(described(tiny_llama, name="zoo", n_layers=4, n_heads=3), 5, 1) == (3, 1)
    assert "layer 3, head 1 is taken instead of layer 5, head 1" in capsys.readouterr().out


def test_lengths_beyond_the_positions_are_left_out_and_named(tiny_llama, capsys):
    learned = described(tiny_llama, name="learned", max_positions=256)
    assert fitting_lengths(described(tiny_llama, max_positions=None), [256, 512]) == [256, 512]
    assert fitting_lengths(learned, [128, 256]) == [128, 256]
    assert capsys.readouterr().out == ""
    assert fitting_lengths(learned, [256, 512]) == [256]
    assert fitting_lengths(learned, [512, 1024]) == [256]
    assert "learned has 256 positions: skipped at 512 tokens, measured at 256" in capsys.readouterr().out
