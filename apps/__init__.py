"""Browser applications over run directories: `python -m apps --runs runs/`."""
