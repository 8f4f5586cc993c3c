"""Who may do what: tokens, and which origins browsers may come from."""
