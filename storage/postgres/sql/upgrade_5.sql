-- Upgrade from version 4 to 5: only functions change, which every upgrade creates again.

UPDATE queue_service.version SET version = 5;
