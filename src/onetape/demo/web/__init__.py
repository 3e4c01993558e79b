"""A whole system to look at: recorded ticks played again as if they came now, services on them, and the page."""
