"""Services: long-running users of the tape. Each shares the one tape and keeps no market data of its own."""
