import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbhelpers.files import read_parquet, read_parquet_metadata, replacing, write_parquet

FRAME = pd.DataFrame({"name": list("abcde"), "n": np.arange(5), "value": [1.5, np.nan, np.inf, -0.0, 1e-300]})
FACTS = {"model": {"name": "tiny"}, "lengths": [1, 2], "none": None}


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "note.txt"
    with replacing(path) as partial:
        partial.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        print(partial.write_text("half") / 0)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("note.txt", "old")]


def test_frame_and_metadata_come_back(tmp_path):
    path = write_parquet(FRAME, tmp_path / "deep" / "table.parquet", FACTS, compression="zstd")
    frame, facts = read_parquet(path)
    pd.testing.assert_frame_equal(frame, FRAME, check_exact=True)
    assert facts == read_parquet_metadata(path) == FACTS
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"
    pd.testing.assert_frame_equal(pd.read_parquet(path), FRAME)  # anybody can read it
    some, _ = read_parquet(path, columns=["n"], filters=[("name", "in", ["b", "d"])])
    assert some.to_dict("list") == {"n": [1, 3]}
    assert read_parquet(write_parquet(FRAME, tmp_path / "bare.parquet"))[1] is None


def test_writing_again_replaces_and_a_failure_does_not(tmp_path):
    path = write_parquet(FRAME, tmp_path / "table.parquet", FACTS)
    with pytest.raises(TypeError, match="JSON"):
        write_parquet(FRAME, path, {"model": object()})
    with pytest.raises(pa.ArrowException, match="compression"):
        write_parquet(FRAME, path, compression="none such")
    assert read_parquet_metadata(path) == FACTS
    write_parquet(FRAME, path, {"seed": 1})
    assert read_parquet_metadata(path) == {"seed": 1}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("read", [read_parquet, read_parquet_metadata])
def test_missing_and_damaged_files(tmp_path, read):
    path = tmp_path / "table.parquet"
    with pytest.raises(FileNotFoundError, match=r"no file .*table.parquet"):
        read(path)
    content = write_parquet(FRAME, path, FACTS).read_bytes()
    for broken in (b"", b"hello", content[: len(content) // 2], content[:-9]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"table.parquet is damaged \(.+\)\.$"):
            read(path)


def test_damage_inside_is_found_on_reading(tmp_path):
    path = write_parquet(FRAME, tmp_path / "table.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(100) + content[104:])
    with pytest.raises(ValueError, match="is damaged"):
        read_parquet(path)
