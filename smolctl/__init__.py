"""The command line of smollm2: it parses, calls the library and prints."""
