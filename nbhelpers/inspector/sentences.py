"""What the inspector says, as plain text."""

import traceback

import numpy as np

FORESEEN = (ValueError, LookupError, OSError, ImportError, MemoryError, RuntimeError, TypeError)


def summary(reading, seconds=None):
    """Return one line about a reading."""
    n_layers, n_heads = reading.shape
    took = "" if seconds is None else f", measured in {seconds:.2f} s"
    return (
        f"{reading.model.description.name}: {reading.n_tokens:,} tokens, {n_layers} layers × {n_heads} "
        f"heads, protocol {reading.protocol.hash}{took}. {reading.note}"
    ).strip()


def ablation(result):
    """Return a sentence on what the loss does without a head."""
    n = len(result.changes)
    error = float(np.std(result.changes, ddof=1) / np.sqrt(n))
    return (
        f"Without layer {result.layer}, head {result.head}, the loss on these {n} predicted tokens goes from "
        f"{result.before:.4f} to {result.after:.4f} nats per token: {result.change:+.4f} ± {error:.4f} "
        "(standard error over tokens)."
    )


def complaint(error):
    """Return an exception as a sentence; the name too of one that nobody foresaw."""
    if not isinstance(error, FORESEEN):
        text = f"unexpected {''.join(traceback.format_exception_only(error)).strip()}"
    else:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        text = text or f"{type(error).__name__} without a message"
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
