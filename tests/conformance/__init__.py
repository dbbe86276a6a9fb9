"""Stock clients and the official suite against running nodes."""
