import pytest

from slim_core.report import format as fmt


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.23456, "1.23"), (12.3456, "12.3"), (123.456, "123"), (0.00123456, "0.00123"), (99.96, "100"),
     (-2.5, "−2.50"), (1.5e-7, "1.50e−07"), (2.5e9, "2.50e+09")],
)  # fmt: skip
def test_significant_digits(value, text):
    assert fmt.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12"), (1000, "1.00 k"), (823_722, "824 k"), (13_512_000, "13.5 M"), (4.1e9, "4.10 G")]
)
def test_counts(value, text):
    assert fmt.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (1000, "1.00 kB"), (3_310_200, "3.31 MB"), (2.5e9, "2.50 GB")]
)
def test_sizes_are_decimal(value, text):
    assert fmt.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0423, "42.3 µs"), (1.92, "1.92 ms"), (48.21, "48.2 ms"), (1500, "1.50 s")]
)
def test_milliseconds(value, text):
    assert fmt.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.21, "3.2 s"), (59.4, "59 s"), (200, "3 min 20 s"), (3599.9, "1 h 0 min"), (7260, "2 h 1 min")],
)
def test_durations(value, text):
    assert fmt.duration(value) == text


@pytest.mark.parametrize(
    ("value", "beside", "text"),
    [
        (0.04, 1.92, "± 0.04 ms"),
        (0.65, 48.2, "± 0.7 ms"),
        (3.2, 480, "± 3 ms"),
        (0.002, 0.05, "± 2.0 µs"),
        (20, 2500, "± 0.02 s"),
    ],
)
def test_spreads_are_written_like_the_median_beside_them(value, beside, text):
    assert fmt.spread(value, beside) == text


@pytest.mark.parametrize(
    ("before", "after", "unit", "text"),
    [
        (0.98, 0.975, "share", "−0.50 points"),
        (0.9, 0.95, "share", "+5.00 points"),
        (0.98, 0.98, "share", "no change"),
        (4_000_000, 400_000, "bytes", "−90.0 %"),
        (2.0, 2.5, "ms", "+25.0 %"),
        (1.0, 5.0, "number", "×5.00"),
        (10_000, 9_999, "count", "−0.010 %"),
        (7, 7, "count", "no change"),
        (0, 5, "count", "+5"),
        (None, 5, "count", "–"),
    ],
)
def test_changes(before, after, unit, text):
    assert fmt.change(before, after, unit) == text
