"""The drill command itself: its figures, its report, and whether it finds what is broken on purpose."""
