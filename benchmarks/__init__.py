"""Benchmarks beside the peers they name: `python -m benchmarks` runs all and writes `docs/benchmarks.md`.

Each runs alone too: `python -m benchmarks.record`, `.patching`, `.import_time`, `.edit_generate`.
"""
