"""Slower or faster beyond the noise, and only like with like."""

import pytest

from biojax.bench import compare

STEADY = (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (STEADY, (1.04,) * 3, "same"),
        (STEADY, (1.06,) * 3, "slower"),
        (STEADY, (0.94,) * 3, "faster"),
        ((0.9, 1.0, 1.1), (1.1, 1.2, 1.3), "same"),  # deviations of 0.1 each: noise 0.6
        ((0.9, 1.0, 1.1), (1.6, 1.7, 1.8), "slower"),
        ((0.9, 1.0, 1.1), (0.3, 0.3, 0.3), "faster"),
        ((1.0, 1.0, 9.0), (1.0, 1.0, 8.0), "same"),  # one outlier is nothing
    ],
)
def test_verdicts(make_record, before, after, verdict):
    (change,), alone = compare([make_record(samples=after)], [make_record(samples=before)])
    assert change.verdict == verdict
    assert not alone


def test_ratio_and_noise(make_record):
    before, after = make_record(samples=(0.9, 1.0, 1.1)), make_record(samples=(1.9, 2.0, 2.1))
    (change,), _ = compare([after], [before])
    assert change.ratio == pytest.approx(2.0)
    assert change.noise == pytest.approx(0.6)


@pytest.mark.parametrize(
    "field",
    ["suite", "target", "spec", "shapes", "mode", "dtype", "requested", "machine", "device"],
)
def test_what_differs_is_not_compared(make_record, field):
    record = make_record()
    changes, alone = compare([record], [make_record(**{field: "another"})])
    assert changes == []
    assert alone == [record]


def test_the_library_may_have_changed_its_choice(make_record):
    before, after = make_record(implementation="xla"), make_record(versions="jax 0.11")
    (change,), _ = compare([after], [before])
    assert (change.before.implementation, change.after.implementation) == ("xla", "planes")


def test_the_last_of_several_counts(make_record):
    earlier = [make_record(samples=(s,)) for s in (5.0, 1.0)]
    (change,), _ = compare([make_record(samples=(1.0,))], earlier)
    assert change.verdict == "same"
