"""One file a revision, numbered in order. A released revision is never edited."""
