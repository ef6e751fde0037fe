"""The printed numbers of the paper (Ruscio et al., arXiv:2410.18067)."""

from importlib import resources

import pandas as pd

TABLES = {
    1: "table1_scale_and_tradeoff.csv",
    2: "table2_window_entropy.csv",
    3: "table3_spectral_distribution.csv",
    4: "table4_position_encoding_ablation.csv",
    5: "table5_training_dynamics.csv",
    6: "table6_pythia_scaling.csv",
    7: "table7_wavelet_entropy_per_scale.csv",
}


def paper_table(number):
    """Return one of the paper's tables as printed.

    Parameters
    ----------
    number : int
        1 scale sensitivity, position-spectrum correlation and reconstruction error; 2 window entropy;
        3 distribution over heads of spectral entropy and selectivity; 4 position encodings; 5 training
        checkpoints; 6 sizes of Pythia; 7 wavelet entropy per scale.

    Returns
    -------
    pandas.DataFrame
        One row per model (table 5: per checkpoint), in the printed order; the first column is ``model``.

    Raises
    ------
    ValueError
        If the paper has no table of that number.
    """
    if number not in TABLES:
        listed = ", ".join(
            f"{n} ({name.partition('_')[2][:-4].replace('_', ' ')})" for n, name in TABLES.items()
        )
        raise ValueError(f"the paper has the tables 1 to {len(TABLES)}, got {number!r}; they are {listed}")
    with resources.files("nbhelpers.data").joinpath("paper", TABLES[number]).open(encoding="utf-8") as file:
        return pd.read_csv(file)
