import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import pywt
import torch
from scipy import stats as scipy_stats

from nbhelpers import nulls
from nbhelpers.analysis import Observation, measure
from nbhelpers.claims import paper, statistics
from nbhelpers.claims.planted import planted_profiles
from nbhelpers.claims.verdicts import Claim, Criterion
from nbhelpers.protocol import PAPER
from nbhelpers.stats import position_spectrum_correlation, student_interval

SIZES = {"n_sequences": 3, "n_layers": 4, "n_heads": 6, "length": 96}
CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C6", "C11", "C12", "C13", "C14")
MEASURED = {"N0": nulls.uniform, "N2": nulls.permuted, "N3": nulls.iid_softmax, "N4": nulls.exponential}


def observe_planted(bank, **options):
    observation = Observation(*planted_profiles(bank, **SIZES, **options))
    return observation, statistics.Measured(measure(observation), observation.profiles)


@pytest.fixture(scope="module")
def planted():
    return observe_planted("exponentials, octaves (ALiBi)", noise=0.7, key_noise=0.7, seed=2)


@pytest.fixture(scope="module")
def null_models(planted):
    observation, _ = planted
    made = {label: observation.map(null) for label, null in MEASURED.items()}
    found = {label: statistics.Measured(measure(o), o.profiles) for label, o in made.items()}
    return found | {"N1": [found["N0"], found["N3"]], "white noise": found["N3"]}


@pytest.fixture(scope="module")
def records(planted, null_models):
    _, (table, profiles) = planted
    by_claim = (statistics.measure_criteria(table, profiles, c, nulls=null_models) for c in CLAIMS)
    return {name: record for found in by_claim for name, record in found.items()}


def test_every_criterion_has_its_statistic_and_kinds_of_heads_are_counted(records, planted):
    expected = [criterion.name for claim in CLAIMS for criterion in paper.claim(claim).criteria]
    assert list(records) == expected == list(statistics.STATISTICS)
    assert all(record.low <= record.value <= record.high for record in records.values())
    local = planted[1].profiles.local_mass[..., 5].numpy()  # distances 0, 1, 2, 4, 8, 16
    kinds = np.where(local > 2 / 3, "local", np.where(local < 1 / 3, "global", "mixed"))
    assert records["C1_mixed_share"].value == pytest.approx((kinds == "mixed").mean())
    rarer = min((kinds == kind).mean() for kind in ("local", "global"))
    assert records["C1_rarer_share"].value == pytest.approx(rarer)
    per_layer = (kinds == "mixed").mean((0, 2))
    slope = scipy_stats.linregress([0, 1 / 3, 2 / 3, 1], per_layer).slope
    assert records["C1_mixed_change"].value == pytest.approx(slope, abs=1e-12)


def test_means_are_those_of_the_table_with_the_interval_over_sequences(planted, records):
    table = planted[1].table
    of = {"C2_low": "low_band", "C2_high": "high_band", "C5_half": "scale_sensitivity_0.5"}
    for name, metric in of.items():
        expected = student_interval(table.values(metric).mean((1, 2)))
        assert records[name][:3] == pytest.approx(expected[:3], rel=1e-9)
    assert records["C5_ratio"].value == pytest.approx(
        table.values("scale_sensitivity_0.25").mean() / table.values("scale_sensitivity_0.5").mean()
    )
    window = [table.values(f"window_entropy_{w}").mean() for w in (16, 32, 64)]
    assert records["C12_change"].value == pytest.approx(window[2] - window[0])
    assert records["C12_level"].value == pytest.approx(window[1])


def test_ranks_have_the_interval_of_single_sequences(planted, records):
    printed = paper.paper_table(7).iloc[:, 1:].mean()
    each = []
    for heads in planted[1].profiles.key_profile.double().numpy().reshape(3, 24, -1):
        levels = [pywt.wavedec(head, "db2", level=5) for head in heads]
        rows = [[scipy_stats.entropy(c**2) for c in level] for level in levels]
        each.append(np.mean(rows, 0))
    value = scipy_stats.spearmanr(np.mean(each, 0), printed).statistic
    mean = student_interval([scipy_stats.spearmanr(row, printed).statistic for row in each])
    expected = value, value + mean.low - mean.value, value + mean.high - mean.value
    assert records["C13_rank_correlation"][:3] == pytest.approx(expected, abs=1e-9)


