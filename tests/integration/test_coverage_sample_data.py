"""Coverage of real days on which nobody said what they recorded."""

from pathlib import Path

import numpy as np

import onetape
from onetape.importing.formats import import_file

HOURS = "America/New_York 09:30-16:00"


def test_a_real_day_of_a_share_has_no_suspect_silence_in_its_session_and_a_hole_cut_into_it_is_found(
    tmp_path: Path, sample_data: Path
) -> None:
    path = sample_data / "lean" / "equity" / "usa" / "tick" / "aig" / "20131007_trade.zip"
    with onetape.open(tmp_path / "whole.db", retention_days=None) as whole:
        import_file(whole, path)
        assert whole.gaps("AIG", session=HOURS) == []
        assert whole.gaps("AIG") == [], "thin hours before the open are thin, not suspect"
        table = whole.read("AIG")
    ts = table.column("ts_event_ns").to_numpy()
    start, end = onetape.to_ns("2013-10-07T15:10:00"), onetape.to_ns("2013-10-07T15:30:00")
    with onetape.open(tmp_path / "holed.db", retention_days=None) as holed:
        holed.append_table(table.filter((ts < start) | (ts >= end)))
        (gap,) = holed.gaps("AIG", session=HOURS)
        assert gap.state == "unknown"
        assert gap.start_ns == ts[ts < start].max() + 1 and gap.end_ns == ts[ts >= end].min()
        from onetape.healing import TapeSource, heal

        with TapeSource(tmp_path / "whole.db") as source:
            done = heal(holed, source, session=HOURS)
        assert done.stored == np.count_nonzero((ts >= start) & (ts < end))
        columns = ["ts_event_ns", "price", "size"]
        assert sorted(map(str, holed.read("AIG", columns=columns).to_pylist())) == sorted(
            map(str, table.select(columns).to_pylist())
        )
