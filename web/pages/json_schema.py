"""Builders of JSON schemas."""

from __future__ import annotations

from typing import Any

from storage.validation import MAX_DURATION, MAX_NAME

Schema = dict[str, Any]
NO_NUL = {"pattern": r"^[^\u0000]*$"}
MOST_WHOLE = 2**53 - 1  # larger numbers lose digits in some JSON readers


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def record(properties: Schema, *required: str, **more: Any) -> Schema:
    """Return the schema of an object with these members and no others."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return schema | ({"required": list(required)} if required else {})


def listed(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    schema = {"type": "array", "items": items, "minItems": least}
    return schema if most is None else schema | {"maxItems": most}


def seconds(description: str, least: float = 0, most: float = MAX_DURATION, **more: Any) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most, "description": description, **more}


def whole(description: str, least: int = 0, most: int = MOST_WHOLE, **more: Any) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, "description": description, **more}


def name(description: str, most: int = MAX_NAME) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": most, "description": description}


def moment(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description}


def or_null(schema: Schema) -> Schema:
    """Return the schema that also allows null, which restores the default."""
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    return schema if isinstance(schema["type"], list) else schema | {"type": [schema["type"], "null"]}


def strings(description: str, **each: Any) -> Schema:
    return {"type": "object", "additionalProperties": {"type": "string", **each}, "description": description}
