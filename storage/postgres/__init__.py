"""The engine on one PostgreSQL database, which many machines may share."""
