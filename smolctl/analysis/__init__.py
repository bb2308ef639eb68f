"""Analysis of runs: reads their files, writes none, and returns dataclasses.

`stats`, `alike` and `arms` compute from what they are given; the other modules also read files.
"""
