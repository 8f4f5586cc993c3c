SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA queue_service;
CREATE TYPE queue_service.dead AS (
	queue_id bigint,
	id bigint,
	origin text,
	key bytea
);
CREATE TYPE queue_service.delivery AS (
	note text,
	ids bigint[],
	duplicates integer[],
	queue text,
	id bigint,
	text bytea,
	fields text,
	deaths text,
	sent_at bigint,
	receive_count integer,
	token bigint,
	leased_until bigint,
	first_received_at bigint
);
CREATE TYPE queue_service.held AS (
	place integer,
	status text,
	queue_id bigint,
	id bigint,
	spot tid,
	state smallint,
	key bytea,
	token bigint,
	receive_count integer,
	due_at bigint
);
CREATE TYPE queue_service.new_message AS (
	text bytea,
	fields text,
	key bytea,
	priority smallint,
	recipient bytea,
	delay bigint,
	ttl bigint,
	dedup_id bytea
);
CREATE TYPE queue_service.sent AS (
	ids bigint[],
	duplicates integer[]
);
SET default_tablespace = '';
CREATE TABLE queue_service.queues (
    id bigint NOT NULL,
    name text COLLATE pg_catalog."C",
    version integer DEFAULT 1 NOT NULL,
    settings jsonb DEFAULT '{}'::jsonb NOT NULL,
    keyed boolean DEFAULT false NOT NULL,
    gone_at bigint,
    used_at bigint NOT NULL,
    created_at bigint NOT NULL,
    modified_at bigint NOT NULL
);
CREATE SEQUENCE queue_service.message_ids
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE queue_service.messages (
    queue_id bigint NOT NULL,
    id bigint DEFAULT nextval('queue_service.message_ids'::regclass) NOT NULL,
    sent_at bigint NOT NULL,
    arrived_at bigint NOT NULL,
    due_at bigint DEFAULT 0 NOT NULL,
    expires_at bigint,
    ttl bigint,
    token bigint,
    receive_count integer DEFAULT 0 NOT NULL,
    state smallint NOT NULL,
    priority smallint DEFAULT 0 NOT NULL,
    recipient bytea DEFAULT '\x'::bytea NOT NULL,
    key bytea,
    origin text,
    deaths text,
    fields text,
    text bytea NOT NULL,
    first_received_at bigint
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='10000', autovacuum_vacuum_insert_scale_factor='0.1', autovacuum_analyze_scale_factor='0.05', autovacuum_vacuum_cost_delay='0');
ALTER TABLE ONLY queue_service.messages ALTER COLUMN text SET STORAGE EXTERNAL;
CREATE TABLE queue_service.clock (
    ahead bigint NOT NULL,
    kept_at timestamp with time zone NOT NULL
);
CREATE TABLE queue_service.counts (
    queue_id bigint NOT NULL,
    slot integer NOT NULL,
    ready bigint NOT NULL,
    leased bigint NOT NULL,
    delayed bigint NOT NULL,
    blocked bigint NOT NULL,
    bytes bigint NOT NULL,
    sent bigint NOT NULL,
    received bigint NOT NULL,
    acked bigint NOT NULL,
    expired bigint NOT NULL,
    dead_lettered bigint NOT NULL
)
WITH (fillfactor='20', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE queue_service.dedup (
    queue_id bigint NOT NULL,
    dedup_id bytea NOT NULL,
    message_id bigint NOT NULL,
    forget_at bigint NOT NULL,
    key bytea NOT NULL
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0.05');
CREATE TABLE queue_service.graves (
    origin text NOT NULL,
    queue_id bigint NOT NULL
);
CREATE TABLE queue_service.identity (
    bytes bytea NOT NULL
);
CREATE TABLE queue_service.moves (
    id bigint NOT NULL,
    queue_id bigint NOT NULL,
    task text NOT NULL,
    destination text,
    rate integer,
    started_at bigint NOT NULL,
    status text DEFAULT 'running'::text NOT NULL,
    moved bigint DEFAULT 0 NOT NULL,
    to_move bigint NOT NULL,
    failure text,
    state jsonb
);
ALTER TABLE queue_service.moves ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME queue_service.moves_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE queue_service.queues ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME queue_service.queues_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE queue_service.replies (
    queue_id bigint NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    reply jsonb NOT NULL,
    forget_at bigint NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.05');
CREATE TABLE queue_service.version (
    version integer NOT NULL
);
INSERT INTO queue_service.clock VALUES (0, '1970-01-01 00:00:00+00');
INSERT INTO queue_service.counts VALUES (1, 148, 2, 0, 1, 0, 58, 4, 1, 0, 0, 1);
INSERT INTO queue_service.counts VALUES (2, 148, 2, -1, 0, 0, 29, 0, 0, 0, 0, 0);
INSERT INTO queue_service.counts VALUES (2, 149, -2, 2, 0, 0, 0, 0, 2, 0, 0, 0);
INSERT INTO queue_service.counts VALUES (1, 149, 2, 2, 0, 0, 56, 4, 2, 0, 0, 0);
INSERT INTO queue_service.dedup VALUES (1, '\x642d31', 7, 1795915880079, '\x');
INSERT INTO queue_service.graves VALUES ('q', 2);
INSERT INTO queue_service.identity VALUES ('\xde0a03874cf241c29985bbed31dfa60d');
INSERT INTO queue_service.messages VALUES (1, 4, 1795915580056, 1795915580056, 0, 1799815580056, 3900000000, NULL, 0, 0, 0, '\x', NULL, NULL, NULL, '{"ttl": 3900000}', '\x73686f7274', NULL);
INSERT INTO queue_service.messages VALUES (1, 2, 1795915580022, 1795915580022, 0, NULL, NULL, NULL, 0, 0, 0, '\x', NULL, NULL, NULL, NULL, '\x7365636f6e64', NULL);
INSERT INTO queue_service.messages VALUES (1, 3, 1795915580047, 1795915580047, 1799515580047, NULL, NULL, NULL, 0, 2, 0, '\x', NULL, NULL, NULL, '{"delay": 3600000}', '\x64656c61796564', NULL);
INSERT INTO queue_service.messages VALUES (1, 7, 1795915580079, 1795915580079, 0, NULL, NULL, NULL, 0, 0, 0, '\x', NULL, NULL, NULL, '{"dedup_id": "d-1"}', '\x6b6e6f776e', NULL);
INSERT INTO queue_service.messages VALUES (1, 8, 1795915580092, 1795915580092, 0, NULL, NULL, NULL, 0, 0, 0, '\x', NULL, NULL, NULL, NULL, '\x6f6e6365', NULL);
INSERT INTO queue_service.messages VALUES (1, 6, 1795915580063, 1795915580063, 1795958780162, NULL, NULL, 3979642658877355445, 1, 1, 2, '\x', '\x61', NULL, NULL, '{"key": "a", "priority": 2}', '\x6132', NULL);
INSERT INTO queue_service.messages VALUES (1, 1, 1795915580022, 1795915580022, 1795958780169, NULL, NULL, 622801516220111399, 1, 1, 0, '\x', NULL, NULL, NULL, NULL, '\x706c61696e', NULL);
INSERT INTO queue_service.messages VALUES (2, 9, 1795915580063, 1795915580132, 1795958780215, NULL, NULL, 8254742523127263339, 2, 1, 2, '\x', '\x61', 'q', '[{"dead_letter_from": "q", "dead_letter_reason": "no é \"quote\" \u0000 nul", "dead_letter_at": "2026-11-29T01:26:20.132Z", "dead_letter_id": "5", "dead_letter_receive_count": 1}]', '{"key": "a", "priority": 2}', '\x6131', NULL);
INSERT INTO queue_service.queues OVERRIDING SYSTEM VALUE VALUES (1, 'q', 2, '{"retention": 4000000, "max_receives": 3}', true, NULL, 1795955948302, 1795955948375, 1795955948375);
INSERT INTO queue_service.queues OVERRIDING SYSTEM VALUE VALUES (2, 'q.dead', 2, '{"lease": 7}', true, NULL, 1795955948302, 1795955948375, 1795955948375);
INSERT INTO queue_service.replies VALUES (1, 'once', '\x6f6e6365', '{"ids": [8], "duplicates": []}', 1795915880092);
INSERT INTO queue_service.replies VALUES (1, 'read', '\x72656164', '[{"id": 1, "ids": null, "note": null, "text": "\\x706c61696e", "death": null, "queue": "q", "token": 622801516220111399, "fields": null, "sent_at": 1795915580022, "leased_until": 1795958780169, "receive_count": 1}]', 1795915880169);
INSERT INTO queue_service.replies VALUES (2, 'dead', '\x64656164', '[{"id": 9, "ids": null, "note": null, "text": "\\x6131", "death": "{\"dead_letter_from\": \"q\", \"dead_letter_reason\": \"no é \\\"quote\\\" \\u0000 nul\", \"dead_letter_at\": \"2026-11-29T01:26:20.132Z\", \"dead_letter_id\": \"5\", \"dead_letter_receive_count\": 1}", "queue": "q.dead", "token": 8254742523127263339, "deaths": "[{\"dead_letter_from\": \"q\", \"dead_letter_reason\": \"no é \\\"quote\\\" \\u0000 nul\", \"dead_letter_at\": \"2026-11-29T01:26:20.132Z\", \"dead_letter_id\": \"5\", \"dead_letter_receive_count\": 1}]", "fields": "{\"key\": \"a\", \"priority\": 2}", "sent_at": 1795915580063, "leased_until": 1795958780215, "receive_count": 2}]', 1795915880215);
INSERT INTO queue_service.version VALUES (4);
SELECT pg_catalog.setval('queue_service.message_ids', 9, true);
SELECT pg_catalog.setval('queue_service.moves_id_seq', 1, false);
SELECT pg_catalog.setval('queue_service.queues_id_seq', 2, true);
ALTER TABLE ONLY queue_service.counts
    ADD CONSTRAINT counts_pkey PRIMARY KEY (queue_id, slot);
ALTER TABLE ONLY queue_service.dedup
    ADD CONSTRAINT dedup_pkey PRIMARY KEY (queue_id, dedup_id, key);
ALTER TABLE ONLY queue_service.graves
    ADD CONSTRAINT graves_pkey PRIMARY KEY (queue_id, origin);
ALTER TABLE ONLY queue_service.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (queue_id, id);
ALTER TABLE ONLY queue_service.moves
    ADD CONSTRAINT moves_pkey PRIMARY KEY (id);
ALTER TABLE ONLY queue_service.queues
    ADD CONSTRAINT queues_name_key UNIQUE (name);
ALTER TABLE ONLY queue_service.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (id);
ALTER TABLE ONLY queue_service.replies
    ADD CONSTRAINT replies_pkey PRIMARY KEY (queue_id, key);
CREATE INDEX arrived ON queue_service.messages USING btree (queue_id, arrived_at) WHERE (state <> 1);
CREATE INDEX buried ON queue_service.messages USING btree (queue_id, origin, id NULLS FIRST) WHERE (origin IS NOT NULL);
CREATE INDEX dead_here ON queue_service.messages USING btree (queue_id, id NULLS FIRST) WHERE (origin IS NOT NULL);
CREATE INDEX dedup_forget ON queue_service.dedup USING btree (queue_id, forget_at);
CREATE INDEX dedup_of ON queue_service.dedup USING btree (queue_id, message_id);
CREATE INDEX deliverable ON queue_service.messages USING btree (queue_id, recipient, priority DESC, id NULLS FIRST, receive_count) WHERE (state = 0);
CREATE INDEX due ON queue_service.messages USING btree (queue_id, due_at) WHERE (state = ANY (ARRAY[1, 2]));
CREATE INDEX expiring ON queue_service.messages USING btree (queue_id, expires_at) WHERE ((expires_at IS NOT NULL) AND (state <> 1));
CREATE INDEX keyed ON queue_service.messages USING btree (queue_id, key, id NULLS FIRST) WHERE (key IS NOT NULL);
CREATE INDEX leased_keys ON queue_service.messages USING btree (queue_id, key, token) WHERE ((state = 1) AND (key IS NOT NULL));
CREATE INDEX moves_of ON queue_service.moves USING btree (queue_id, id);
CREATE UNIQUE INDEX moves_running ON queue_service.moves USING btree (queue_id) WHERE (status = 'running'::text);
CREATE INDEX received ON queue_service.messages USING btree (queue_id, receive_count DESC, id) WHERE ((state = 0) AND (receive_count > 0));
CREATE INDEX replies_forget ON queue_service.replies USING btree (queue_id, forget_at);
CREATE INDEX sources ON queue_service.queues USING btree (COALESCE((settings ->> 'dead_letter_queue'::text), ("left"(name, 75) || '.dead'::text)), name);
CREATE INDEX waiting ON queue_service.messages USING btree (queue_id, GREATEST(due_at, arrived_at)) WHERE (state = 0);
