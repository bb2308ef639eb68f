"""Quantization of trained models: configurations, backends, storage, measurements."""
