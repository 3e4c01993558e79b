"""Copying: a key brought to its place only if neither side changed since it was read, in batches or in slices."""
