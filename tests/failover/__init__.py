"""What happens when parts of a running cluster die, hang or leave: real processes, sentences with deadlines."""
