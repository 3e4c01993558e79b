"""The benchmark: onetape beside its peers and limits, in one run, in one table. See README.md for the results."""
