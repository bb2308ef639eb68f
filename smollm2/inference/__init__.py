"""Decoding with a KV cache, one token at a time, eager or compiled."""
