"""Long work beside the kernel's own thread, so that clicks and Stop are heard while it runs."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

from .reading import Stopped


class Worker:
    """Does one thing at a time; a new thing stops the one that runs.

    `on_progress` is called with the share done, in [0, 1]; `on_end` with what went wrong (None, a
    :class:`Stopped` or another exception) and ``superseded=``, whether other work was asked for since.
    """

    def __init__(self, *, on_progress, on_end):
        self._on_progress, self._on_end = on_progress, on_end
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inspector")
        self._stop = threading.Event()
        self._last = self._pool.submit(int)  # nothing to do yet

    @property
    def busy(self):
        return not self._last.done()

    def start(self, work):
        """Stop what runs; run ``work(progress, stop)``: it tells the share done and asks whether to stop."""
        self.stop()
        self._stop = stop = threading.Event()
        self._last = self._pool.submit(self._run, work, stop)

    def stop(self):
        """Ask what runs to give up at its next pause; nothing happens if nothing runs."""
        self._stop.set()

    def wait(self, timeout=None):
        """Wait for the work to end; TimeoutError if it has not after `timeout` seconds."""
        if wait([self._last], timeout).not_done:
            raise TimeoutError(f"the inspector still works after {timeout} s")
        self._last.result()

    def _run(self, work, stop):
        try:
            if stop.is_set():
                raise Stopped
            work(self._on_progress, stop.is_set)
            ended = None
        except Exception as error:  # shown in the widget in words, and kept there with its traceback
            ended = error
        self._on_end(ended, superseded=stop is not self._stop)
