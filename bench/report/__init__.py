"""What a sweep has shown: everything here is derived from the raw records of one folder."""
