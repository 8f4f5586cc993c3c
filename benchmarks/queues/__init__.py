"""The same work for this service and for others that do it: each server with its clients in Python, all durable."""
