"""What frozen features are good for, measured with labels: every evaluation yields (name, value)."""
