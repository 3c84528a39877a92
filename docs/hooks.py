"""Add files from outside docs/ to the site, at their paths in the repository, with links that fit the site."""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
WHOLE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "benchmarks/notes.md")
SEVERAL = ("benchmarks/results/*.md", "experiments/notebooks/*.md", "experiments/notebooks/*.ipynb")
# Pages with wide tables or drawings: the site hides the table of contents beside them.
WIDE = ("benchmarks", "cifar10", "experiments", "faults", "how-it-works", "inside", "lesson", "weather")
HIDE = {"index": ["navigation"], "keras": ["navigation", "toc"], **{name: ["toc"] for name in WIDE}}
OUTSIDE = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(?:https?:)?//[^">]*')


def on_files(files, config):
    """Add the files that lie outside docs/."""
    several = [str(path.relative_to(ROOT)) for pattern in SEVERAL for path in sorted(ROOT.glob(pattern))]
    for path in (*WHOLE, *several):
        text = (ROOT / path).read_text()
        if path == "LICENSE":
            path, text = "LICENSE.md", f"# Licence\n\n```text\n{text}```\n"
        if path.startswith("experiments/notebooks/") and path.endswith(".md"):
            name = Path(path).with_suffix(".ipynb").name
            text = re.sub(
                r"(?m)^(# .*\n)",
                rf"\1\nDownload the notebook, without outputs: [{name}]({name}).\n",
                text,
                count=1,
            )
        files.append(File.generated(config, path, content=turn_links(text, path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn the links that leave docs/ to where the site has their targets."""
    source = page.file.src_uri
    page.meta["hide"] = HIDE.get(source.partition("/")[0].removesuffix(".md"), [])
    return turn_links(markdown, f"docs/{source}") if page.file.abs_src_path else markdown


def on_post_page(output, page, config):
    """End the build with an error for a page that fetches something from another server."""
    link = OUTSIDE.search(output)
    if link:
        raise PluginError(f"{page.file.src_uri} fetches from another server: {link.group()}")
    return output


def turn_links(text, path):
    """Return the text of the file `path`, with its links turned to the site, where docs/ is the top.

    >>> turn_links("[a](docs/faults.md) [b](../benchmarks/notes.md#x) [c](https://d.org)", "README.md")
    '[a](faults.md) [b](../benchmarks/notes.md#x) [c](https://d.org)'
    >>> turn_links("[b](../benchmarks/notes.md) [k](keras.md)", "docs/growing.md")
    '[b](benchmarks/notes.md) [k](keras.md)'
    """
    folder = posixpath.dirname(path)
    at = posixpath.relpath(folder or ".", "docs") if folder.startswith("docs") else folder or "."

    def turn(match):
        target = posixpath.normpath(posixpath.join(folder, match.group(1)))
        if target.startswith("..") or not (ROOT / target).exists():
            return match.group()
        place = posixpath.relpath(target, "docs") if target.startswith("docs/") else target
        place = "LICENSE.md" if place == "LICENSE" else place
        return f"]({posixpath.relpath(place, at)}{match.group(2) or ''})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", turn, text)
