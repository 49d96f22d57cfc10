"""Drop-in replacements for other caching packages, on tensorcask's stores.

`tensorcask.compat.torchcachex` has the interface of the package `torchcachex`, and `tensorcask.compat.torchcache` that
of `torchcache`. A program is moved by changing its import line.
"""
