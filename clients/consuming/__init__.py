"""Loops that work on messages: consume in the caller's thread, or a handler in several."""
