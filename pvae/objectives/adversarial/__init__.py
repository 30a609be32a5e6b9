"""Objectives with a discriminator."""
