-- Upgrade from version 4 to 5: a lease names its holder.

ALTER TABLE queue_service.messages ADD COLUMN holder text;

UPDATE queue_service.version SET version = 5;
