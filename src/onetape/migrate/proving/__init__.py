"""Proving: what old keys, new keys and the tape add up to, and the signed report of it."""
