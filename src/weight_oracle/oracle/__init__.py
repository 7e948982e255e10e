"""The language model that reads weight tokens and answers questions."""
