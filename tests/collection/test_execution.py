import asyncio
import os
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.launcher import launch_kernel
from jupyter_client.provisioning import local_provisioner
from jupyter_client.session import Session

from nbhelpers.collection import execution
from nbhelpers.collection.execution import CellClock, KernelWatch, _answers_looked_for, execute_strictly

pytestmark = pytest.mark.usefixtures("warm_kernels")


@pytest.fixture
def execute(notebook, tmp_path):
    """Run cells 3, 4, … as a notebook (1 is the title, 2 the parameters): (failure, executed notebook)."""

    def run(*cells, parameters=(), watch=None, **limits):
        target = tmp_path / "executed.ipynb"
        source = notebook("01_tiny", *cells)
        failure = execute_strictly(source, target, dict(parameters), watch=watch or KernelWatch(**limits))
        return failure, nbformat.read(target, as_version=4)

    return run


def outputs(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_a_good_notebook_runs_where_the_user_stands_and_its_memory_is_seen(execute, monkeypatch):
    monkeypatch.setattr(local_provisioner, "launch_kernel", launch_kernel)  # Python and memory of its own
    watch = KernelWatch()
    show = "import gc, os, sys; print(length, sys.executable, os.getcwd(), os.environ['GOMP_SPINCOUNT'])"
    show += "\nprint(gc.get_threshold()[0])"
    widget = "import ipywidgets\nipywidgets.interact(lambda x: x, x=(1, 4))"
    large = "import time\nblock = b'1' * 200_000_000\ntime.sleep(0.5)"
    failure, executed = execute(show, widget, large, parameters={"length": 16}, watch=watch)
    assert failure is None
    spins = os.environ["GOMP_SPINCOUNT"]  # set by the package, whose kernels share the machine
    assert outputs(executed).split() == ["16", sys.executable, os.getcwd(), spins, "50000"]
    assert 200 < watch.peak_mb < 450


def test_error_names_cell_source_and_traceback_and_keeps_what_ran(execute):
    cells = "print('before')", "x = 1\nraise ValueError('bad length 8')", "print('after')"
    failure, executed = execute(*cells, parameters={"length": 9})
    assert (failure.kind, failure.cell) == ("error", 4), "a cell of the stored notebook, not the executed one"
    assert "bad length 8" in failure.message
    assert failure.source.startswith("x = 1\nraise")
    assert "line 2" in failure.trace
    assert "\x1b" not in str(failure)
    assert outputs(executed) == "before\n"


async def answer_beside_a_write(seconds):
    """Return the answer of a kernel that came when a widget was written to, or TimeoutError.

    The write is zmq's own, beside asyncio, and takes from the socket the signal that asyncio waits for.
    """
    session = Session(key=b"")
    with zmq.asyncio.Context() as context, zmq.Context() as other, other.socket(zmq.ROUTER) as kernel:
        port = kernel.bind_to_random_port("tcp://127.0.0.1")
        channel = AsyncZMQSocketChannel(context.socket(zmq.DEALER), session)
        channel.socket.connect(f"tcp://127.0.0.1:{port}")
        channel.send(session.msg("execute_request"))
        name = kernel.recv_multipart()[0]
        waiting = asyncio.ensure_future(channel.get_msg(timeout=None))
        await asyncio.sleep(0.1)  # it has begun to wait
        session.send(kernel, "execute_reply", {}, ident=name)
        assert select.select([channel.socket.FD], [], [], 60)[0], "the answer is there"
        time.sleep(0.1)  # zmq looks at what came once in a millisecond
        channel.send(session.msg("comm_msg"))
        try:
            return (await asyncio.wait_for(waiting, seconds))["msg_type"]
        finally:
            channel.close()


def test_an_answer_that_comes_while_a_widget_is_written_to_is_not_missed():
    with ThreadPoolExecutor(1) as thread:  # whose event loop is not that of browser tests before this one
        with pytest.raises(TimeoutError):
            thread.submit(asyncio.run, answer_beside_a_write(2)).result()
        with _answers_looked_for():
            assert thread.submit(asyncio.run, answer_beside_a_write(60)).result() == "execute_reply"


# Limits. A series of (clock, CPU time) in seconds that a cell goes through, and where it runs over 10 s.


def rate(share, seconds=1000):
    return [(second, share * second) for second in range(seconds)]


def test_where_a_cell_runs_over():
    for series, ended, told in (
        (rate(1), 10, "still running"),  # an endless loop, alone
        (rate(8), 10, "still running"),  # on eight cores
        (rate(0.2), 50, "still running"),  # on a machine five times as slow
        (rate(0), 10, "next to nothing"),  # a deadlock
        (rate(0.01), 10, "next to nothing"),  # that looks for its end every now and then
        (rate(1, 6) + [(second, 5) for second in range(6, 99)], 15, "next to nothing"),  # after work
        (rate(0.1, 90), None, ""),  # work of nine seconds on a slow machine
    ):
        clock = CellClock(10)
        seen = ((second, clock.overrun(100 + second, 7 + cpu)) for second, cpu in series)
        second, why = next(((second, why) for second, why in seen if why), (None, ""))
        assert (second, told in why) == (ended, True)


@pytest.mark.parametrize(
    ("hang", "told"), [("time.sleep(60)", "next to nothing"), ("while True: pass", "of CPU time")]
)
def test_hang_is_interrupted_where_it_hangs(execute, hang, told):
    started = time.monotonic()
    failure, executed = execute("print('before')\nimport time", hang, "print('after')", cell_timeout=1)
    assert time.monotonic() - started < 20
    assert (failure.kind, failure.cell) == ("timeout", 4)
    assert "1 s" in failure.message
    assert told in failure.message
    assert "ignored" not in failure.message
    assert hang in failure.trace
    assert outputs(executed) == "before\n"
    assert executed.cells[-1].metadata.papermill.status == "pending"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processes that are bound to a core")
def test_work_passes_beside_others_on_its_core(execute):
    bind = f"import os, time; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    work = """clock, cpu = time.monotonic(), time.process_time()
while time.process_time() < cpu + 0.7: pass
print(time.monotonic() - clock)"""
    others = [subprocess.Popen([sys.executable, "-c", f"{bind}\nwhile True: pass"]) for _ in range(2)]
    try:
        failure, executed = execute(bind, work, cell_timeout=1)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert failure is None
    assert float(outputs(executed)) > 1, "by the clock it would have failed"


def test_hang_that_ignores_the_interrupt_is_killed_and_a_dead_kernel_is_told(execute, monkeypatch):
    monkeypatch.setattr(execution, "_GRACE", 1.0)
    stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    failure, executed = execute("print('before')", stubborn, cell_timeout=1)
    assert (failure.kind, failure.cell) == ("timeout", 4)
    assert "ignored the interrupt" in failure.message
    assert outputs(executed) == "before\n"
    assert executed.cells[-1].outputs[-1].output_type == "error"  # the page of the notebook shows it
    last_words = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    failure, executed = execute("print('before')", last_words, "print('after')")
    assert (failure.kind, failure.cell) == ("dead kernel", 4)
    assert failure.source == last_words
    assert outputs(executed) == "before\n"
    assert executed.cells[3].outputs[-1].ename == "dead kernel"


def test_errors_inside_an_output_widget_and_an_interact_callback(execute):
    hidden = "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    1 / 0"
    failure, _ = execute(hidden, "ipywidgets.VBox([ipywidgets.HBox([out])])", "print('after')")
    assert (failure.kind, failure.cell) == ("widget error", 4)
    assert "ZeroDivisionError" in failure.message
    assert "1 / 0" in failure.trace
    failure, _ = execute("import ipywidgets\nipywidgets.interact(lambda x: {}[x], x=(1, 4))")
    assert (failure.kind, failure.cell) == ("widget error", 3)


def test_early_exits_and_interrupts_are_told_apart(execute):
    failure, _ = execute("import sys; sys.exit(0)", "print('never')")
    assert (failure.kind, failure.cell) == ("cell not run", 4)
    failure, _ = execute("raise KeyboardInterrupt('mine')")
    assert failure.kind == "error"
    failure, _ = execute("import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pass", cell_timeout=1)
    assert failure.kind == "timeout"
    assert "went on" in failure.message
