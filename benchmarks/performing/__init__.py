"""The parts of `benchmarks/performance.py`: reference, forms, pictures, counting, ceilings, measuring, table."""
