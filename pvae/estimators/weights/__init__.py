"""Log weights of many draws: how they are drawn in chunks, summed up and trusted."""
