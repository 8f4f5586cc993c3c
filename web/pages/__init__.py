"""Pages for people, and the OpenAPI document they are made of."""
