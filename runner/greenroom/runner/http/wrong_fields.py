"""What is said of a field that is not what it must be: paths and what was expected, never the value."""

from __future__ import annotations


class Wrong(Exception):
    """A field that is not what it must be."""

    def __init__(self, where: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.where = where
        self.code = code


def wrong_type(where: str, expected: str, value: object) -> Wrong:
    return Wrong(where, f"{where} must be {expected}, not {_named(value)}.", "invalid_type")


def missing(where: str) -> Wrong:
    return Wrong(where, f"{where} is required.", "missing_required_parameter")


def not_fetched(where: str) -> Wrong:
    message = f"{where} is a URL, and Greenroom fetches nothing for clients. Send the data in base64."
    return Wrong(where, message, "unsupported_value")


def _named(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")
