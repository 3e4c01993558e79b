"""Who gets told: wakers, followers, subscriptions, and the newest records in memory."""
