-- The tables of version 5. Times are ms of the service's clock (storage/postgres_clock.py). What a client wrote is
-- bytea, in UTF-8, for the type text cannot hold U+0000; JSON can be text, as it writes that as \u0000.
-- Every key and index begins with the queue, and every statement names it, so that the data can be spread by queue.

CREATE SCHEMA queue_service;
SET LOCAL search_path = queue_service;

CREATE TABLE version (version integer NOT NULL);
INSERT INTO version VALUES (5);

CREATE TABLE queues (
    id       bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text    COLLATE "C" UNIQUE,      -- NULL: deleted, its messages being cleared away
    version  integer NOT NULL DEFAULT 1,      -- of the settings
    settings jsonb   NOT NULL DEFAULT '{}',   -- what was set, the defaults left out
    keyed    boolean NOT NULL DEFAULT false,  -- a message with a key has been stored
    used_at  bigint  NOT NULL,                -- kept, to within a second, where the setting `expires` asks for it
    created_at  bigint NOT NULL,
    modified_at bigint NOT NULL,              -- of the settings
    gone_at  bigint                           -- when it was deleted
);
CREATE INDEX sources ON queues (coalesce(settings ->> 'dead_letter_queue', left(name, 75) || '.dead') COLLATE "C", name);

-- The counts and totals of a queue are the sums over its rows here. A transaction adds to the row of its connection,
-- so that those of one queue do not wait for each other.
CREATE TABLE counts (
    queue_id      bigint NOT NULL,
    slot          integer NOT NULL,
    ready         bigint NOT NULL,
    leased        bigint NOT NULL,
    delayed       bigint NOT NULL,
    blocked       bigint NOT NULL,
    bytes         bigint NOT NULL,
    sent          bigint NOT NULL,
    received      bigint NOT NULL,
    acked         bigint NOT NULL,
    expired       bigint NOT NULL,
    dead_lettered bigint NOT NULL,
    PRIMARY KEY (queue_id, slot)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);

CREATE SEQUENCE message_ids;  -- one for all queues; CACHE 1, or a sender's second message may get the lower id

CREATE TABLE messages (
    queue_id      bigint   NOT NULL,
    id            bigint   NOT NULL DEFAULT nextval('queue_service.message_ids'),
    sent_at       bigint   NOT NULL,
    arrived_at    bigint   NOT NULL,             -- when its life in this queue began, by which it expires
    due_at        bigint   NOT NULL DEFAULT 0,   -- the end of a lease or delay; ready since, or 0: since it arrived
    expires_at    bigint,                        -- by its own ttl; a dead letter has none
    ttl           bigint,                        -- as written
    token         bigint,                        -- of the last delivery; negative: it was released
    receive_count integer  NOT NULL DEFAULT 0,
    first_received_at bigint,
    holder        text,                          -- of the last lease: a token's name or an address; NULL: unknown
    state         smallint NOT NULL,             -- 0 ready, 1 leased, 2 delayed, 3 blocked
    priority      smallint NOT NULL DEFAULT 0,
    recipient     bytea    NOT NULL DEFAULT '',  -- '': unaddressed
    key           bytea,
    origin        text,                          -- a dead letter: where it last died
    deaths        text,                          -- a dead letter: JSON, as with_deaths in storage/kept.py takes it
    fields        text,                          -- JSON of the optional fields as written
    text          bytea    NOT NULL,
    PRIMARY KEY (queue_id, id)
    -- A lease and an ack each leave a dead row behind. They are collected early and at full speed: what waits for
    -- that is walked over by each read.
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000,
        autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05,
        autovacuum_vacuum_cost_delay = 0);

ALTER TABLE messages ALTER COLUMN text SET STORAGE EXTERNAL;  -- to compress it takes longer than all else

-- A read takes from the front of `deliverable`. Leased, delayed and blocked messages are not in it, so that its cost
-- does not depend on their number; those that were received too often are passed over in the index itself.
-- NULLS FIRST tells these indexes from the primary key, which has the order of ids too: verbs.sql says why.
CREATE INDEX deliverable ON messages (queue_id, recipient, priority DESC, id NULLS FIRST, receive_count) WHERE state = 0;
CREATE INDEX due         ON messages (queue_id, due_at)                       WHERE state IN (1, 2);
CREATE INDEX expiring    ON messages (queue_id, expires_at)                   WHERE expires_at IS NOT NULL AND state <> 1;
CREATE INDEX arrived     ON messages (queue_id, arrived_at)                   WHERE state <> 1;
CREATE INDEX waiting     ON messages (queue_id, greatest(due_at, arrived_at)) WHERE state = 0;
CREATE INDEX received    ON messages (queue_id, receive_count DESC, id)       WHERE state = 0 AND receive_count > 0;
CREATE INDEX keyed       ON messages (queue_id, key, id NULLS FIRST)          WHERE key IS NOT NULL;
CREATE INDEX leased_keys ON messages (queue_id, key, token)                   WHERE state = 1 AND key IS NOT NULL;
CREATE INDEX dead_here   ON messages (queue_id, id NULLS FIRST)               WHERE origin IS NOT NULL;
CREATE INDEX buried      ON messages (queue_id, origin, id NULLS FIRST)       WHERE origin IS NOT NULL;

-- In which queues the dead letters of a queue may lie.
CREATE TABLE graves (
    origin   text   NOT NULL,
    queue_id bigint NOT NULL,
    PRIMARY KEY (queue_id, origin)
);

-- dedup_ids of messages, remembered although the message may be gone.
CREATE TABLE dedup (
    queue_id   bigint NOT NULL,
    dedup_id   bytea  NOT NULL,
    key        bytea  NOT NULL,  -- of the message, for dedup_scope key; else ''
    message_id bigint NOT NULL,
    forget_at  bigint NOT NULL,
    PRIMARY KEY (queue_id, dedup_id, key)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX dedup_forget ON dedup (queue_id, forget_at);
CREATE INDEX dedup_of     ON dedup (queue_id, message_id);

-- Idempotency-Keys of requests, with what was answered.
CREATE TABLE replies (
    queue_id    bigint NOT NULL,  -- 0 for a request over several queues
    key         text   NOT NULL,
    fingerprint bytea  NOT NULL,
    reply       jsonb  NOT NULL,
    forget_at   bigint NOT NULL,
    PRIMARY KEY (queue_id, key)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX replies_forget ON replies (queue_id, forget_at);

-- Tasks that move all messages of a dead-letter queue.
CREATE TABLE moves (
    id          bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue_id    bigint  NOT NULL,   -- the source
    task        text    NOT NULL,
    destination text,               -- NULL: each message's origin
    rate        integer,            -- messages a second
    started_at  bigint  NOT NULL,
    status      text    NOT NULL DEFAULT 'running',
    moved       bigint  NOT NULL DEFAULT 0,
    to_move     bigint  NOT NULL,
    failure     text,
    state       jsonb               -- of `redrive`
);
CREATE INDEX moves_of ON moves (queue_id, id);
CREATE UNIQUE INDEX moves_running ON moves (queue_id) WHERE status = 'running';

-- One row: random bytes that identify this store.
CREATE TABLE identity (bytes bytea NOT NULL);
INSERT INTO identity VALUES (uuid_send(gen_random_uuid()));

-- One row: `ahead` is how far (ms) the service's clock is ahead of the server's.
CREATE TABLE clock (
    ahead   bigint NOT NULL,
    kept_at timestamptz NOT NULL  -- when a node last began its upkeep, by the server's clock
);
INSERT INTO clock VALUES (0, 'epoch');
