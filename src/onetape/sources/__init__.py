"""Sources: where records come from. Each is an iterator of deliveries with counts, one module or package a kind."""
