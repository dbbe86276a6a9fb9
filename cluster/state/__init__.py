"""What the nodes tell each other: hints that make things fast, and may all be lost at any moment."""
