"""What is shown of one head: its arrays, and what the text costs without it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HeadView:
    """Everything the panels show of one head.

    Attributes
    ----------
    layer, head, kv_group : int
    attn : numpy.ndarray, shape (query, key)
    key_profile, lag_profile : numpy.ndarray, shape (key,), (lag,)
        With the uniform null's beside them in `null_key_profile` and `null_lag_profile`.
    lags : numpy.ndarray, shape (lag,)
        In tokens.
    frequency : numpy.ndarray, shape (freq,)
        Cycles/token.
    psd, null_psd : numpy.ndarray, shape (freq,)
        Share of the power in each bin, of the protocol's signal.
    positions : numpy.ndarray, shape (position,)
        Key or lag of each sample of the protocol's signal.
    levels : list of str
        a4, d4, ..., d1.
    coefficients : list of numpy.ndarray
        Wavelet coefficients of the protocol's signal, by level.
    wavelet : str
    taps : int
        Taps of its filters.
    periodic : bool
        Whether the signal was continued periodically.
    """

    layer: int
    head: int
    kv_group: int
    attn: np.ndarray
    key_profile: np.ndarray
    null_key_profile: np.ndarray
    lags: np.ndarray
    lag_profile: np.ndarray
    null_lag_profile: np.ndarray
    frequency: np.ndarray
    psd: np.ndarray
    null_psd: np.ndarray
    positions: np.ndarray
    levels: list
    coefficients: list
    wavelet: str
    taps: int
    periodic: bool

    @property
    def name(self):
        return f"layer {self.layer}, head {self.head}"

    def level_image(self):
        """Return |coefficient| of each level at each position of the signal, array (level, position)."""
        n = len(self.positions)
        return level_image(self.coefficients, n, taps=self.taps, periodic=self.periodic)


def level_image(coefficients, n, *, taps, periodic=False):
    """Return |coefficient| of each level at each of n positions: the nearest coefficient of the level.

    Coefficient k of one level of pywt is the answer of a filter of L taps whose window has its centre at
    sample 2k + 1 − (L − 1)/2 (2k + ½ in periodization), so the centre of level j is 2ʲk + (2ʲ − 1) times that
    offset.

    Parameters
    ----------
    coefficients : list of numpy.ndarray
        Approximation first, then details from coarse to fine.
    n : int
        Samples of the signal.
    taps : int
        L.
    periodic : bool
        Whether the mode is periodization.

    Returns
    -------
    numpy.ndarray, shape (level, n)
    """
    depth = len(coefficients) - 1
    offset = 0.5 if periodic else 1 - (taps - 1) / 2
    image = np.zeros((depth + 1, n))
    for row, values in enumerate(coefficients):
        level = depth if row == 0 else depth + 1 - row
        nearest = np.rint((np.arange(n) - offset * (2**level - 1)) / 2**level).astype(int)
        image[row] = np.abs(values)[np.clip(nearest, 0, len(values) - 1)]
    return image


@dataclass(frozen=True)
class Ablation:
    """What the text costs with and without one head, nats/token; `changes` per predicted token."""

    layer: int
    head: int
    before: float
    after: float
    changes: np.ndarray

    @property
    def change(self):
        return self.after - self.before
