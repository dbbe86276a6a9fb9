"""Pure rules and values of the OCI distribution-spec: no I/O, no clock, no framework."""
