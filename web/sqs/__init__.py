"""The SQS endpoint: Amazon SQS's API, in both of its protocols, on the service's queues."""
