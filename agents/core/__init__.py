"""What every agent stands on."""
