"""A training in several processes: their start, their engine, and what an engine shards."""
