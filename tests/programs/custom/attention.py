"""A module with the name of one of mae_hf's."""

ANSWER = 7
