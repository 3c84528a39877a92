"""The docstrings of jaxdl as Markdown: examples as code, parameters as a list, comments of fields as their text."""

import ast
import re
import textwrap

import griffe


class Docstrings(griffe.Extension):
    """Turns every docstring into Markdown, and gives fields and constants the comment beside them as one."""

    def on_object(self, *, obj, loader, **_):
        """One object of the package, its members there already."""
        if obj.is_attribute and obj.docstring is None:
            comment = comment_of(obj)
            obj.docstring = griffe.Docstring(comment, parent=obj) if comment else None
        elif obj.docstring is not None:
            names = [parameter.name for parameter in obj.parameters] if obj.is_function else []
            obj.docstring.value = as_markdown(obj.docstring.value, names)


def comment_of(attribute):
    """The comment that ends an attribute's line, as a sentence."""
    line = attribute.lines[-1] if attribute.lineno else ""
    comment = line.partition("  # ")[2].strip()
    return comment and as_markdown(comment[0].upper() + comment[1:] + "." * (comment[-1] not in ".?"), [])


def as_markdown(text, names):
    """A docstring as Markdown; `names` are those of the function's parameters.

    >>> as_markdown("Adds.\\n\\na: one, a * b.\\nb: another,\\n    of two lines.", ["a", "b"]).splitlines()
    ['Adds.', '', '* `a`: one, a \\\\* b.', '* `b`: another,', '    of two lines.']
    >>> as_markdown("Adds.\\n\\n>>> add(1, 2)\\n3", [])
    'Adds.\\n\\n```pycon\\n>>> add(1, 2)\\n3\\n```'
    >>> print(as_markdown("It means\\n\\n    for a in b:\\n        c(a)", []))
    It means
    <BLANKLINE>
    ```python
    for a in b:
        c(a)
    ```
    """
    blocks, indented = [], []
    for block in text.strip().split("\n\n"):
        if block.startswith("    "):
            indented.append(block)
            continue
        blocks += _fenced(indented)
        indented = []
        blocks.append(_example(block) if block.startswith(">>>") else _prose(block, names))
    return "\n\n".join(blocks + _fenced(indented))


def _fenced(blocks):
    if not blocks:
        return []
    code = textwrap.dedent("\n\n".join(blocks))
    try:
        ast.parse(code)
        language = "python"
    except SyntaxError:
        language = "text"
    return [f"```{language}\n{code}\n```"]


def _example(block):
    return f"```pycon\n{block}\n```"


def _prose(block, names):
    before, example = re.match(r"((?:(?!>>>).*\n?)*)((?:.*\n?)*)", block).groups()
    lines = []
    for line in before.rstrip("\n").split("\n"):
        name, colon, rest = line.partition(": ")
        quoted = name.strip("`")
        if colon and quoted in names:
            # A list needs an empty line before it.
            lines += [""] if lines and not lines[-1].startswith(("* ", "    ")) else []
            lines.append(f"* `{quoted}`: {_escaped(rest)}")
        else:
            lines.append(_escaped(line))
    return "\n".join(lines) + (f"\n\n{_example(example)}" if example else "")


def _escaped(line):
    """What would be Markdown outside of code, as it stands; a star that begins a list stays one."""
    bullet, rest = re.match(r"(\s*\* )?(.*)", line, re.DOTALL).groups()
    parts = re.split(r"(`+[^`]*`+)", rest)
    parts[::2] = [part.replace("*", r"\*").replace("<", "&lt;").replace("__", r"\_\_") for part in parts[::2]]
    return (bullet or "") + "".join(parts)
