"""One module per optimizer, which declares its `SPEC` and imports torch only when it is built."""
