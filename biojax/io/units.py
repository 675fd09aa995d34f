"""Lengths between files and millimetres, in decimal, so that no digit is lost."""

from decimal import Decimal, InvalidOperation

__all__ = ["from_mm", "to_mm"]

_MM = {
    "pm": "1e-9",
    "\u00c5": "1e-7",
    "\u212b": "1e-7",
    "angstrom": "1e-7",
    "nm": "1e-6",
    "um": "1e-3",
    "\u00b5m": "1e-3",
    "\u03bcm": "1e-3",
    "\\u00B5m": "1e-3",  # as ImageJ escapes it
    "micron": "1e-3",
    "mm": "1",
    "cm": "10",
    "dm": "100",
    "m": "1000",
    "in": "25.4",
    "inch": "25.4",
}
for _name, _symbol in (
    ("nano", "nm"),
    ("micro", "um"),
    ("milli", "mm"),
    ("centi", "cm"),
    ("", "m"),
):
    _MM[f"{_name}meter"] = _MM[f"{_name}metre"] = _MM[_symbol]


def to_mm(value: str | float, unit: str | None) -> float | None:
    """A length in millimetres, correctly rounded; None if the unit or the number says nothing.

    >>> to_mm("0.325", "µm"), to_mm(2.5, "cm"), to_mm("1", "pixel"), to_mm("nan", "mm")
    (0.000325, 25.0, None, None)
    """
    unit = (unit or "").strip()
    # only words are free of case: Mm is not mm
    scale = _MM.get(unit) or _MM.get(unit.lower().removesuffix("s") if len(unit) > 3 else "")
    try:
        length = Decimal(str(value)) * Decimal(scale or "nan")
    except InvalidOperation:
        return None
    millimetres = float(length) if length.is_finite() else 0.0
    return millimetres if 0 < millimetres < float("inf") else None


def from_mm(millimetres: float, unit: str) -> str:
    """The shortest decimal that `to_mm` brings back to exactly this number.

    >>> from_mm(0.000325, "µm"), from_mm(0.957, "micron")
    ('0.325', '957')
    """
    length = Decimal(repr(float(millimetres))) / Decimal(_MM[unit])
    return format(length.normalize(), "f")
