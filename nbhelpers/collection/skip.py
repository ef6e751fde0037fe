"""What a notebook does where its model cannot give what it shows: say so, and go on or end there."""

from IPython import get_ipython

SKIPPED = "Skipped: "  # what the output of such a cell begins with; the runner looks for it


class NotebookSkipped(Exception):
    """Raised by :func:`skip_notebook`; its message is the reason."""


def skip_notebook(reason):
    """End the notebook here by raising `NotebookSkipped`, shown as one sentence instead of a traceback.

    JupyterLab stops *Run All*; papermill ends without an error; ``python -m nbhelpers run`` counts the
    notebook as skipped and prints the reason: what is missing, and what to do to see the notebook.
    """
    if (shell := get_ipython()) is not None:
        shell.set_custom_exc((NotebookSkipped,), _show)
    raise NotebookSkipped(reason)


def _show(shell, kind, error, trace, tb_offset=None):
    """Show the reason in place of a traceback; to papermill an exit with status 0 is no error."""
    shown = [f"{SKIPPED}{error}"]
    shell._showtraceback(SystemExit, SystemExit(0), shown)
    return shown


def require_decoder(description, why):
    """Skip the notebook unless its model is a decoder; `why` says what needs one, in a clause."""
    if not description.causal:
        told = f"{description.name} ({description.family}) is no decoder, and this notebook needs one: {why}"
        skip_notebook(f"{told}. Give it a decoder with the parameter model; the default is one.")


def nearest_head(description, layer, head):
    """Return the (layer, head) asked for, or the nearest that the model has and print which."""
    there = min(layer, description.n_layers - 1), min(head, description.n_heads - 1)
    if there != (layer, head):
        has = f"{description.name} has {description.n_layers} layers of {description.n_heads} heads"
        print(f"{has}: layer {there[0]}, head {there[1]} is taken instead of layer {layer}, head {head}")
    return there


def fitting_lengths(description, lengths):
    """Return the lengths that a model has positions for, or its longest; print what is left out."""
    if (most := description.max_positions) is None:
        return list(lengths)
    fitting = [length for length in lengths if length <= most] or [most]
    if left_out := ", ".join(str(length) for length in lengths if length > most):
        told = f"{description.name} has {most} positions: skipped at {left_out} tokens"
        print(f"{told}, measured at {', '.join(map(str, fitting))}")
    return fitting
