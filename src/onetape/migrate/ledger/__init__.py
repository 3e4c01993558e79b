"""The ledger: a migration's durable memory in one SQLite file."""
