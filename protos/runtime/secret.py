"""A text that must not show: an API key. Pure."""

from __future__ import annotations


class Secret(str):
    """Its text for whoever uses it; hidden where a record that holds it is printed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'" if self else "''"

    def hidden_in(self, text: str) -> str:
        """The text without this secret, which servers like to repeat in their errors."""
        return text.replace(self, "***") if self else text


NO_SECRET = Secret()


def checked_secret(text: str) -> Secret:
    """One that can stand in an HTTP header. Raises ValueError, which does not repeat it."""
    secret = Secret(text.strip())
    if not secret:
        raise ValueError("the key is empty")
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ValueError("the key holds something else than printable ASCII characters; is it one key on one line?")
    return secret
