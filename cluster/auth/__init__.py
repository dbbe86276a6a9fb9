"""Who may do what: accounts, tokens and the policy. The questions are in access.py, the answers in the adapters."""
