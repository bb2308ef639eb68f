"""Decoding with a KV cache, eager or compiled; text from tokens; chat templates."""
