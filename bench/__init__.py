"""Benchmarks: figures side by side in one run, as ratios. `make bench` runs them all; `python -m bench load` one."""
