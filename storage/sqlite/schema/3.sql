-- Brings a file of schema version 2 to version 3: a run keeps attributes in columns too.

-- Those that have some, in the old form, are unpacked.
INSERT INTO messages (id, queue_id, state, due_at, token, receive_count, sent_at, fields, text)
SELECT runs.id + item.key, queue_id, state, due_at, token, receive_count, sent_at, runs.fields ->> item.key, item.value
  FROM runs, json_each(runs.texts) AS item
 WHERE runs.fields IS NOT NULL;

DELETE FROM runs WHERE fields IS NOT NULL;

-- JSON: an object of arrays, by name a value for each message; NULL: none has attributes.
ALTER TABLE runs RENAME COLUMN fields TO attributes;
