"""The database file, the lock between processes, and how groups of operations get on the disk."""
