"""Numbers in human-readable units."""


def count(n: float) -> str:
    """12,345 as `12.3k`, 151,028,224 as `151.0M`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return f"{n:.0f}"


def size(n_bytes: float) -> str:
    """`640 B`, `12.3 kB`, `1.5 GB`: powers of 1000."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """`4.2 s`, `47 s`, `3 min 20 s`, `46 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def of_total(n: int, total: int) -> str:
    """`500 of 10,042`; `10,042` for all."""
    return f"{n:,}" if n == total else f"{n:,} of {total:,}"


def counted(n: int, word: str) -> str:
    """`1 figure`, `5 figures`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
