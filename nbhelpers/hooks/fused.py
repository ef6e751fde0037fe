"""Every row of plain causal attention by compiled loops: a product, a transform and two loops for each block.

Blocks that fit the second-level cache of a core are taken in turn by as many Python threads as torch has.
"""

import functools
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pywt
import torch

from nbhelpers.kernels.checks import log_base
from nbhelpers.kernels.rows import real_fft
from nbhelpers.kernels.spectra import frequencies, window
from nbhelpers.words import warn

from . import proof
from .reductions import RowEntropy, RowMetrics

BLOCK_BYTES = 1000 * 1024  # of scores; as much is tapered and as much transformed
LEAST_ROWS, LARGEST_PART = 32, 4  # a block of a quarter of all rows computes an eighth of its scores in vain
CHOICES = {"sink": "keep", "detrend": "none", "pad": 1, "sided": "one", "dc": "keep", "mode": "symmetric"}


def compiled(reductions):
    """Return the module of compiled loops if it has a use here and can be had, else None."""
    return _kernels() if any(map(_serves, reductions)) else None


def suits(layout, query, causal, weight, mask, options):
    """Return whether a layer's attention is plain, causal and float32 on a CPU, and no gradient is wanted."""
    here = layout.device.type == "cpu" and query.dtype != torch.float64 and not query.requires_grad
    whole = mask is None and weight is None and layout.n_queries == layout.n_keys
    bare = all(options.get(name) is None for name in ("softcap", "position_bias", "s_aux"))
    return here and causal and whole and bare


def measure(kernels, reductions, query, key, layout, scaling):
    """Return arrays by name, of those reductions that can be had, and the attention of the last rows,
    (batch, head, row, key); query and key are as for `score_blocks`."""
    metrics = next(filter(_serves, reductions))
    protocol, level = metrics.protocol, metrics.level(layout)
    batch, n_heads, length, head_dim = query.shape
    n_groups, shared = batch * key.shape[1], n_heads // key.shape[1]
    queries = query.float().reshape(n_groups, shared, length, head_dim)
    keys = key.float().reshape(n_groups, length, head_dim).transpose(1, 2)  # (group, head_dim, key)
    filters = pywt.Wavelet(protocol.wavelet)
    lo, hi = (np.array(taps[::-1], np.float32) for taps in (filters.dec_lo, filters.dec_hi))
    taper = window(protocol.window, length, dtype=torch.float32).numpy()
    edges = 0.5 * np.array([0, *protocol.edges, 2.1])  # from the first bin to the last
    cuts = np.searchsorted(frequencies(length).numpy(), edges)
    rows = min(max(LEAST_ROWS, length // LARGEST_PART), BLOCK_BYTES // (4 * shared * length)) // 8 * 8 or 8
    # The longest rows first, so that threads end together. A unit has its own sums: their order is fixed.
    units = [(group, start) for start in reversed(range(0, length, rows)) for group in range(n_groups)]
    row_sums = np.zeros((len(units), shared, 2 + level))
    spectral_sums = np.zeros((len(units), shared, len(cuts) + 7))
    n_last = min(proof.ROWS, (length - 1) % rows + 1)
    last = queries.new_empty(n_groups, shared, n_last, length)
    turn = itertools.count()  # one step of it is one operation of the interpreter: threads never share a unit

    def work(_):
        # Made once: new blocks of this size would be paid for page by page.
        spaces, entropy = queries.new_empty(2, shared * rows * length), np.empty(shared * rows, np.float32)
        while (unit := next(turn)) < len(units):
            group, start = units[unit]
            stop = min(start + rows, length)
            size, n = stop - start, shared * (stop - start)
            scores, tapered = spaces[0, : n * stop].view(n, stop), spaces[1, : n * length].view(n, length)
            own = (queries[group, :, start:stop] * scaling).reshape(n, head_dim)
            torch.mm(own, keys[group, :, :stop], out=scores)
            arrays = taper, lo, hi, tapered.numpy(), entropy, row_sums[unit]
            kernels.add_rows(scores.numpy(), start, size, *arrays)
            transforms = torch.view_as_real(real_fft(tapered)).flatten(1).numpy()  # (row, 2 · freq)
            kernels.add_spectra(transforms, cuts, size, entropy, spectral_sums[unit])
            if stop == length:
                last[group] = scores.view(shared, -1, length)[:, -n_last:]

    n_threads = torch.get_num_threads()
    list(_threads(n_threads).map(torch.inference_mode()(work), range(n_threads)))
    sums = np.concatenate([row_sums, spectral_sums], -1).reshape(-1, batch, n_heads, level + len(cuts) + 9)
    sums, parts = torch.from_numpy(sums.sum(0)), (1, level + 1, len(cuts) + 1, 6)  # (batch, head, number)
    entropy, wavelet, spectral, moments = sums.split(parts, -1)
    states = {RowEntropy: entropy[..., 0].clone()}
    for in_nats in (entropy, wavelet, spectral[..., :1], moments[..., 1:], moments[..., 3:]):
        in_nats /= log_base(protocol.log_base)  # products of two, the last three moments, are divided twice
    names, entropy = ("entropy", "wavelet", "spectral", "moments"), entropy[..., 0]
    states[RowMetrics] = dict(zip(names, (entropy, wavelet, spectral, moments), strict=True))
    found = {r.name: r.finish(states[type(r)], layout) for r in reductions if type(r) in states}
    return found, last.view(batch, n_heads, n_last, length)


def _serves(reduction):
    own = reduction.protocol if type(reduction) is RowMetrics else None
    fits = own and all(getattr(own, name) == value for name, value in CHOICES.items())
    return fits and pywt.Wavelet(own.wavelet).dec_len == 4


@functools.cache
def _kernels():
    """Return the module of compiled loops, or None after one warning that says why."""
    try:
        from nbhelpers.kernels import fused
    except Exception as error:  # numba is absent, old, or cannot compile or keep what it compiled
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warn(
            f"Every row is measured without compiled loops, which takes longer ({reason}). They need numba "
            "(pip install 'nbhelpers[fast]') and a folder for what it compiles (NUMBA_CACHE_DIR); "
            "capture(..., fused=False) does without them."
        )
        return None
    return fused


@functools.cache
def _threads(n):
    """Return an executor whose n threads run, each for itself."""
    started = threading.Barrier(n)

    def start():
        # Both are settings of the calling thread. Asking for the number sets it to that of the process, which
        # otherwise came with the first product. Setting it also changes what later threads begin with.
        torch.get_num_threads()
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        started.wait()  # or one thread could start, be idle, and take the next one's turn

    executor = ThreadPoolExecutor(n, "rows", initializer=start)
    list(executor.map(id, range(n)))
    torch.set_num_threads(n)
    return executor


os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork has none of the threads
