"""Models to and from other programs: transformers folders and GGUF files."""
