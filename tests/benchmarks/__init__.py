"""asgictl side by side with other servers: ``python -m tests.benchmarks --help``."""
