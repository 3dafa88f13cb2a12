"""Pages: HTML files that need no network and no other file to be read.

jinja2 fills the templates in data/templates and escapes all that comes from a data set.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """A page to fill, `data/templates/<name>`; a name that it is not given is an error."""
    environment = Environment(
        loader=PackageLoader("bids_synthseg", "data/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
