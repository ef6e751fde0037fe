"""Voilà's settings for ``app.ipynb`` (``make app``): so many visitors at a time, idle kernels end."""

import os

MOST, IDLE = int(os.environ.get("VISITORS") or 10), 600  # visitors, seconds
FULL = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Head inspector: no free place</title>
<meta name="viewport" content="width=device-width"><style>main {{ max-width: 34em; margin: 15vh auto;
padding: 0 1em; font: 16px/1.5 system-ui, sans-serif }} :root {{ color-scheme: light dark }}</style>
<main><h1>No free place</h1><p>Each visitor of the head inspector has a process with a model, and this server
has room for {MOST} at a time. All places are taken. One is free once a visitor leaves, or does nothing for
{IDLE // 60} minutes: please reload the page then.</p></main></html>"""


def require_place(handler, notebook, cwd):
    """Answer a visit beyond the last place with a page that says so, before a kernel starts."""
    from tornado.web import Finish

    manager = handler.kernel_manager
    starting = {kernel for kernel, task in manager._pending_kernels.items() if not task.done()}
    if len(starting.union(manager.list_kernel_ids())) >= MOST:
        handler.set_status(503)
        handler.set_header("Retry-After", "60")
        raise Finish(FULL)


c = get_config()  # noqa: F821 (Voilà runs this file and gives it)
c.VoilaConfiguration.prelaunch_hook = require_place
c.MappingKernelManager.cull_idle_timeout = IDLE
c.MappingKernelManager.cull_interval = 60
c.MappingKernelManager.cull_connected = True
