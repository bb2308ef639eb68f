"""The configuration of a run: as requested, then resolved once with every default filled in."""
