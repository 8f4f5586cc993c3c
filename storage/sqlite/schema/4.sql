-- Brings a file of schema version 3 to version 4: what time does is compared when looking, and no death is forgotten.

ALTER TABLE messages ADD COLUMN arrived_at INTEGER;   -- when its life in this queue began, never falling with id; NULL: sent_at
ALTER TABLE messages RENAME COLUMN death TO deaths;   -- a dead letter: a JSON array, see with_deaths in kept.py
ALTER TABLE queues ADD COLUMN swept INTEGER NOT NULL DEFAULT 0;    -- up to this id all but the leased was dropped as past retention
ALTER TABLE queues ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;  -- for the setting expires: when it was last used, about
ALTER TABLE clock ADD COLUMN last_ms INTEGER NOT NULL DEFAULT 0;   -- a time that has passed already

UPDATE messages SET deaths = '[' || deaths || ']' WHERE deaths IS NOT NULL;

-- So far expires_at was bounded by the queue's retention, and tells when the life of a redriven message began.
UPDATE messages
   SET arrived_at = life.began
  FROM (SELECT id, packed,
               min(max(began) OVER (PARTITION BY queue_id ORDER BY id),
                   coalesce(min(iif(packed, began, NULL)) OVER (PARTITION BY queue_id ORDER BY id DESC), 1 << 62)) AS began
          FROM (SELECT m.id, m.queue_id, 0 AS packed,
                       coalesce(m.expires_at - CAST(ceil(1000 * min(coalesce(ttl, retention), coalesce(retention, ttl)))
                                                    AS INTEGER),
                                CAST(1000 * unixepoch(m.deaths ->> '$[0].dead_letter_at', 'subsec') AS INTEGER),
                                m.sent_at) AS began
                  FROM (SELECT messages.*, iif(origin IS NULL, fields ->> 'ttl', NULL) AS ttl,
                               settings ->> 'retention' AS retention
                          FROM messages LEFT JOIN queues ON queues.id = queue_id) AS m
                 UNION ALL
                SELECT id, queue_id, 1, sent_at FROM runs)) AS life
 WHERE life.id = messages.id AND NOT life.packed AND life.began <> messages.sent_at;

UPDATE messages
   SET expires_at = iif(origin IS NULL, coalesce(arrived_at, sent_at) + CAST(ceil(1000 * (fields ->> 'ttl')) AS INTEGER), NULL)
 WHERE expires_at IS NOT NULL;

-- With the id and receive_count, so that to pass over messages that were received too often costs little.
DROP INDEX deliverable;
CREATE INDEX deliverable ON messages (queue_id, recipient, priority DESC, id, receive_count) WHERE state = 0;
CREATE INDEX received    ON messages (queue_id, receive_count) WHERE state = 0 AND receive_count > 0;
CREATE INDEX returned    ON messages (queue_id, due_at)        WHERE state = 0 AND due_at > 0;
DROP INDEX buried;
CREATE INDEX buried      ON messages (origin, queue_id)        WHERE origin IS NOT NULL;
CREATE INDEX in_grave    ON messages (queue_id)                WHERE origin IS NOT NULL;
DROP INDEX deliverable_runs;
CREATE INDEX deliverable_runs ON runs (queue_id, id, count, bytes, receive_count, token, due_at, sent_at) WHERE state = 0;

-- Replies are objects now, which say what they are of.
UPDATE replies
   SET reply = CASE
       WHEN json_array_length(reply) = 2
            AND (reply ->> 1 IS NULL OR reply -> 1 = '[]' OR json_type(reply, '$[1][0]') = 'array')
       THEN json_object('ids', (SELECT json_group_array(json_array(value, 1)) FROM json_each(reply, '$[0]')),
                        'duplicates', json('[]'), 'messages', json(reply -> 1))
       WHEN json_type(reply, '$[0][1]') = 'text'
       THEN json_object('messages', json(reply))
       ELSE json_object('ids', json(reply), 'duplicates', json('[]'))
       END;
