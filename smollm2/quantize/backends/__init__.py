"""One module per quantization library."""
