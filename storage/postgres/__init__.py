"""The engine for one PostgreSQL database, which many machines may share."""
