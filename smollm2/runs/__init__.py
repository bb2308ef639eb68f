"""The run directory: manifest, tables and checkpoints."""
