"""The file of a tape: its layout, and every reading and writing of it."""
