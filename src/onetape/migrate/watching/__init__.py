"""Watching: where a migration is at one moment, for people, for screens and for Prometheus."""
