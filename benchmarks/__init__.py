"""`python -m benchmarks [NAME…]` measures the service on this machine, each figure against another of the same run.

Only ratios within one run count: the machine, its disk and what else runs on it decide the absolute numbers.
"""
