"""`bench gpu`: everything that is to be known of a GPU, in eight minutes."""
