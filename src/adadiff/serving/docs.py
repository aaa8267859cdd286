"""The page that documents the API, made of its OpenAPI description; it fetches nothing from other hosts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import Environment
from markupsafe import Markup, escape

from adadiff.serving.protocol import Completed, PartialImage

TEMPLATE = Path(__file__).with_name("docs.html")
EVENTS = (PartialImage, Completed)


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Complete an app's OpenAPI description: with the events of a stream, without the 422 that is a 400 here."""
    description = app.openapi()
    schemas = description["components"]["schemas"]
    for methods in description["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update({event.__name__: event.model_json_schema() for event in EVENTS})
    streamed = {"anyOf": [{"$ref": f"#/components/schemas/{event.__name__}"} for event in EVENTS]}
    answer = description["paths"]["/v1/images/generations"]["post"]["responses"]["200"]
    answer["content"]["text/event-stream"] = {"schema": streamed}
    return description


def api_docs(description: dict[str, Any]) -> str:
    """Return the HTML page for an OpenAPI description."""
    environment = Environment(autoescape=True)
    environment.filters["with_code"] = _with_code
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("description", operation["summary"]),
            "body": _schema_name(operation.get("requestBody", {})),
            "response": _schema_name(operation["responses"].get("200", {})),
            "events": [event.__name__ for event in EVENTS] if _streams(operation) else [],
            "errors": {
                code: answer["description"] for code, answer in operation["responses"].items() if code[0] in "45"
            },
        }
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = {
        name: {"description": schema.get("description", ""), "fields": _fields(schema)}
        for name, schema in description["components"]["schemas"].items()
        if "properties" in schema
    }
    return template.render(title=description["info"]["title"], operations=operations, schemas=schemas)


def _streams(operation: dict[str, Any]) -> bool:
    return "text/event-stream" in operation["responses"].get("200", {}).get("content", {})


def _with_code(text: str) -> Markup:
    """Escape a text, and mark what it has in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _schema_name(part: dict[str, Any]) -> str:
    """Return the name of the schema that a body or a response refers to, or nothing."""
    schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _fields(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "kind": _kind(field),
            "default": field.get("default"),
            "required": name in schema.get("required", ()),
            "description": field.get("description", ""),
        }
        for name, field in schema["properties"].items()
    ]


def _kind(field: dict[str, Any]) -> str:
    """Return a field's type with its range, in a few words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(choice) for choice in field["anyOf"]))
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "const" in field or "enum" in field:
        return ", ".join(f'"{value}"' for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    limits = [
        f"{words} {int(field[key])}"
        for key, words in (("minimum", "from"), ("maximum", "to"), ("exclusiveMaximum", "below"), ("maxLength", "to"))
        if key in field
    ]
    return " ".join([str(field.get("type", "any")), *limits, *(["characters"] if "maxLength" in field else [])])
