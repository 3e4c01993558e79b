"""Fields: what legacy systems write of ticks and bars, under any name and in any unit, turned into records."""
