"""Records and times: what users write, and the intervals they name."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

import onetape
from onetape.clock import to_ns, to_text
from onetape.record import interval_ns


def test_every_public_name_exists_and_is_sorted_into_all():
    assert all(hasattr(onetape, name) for name in onetape.__all__)
    assert len(set(onetape.__all__)) == len(onetape.__all__)


@pytest.mark.parametrize(
    "written,ns",
    [
        (1_700_000_000_000_000_001, 1_700_000_000_000_000_001),
        ("1970-01-01", 0),
        ("2025-03-14T09:30:00.123456789Z", 1_741_944_600_123_456_789),
        ("2025-03-14T15:00:00.123456789+05:30", 1_741_944_600_123_456_789),
        ("2025-03-14 09:30:00.25", 1_741_944_600_250_000_000),
        (date(1970, 1, 2), 86_400_000_000_000),
        (datetime(1970, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))), 0),
        (datetime(1970, 1, 1, 0, 0, 0, 1), 1000),
        ("1700000000000000001", 1_700_000_000_000_000_001),
    ],
)
def test_a_time_can_be_written_in_every_usual_way(written, ns):
    assert to_ns(written) == ns


def test_numpy_and_pandas_times_are_exact():
    import numpy as np
    import pandas as pd

    assert to_ns(np.datetime64("2025-03-14T09:30:00.123456789")) == 1_741_944_600_123_456_789
    assert to_ns(np.int64(5)) == 5
    stamp = pd.Timestamp("2025-03-14T09:30:00.123456", tz=UTC)
    assert to_ns(stamp) == 1_741_944_600_123_456_000


@pytest.mark.parametrize("written", ["yesterday-ish", "2025-13-01", True, object(), "", None])
def test_what_is_not_a_time_is_refused_with_a_hint(written):
    with pytest.raises(onetape.ConfigInvalid, match="is not a time") as caught:
        to_ns(written)
    assert caught.value.hint


def test_text_of_a_time_keeps_every_nanosecond():
    for ns in (0, 1, 1_741_944_600_123_456_789, 1_741_944_600_250_000_000, 2**63 - 2):
        assert to_ns(to_text(ns)) == ns


def test_intervals():
    assert interval_ns("1min") == 60_000_000_000
    assert interval_ns("15s") == 15_000_000_000
    assert interval_ns("1d") == 86_400_000_000_000
    for wrong in ("0min", "min", "1m", "-1s", "1.5h", "1week", ""):
        with pytest.raises(ValueError, match="interval"):
            interval_ns(wrong)
