"""One suite of what the Store protocol promises; every engine has to pass it."""
