"""The backfill: all keys of a plan, step by step, brought over and landed, however often it is run or killed."""
