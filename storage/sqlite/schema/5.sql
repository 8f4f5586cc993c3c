-- Brings a file of schema version 4 to version 5: dedup_ids by key, when things happened, and moves of dead letters.

ALTER TABLE queues ADD COLUMN created_at  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN modified_at INTEGER NOT NULL DEFAULT 0;  -- of the settings
UPDATE queues SET (created_at, modified_at) = (SELECT at, at FROM (SELECT CAST(1000 * unixepoch('subsec') AS INTEGER) AS at));
CREATE INDEX sources ON queues (coalesce(settings ->> 'dead_letter_queue', substr(name, 1, 75) || '.dead'), name);

ALTER TABLE messages ADD COLUMN first_received_at INTEGER;
ALTER TABLE runs     ADD COLUMN first_received_at INTEGER;

DROP INDEX dedup_forget;
ALTER TABLE dedup RENAME TO old_dedup;
CREATE TABLE dedup (
    queue_id   INTEGER NOT NULL,
    dedup_id   TEXT NOT NULL,
    key        TEXT NOT NULL,              -- of the message, for dedup_scope key; else ''
    message_id INTEGER NOT NULL,
    forget_at  INTEGER NOT NULL,
    PRIMARY KEY (queue_id, dedup_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX dedup_forget ON dedup (forget_at);
CREATE INDEX dedup_of     ON dedup (queue_id, message_id);
INSERT INTO dedup SELECT queue_id, dedup_id, '', message_id, forget_at FROM old_dedup;
DROP TABLE old_dedup;

CREATE TABLE moves (
    id          INTEGER PRIMARY KEY,
    queue_id    INTEGER NOT NULL,          -- the source
    task        TEXT NOT NULL,
    destination TEXT,                      -- NULL: each message's origin
    rate        INTEGER,                   -- messages a second
    started_at  INTEGER NOT NULL,
    status      TEXT NOT NULL DEFAULT 'running',
    moved       INTEGER NOT NULL DEFAULT 0,
    to_move     INTEGER NOT NULL,
    failure     TEXT,
    after       INTEGER NOT NULL DEFAULT 0,  -- up to this id the messages were moved, or skipped …
    last        INTEGER NOT NULL             -- … and up to this they are to be
) STRICT;
CREATE INDEX moves_of      ON moves (queue_id, id);
CREATE INDEX moves_running ON moves (queue_id) WHERE status = 'running';

-- One row: random bytes that identify this store.
CREATE TABLE identity (bytes BLOB NOT NULL) STRICT;
INSERT INTO identity VALUES (randomblob(16));
