"""The same work for this service and for other queues: each a server with Python clients, all durable."""
