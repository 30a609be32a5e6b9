"""What knows no pair: the words of refusals."""
