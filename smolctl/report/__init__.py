"""The model card: its tables, sentences and figures."""
