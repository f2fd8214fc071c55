"""Work that needs no particular device, done on an existing dask.distributed cluster: variants, and accuracy of large sets.

Nothing is timed there. Names are imported from the modules; `distributed` and `cryptography` come with the extra `fleet`.
"""