def test_selectivity_is_less_the_largest_of_its_nulls(planted, null_models, records):
    named = {label: null_models[label] for label in ("N0", "N1")}
    largest = max(statistics.null_values("C4_selectivity_over_null", named).values())
    own = planted[1].table.values("frequency_selectivity").mean()
    assert records["C4_selectivity_over_null"].value == pytest.approx(own - largest)
    assert statistics.criterion_value("C4_selectivity_over_null", *planted[1]) == pytest.approx(own)
    assert records["C4_selectivity_over_null"].null is None


@pytest.mark.parametrize("signal", ["key_profile", "last_query"])
def test_peaks_are_tracked_by_rank(planted, signal):
    observation, (_, profiles) = planted
    protocol = PAPER.replace(signal=signal)
    table = measure(observation, protocol)
    expected = []
    for sequence in range(3):
        windowed = profiles[signal][sequence].double().flatten(0, 1).numpy() * np.hanning(96)
        power = np.abs(np.fft.rfft(windowed)) ** 2
        peak = power[:, 12:].max(1) / power.sum(1)  # 0.125 cycles/token is bin 12 of 96
        selectivity = table.values("frequency_selectivity")[sequence].ravel()
        expected.append(scipy_stats.spearmanr(selectivity, peak).statistic)
    found = statistics.criterion_value("C4_tracks_peak", table, profiles, protocol=protocol)
    assert found == pytest.approx(np.mean(expected), rel=1e-9)


def test_correlations_are_over_the_heads_of_a_layer(planted, records):
    table = planted[1].table
    expected = position_spectrum_correlation(table, over="heads of a layer").value
    assert records["C6_rho"].value == pytest.approx(expected, rel=1e-9)
    names = ("positional_entropy", "spectral_entropy", "effective_support")
    position, spectrum, support = map(table.values, names)
    partial = []
    for layer in itertools.product(range(3), range(4)):
        of_layer = [values[layer] for values in (position, spectrum, np.log(support))]
        xy, xz, yz = np.corrcoef(of_layer)[np.triu_indices(3, 1)]
        partial.append((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))
    assert records["C6_partial_rho"].value == pytest.approx(np.mean(partial), rel=1e-6)


def test_slack_is_that_of_the_square_root(planted, records):
    slack = []
    for a in planted[1].profiles.key_profile.double().flatten(0, 2).numpy():
        spectrum = np.abs(np.fft.fft(np.sqrt(a))) ** 2 / len(a)
        slack.append(scipy_stats.entropy(a) + scipy_stats.entropy(spectrum) - np.log(len(a)))
    assert records["C6_slack"].value == pytest.approx(np.mean(slack), rel=1e-6)


def test_frame_statistics_are_of_the_lag_profiles(planted, records):
    profiles = planted[1].profiles
    coherence, condition = [], []
    for sequence, layer in itertools.product(range(3), range(4)):
        lag = profiles.lag_profile[sequence, layer].double().numpy()
        cosines = np.abs(np.corrcoef(lag))[np.triu_indices(6, 1)]
        coherence.append(cosines.mean())
        unit = lag / np.linalg.norm(lag, axis=1, keepdims=True)
        eigenvalues = np.linalg.eigvalsh(unit @ unit.T)
        condition.append(np.log10(eigenvalues[-1] / eigenvalues[0]))
    assert records["C14_coherence"].value == pytest.approx(np.mean(coherence), rel=1e-6)
    assert records["C14_condition"].value == pytest.approx(np.mean(condition), rel=1e-4)
    assert 0 < records["C14_condition"].null < 3, "random sets of 6 in 96 dimensions"


