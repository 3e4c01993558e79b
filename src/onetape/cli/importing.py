"""onetape import."""


def import_files() -> None:
    """Import."""
