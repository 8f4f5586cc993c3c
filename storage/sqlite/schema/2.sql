-- Brings a file of schema version 1 to version 2: batches of plain messages are kept packed.

-- A run: successive messages of one batch that differ in nothing but text and attributes, in one row. All are ready, or
-- all are leased by one read. Whatever touches one of them alone unpacks them first, into rows of `messages`.
CREATE TABLE runs (
    id            INTEGER PRIMARY KEY,         -- of the first message; the others' follow one by one
    queue_id      INTEGER NOT NULL,
    count         INTEGER NOT NULL,
    bytes         INTEGER NOT NULL,            -- of texts and fields, as in queues
    state         INTEGER NOT NULL DEFAULT 0,  -- 0 ready, 1 leased
    due_at        INTEGER NOT NULL DEFAULT 0,  -- leased: the lease's end
    token         INTEGER,                     -- of the last delivery
    receive_count INTEGER NOT NULL DEFAULT 0,
    sent_at       INTEGER NOT NULL,
    fields        TEXT,                        -- JSON: an array of strings and nulls, each as in messages; NULL: all null
    texts         TEXT NOT NULL                -- JSON: an array of strings
) STRICT;

CREATE INDEX deliverable_runs ON runs (queue_id)         WHERE state = 0;
CREATE INDEX due_runs         ON runs (queue_id, due_at) WHERE state = 1;
CREATE INDEX runs_in_queue    ON runs (queue_id);

-- Where the ids of both tables come from; SQLite makes the row at the first INSERT, a run would be before that.
INSERT INTO sqlite_sequence (name, seq)
SELECT 'messages', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'messages');
