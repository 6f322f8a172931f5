"""Which route a path means, by the name that `/docs` gives it: `/api/v1/train/{job_id}/status`."""

from __future__ import annotations

import re
from collections.abc import Iterable

OTHER = "other"


class Templates:
    """The routes' path templates, as many as there are: paths are a client's and without number."""

    def __init__(self, templates: Iterable[str]) -> None:
        # The longest first, so that `/train/{id}/status` is not taken for an id with a slash in it.
        self._patterns = [(_pattern(one), one) for one in sorted(templates, key=lambda one: ("{" in one, -len(one)))]

    def of(self, path: str) -> str:
        """The template that a path follows, or `other`."""
        return next((template for pattern, template in self._patterns if pattern.fullmatch(path)), OTHER)


def _pattern(template: str) -> re.Pattern[str]:
    """A parameter is one part of the path, but at its end it may have slashes, as models' names do."""
    inner = re.sub(r"\\{\w+\\}(?!$)", "[^/]+", re.escape(template))
    return re.compile(re.sub(r"\\{\w+\\}$", ".+", inner), re.DOTALL)
