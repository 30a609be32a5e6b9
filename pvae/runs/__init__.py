"""A run is a folder: its files, its metrics, and the recipe of its pair."""
