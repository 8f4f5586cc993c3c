"""The tests of the Store protocol, which every engine must pass."""
