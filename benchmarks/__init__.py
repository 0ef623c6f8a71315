"""The laboratory: the demo, the benches and their results. No part of the package that users install.

`python -m benchmarks.NAME` in the root of the repository runs one.
"""
