"""The docstrings of jaxdl as Markdown: examples as code, parameters as a list, comments of fields as their text."""

import ast
import re
import textwrap

import griffe


class Docstrings(griffe.Extension):
    """Turns every docstring into Markdown, with the fields of a class and the comment at a constant in it."""

    def on_package(self, *, pkg, loader, **_):
        """The package, once all of it is read."""
        for obj in list(walked(pkg)):
            if obj.docstring is not None:
                names = [parameter.name for parameter in obj.parameters] if obj.is_function else []
                text = as_markdown(obj.docstring.value, names)
                obj.docstring.value = linked(text + (fields_of(obj) if obj.is_class else ""), obj, names)
            elif obj.is_attribute and obj.parent.is_module and (comment := comment_of(obj)):
                obj.docstring = griffe.Docstring(linked(comment, obj, ()), parent=obj)


def walked(obj):
    """An object and all that is defined in it; what is only imported is not."""
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from walked(member)


def comment_of(attribute):
    """The comment that ends an attribute's line, or stands above it, as a sentence; "" where there is none."""
    if not attribute.lineno:
        return ""
    comment = attribute.lines[-1].partition("  # ")[2].strip()
    lines = attribute.module.source.splitlines()[: attribute.lineno - 1] if not comment else []
    while lines and lines[-1].strip().startswith("# "):
        comment = f"{lines.pop().strip()[2:]} {comment}".strip()
    return comment and as_markdown(comment[0].upper() + comment[1:] + "." * (comment[-1] not in ".?"), [])


def fields_of(cls):
    """The fields of a class that have no docstring of their own, as a list."""
    fields = [m for m in cls.members.values() if m.is_attribute and m.annotation and not m.docstring]
    shown = [f"* `{m.name}: {m.annotation}` {comment_of(m)}".strip() for m in fields if not m.name.startswith("_")]
    return "\n\n" + "\n".join(shown) if shown else ""


def linked(text, obj, names):
    """Text with the names in it that the package defines as links, but for the function's own parameters."""

    def link(match):
        name = match.group(1) or match.group(2)
        path = f"jaxdl.{name}" if "." in name else f"{obj.module.path}.{name}"
        member = obj.module.members.get(name) if "." not in name else None
        path = member.target_path if member is not None and member.is_alias else path
        found = obj.package.members.get(path.removeprefix("jaxdl.").partition(".")[0])
        for part in path.split(".")[2:]:
            found = None if found is None or found.is_alias else found.members.get(part)
        if name in names or found is None or found is obj or found.is_alias or found.docstring is None:
            return match.group()
        return f"[{match.group()}][{found.path}]" if found.is_function or found.is_class else match.group()

    pieces = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    pieces[::2] = [re.sub(r"`([\w.]+)`|\b(InputError)\b(?!`)", link, piece) for piece in pieces[::2]]
    return "".join(pieces)


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
