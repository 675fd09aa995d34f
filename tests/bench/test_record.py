"""Records: what is derived, the round trip through a file, and files that are something else."""

import json

import pytest

from biojax.bench import read_records, write_records
from biojax.errors import FileError


def test_rates_are_those_of_the_median(make_record):
    record = make_record()
    assert record.name == "conv/3d_64_c32/forward"
    assert record.seconds == 0.1
    assert record.deviation == pytest.approx(0.01)
    assert record.flops_per_second == pytest.approx(1e10)
    assert record.bytes_per_second == pytest.approx(1e8)
    assert record.voxels_per_second == pytest.approx(64**3 / 0.1)


@pytest.mark.parametrize(
    ("flops", "traffic", "share"),
    [
        (10**9, 10**7, 0.5),  # 50 ms of products at 20 GFLOP/s
        (10**7, 2 * 10**7, 0.2),  # 20 ms of copying at 1 GB/s
        (4 * 10**9, 1, 2.0),  # a faster algorithm than the direct one
        (None, 1, None),
        (1, None, None),
    ],
)
def test_the_share_of_the_roofline(make_record, flops, traffic, share):
    found = make_record(flop_count=flops, byte_count=traffic).share
    assert found == (share if share is None else pytest.approx(share))


def test_round_trip(make_record, tmp_path):
    records = [
        make_record(),
        make_record(requested="xla", flop_count=None, peak_bytes=None, lower_seconds=None),
    ]
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records
    first = json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])
    assert first["seconds"] == 0.1
    assert first["share"] == pytest.approx(0.5)


def test_fields_of_other_versions_are_left_out(make_record, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({**json.loads(make_record().to_json()), "later": 1}) + "\n\n")
    assert read_records(path) == [make_record()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": []}, "samples="),
        ({"samples": [0.1, "0.1"]}, "samples="),
        ({"samples": [0.0]}, "samples="),
        ({"samples": [-1.0]}, "samples="),
        ({"samples": [True]}, "samples="),
        ({"samples": 1.0}, "samples="),
        ({"first_seconds": 1e301}, "first_seconds="),
        ({"matmul_ceiling": None}, "matmul_ceiling="),
        ({"flop_count": 1.5}, "flop_count="),
        ({"voxel_count": 2**70}, "voxel_count="),
        ({"target": ["conv"]}, "target="),
        ({"requested": 3}, "requested="),
        ({"date": None}, "date="),
    ],
)
def test_values_that_cannot_be(make_record, tmp_path, changes, said):
    path = tmp_path / "records.jsonl"
    good = make_record().to_json()
    path.write_text(f"{good}\n{json.dumps({**json.loads(good), **changes})}\n")
    with pytest.raises(FileError, match=f"line 2 with {said}"):
        read_records(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not json", "line 1, which is not JSON"),
        (b"[1, 2]", "line 1, which is no JSON object"),
        (b"{}", "line 1 without 'suite'"),
        (b"[" * 100_000, "line 1, which is not JSON"),
        (b"1" * 5_000, "line 1, which is not JSON"),
        (b"\xff\xfe\x00", "not text"),
        (b"II*\x00", "line 1, which is not JSON"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, said):
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    with pytest.raises(FileError, match=said) as caught:
        read_records(path)
    assert caught.value.where == str(path)


def test_no_file_a_folder_and_too_much(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="No such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(FileError, match="directory"):
        read_records(tmp_path)
    monkeypatch.setattr("biojax.bench.record._LARGEST_FILE", 10)
    (tmp_path / "long.jsonl").write_text("x" * 11)
    with pytest.raises(FileError, match="more than"):
        read_records(tmp_path / "long.jsonl")
