"""What the registry does. Knows the ports of storage and state, never their adapters, and nothing of HTTP."""
