"""What stands between the network and the store beside the native routes of handler.py."""
