"""Statistics: pure functions of arrays, nothing imported here.

`quantiles` (latency percentiles and throughput), `ratios` (one variant against another), `paired` (answers on the same
samples) and `warmup` (where the steady state begins). Import the module you need: only `warmup` runs on devices without scipy.
"""
