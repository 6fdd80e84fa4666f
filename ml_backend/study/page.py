"""A report's page: one HTML file with its style and figures inside, nothing loaded and no script."""

from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["render_page"]


@cache
def _templates() -> Environment:
    # StrictUndefined: a misspelt name in the template is an error of a test, not a hole in the page.
    return Environment(
        loader=PackageLoader("ml_backend.study"),
        autoescape=True,  # file names and class names come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(content: Mapping[str, object]) -> str:
    """Fill the report's template; every text is escaped, but for what is ``markupsafe.Markup`` already.

    Args:
        content: by the names that ``templates/report.html`` uses.

    Raises:
        jinja2.UndefinedError: a name of the template is missing.
    """
    return _templates().get_template("report.html").render(content).lstrip()
