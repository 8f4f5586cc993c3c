"""HTTP calls: paths, connections, retries."""
