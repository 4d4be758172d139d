"""What a sweep leaves behind: types of its raw records, and the folder that keeps them."""
