"""The native API: requests as they are read, responses as they are written."""
