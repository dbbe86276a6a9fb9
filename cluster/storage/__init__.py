"""Bytes that must survive: the ports, the layout, and the drivers."""
