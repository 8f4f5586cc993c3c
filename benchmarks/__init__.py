"""`python -m benchmarks [NAME…]` measures the service on this machine, each figure against another of the same run.

Compare only ratios within one run: the machine, its disk and other programs decide the absolute numbers.
"""
