"""What the site shows beyond docs/: files of the repository at their own paths, and sections of the README as guides.

Such a page is the file that a reader of the repository opens, with its links turned to the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
WHOLE = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "benchmarks/notes.md")
SEVERAL = ("benchmarks/results/*.md", "experiments/notebooks/*.md", "experiments/notebooks/*.ipynb")
SECTIONS = {
    "lesson.md": "The whole lesson, with error bars",
    "weather.md": "The weather experiment",
    "cifar10.md": "The CIFAR-10 experiment",
}
# Pages that need more room than the columns beside them leave: tables, a drawing, code beside code.
WIDE = ("benchmarks", "cifar10", "experiments", "faults", "how-it-works", "inside", "lesson", "weather")
HIDE = {"index": ["navigation"], "keras": ["navigation", "toc"], **{name: ["toc"] for name in WIDE}}
OUTSIDE = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(?:https?:)?//[^">]*')


def on_files(files, config):
    """The site's files: those of docs/, and those that lie elsewhere."""
    several = [str(path.relative_to(ROOT)) for pattern in SEVERAL for path in sorted(ROOT.glob(pattern))]
    for path in (*WHOLE, *several):
        text = (ROOT / path).read_text()
        if path == "LICENSE":
            path, text = "LICENSE.md", f"# Licence\n\n```text\n{text}```\n"
        if path.startswith("experiments/notebooks/") and path.endswith(".md"):
            name = Path(path).with_suffix(".ipynb").name
            text = re.sub(
                r"(?m)^(# .*\n)",
                rf"\1\nAs a notebook, without results until it is run: [{name}]({name}).\n",
                text,
                count=1,
            )
        files.append(File.generated(config, path, content=turned(text, path)))
    readme = (ROOT / "README.md").read_text()
    for page, heading in SECTIONS.items():
        files.append(File.generated(config, page, content=turned(section(readme, heading), "README.md")))
    return files


def on_page_markdown(markdown, page, config, files):
    """The text of a page, with links that leave docs/ turned to where the site has their files."""
    source = page.file.src_uri
    page.meta["hide"] = HIDE.get(source.partition("/")[0].removesuffix(".md"), [])
    return turned(markdown, f"docs/{source}") if page.file.abs_src_path else markdown


def on_post_page(output, page, config):
    """The page as it is; a page that would fetch something from elsewhere ends the build."""
    found = OUTSIDE.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} would fetch from elsewhere: {found.group()}")
    return output


def section(text, heading):
    """One section of a text as a page of its own.

    >>> section("# All\\n\\n## One\\n\\nFirst.\\n\\n## Two\\n\\nSecond.\\n", "One")
    '# One\\n\\nFirst.\\n'
    """
    body = text.partition(f"\n## {heading}\n")[2]
    if not body:
        raise PluginError(f"README.md has no section {heading!r}")
    return f"# {heading}\n{body.partition(chr(10) + '## ')[0]}"


def turned(text, path):
    """A text with the links of the repository's file `path` turned to the site, where docs/ is the top.

    >>> turned("[a](docs/faults.md) [b](../benchmarks/notes.md#x) [c](https://d.org)", "README.md")
    '[a](faults.md) [b](../benchmarks/notes.md#x) [c](https://d.org)'
    >>> turned("[b](../benchmarks/notes.md) [k](keras.md)", "docs/growing.md")
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
