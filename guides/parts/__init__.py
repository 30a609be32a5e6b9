"""What guides share; no guide is in here."""
