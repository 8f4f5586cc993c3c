"""The commands, and their common options."""
