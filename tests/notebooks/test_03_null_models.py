def test_nulls_destroy_what_they_say(tables):
    metrics = tables["metrics_and_nulls"].set_index("metric")
    assert abs(metrics.loc["low_band", "N2 permuted"] - metrics.loc["low_band", "model"]) > 0.05
    assert metrics.loc["low_band", "N1 random weights"] > 0.98 > metrics.loc["low_band", "model"]
    assert metrics.loc["sink_mass", "N2 permuted"] < 0.1 < metrics.loc["sink_mass", "model"]
