"""Reading aliases of the registry in tests."""

from emuedit.tracking import registry


def number_at(alias: str) -> int | None:
    """Number of the version that has the alias."""
    version = registry.version_at(alias)
    return version.number if version else None
