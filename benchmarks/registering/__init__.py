"""The parts of `benchmarks/registration.py`: cases, nonsense, methods, measuring, table."""
