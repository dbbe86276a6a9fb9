"""The benchmark beside other registries and the memory check; programs, not pytest tests (see README.md)."""
