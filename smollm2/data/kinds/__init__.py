"""One module per kind of corpus, which declares its `KIND`."""