def test_constant_q_is_one_for_dilated_copies():
    # Exact lag profiles over many octaves, without rows that see too little.
    lag = torch.arange(4096.0, dtype=torch.float64)
    bank = torch.stack([torch.exp(-0.5 * ((lag - 8 * w) / w) ** 2) for w in (4, 8, 16, 32, 64)])
    profiles = SimpleNamespace(key_profile=None, lag_profile=bank[None, None])
    slope = statistics.STATISTICS["C14_constant_q"].columns(None, profiles, PAPER)
    assert slope == pytest.approx(1, abs=0.05)


def test_the_null_on_record_is_the_most_conservative(planted, null_models, records):
    found = {name: statistics.null_values(name, null_models) for name in records}
    of = {name: [found[name][label] for label in ("N0", "N1", "N2")] for name in ("C1_rarer_share", "C2_low")}
    assert records["C1_rarer_share"].null == max(of["C1_rarer_share"])
    assert records["C2_low"].null == min(of["C2_low"], key=lambda null: abs(null - records["C2_low"].value))
    assert records["C6_slack"].null == min(found["C6_slack"][label] for label in ("N1", "N2", "N4"))
    each = [statistics.criterion_value("C2_low", *one) for one in null_models["N1"]]
    assert found["C2_low"]["N1"] == pytest.approx(np.mean(each)), "the mean over seeds"


def test_nulls_have_intervals_over_pairs_or_seeds(planted, null_models, records):
    table, null = planted[1].table, null_models["N2"].table  # of the same sequences
    own, of_null = (t.values("low_band").mean((1, 2)) for t in (table, null))

    def held(label, of):
        only = Criterion(name="C2_low", statistic="x", claimed=(0, 1), nulls=(label,))
        rule = Claim(number="C0", title="", statement="", criteria=(only,))
        return statistics.measure_criteria(*planted[1], rule, nulls={label: of})["C2_low"]

    found = held("N2", null_models["N2"])
    assert found.gap[:3] == pytest.approx(student_interval(own - of_null)[:3])
    assert (found.null_low, found.null_high) == pytest.approx(student_interval(of_null)[1:3])
    seeds = [null_models[name] for name in ("N0", "N2", "N3")]
    values = [of.table.values("low_band").mean() for of in seeds]
    found = held("N1", seeds)
    assert (found.null, found.null_low) == pytest.approx(student_interval(values)[:2])
    assert found.gap.high - found.gap.low > found.high - found.low


def test_a_null_that_does_not_define_a_statistic_is_left_out(null_models):
    assert np.isnan(statistics.criterion_value("C6_rho", *null_models["N0"])), "all heads are alike"
    _, iid = observe_planted("independent entries", noise=0.2)
    given = null_models | {"N1": null_models["N0"]}
    found = statistics.measure_criteria(*iid, "C6", nulls=given)["C6_rho"].null
    others = {label: given[label] for label in ("N3", "N4")}
    assert found == min(statistics.null_values("C6_rho", others).values())
    with pytest.raises(ValueError, match="not defined for any of the 3 sequences"):
        statistics.measure_criteria(*null_models["N0"], "C6", nulls=null_models)


def test_a_null_whose_number_begins_like_another_is_another(planted, null_models, records):
    reversed_ = null_models | {"N10 reversed": null_models["N4"]}
    found = statistics.measure_criteria(*planted[1], "C2", nulls=reversed_)
    assert found == {name: records[name] for name in found}
    asked = Criterion(name="C2_low", statistic="x", claimed=(0, 1), nulls=("N10 reversed",))
    rule = Claim(number="C0", title="", statement="", criteria=(asked,))
    null = statistics.measure_criteria(*planted[1], rule, nulls=reversed_)["C2_low"].null
    assert null == statistics.null_values("C2_low", null_models)["N4"] != records["C2_low"].null


def test_what_is_missing_is_named(planted, null_models):
    for claim, without, message in (
        ("C2", "N2", "of these N2 is not given"),
        ("C9", None, "no statistic is called 'C9_interior_peak'"),
        ("C99", None, "no claim is called 'C99'"),
    ):
        given = {label: null for label, null in null_models.items() if label != without}
        with pytest.raises(LookupError, match=message):
            statistics.measure_criteria(*planted[1], claim, nulls=given)
