"""Log densities of latents: joint ones, over unconstrained numbers, followed by chains or integrated."""
