"""Phases: how far a live migration is, as a fenced record that all clients watch, and what was done to it."""
