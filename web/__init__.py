"""HTTP beside the routes of handler.py: parsing, responses, access, metrics, pages and the gunicorn worker."""
