import math

from nbhelpers.words import duration, memory


def test_time_and_memory_in_words():
    assert [duration(s) for s in (0.4, 89, 90, 5399, 7200, math.nan)] == [
        "0 s", "89 s", "1 min 30 s", "89 min 59 s", "2.0 h", "?",
    ]  # fmt: skip
    assert [memory(m) for m in (700.4, 20480, math.nan)] == ["700 MB", "20 GB", "?"]
