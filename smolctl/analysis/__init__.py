"""Analysis of runs: reads their files, writes none, and returns dataclasses.

The statistics (`stats`, `blocks`, `verdicts`, `tuning_gap`, `power`, `size_ladder` and
`document_interval`) compute from numbers alone; the other modules read the files of runs.
"""
