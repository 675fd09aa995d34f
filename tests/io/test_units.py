"""Lengths and records lose no digit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biojax.io import Volume, record
from biojax.io.units import from_mm, to_mm

lengths = st.floats(1e-300, 1e300)


@given(lengths)
@settings(max_examples=200, deadline=None)
def test_micrometres_bring_every_length_back(millimetres):
    assert to_mm(from_mm(millimetres, "um"), "\u00b5m") == millimetres


@pytest.mark.parametrize(
    ("value", "unit", "millimetres"),
    [
        ("0.1", "um", 0.0001),
        (0.3, "\u00b5m", 0.0003),
        ("0.3", "\u03bcm", 0.0003),
        ("0.3", "micron", 0.0003),
        ("0.3", "Microns", 0.0003),
        ("0.3", "\\u00B5m", 0.0003),
        ("65", "nm", 0.000065),
        ("1.5", "\u00c5", 1.5e-7),
        ("0.7", "mm", 0.7),
        ("0.7", "cm", 7.0),
        ("2", "m", 2000.0),
        ("1", "inch", 25.4),
        ("2", "millimeters", 2.0),
        ("1", "Mm", None),  # a megametre
        ("1", "pixel", None),
        ("1", "", None),
        ("1", None, None),
        ("0", "mm", None),
        ("-1", "mm", None),
        ("nan", "mm", None),
        ("inf", "mm", None),
        ("1e400", "mm", None),
        ("wide", "mm", None),
    ],
)
def test_units(value, unit, millimetres):
    assert to_mm(value, unit) == millimetres


def test_a_record_yields_to_the_file():
    volume = Volume(
        np.zeros((1, 4, 5)),
        "zyx",
        affine=np.diag([0.3, 0.2, 0.1, 1]),
        channels=["a"],
        modality="MR",
    )
    text = record.pack(volume)
    sizes, near = {"y": 4, "x": 5}, {"z": 0.3 * (1 + 1e-8), "y": 0.2, "x": 0.1}
    fields = record.unpack(text, sizes, near)
    assert fields is not None
    assert (fields["axes"], fields["spacing"]) == ("zyx", (0.3, 0.2, 0.1))
    assert np.array_equal(fields["affine"], volume.affine)  # pyright: ignore
    assert (fields["channels"], fields["modality"], fields["meta"]) == (["a"], "MR", {})
    changed = record.unpack(text, sizes, {**near, "x": 0.15})  # scaled by another program
    assert changed is not None
    assert (changed["spacing"], changed["affine"]) == ((near["z"], 0.2, 0.15), None)
    cropped = record.unpack(text, {"y": 3, "x": 5}, near)
    assert cropped is not None
    assert cropped["spacing"] == (0.3, 0.2, 0.1)
    assert "affine" not in cropped
    assert record.unpack(text, {**sizes, "t": 2}, near) is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "Info of something else",
        "[]",
        "[" * 100_000,
        '{"biojax": 1}',
        '{"biojax": 99, "axes": "yx", "shape": [4, 5]}',
        '{"biojax": 1, "axes": "yx", "shape": "ab"}',
        '{"biojax": 1, "axes": "yx", "shape": [4, 5], "spacing": ["a", 2]}',
        '{"biojax": 1, "axes": "yx", "shape": [4, 5], "affine": [[1, 2], 3]}',
    ],
)
def test_other_text_is_no_record(text):
    assert record.unpack(text, {"y": 4, "x": 5}, {}) is None


def test_a_record_is_one_line_of_ascii():
    text = record.pack(Volume(np.zeros((2, 2)), "yx", meta={"note": "\u00b5\n"}))
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["meta"] == {"note": "\u00b5\n"}
