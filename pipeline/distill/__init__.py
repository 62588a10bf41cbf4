"""Training students: groups of candidates, losses, one loop, checkpoints."""
