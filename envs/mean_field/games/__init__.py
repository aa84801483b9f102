"""Benchmark games, by the names of :data:`headway.envs.mean_field.GAMES`."""
