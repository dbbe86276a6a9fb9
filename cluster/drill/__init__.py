"""Proof under fire: what clients were told, whether the cluster kept it, and drills that break the cluster."""
