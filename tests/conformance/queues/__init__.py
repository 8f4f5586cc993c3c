"""Whole queues, on every engine: which exist, and moves of all their messages."""
