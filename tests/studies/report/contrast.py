"""Contrast of two colours as WCAG 2.2 defines it."""

from collections.abc import Sequence


def contrast(a: Sequence[int], b: Sequence[int]) -> float:
    """From 1 to 21; ``a`` and ``b`` are sRGB, 0 to 255."""
    dark, light = sorted([_luminance(a), _luminance(b)])
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Sequence[int]) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (part / 255 for part in colour)
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
