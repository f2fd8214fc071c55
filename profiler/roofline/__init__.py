"""What a device's data sheet lets a model take at least: operations and bytes per op, peaks, the floor, the share of it reached.

`counting.count_model` reads the graph, `limits.floor` puts it on a device profile, `share.limit_share` compares with what was
measured. All pure. docs/roofline.md tells what is counted, what is not, and why the result is a floor.
"""
