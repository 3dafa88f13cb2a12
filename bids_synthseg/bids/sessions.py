"""How a session is called: by its subject and its own label, of which a subject may have none."""

from dataclasses import dataclass

Key = tuple[str, str | None]
"""Subject and session (None: the subject has none), without "sub-" and "ses-"."""


def session_label(key: Key) -> str:
    """For example "sub-01_ses-1mo"."""
    subject, session = key
    return f"sub-{subject}" + (f"_ses-{session}" if session else "")


def session_order(key: Key) -> tuple[str, str]:
    """What to sort sessions by."""
    subject, session = key
    return subject, session or ""


@dataclass(frozen=True)
class OfSession:
    """Anything about one session; `session` is None where the subject has none."""

    subject: str
    session: str | None

    @property
    def key(self) -> Key:
        """Subject and session."""
        return self.subject, self.session

    @property
    def label(self) -> str:
        """For example "sub-01_ses-1mo"."""
        return session_label(self.key)
