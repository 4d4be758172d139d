"""The pictures of a report, one in each file, and what they have in common."""
