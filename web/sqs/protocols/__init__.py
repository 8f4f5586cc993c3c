"""The two protocols of SQS, and which requests speak them."""
