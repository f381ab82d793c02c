"""Data parallelism and model parallelism in one process."""
