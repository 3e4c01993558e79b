"""Throttling: how fast a migration may go, from what the server and those who use it feel, and why it waits."""
