-- Upgrade from version 2 to 3: indexes whose order tells them from the primary key; verbs.sql says why.

SET LOCAL search_path = queue_service;

DROP INDEX deliverable, keyed, leased_keys, dead_here, buried;
CREATE INDEX deliverable ON messages (queue_id, recipient, priority DESC, id NULLS FIRST, receive_count) WHERE state = 0;
CREATE INDEX keyed       ON messages (queue_id, key, id NULLS FIRST)          WHERE key IS NOT NULL;
CREATE INDEX leased_keys ON messages (queue_id, key, token)                   WHERE state = 1 AND key IS NOT NULL;
CREATE INDEX dead_here   ON messages (queue_id, id NULLS FIRST)               WHERE origin IS NOT NULL;
CREATE INDEX buried      ON messages (queue_id, origin, id NULLS FIRST)       WHERE origin IS NOT NULL;

UPDATE version SET version = 3;
