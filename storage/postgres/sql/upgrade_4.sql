-- Upgrade from version 3 to 4.

SET LOCAL search_path = queue_service;

ALTER TABLE queues ADD COLUMN created_at bigint, ADD COLUMN modified_at bigint;
UPDATE queues SET (created_at, modified_at) = (
    SELECT at, at FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + ahead AS at FROM clock) AS upgrade);
ALTER TABLE queues ALTER COLUMN created_at SET NOT NULL, ALTER COLUMN modified_at SET NOT NULL;
CREATE INDEX sources ON queues (coalesce(settings ->> 'dead_letter_queue', left(name, 75) || '.dead') COLLATE "C", name);

ALTER TABLE messages ADD COLUMN first_received_at bigint;

ALTER TABLE dedup ADD COLUMN key bytea NOT NULL DEFAULT '';
ALTER TABLE dedup ALTER COLUMN key DROP DEFAULT, DROP CONSTRAINT dedup_pkey, ADD PRIMARY KEY (queue_id, dedup_id, key);

CREATE TABLE moves (
    id          bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue_id    bigint  NOT NULL,
    task        text    NOT NULL,
    destination text,
    rate        integer,
    started_at  bigint  NOT NULL,
    status      text    NOT NULL DEFAULT 'running',
    moved       bigint  NOT NULL DEFAULT 0,
    to_move     bigint  NOT NULL,
    failure     text,
    state       jsonb
);
CREATE INDEX moves_of ON moves (queue_id, id);
CREATE UNIQUE INDEX moves_running ON moves (queue_id) WHERE status = 'running';

CREATE TABLE identity (bytes bytea NOT NULL);
INSERT INTO identity VALUES (uuid_send(gen_random_uuid()));

UPDATE version SET version = 4;
