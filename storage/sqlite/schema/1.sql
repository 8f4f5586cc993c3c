-- The schema of version 1. Times are ms of the service's clock (storage/clock.py).

CREATE TABLE queues (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT UNIQUE,                 -- NULL: deleted, its messages being cleared away
    version       INTEGER NOT NULL DEFAULT 1,  -- of the settings
    settings      TEXT NOT NULL DEFAULT '{}',  -- JSON: what was set, the defaults left out
    ready         INTEGER NOT NULL DEFAULT 0,  -- these four count the messages by state
    leased        INTEGER NOT NULL DEFAULT 0,
    delayed       INTEGER NOT NULL DEFAULT 0,
    blocked       INTEGER NOT NULL DEFAULT 0,
    bytes         INTEGER NOT NULL DEFAULT 0,
    sent          INTEGER NOT NULL DEFAULT 0,  -- these five only ever rise
    received      INTEGER NOT NULL DEFAULT 0,
    acked         INTEGER NOT NULL DEFAULT 0,
    expired       INTEGER NOT NULL DEFAULT 0,
    dead_lettered INTEGER NOT NULL DEFAULT 0
) STRICT;

-- AUTOINCREMENT: without it an id is used again once the table is empty, and a stale ack hits a new message.
CREATE TABLE messages (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    queue_id      INTEGER NOT NULL,
    state         INTEGER NOT NULL,            -- 0 ready, 1 leased, 2 delayed, 3 blocked
    priority      INTEGER NOT NULL DEFAULT 0,
    recipient     TEXT NOT NULL DEFAULT '',    -- '': unaddressed
    key           TEXT,
    due_at        INTEGER NOT NULL DEFAULT 0,  -- leased: the lease's end; else not delivered before
    expires_at    INTEGER,
    token         INTEGER,                     -- of the last delivery
    receive_count INTEGER NOT NULL DEFAULT 0,
    sent_at       INTEGER NOT NULL,
    origin        TEXT,                        -- a dead letter: the queue it came from
    death         TEXT,                        -- a dead letter: JSON of the attributes it gained
    fields        TEXT,                        -- JSON of the optional fields as written
    text          TEXT NOT NULL                -- last, so that the state is read without walking a long text
) STRICT;

-- A read takes from the front of `deliverable`; its id is the index's own last column. Leased, delayed and
-- blocked messages are not in it, so that its cost does not depend on their number.
CREATE INDEX deliverable ON messages (queue_id, recipient, priority DESC) WHERE state = 0;
CREATE INDEX due         ON messages (queue_id, due_at)                   WHERE state IN (1, 2);
CREATE INDEX expiring    ON messages (queue_id, expires_at)               WHERE expires_at IS NOT NULL AND state <> 1;
CREATE INDEX keyed       ON messages (queue_id, key)                      WHERE key IS NOT NULL;
CREATE INDEX locked      ON messages (queue_id, key)                      WHERE key IS NOT NULL AND state = 1;
CREATE INDEX buried      ON messages (origin)                             WHERE origin IS NOT NULL;
CREATE INDEX in_queue    ON messages (queue_id);

-- dedup_ids of messages, remembered although the message may be gone.
CREATE TABLE dedup (
    queue_id   INTEGER NOT NULL,
    dedup_id   TEXT NOT NULL,
    message_id INTEGER NOT NULL,
    forget_at  INTEGER NOT NULL,
    PRIMARY KEY (queue_id, dedup_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX dedup_forget ON dedup (forget_at);

-- Idempotency-Keys of requests, with what was answered.
CREATE TABLE replies (
    queue_id    INTEGER NOT NULL,              -- 0 for a transaction over queues
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    reply       TEXT NOT NULL,
    forget_at   INTEGER NOT NULL,
    PRIMARY KEY (queue_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX replies_forget ON replies (forget_at);

-- One row: the offset (ms) of the service's clock to the boot-time clock, and the boot it holds for.
CREATE TABLE clock (
    boot_id   TEXT NOT NULL,
    offset_ms INTEGER NOT NULL
) STRICT;
