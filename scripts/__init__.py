"""The command line: ``headway train``, ``evaluate``, ``benchmark``, ``agents``, ``envs``."""
