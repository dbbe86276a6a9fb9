"""registry-cluster: an OCI and Docker registry served by several identical nodes."""

__version__ = "0.1.0"
