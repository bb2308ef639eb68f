"""One module per launcher, which declares its `LAUNCHER`."""
