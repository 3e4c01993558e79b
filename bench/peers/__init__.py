"""The peers: each a process of its own, in the peers' own virtual environment; `worker` says how it is asked."""
