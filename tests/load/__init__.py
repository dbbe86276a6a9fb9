"""Load by locust: users that behave like clients, and a record of what they were told."""
