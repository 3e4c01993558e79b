"""The wire: one raw connection to a Redis-compatible server, pipelined; its address, and a WATCH that is held on it."""
