"""The pages and pictures that the program itself makes: for mkdocs, a hook.

The options come from the command line's parser, the routes from the OpenAPI document, the settings from their
class, and the maps from the model; none of them can be out of date.
"""

from __future__ import annotations

import json
import re
from importlib.resources import as_file, files
from io import BytesIO
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from PIL import Image
from typer.cli import get_docs_for_click

from captioner import Caption, GenerationOptions, load
from captioner.cli import app
from captioner.heatmap import draw_html, draw_png
from service.app import create_app
from service.settings import Settings


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made here to what lies in the folder, and keep what its pages have marks for."""
    document = create_app(Settings()).openapi()
    photo, caption = caption_coffee()
    strip = BytesIO()
    draw_png(photo, caption).save(strip, "PNG")
    made: dict[str, str | bytes] = {
        "reference/openapi.json": json.dumps(document, indent=2),
        "explanation/coffee.png": strip.getvalue(),
        "explanation/coffee.html": draw_html([(photo, caption)]),
    }
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    config.extra["marks"] = {
        "{{ caption }}": caption.caption,
        "{{ commands }}": commands(),
        "{{ routes }}": routes(document),
        "{{ objects }}": objects(document),
        "{{ settings }}": settings(),
    }
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made here where the page has a mark for it."""
    for mark, text in config.extra["marks"].items():
        markdown = markdown.replace(mark, text)
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings have Sphinx's roles, which Markdown knows nothing of: leave the last part of the name."""
    return re.sub(r":[a-z]+:<code>~?(?:[\w.]+\.)?(\w+)</code>", r"<code>\1</code>", html)


def caption_coffee() -> tuple[Image.Image, Caption]:
    """scikit-image's photograph of coffee, by Rachel Michetti under CC0, and its caption."""
    with as_file(files("skimage.data") / "coffee.png") as path:
        model = load(device="cpu")
        photo = model.prepare(path, name=path.name)
        (caption,) = model.caption_prepared([photo], GenerationOptions(attention=True))
        return Image.open(path).convert("RGB"), caption


def commands() -> str:
    """All commands with their options."""
    command = typer.main.get_command(app)
    for each in command.commands.values():
        each.short_help = each.help.partition("\n")[0]  # by itself, typer cuts it off
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="captioner")
    return page.partition("\n")[2].replace("&#x27;", "'")


def settings() -> str:
    """All variables with their defaults."""
    rows = [
        f"| `CAPTIONER_{name.upper()}` | {_default(field.get_default())} | {_cell(field.description)} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| Variable | Default | |", "|---|---|---|", *rows])


def routes(document: dict[str, Any]) -> str:
    """All routes with their bodies and answers."""
    return "\n\n".join(
        _route(path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )


def objects(document: dict[str, Any]) -> str:
    """What bodies and answers are made of."""
    return "\n\n".join(
        "\n\n".join([f"### {name}", schema.get("description", ""), _fields(schema)])
        for name, schema in sorted(document["components"]["schemas"].items())
    )


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    lines = [f"### `{method.upper()} {path}`", operation.get("description") or operation.get("summary", "")]
    for each in operation.get("parameters", ()):
        if each["in"] == "query":
            default = _default(each["schema"].get("default"))
            lines.append(f"`?{each['name']}=…` ({_type(each['schema'])}, {default}): {each['description']}")
    if "requestBody" in operation:
        lines.append(f"Body: {_contents(operation['requestBody'])}")
    rows = [
        f"| {status} | {_cell(answer['description'])} | {_contents(answer)} |"
        for status, answer in operation["responses"].items()
    ]
    lines.append("\n".join(["| Status | | Answer |", "|---|---|---|", *rows]))
    return "\n\n".join(lines)


def _contents(body: dict[str, Any]) -> str:
    """Each media type and what is in it."""
    contents = body.get("content", {}).items()
    return ", or ".join(f"`{kind}`, {_type(media.get('schema', {}))}" for kind, media in contents)


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        f"| `{name}` | {_type(field)} | {'required' if name in required else _default(field.get('default'))} "
        f"| {_cell(field.get('description', ''))} |"
        for name, field in schema.get("properties", {}).items()
    ]
    return "\n".join(["| Field | Type | Default | |", "|---|---|---|---|", *rows]) if rows else ""


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema's type in a few words, with links to the objects in it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key] if part.get("type") != "null")
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if key in schema
    ]
    return " ".join([kind, *([f"({', '.join(bounds)})"] if bounds else [])])


def _default(value: object) -> str:
    return "" if value in (None, (), "") else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
