"""Render the OpenAPI document as HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from web.pages import examples, openapi, openapi_responses

JsonObject = dict[str, Any]


def render(template: str) -> str:
    """Return the template with a list of contents and the whole document filled in."""
    document = openapi.document()
    contents = ['<h2><a href="#authentication">Authentication</a></h2>']
    body = [_authentication(document)]
    for tag in document["tags"]:
        contents.append(f"<h2>{tag['name'].capitalize()}</h2><ul>")
        body.append(f"<section><h2>{tag['name'].capitalize()}</h2><p>{_prose(tag['description'])}</p>")
        for method, path, operation in _operations(document, tag["name"]):
            contents.append(f'<li><a href="#{operation["operationId"]}">{_method(method)} {_path(path)}</a></li>')
            body.append(_operation(method, path, operation))
        contents.append("</ul>")
        body.append("</section>")
    schemas = document["components"]["schemas"]
    contents.append('<h2><a href="#schemas">Schemas</a></h2><h2><a href="#errors">Errors</a></h2>')
    body.append('<section id="schemas"><h2>Schemas</h2>' + "".join(map(_schema, schemas, schemas.values())))
    body.append(f"</section>{_errors()}")
    filled = {"version": document["info"]["version"], "contents": "".join(contents), "body": "".join(body)}
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: filled[slot[1]], template)


def _operations(document: JsonObject, tag: str) -> list[tuple[str, str, JsonObject]]:
    return [
        (method, path, operation | {"parameters": item.get("parameters", []) + operation.get("parameters", [])})
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method not in ("parameters", "head") and tag in operation["tags"]
    ]


def _operation(method: str, path: str, operation: JsonObject) -> str:
    codes = [
        code
        for answer in operation["responses"].values()
        for code in answer.get("$ref", "").rpartition("/")[2].split("_or_")
        if code
    ]
    errors = [f'{openapi_responses.CODES[code][0]} <a href="#{code}"><code>{code}</code></a>' for code in codes]
    return (
        f'<article id="{operation["operationId"]}"><h3>{_method(method)} {_path(path)}</h3>'
        f"<p>{_prose(operation['summary'])}. {_prose(operation.get('description', ''))}</p>"
        f"{_parameters(operation)}{_bodies(operation)}{_answers(operation)}{_examples(operation['operationId'])}"
        f"<details><summary>{len(errors)} errors</summary><p>{'<br>'.join(errors)}</p></details></article>"
    )


def _parameters(operation: JsonObject) -> str:
    parameters = operation["parameters"]
    rows = [(f"<code>{one['name']}</code>", one["in"], _type(one["schema"]), _about(one)) for one in parameters]
    return _table(("parameter", "in", "type", ""), rows)


def _bodies(operation: JsonObject) -> str:
    body = operation.get("requestBody", {"content": {}, "required": True})
    optional = "" if body["required"] else "optional"
    contents = body["content"] | body.get(openapi_responses.MORE_CONTENT, {})
    rows = [(f"<code>{kind}</code>", _type(content["schema"]), optional) for kind, content in contents.items()]
    return _table(("body", "type", ""), rows)


def _answers(operation: JsonObject) -> str:
    rows = []
    for status, answer in operation["responses"].items():
        if "$ref" not in answer:
            types = " or ".join(_content(answer.get("content", {})))
            headers = [f"<code>{name}</code>" for name in answer["headers"] if name != "Cache-Control"]
            rows.append((f"<b>{status}</b>", types or "no body", _prose(answer["description"]), ", ".join(headers)))
    return _table(("response", "type", "", "headers"), rows)


def _examples(about: str) -> str:
    """Return the curl lines about an operation or a section, each with its reply."""
    return "".join(
        f'<div class="example"><pre><code>{escape(example.curl, quote=False)}</code></pre>'
        f"<pre><b>{example.status}</b> <code>{escape(_indented(example.reply), quote=False)}</code></pre></div>"
        for example in examples.recorded()
        if example.about == about
    )


def _indented(reply: str) -> str:
    """Return a long JSON reply over several lines."""
    if len(reply) < 80 or not reply.startswith(("{", "[")):
        return reply
    return json.dumps(json.loads(reply), indent=2, ensure_ascii=False)


def _content(content: JsonObject) -> list[str]:
    """Return the type of JSON content, and the media types of other content."""
    return [
        _type(media_type["schema"]) if kind.endswith("json") and "ndjson" not in kind else f"<code>{kind}</code>"
        for kind, media_type in content.items()
    ]


def _schema(name: str, schema: JsonObject) -> str:
    html = f'<article id="schema-{name}"><h3>{name}</h3><p>{_prose(schema.get("description", ""))}</p>'
    required = schema.get("required", [])
    rows = [
        (f"<code>{member}</code>", _type(one), "required" if member in required else "", _about(one))
        for member, one in schema.get("properties", {}).items()
    ]
    html += _table(("field", "type", "", ""), rows) or f"<p>{_type(schema)}</p>"
    return f"{html}</article>"


def _authentication(document: JsonObject) -> str:
    public = [
        f"<code>{path}</code>" for path, item in document["paths"].items() if item.get("get", {}).get("security") == []
    ]
    rows = [
        (f"<code>{scheme['scheme'].capitalize()}</code>", _prose(scheme["description"]))
        for scheme in document["components"]["securitySchemes"].values()
    ]
    return (
        '<section id="authentication"><h2>Authentication</h2><article>'
        "<p>Without tokens the service accepts every request. "
        f"If the operator has set tokens, every request needs one, except those to {', '.join(public)}.</p>"
        "<p>A token has rights, for some of the queues: <code>send</code>, <code>receive</code> (read and settle), "
        "<code>admin</code> (change queues, and messages by their id) and <code>metrics</code>.</p>"
        f"{_table(('Authorization', 'contains'), rows)}{_examples('authentication')}</article></section>"
    )


def _errors() -> str:
    rows = [
        (str(status), f'<code id="{code}">{code}</code>', _prose(when))
        for code, (status, when) in openapi_responses.CODES.items()
    ]
    table = _table(("status", "code", "when"), rows)
    return (
        '<section id="errors"><h2>Errors</h2><article><p>An error is an RFC 9457 problem document.</p>'
        f"{_examples('errors')}{table}</article></section>"
    )


def _type(schema: JsonObject) -> str:
    """Return a short description of a schema, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "const" in schema:
        return f"<code>{escape(_json(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{value}</code>" for value in schema["enum"])
    for words in ("anyOf", "oneOf"):
        if words in schema:
            return " or ".join(map(_type, schema[words]))
    kinds = schema.get("type", "any")
    if kinds == "array":
        bounds = f", {_range(schema, 'minItems', 'maxItems')}" if "maxItems" in schema else ""
        return f"array of {_type(schema['items'])}{bounds}"
    description = " or ".join(kinds) if isinstance(kinds, list) else kinds
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        return f"object of {_type(schema['additionalProperties'])}"
    if "exclusiveMinimum" in schema:
        return f"{description} above {schema['exclusiveMinimum']}"
    if "maximum" in schema:
        return description + _range(schema, "minimum", "maximum")
    return description + _range(schema, "minLength", "maxLength")


def _range(schema: JsonObject, least: str, most: str) -> str:
    """Return the bounds, or "" if they limit nothing."""
    low, high = schema.get(least, 0), schema.get(most)
    if high is None or high >= 2**53 - 1:
        return f" from {low:,}" if low else ""
    return f" {low:,}–{high:,.0f}"


def _about(described: JsonObject) -> str:
    schema = described.get("schema", described)
    text = _prose(described.get("description") or schema.get("description", ""))
    return f"{text} Default <code>{_json(schema['default'])}</code>." if "default" in schema else text


def _json(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _method(method: str) -> str:
    return f'<b class="{method}">{method.upper()}</b>'


def _path(path: str) -> str:
    return "<code>" + re.sub(r"(\{\w+\})", r"<i>\1</i>", path) + "</code>"


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table without its empty columns, or "" without rows."""
    if not rows:
        return ""
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    title = "".join(f"<th>{head[place]}</th>" for place in kept)
    lines = ["<tr>" + "".join(f"<td>{row[place]}</td>" for place in kept) + "</tr>" for row in rows]
    return f'<div class="wide"><table><thead><tr>{title}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
