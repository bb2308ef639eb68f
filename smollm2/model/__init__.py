"""The architecture, its variants, its loss, and what it costs."""
