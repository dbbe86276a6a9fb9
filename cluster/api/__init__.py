"""HTTP: Falcon resources, thin. Parse, call one service method, set headers."""
