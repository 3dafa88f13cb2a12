"""How a session is called: by its subject and its own label, of which a subject may have none."""

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
