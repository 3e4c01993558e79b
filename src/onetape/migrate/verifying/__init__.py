"""Verifying: keys and their twins held against each other, in both directions, and the verdict."""
