import time

import nbformat
import pytest

from nbhelpers.collection.execution import PeakMemory, execute_strictly


@pytest.fixture
def execute(notebook, tmp_path):
    """Run cells 3, 4, … as a notebook (1 is the title, 2 the parameters): (failure, executed notebook)."""

    def run(*cells, **options):
        target = tmp_path / "executed.ipynb"
        source = notebook("01_tiny", *cells)
        failure = execute_strictly(source, target, options.pop("parameters", {}), **options)
        return failure, nbformat.read(target, as_version=4)

    return run


def outputs(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_passes_parameters_and_uses_this_python_in_the_folder_of_the_notebook(execute, folder):
    import sys

    failure, executed = execute(
        "import os, sys; print(length, sys.executable, os.getcwd())", parameters={"length": 16}
    )
    assert failure is None
    assert outputs(executed).split() == ["16", sys.executable, str(folder)]


def test_error_names_cell_source_and_traceback_and_keeps_what_ran(execute):
    failure, executed = execute(
        "print('before')", "x = 1\nraise ValueError('bad length 8')", "print('after')"
    )
    assert (failure.kind, failure.cell) == ("error", 4)
    assert "bad length 8" in failure.message
    assert failure.source.startswith("x = 1\nraise")
    assert "line 2" in failure.trace
    assert "\x1b" not in str(failure)
    assert outputs(executed) == "before\n"


def test_cell_number_is_that_of_the_stored_notebook_when_parameters_are_injected(execute):
    failure, _ = execute("1", "raise ValueError", parameters={"length": 9})
    assert failure.cell == 4


def test_hang_is_interrupted_where_it_hangs(execute):
    started = time.monotonic()
    failure, executed = execute(
        "print('before')\nimport time", "time.sleep(60)", "print('after')", cell_timeout=1
    )
    assert time.monotonic() - started < 20
    assert (failure.kind, failure.cell) == ("timeout", 4)
    assert "1 s (cell_timeout)" in failure.message
    assert "ignored" not in failure.message
    assert "time.sleep(60)" in failure.trace
    assert outputs(executed) == "before\n"
    assert executed.cells[-1].metadata.papermill.status == "pending"


def test_hang_that_ignores_the_interrupt_is_killed(execute):
    stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    failure, executed = execute("print('before')", stubborn, cell_timeout=1)
    assert (failure.kind, failure.cell) == ("timeout", 4)
    assert "ignored the interrupt" in failure.message
    assert outputs(executed) == "before\n"
    assert executed.cells[-1].outputs[-1].output_type == "error"  # the page of the notebook shows it


def test_deadline_of_the_whole_run_stops_a_cell(execute):
    failure, _ = execute("import time", "time.sleep(60)", deadline=time.monotonic() + 3, cell_timeout=60)
    assert failure.kind == "timeout"
    assert "total_timeout" in failure.message


def test_own_keyboard_interrupt_is_an_error_not_a_timeout(execute):
    failure, _ = execute("raise KeyboardInterrupt('mine')")
    assert failure.kind == "error"


@pytest.mark.parametrize(
    "last_words", ["import os; os._exit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
)
def test_dead_kernel(execute, last_words):
    failure, executed = execute("print('before')", last_words, "print('after')")
    assert (failure.kind, failure.cell) == ("dead kernel", 4)
    assert failure.source == last_words
    assert outputs(executed) == "before\n"
    assert executed.cells[3].outputs[-1].ename == "dead kernel"


def test_error_inside_an_output_widget(execute):
    failure, _ = execute(
        "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    1 / 0",
        "ipywidgets.VBox([ipywidgets.HBox([out])])",
        "print('after')",
    )
    assert (failure.kind, failure.cell) == ("widget error", 4)
    assert "ZeroDivisionError" in failure.message
    assert "1 / 0" in failure.trace


def test_error_inside_an_interact_callback(execute):
    failure, _ = execute("import ipywidgets\nipywidgets.interact(lambda x: {}[x], x=(1, 4))")
    assert (failure.kind, failure.cell) == ("widget error", 3)
    assert "KeyError" in failure.message


def test_widget_without_error_passes(execute):
    failure, _ = execute("import ipywidgets\nipywidgets.interact(lambda x: x, x=(1, 4))")
    assert failure is None


def test_early_exit_is_not_a_pass(execute):
    failure, _ = execute("import sys; sys.exit(0)", "print('never')")
    assert (failure.kind, failure.cell) == ("cell not run", 4)


def test_peak_memory_sees_the_kernel(execute):
    with PeakMemory() as small:
        execute("1")
    with PeakMemory() as large:
        execute("import time\nblock = b'1' * 200_000_000\ntime.sleep(0.5)")
    assert 150 < large.megabytes - small.megabytes < 300
