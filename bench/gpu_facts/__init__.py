"""Facts about a GPU that decide how the server uses it: ``python -m bench.gpu_facts``."""
