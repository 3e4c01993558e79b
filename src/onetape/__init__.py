"""onetape: one durable tape of market data for a whole trading system."""
