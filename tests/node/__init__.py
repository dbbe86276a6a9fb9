"""One node as a process: its operation, and clients that mean it no good."""
