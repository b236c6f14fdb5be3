"""What a package index shows: addresses, and a README whose links lead there from anywhere.

The addresses stand in one place, `[tool.hatch.metadata.hooks.custom]` of pyproject.toml. As long as
they are empty there are none, and the README stays as it is.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!\w+:|#)([^)\s]+)\)")


def public_readme(text: str, repository: str, branch: str, site: str) -> str:
    """Markdown whose links to files of the repository are addresses.

    Pages of the documentation lead to the site, if it has an address.
    """

    def linked(match: re.Match) -> str:
        is_picture, shown, path = match.groups()
        page = re.fullmatch(r"docs/([\w/]+)\.md(#.*)?", path)
        if page and site:
            address = f"{site}/{page[1]}.html{page[2] or ''}"
        elif repository:
            address = f"{repository}/{'raw' if is_picture else 'blob'}/{branch}/{path}"
        else:
            return match[0]
        return f"{is_picture}[{shown}]({address})"

    return LINK.sub(linked, text)


def project_urls(repository: str, branch: str, site: str) -> dict[str, str]:
    """The addresses of a project by their usual names."""
    found = {"Homepage": site or repository, "Documentation": site, "Source": repository}
    if repository:
        found["Issues"] = f"{repository}/issues"
        found["Changelog"] = f"{repository}/blob/{branch}/CHANGELOG.md"
    return {name: address for name, address in found.items() if address}


class PackageIndex(MetadataHookInterface):
    """Called when a distribution is built."""

    PLUGIN_NAME = "package index"

    def update(self, metadata: dict) -> None:
        """Add the README and the addresses."""
        addresses = {key: self.config[key] for key in ("repository", "branch", "site")}
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = public_readme(text, **addresses)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = project_urls(**addresses)
