"""A model and a guide: looked at once, run many times."""
