"""The meter: the timing loop, the host's own counters, memory. Runs inside workers: standard library and numpy only."""
