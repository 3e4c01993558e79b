"""The survey: what keys there are, how large, of what kind, and whether a server is fit to take them."""
