"""What people and machines touch: the command line, and what it prints."""
