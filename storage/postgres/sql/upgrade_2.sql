-- Upgrade from version 1 to 2.

SET LOCAL search_path = queue_service;

ALTER TABLE queues ADD COLUMN used_at bigint;
UPDATE queues SET used_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + (SELECT ahead FROM clock);
ALTER TABLE queues ALTER COLUMN used_at SET NOT NULL;

DROP INDEX back, deliverable;
ALTER TABLE messages DROP COLUMN again;
ALTER TABLE messages RENAME COLUMN death TO deaths;
UPDATE messages
   SET deaths = '[' || deaths || ']', expires_at = CASE WHEN origin IS NULL THEN arrived_at + ttl END
 WHERE deaths IS NOT NULL OR expires_at IS DISTINCT FROM arrived_at + ttl;
CREATE INDEX deliverable ON messages (queue_id, recipient, priority DESC, id, receive_count) WHERE state = 0;
CREATE INDEX arrived  ON messages (queue_id, arrived_at)                   WHERE state <> 1;
CREATE INDEX waiting  ON messages (queue_id, greatest(due_at, arrived_at)) WHERE state = 0;
CREATE INDEX received ON messages (queue_id, receive_count DESC, id)       WHERE state = 0 AND receive_count > 0;
CREATE INDEX leased_keys ON messages (queue_id, key)                          WHERE state = 1 AND key IS NOT NULL;
CREATE INDEX dead_here ON messages (queue_id, id)                          WHERE origin IS NOT NULL;
CREATE INDEX dedup_of ON dedup (queue_id, message_id);

-- Stored replies: a send's were its ids; others were deliveries.
UPDATE replies SET reply = jsonb_build_object('ids', reply, 'duplicates', '[]'::jsonb)
 WHERE jsonb_typeof(reply -> 0) = 'number';
UPDATE replies SET reply = (
       SELECT jsonb_agg(CASE WHEN one ->> 'death' IS NULL THEN one
                             ELSE one || jsonb_build_object('deaths', '[' || (one ->> 'death') || ']') END ORDER BY n)
         FROM jsonb_array_elements(reply) WITH ORDINALITY AS kept (one, n))
 WHERE jsonb_typeof(reply -> 0) = 'object';

UPDATE version SET version = 2;
