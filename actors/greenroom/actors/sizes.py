"""Sizes as people read them: decimal units everywhere."""


def format_size(size: float) -> str:
    """`512 B`, `93.2 MB`, `1.61 GB`: powers of ten, three digits."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step * 0.9995:
            value = size / step
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{int(size)} B"
