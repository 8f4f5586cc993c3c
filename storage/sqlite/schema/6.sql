-- Brings a file of schema version 5 to version 6: an Idempotency-Key changes one page, not two; a lease names its holder.

-- No index by forget_at: upkeep walks over the table, a part of it at each pass. So forget_at is before long replies.
DROP INDEX replies_forget;
ALTER TABLE replies RENAME TO old_replies;
CREATE TABLE replies (
    queue_id    INTEGER NOT NULL,              -- 0 for the whole store
    key         TEXT NOT NULL,
    forget_at   INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    reply       TEXT NOT NULL,
    PRIMARY KEY (queue_id, key)
) STRICT, WITHOUT ROWID;
INSERT INTO replies SELECT queue_id, key, forget_at, fingerprint, reply FROM old_replies;
DROP TABLE old_replies;

-- The holder of the last lease: a token's name or a client's address; NULL: unknown.
ALTER TABLE messages ADD COLUMN holder TEXT;
ALTER TABLE runs     ADD COLUMN holder TEXT;
