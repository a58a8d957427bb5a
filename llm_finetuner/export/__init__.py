"""What leaves a run: the hub, and later other formats."""
