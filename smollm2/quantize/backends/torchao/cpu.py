"""What both integer formats know about CPUs."""

LANES = 16  # numbers in a vector of AVX-512, for which compiled steps are written
CHUNK = 4096  # rows of a matrix that are dequantized at a time: they stay in the cache
