"""What serves the application: a worker of gunicorn, or AWS Lambda."""
