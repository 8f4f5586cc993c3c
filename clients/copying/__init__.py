"""The parts of copy_file."""
