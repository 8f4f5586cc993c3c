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
CREATE TYPE queue_service.delivery AS (
	note text,
	ids bigint[],
	queue text,
	id bigint,
	text bytea,
	fields text,
	death text,
	sent_at bigint,
	receive_count integer,
	token bigint,
	leased_until bigint
);
CREATE TYPE queue_service.held AS (
	place integer,
	status text,
	queue_id bigint,
	spot tid,
	state smallint,
	key bytea,
	token bigint,
	receive_count integer
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
CREATE FUNCTION queue_service.ack(p_now bigint, p_names text[], p_ids bigint[], p_tokens bigint[]) RETURNS text[]
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_held held[] := ARRAY(SELECT one::held FROM hold(p_names, p_ids, p_tokens) AS one);
    v      record;
BEGIN
    FOR v IN
        SELECT queue_id, array_agg(DISTINCT spot) AS spots FROM unnest(v_held) WHERE status = 'held'
         GROUP BY queue_id ORDER BY queue_id
    LOOP
        PERFORM remove(p_now, v.queue_id, v.spots, p_acked => cardinality(v.spots));
    END LOOP;
    RETURN ARRAY(SELECT status FROM unnest(v_held) ORDER BY place);
END $$;
CREATE FUNCTION queue_service.are_plain(p_queue bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM FROM messages WHERE queue_id = p_queue AND state = 0 AND again ORDER BY due_at LIMIT 1;
    IF FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM messages WHERE queue_id = p_queue AND recipient = '' AND state = 0 AND priority > 0
      ORDER BY priority DESC, id LIMIT 1;
    RETURN NOT FOUND;
END $$;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE queue_service.queues (
    id bigint NOT NULL,
    name text COLLATE pg_catalog."C",
    version integer DEFAULT 1 NOT NULL,
    settings jsonb DEFAULT '{}'::jsonb NOT NULL,
    keyed boolean DEFAULT false NOT NULL,
    gone_at bigint
);
CREATE FUNCTION queue_service.arrived(p_now bigint, p_queue queue_service.queues, p_count bigint, p_blocked bigint, p_bytes bigint, p_keys bytea[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM tally(p_queue.id, p_ready => p_count - p_blocked, p_blocked => p_blocked, p_bytes => p_bytes);
    PERFORM promote(p_now, p_queue.id, p_keys);
END $$;
CREATE FUNCTION queue_service.block(p_queue bigint, p_key bytea) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_first messages;
BEGIN
    SELECT * INTO v_first FROM messages WHERE queue_id = p_queue AND key = p_key ORDER BY id LIMIT 1;
    IF v_first.state IN (0, 2) THEN
        UPDATE messages SET state = 3 WHERE queue_id = p_queue AND id = v_first.id;
        PERFORM tally(p_queue, p_ready => -(v_first.state = 0)::int, p_delayed => -(v_first.state = 2)::int,
                      p_blocked => 1);
    END IF;
END $$;
CREATE FUNCTION queue_service.bring_up_to_date(p_now bigint, p_wall bigint, p_queue queue_service.queues, p_chunk integer) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_spent   tid[];
    v_back    tid[];
    v_expired tid[];
    v_most    bigint := max_receives(p_queue);
BEGIN
    IF NOT pg_try_advisory_xact_lock(-p_queue.id) THEN
        RETURN 0;  -- somebody is at it, and the caller has not waited for him
    END IF;
    WITH late AS MATERIALIZED (
        SELECT ctid AS spot, state, receive_count FROM messages
         WHERE queue_id = p_queue.id AND state IN (1, 2) AND due_at <= p_now
           AND (key IS NULL OR pg_try_advisory_xact_lock(lock_of(p_queue.id, key)))
         ORDER BY due_at, id LIMIT p_chunk FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(spot) FILTER (WHERE v_most > 0 AND state = 1 AND receive_count >= v_most),
           array_agg(spot) FILTER (WHERE NOT (v_most > 0 AND state = 1 AND receive_count >= v_most))
      INTO v_spent, v_back FROM late;
    PERFORM bury(p_now, p_wall, p_queue, v_spent, '"max_receives"');
    IF v_back IS NOT NULL THEN
        PERFORM give_back(p_now, p_queue.id, v_back, 0);
    END IF;
    WITH late AS MATERIALIZED (
        SELECT ctid AS spot FROM messages
         WHERE queue_id = p_queue.id AND expires_at IS NOT NULL AND state <> 1 AND expires_at <= p_now
           AND (key IS NULL OR pg_try_advisory_xact_lock(lock_of(p_queue.id, key)))
         ORDER BY expires_at LIMIT p_chunk FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(spot) INTO v_expired FROM late;
    IF (p_queue.settings ->> 'dead_letter_expired')::boolean THEN
        PERFORM bury(p_now, p_wall, p_queue, v_expired, '"expired"', cardinality(v_expired));
    ELSIF v_expired IS NOT NULL THEN
        PERFORM remove(p_now, p_queue.id, v_expired, p_expired => cardinality(v_expired));
    END IF;
    RETURN greatest(coalesce(cardinality(v_spent), 0) + coalesce(cardinality(v_back), 0),
                    coalesce(cardinality(v_expired), 0));
END $$;
CREATE FUNCTION queue_service.bury(p_now bigint, p_wall bigint, p_queue queue_service.queues, p_rows tid[], p_reason text, p_expired bigint DEFAULT 0) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_grave queues;
    v_keys  bytea[];
    v_story text;
    v       record;
BEGIN
    IF p_rows IS NULL THEN
        RETURN;
    END IF;
    v_grave := queue_for_writing(coalesce(  -- a name of 80 characters that ends so already would else be its own
        p_queue.settings ->> 'dead_letter_queue',
        left(p_queue.name, CASE WHEN substr(p_queue.name, 76) = '.dead' THEN 70 ELSE 75 END) || '.dead'));
    INSERT INTO graves VALUES (p_queue.name, v_grave.id) ON CONFLICT DO NOTHING;
    SELECT array_agg(DISTINCT key) FILTER (WHERE key IS NOT NULL) INTO v_keys
      FROM messages WHERE ctid = ANY (p_rows);
    PERFORM expect_keys(v_grave, v_keys);
    PERFORM pg_current_xact_id();  -- before the ids: note_head counts on that
    v_story := '{"dead_letter_from": "' || p_queue.name || '", "dead_letter_reason": ' || p_reason
            || ', "dead_letter_at": "' || to_char(to_timestamp(p_wall / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS')
            || '.' || lpad((p_wall % 1000)::text, 3, '0') || 'Z", "dead_letter_id": "';
    WITH dead AS (
        INSERT INTO messages (queue_id, sent_at, arrived_at, state, priority, recipient, key, ttl, expires_at,
                              origin, death, fields, text)
        SELECT v_grave.id, sent_at, p_now, CASE WHEN key IS NULL THEN 0 ELSE 3 END, priority, recipient, key, ttl,
               p_now + lifetime(v_grave, NULL), p_queue.name,
               v_story || id || '", "dead_letter_receive_count": ' || receive_count || '}', fields, text
          FROM messages WHERE ctid = ANY (p_rows) ORDER BY messages.id
        RETURNING state, octet_length(text) + coalesce(octet_length(fields), 0) AS size
    )
    SELECT count(*) AS count, count(*) FILTER (WHERE state = 3) AS blocked, coalesce(sum(size), 0)::bigint AS bytes
      INTO v FROM dead;
    PERFORM arrived(p_now, v_grave, v.count, v.blocked, v.bytes, v_keys);
    PERFORM remove(p_now, p_queue.id, p_rows, p_dead => v.count, p_expired => p_expired);
END $$;
CREATE FUNCTION queue_service.bury_spent(p_now bigint, p_wall bigint, p_queue queue_service.queues, p_limit integer, p_recipient bytea) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_spent tid[];
BEGIN
    IF max_receives(p_queue) = 0 THEN
        RETURN;
    END IF;
    LOOP
        WITH heads AS MATERIALIZED (
            SELECT ctid AS spot, receive_count FROM messages
             WHERE queue_id = p_queue.id AND recipient = p_recipient AND state = 0
               AND (key IS NULL OR pg_try_advisory_xact_lock(lock_of(p_queue.id, key)))
             ORDER BY priority DESC, id LIMIT p_limit FOR UPDATE SKIP LOCKED
        )
        SELECT array_agg(spot) INTO v_spent FROM heads WHERE receive_count >= max_receives(p_queue);
        EXIT WHEN v_spent IS NULL;
        PERFORM bury(p_now, p_wall, p_queue, v_spent, '"max_receives"');
    END LOOP;
END $$;
CREATE FUNCTION queue_service.catch_up(p_now bigint, p_wall bigint, p_name text, p_chunk integer) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_queue queues;
BEGIN
    SELECT * INTO v_queue FROM queues WHERE name = p_name;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    PERFORM pg_advisory_xact_lock(-v_queue.id);
    RETURN bring_up_to_date(p_now, p_wall, v_queue, p_chunk);
END $$;
CREATE FUNCTION queue_service.choose(p_now bigint, p_queue queue_service.queues, p_limit integer, p_recipient bytea, p_room bigint, p_first boolean, OUT spots tid[], OUT ids bigint[], OUT bytes bigint, OUT cut boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_most bigint := max_receives(p_queue);
BEGIN
    IF p_recipient = '' AND NOT p_queue.keyed AND are_plain(p_queue.id) THEN
        SELECT * INTO spots, ids, bytes, cut
          FROM choose_plain(p_queue.id, p_limit, p_room, p_first, coalesce((known_head(p_queue.id)).head, 0));
        RETURN;
    END IF;
    IF p_limit = 1 THEN  -- the most usual read; else as below
        SELECT ARRAY[m.ctid], ARRAY[m.id], octet_length(m.text) INTO spots, ids, bytes FROM messages AS m
         WHERE m.queue_id = p_queue.id AND m.recipient = p_recipient AND m.state = 0
           AND (m.key IS NULL OR pg_try_advisory_xact_lock(lock_of(p_queue.id, m.key)))
         ORDER BY m.priority DESC, m.id LIMIT 1 FOR UPDATE SKIP LOCKED;
        cut := bytes > p_room AND NOT p_first;
        IF cut THEN
            ids := NULL;
        END IF;
        RETURN;
    END IF;
    WITH heads AS MATERIALIZED (
        SELECT ctid AS spot, id, priority, key, octet_length(text) AS size FROM messages
         WHERE queue_id = p_queue.id AND recipient = p_recipient AND state = 0
           AND (key IS NULL OR pg_try_advisory_xact_lock(lock_of(p_queue.id, key)))
         ORDER BY priority DESC, id LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), chains AS (
        SELECT id AS head, spot, id, priority, size FROM heads
        UNION ALL
        SELECT heads.id, behind.spot, behind.id, behind.priority, behind.size
          FROM heads CROSS JOIN LATERAL (
                SELECT spot, id, priority, octet_length(text) AS size,
                       bool_and(recipient = p_recipient AND due_at <= p_now
                                AND (v_most = 0 OR receive_count < v_most)) OVER (ORDER BY id) AS free
                  FROM (SELECT ctid AS spot, * FROM messages
                         WHERE queue_id = p_queue.id AND key = heads.key AND id > heads.id
                         ORDER BY id LIMIT p_limit - 1) AS next
               ) AS behind
         WHERE heads.key IS NOT NULL AND behind.free
    ), ranked AS (
        SELECT spot, id, size, max((9 - priority::bigint << 59) + id) OVER (PARTITION BY head ORDER BY id) AS rank
          FROM chains
    ), ordered AS (
        SELECT spot, id, size, row_number() OVER way AS n, sum(size) OVER way AS total
          FROM ranked WINDOW way AS (ORDER BY rank, id)
    ), fitting AS (
        SELECT *, total <= p_room OR (p_first AND n = 1) AS fits FROM ordered WHERE n <= p_limit
    )
    SELECT array_agg(spot ORDER BY n) FILTER (WHERE fits), array_agg(id ORDER BY n) FILTER (WHERE fits),
           sum(size) FILTER (WHERE fits), bool_or(NOT fits)
      INTO spots, ids, bytes, cut FROM fitting;
END $$;
CREATE FUNCTION queue_service.choose_plain(p_queue bigint, p_limit integer, p_room bigint, p_first boolean, p_head bigint, OUT spots tid[], OUT ids bigint[], OUT bytes bigint, OUT cut boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_last bigint;
BEGIN
    IF pg_current_xact_id_if_assigned() IS NULL THEN
        v_last := coalesce(pg_sequence_last_value('message_ids'), 0);
    END IF;
    WITH heads AS MATERIALIZED (
        SELECT ctid AS spot, id, octet_length(text) AS size FROM messages
         WHERE queue_id = p_queue AND recipient = '' AND state = 0 AND priority = 0 AND id >= p_head
           AND (key IS NULL OR pg_try_advisory_xact_lock(lock_of(p_queue, key)))  -- the queue's first with a key
         ORDER BY id LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), summed AS (
        SELECT *, row_number() OVER way AS n, sum(size) OVER way AS total FROM heads WINDOW way AS (ORDER BY id)
    ), fitting AS (
        SELECT *, total <= p_room OR (p_first AND n = 1) AS fits FROM summed
    )
    SELECT array_agg(spot ORDER BY n) FILTER (WHERE fits), array_agg(id ORDER BY n) FILTER (WHERE fits),
           sum(size) FILTER (WHERE fits), bool_or(NOT fits)
      INTO spots, ids, bytes, cut FROM fitting;
    IF v_last IS NOT NULL AND ids[1] > p_head + 32 THEN
        PERFORM note_head(p_queue, v_last);
    END IF;
END $$;
CREATE FUNCTION queue_service.claim(p_now bigint, p_wall bigint, p_names text[], p_limit integer, p_recipient bytea, p_lease bigint, p_token bigint, p_wait boolean) RETURNS SETOF queue_service.delivery
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_queue  queues;
    v_chosen record;
    v_caught bigint;
    v_taken  integer := 0;
    v_room   bigint := 16 * 1024 * 1024;
BEGIN
    FOR v_queue IN
        SELECT q.* FROM unnest(p_names) WITH ORDINALITY AS asked (name, place) JOIN queues AS q USING (name) ORDER BY place
    LOOP
        IF is_late(p_now, v_queue.id) THEN
            -- Who is at it already is waited for: what he gives back may come before all that can be seen now.
            PERFORM pg_advisory_xact_lock(-v_queue.id);
            v_caught := bring_up_to_date(p_now, p_wall, v_queue, 10000);
            p_wait := false;
            IF v_caught = 10000 THEN
                IF v_taken = 0 THEN
                    RETURN NEXT ROW('late', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::delivery;
                END IF;
                RETURN;
            END IF;
        END IF;
        CONTINUE WHEN (v_queue.settings ->> 'paused')::boolean;
        IF p_wait AND v_queue.keyed THEN  -- else a head would be passed over whose key is being written to just now
            PERFORM lock_keys(v_queue.id, ARRAY(
                SELECT key FROM messages WHERE queue_id = v_queue.id AND recipient = p_recipient AND state = 0
                 ORDER BY priority DESC, messages.id LIMIT p_limit - v_taken));
            p_wait := false;  -- from now on keys are held
        END IF;
        PERFORM bury_spent(p_now, p_wall, v_queue, p_limit - v_taken, p_recipient);
        v_chosen := choose(p_now, v_queue, p_limit - v_taken, p_recipient, v_room, v_taken = 0);
        CONTINUE WHEN v_chosen.ids IS NULL AND v_chosen.cut IS NOT TRUE;
        IF v_chosen.ids IS NOT NULL THEN
            v_room := v_room - v_chosen.bytes;
            RETURN QUERY SELECT * FROM take(
                p_now, v_queue, v_chosen.spots, v_chosen.ids,
                p_now + CASE p_lease WHEN -1 THEN coalesce(seconds_setting(v_queue, 'lease'), 30000) ELSE p_lease END,
                p_token);
            v_taken := v_taken + cardinality(v_chosen.ids);
        END IF;
        EXIT WHEN v_chosen.cut OR v_taken = p_limit;
    END LOOP;
END $$;
CREATE FUNCTION queue_service.configure(p_name text, p_version integer, p_settings jsonb) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_old queues;
    v_new queues;
BEGIN
    IF p_version = 1 THEN
        PERFORM queue_for_writing(p_name);
    END IF;
    SELECT * INTO v_old FROM queues WHERE name = p_name AND version = p_version FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE queues SET settings = p_settings, version = version + 1 WHERE id = v_old.id RETURNING * INTO v_new;
    IF v_old.settings -> 'retention' IS DISTINCT FROM v_new.settings -> 'retention' THEN
        UPDATE messages
           SET expires_at = arrived_at + lifetime(v_new, CASE WHEN origin IS NULL THEN ttl END)
         WHERE queue_id = v_old.id;
    END IF;
    RETURN true;
END $$;
CREATE FUNCTION queue_service.expect_keys(p_queue queue_service.queues, p_keys bytea[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF p_keys IS NOT NULL THEN
        IF NOT p_queue.keyed THEN
            UPDATE queues SET keyed = true WHERE id = p_queue.id AND NOT keyed;
        END IF;
        PERFORM lock_keys(p_queue.id, p_keys);
    END IF;
END $$;
CREATE FUNCTION queue_service.extend(p_now bigint, p_name text, p_id bigint, p_token bigint, p_until bigint) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v held;
BEGIN
    SELECT * INTO v FROM hold(ARRAY[p_name], ARRAY[p_id], ARRAY[p_token]);
    IF v.status <> 'held' THEN
        RETURN v.status;
    END IF;
    IF v.state = 3 AND EXISTS (SELECT FROM messages WHERE queue_id = v.queue_id AND key = v.key AND state = 1
                                                      AND token <> v.token) THEN
        RETURN 'stale';
    END IF;
    UPDATE messages SET state = 1, due_at = p_until WHERE ctid = v.spot;
    IF v.state <> 1 THEN
        PERFORM tally(v.queue_id, -(v.state = 0)::int, 1, -(v.state = 2)::int, -(v.state = 3)::int);
        IF v.key IS NOT NULL THEN
            PERFORM block(v.queue_id, v.key);
        END IF;
    END IF;
    RETURN 'held';
END $$;
CREATE FUNCTION queue_service.give_back(p_now bigint, p_queue bigint, p_rows tid[], p_due bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v     record;
    v_was smallint[];
BEGIN
    SELECT array_agg(state) INTO v_was FROM messages WHERE ctid = ANY (p_rows);
    WITH back AS (
        UPDATE messages
           SET state = CASE WHEN key IS NOT NULL THEN 3 WHEN p_due > 0 THEN 2 ELSE 0 END, due_at = p_due, again = true
         WHERE ctid = ANY (p_rows)
        RETURNING state, key
    ), old AS (
        SELECT count(*) FILTER (WHERE was = 0) AS ready, count(*) FILTER (WHERE was = 1) AS leased,
               count(*) FILTER (WHERE was = 2) AS delayed, count(*) FILTER (WHERE was = 3) AS blocked
          FROM unnest(v_was) AS was
    )
    SELECT count(*) FILTER (WHERE state = 0) - min(ready) AS ready, -min(leased) AS leased,
           count(*) FILTER (WHERE state = 2) - min(delayed) AS delayed,
           count(*) FILTER (WHERE state = 3) - min(blocked) AS blocked,
           array_agg(DISTINCT key) FILTER (WHERE key IS NOT NULL) AS keys
      INTO v FROM old LEFT JOIN back ON true;
    PERFORM tally(p_queue, v.ready, v.leased, v.delayed, v.blocked);
    PERFORM promote(p_now, p_queue, v.keys);
END $$;
CREATE FUNCTION queue_service.head_setting(p_queue bigint) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    -- A pooler's session may outlive the schema; the next one of this name is another, and its ids begin anew.
    RETURN 'queue_service.head_' || 'queue_service'::regnamespace::oid || '_' || p_queue;
END $$;
CREATE FUNCTION queue_service.hold(p_names text[], p_ids bigint[], p_tokens bigint[]) RETURNS SETOF queue_service.held
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_queues bigint[];
    v_keyed  boolean;
    v        record;
BEGIN
    SELECT array_agg(q.id ORDER BY n), bool_or(q.keyed) INTO v_queues, v_keyed
      FROM unnest(p_names) WITH ORDINALITY AS receipt (name, n)
      LEFT JOIN LATERAL (SELECT id, keyed FROM queues WHERE queues.name = receipt.name LIMIT 1) AS q ON true;
    IF v_keyed THEN
        FOR v IN
            SELECT m.queue_id, array_agg(m.key) AS keys
              FROM unnest(v_queues, p_ids) AS receipt (queue_id, id) CROSS JOIN LATERAL (
                   SELECT queue_id, key FROM messages
                    WHERE queue_id = receipt.queue_id AND id = receipt.id LIMIT 1) AS m
             GROUP BY m.queue_id ORDER BY m.queue_id
        LOOP
            PERFORM lock_keys(v.queue_id, v.keys);
        END LOOP;
    END IF;
    RETURN QUERY
    SELECT n::integer, CASE WHEN m.spot IS NULL THEN 'missing' WHEN m.token IS DISTINCT FROM receipt.token THEN 'stale'
                            ELSE 'held' END, m.queue_id, m.spot, m.state, m.key, m.token, m.receive_count
      FROM (SELECT * FROM unnest(v_queues, p_ids, p_tokens) WITH ORDINALITY AS receipt (queue_id, id, token, n)
             ORDER BY queue_id, id) AS receipt
      LEFT JOIN LATERAL (SELECT ctid AS spot, queue_id, state, key, token, receive_count FROM messages
                          WHERE queue_id = receipt.queue_id AND id = receipt.id LIMIT 1 FOR UPDATE) AS m ON true;
END $$;
CREATE FUNCTION queue_service.insert_deduplicated(p_now bigint, p_wall bigint, p_queue queue_service.queues, p_new queue_service.new_message[]) RETURNS bigint[]
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_until bigint := p_now + coalesce(seconds_setting(p_queue, 'dedup_window'), 300000);
    v_fresh boolean[];
    v_ids   bigint[];
BEGIN
    -- Whoever claims an id first stores its message; who claims it at the same time waits here. 0: claimed just now.
    INSERT INTO dedup AS known
    SELECT p_queue.id, dedup_id, 0, v_until FROM unnest(p_new) WHERE dedup_id IS NOT NULL
     GROUP BY dedup_id ORDER BY dedup_id
        ON CONFLICT (queue_id, dedup_id) DO UPDATE SET message_id = 0, forget_at = v_until
     WHERE known.forget_at <= p_now;
    SELECT array_agg(dedup_id IS NULL OR (nth = 1 AND message_id = 0) ORDER BY n) INTO v_fresh
      FROM (SELECT n, new.dedup_id, message_id, row_number() OVER (PARTITION BY new.dedup_id ORDER BY n) AS nth
              FROM unnest(p_new) WITH ORDINALITY AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, n)
              LEFT JOIN dedup AS known ON known.queue_id = p_queue.id AND known.dedup_id = new.dedup_id) AS numbered;
    IF true = ANY (v_fresh) THEN
        v_ids := insert_new(p_now, p_wall, p_queue, ARRAY(
            SELECT (text, fields, key, priority, recipient, delay, ttl, dedup_id)::new_message
              FROM ROWS FROM (unnest(p_new), unnest(v_fresh)) WITH ORDINALITY
                AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, fresh, n)
             WHERE fresh ORDER BY n));
        UPDATE dedup SET message_id = v_ids[nth]
          FROM (SELECT dedup_id, fresh, count(*) FILTER (WHERE fresh) OVER (ORDER BY n) AS nth
                  FROM ROWS FROM (unnest(p_new), unnest(v_fresh)) WITH ORDINALITY
                    AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, fresh, n)) AS stored
         CROSS JOIN LATERAL (SELECT ctid AS place FROM dedup
                              WHERE queue_id = p_queue.id AND dedup_id = stored.dedup_id LIMIT 1) AS claimed
         WHERE stored.fresh AND dedup.ctid = claimed.place;
    END IF;
    RETURN ARRAY(
        SELECT CASE WHEN fresh THEN v_ids[count(*) FILTER (WHERE fresh) OVER (ORDER BY n)] ELSE message_id END
          FROM ROWS FROM (unnest(p_new), unnest(v_fresh)) WITH ORDINALITY
            AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, fresh, n)
          LEFT JOIN dedup AS known ON known.queue_id = p_queue.id AND known.dedup_id = new.dedup_id
         ORDER BY n);
END $$;
CREATE FUNCTION queue_service.insert_new(p_now bigint, p_wall bigint, p_queue queue_service.queues, p_new queue_service.new_message[]) RETURNS bigint[]
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_keys bytea[];
    v      record;
BEGIN
    IF is_limited(p_queue) THEN
        PERFORM make_room(p_now, p_wall, p_queue, count(*), sum(octet_length(text) + coalesce(octet_length(fields), 0))::bigint)
           FROM unnest(p_new);
    END IF;
    SELECT array_agg(DISTINCT key) INTO v_keys FROM unnest(p_new) WHERE key IS NOT NULL;
    PERFORM expect_keys(p_queue, v_keys);
    PERFORM pg_current_xact_id();  -- before the ids: note_head counts on that
    WITH stored AS (  -- one with a key starts blocked, and is promoted at once if it turns out to be the key's first
        INSERT INTO messages (queue_id, sent_at, arrived_at, state, priority, recipient, key, due_at, ttl, expires_at,
                              fields, text)
        SELECT p_queue.id, p_now, p_now, CASE WHEN key IS NOT NULL THEN 3 WHEN delay > 0 THEN 2 ELSE 0 END, priority,
               recipient, key, CASE WHEN delay > 0 THEN p_now + delay ELSE 0 END, ttl, p_now + lifetime(p_queue, ttl),
               fields, text
          FROM unnest(p_new) WITH ORDINALITY AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, n)
         ORDER BY n
        RETURNING id, state, octet_length(text) + coalesce(octet_length(fields), 0) AS size
    )
    SELECT array_agg(id ORDER BY id) AS ids, sum(size)::bigint AS bytes, count(*) AS count,
           count(*) FILTER (WHERE state = 0) AS ready, count(*) FILTER (WHERE state = 2) AS delayed,
           count(*) FILTER (WHERE state = 3) AS blocked
      INTO v FROM stored;
    PERFORM tally(p_queue.id, v.ready, 0, v.delayed, v.blocked, v.bytes, p_sent => v.count);
    PERFORM promote(p_now, p_queue.id, v_keys);
    RETURN v.ids;
END $$;
CREATE FUNCTION queue_service.is_late(p_now bigint, p_queue bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    RETURN EXISTS (SELECT FROM messages WHERE queue_id = p_queue AND state IN (1, 2) AND due_at <= p_now)
        OR EXISTS (SELECT FROM messages
                    WHERE queue_id = p_queue AND expires_at IS NOT NULL AND state <> 1 AND expires_at <= p_now);
END $$;
CREATE FUNCTION queue_service.is_limited(p_queue queue_service.queues) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT p_queue.settings ?| ARRAY['max_messages', 'max_bytes']
$$;
CREATE FUNCTION queue_service.known_head(p_queue bigint, OUT head bigint, OUT last bigint, OUT xact bigint) RETURNS record
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_known bigint[] := string_to_array(nullif(current_setting(queue_service.head_setting(p_queue), true), ''), ' ');
BEGIN
    head := v_known[1];
    last := v_known[2];
    xact := v_known[3];
END $$;
CREATE FUNCTION queue_service.lifetime(p_queue queue_service.queues, p_ttl bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT least(p_ttl, seconds_setting(p_queue, 'retention'))
$$;
CREATE FUNCTION queue_service.lock_all_keys(p_ack_names text[], p_ack_ids bigint[], p_send_names text[], p_fields text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(number) FROM (
        SELECT DISTINCT lock_of(queue_id, key) AS number FROM (
            SELECT m.queue_id, m.key
              FROM unnest(p_ack_names, p_ack_ids) AS receipt (name, id) CROSS JOIN LATERAL (
                   SELECT queue_id, key FROM messages
                    WHERE queue_id = (SELECT queues.id FROM queues WHERE queues.name = receipt.name AND keyed)
                      AND id = receipt.id LIMIT 1) AS m
            UNION ALL
            SELECT (SELECT id FROM queues WHERE queues.name = sent.name), decode(new.key, 'hex')
              FROM unnest(p_send_names, p_fields) AS sent (name, fields)
             CROSS JOIN LATERAL json_to_recordset(sent.fields::json) AS new (key text)
        ) AS keys WHERE key IS NOT NULL AND queue_id IS NOT NULL ORDER BY number) AS sorted;
END $$;
CREATE FUNCTION queue_service.lock_keys(p_queue bigint, p_keys bytea[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(number)
       FROM (SELECT DISTINCT lock_of(p_queue, key) AS number
               FROM unnest(p_keys) AS key WHERE key IS NOT NULL ORDER BY number) AS sorted;
END $$;
CREATE FUNCTION queue_service.lock_of(p_queue bigint, p_key bytea) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT p_queue * 64 + (hashtext(encode(p_key, 'hex')) & 63)
$$;
CREATE FUNCTION queue_service.locked(p_queue bigint, p_ids bigint[]) RETURNS tid[]
    LANGUAGE plpgsql
    AS $$
BEGIN
    RETURN ARRAY(SELECT m.ctid FROM (SELECT id FROM unnest(p_ids) AS id ORDER BY id) AS one CROSS JOIN LATERAL (
                        SELECT ctid FROM messages WHERE queue_id = p_queue AND id = one.id LIMIT 1 FOR UPDATE) AS m);
END $$;
CREATE FUNCTION queue_service.make_room(p_now bigint, p_wall bigint, p_queue queue_service.queues, p_count bigint, p_bytes bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_full boolean;
BEGIN
    FOR attempt IN 1..2 LOOP
        SELECT coalesce(sum(ready + leased + delayed + blocked), 0) + p_count
                   > (p_queue.settings ->> 'max_messages')::bigint
            OR coalesce(sum(bytes), 0) + p_bytes > (p_queue.settings ->> 'max_bytes')::bigint
          INTO v_full FROM counts WHERE queue_id = p_queue.id;
        IF v_full IS NOT TRUE THEN
            RETURN;
        END IF;
        WHILE attempt = 1 AND bring_up_to_date(p_now, p_wall, p_queue, 10000) = 10000 LOOP  -- what has expired by
        END LOOP;                                                                           -- now leaves its place
    END LOOP;
    RAISE EXCEPTION USING ERRCODE = 'QS429', MESSAGE = p_queue.name;
END $$;
CREATE FUNCTION queue_service.max_receives(p_queue queue_service.queues) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT coalesce((p_queue.settings ->> 'max_receives')::bigint, 0)
$$;
CREATE FUNCTION queue_service.note_head(p_queue bigint, p_last bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_known record;
    v_first bigint;
    v_xmin  bigint;
BEGIN
    v_known := known_head(p_queue);
    SELECT (SELECT id FROM messages
             WHERE queue_id = p_queue AND recipient = '' AND state = 0 AND priority = 0
               AND id >= coalesce(v_known.head, 0) ORDER BY id LIMIT 1),
           pg_snapshot_xmin(pg_current_snapshot())::text::bigint
      INTO v_first, v_xmin;
    IF v_known.xact IS NULL THEN
        PERFORM set_config(queue_service.head_setting(p_queue), concat_ws(' ', 0, p_last, pg_current_xact_id()), false);
    ELSIF v_xmin >= v_known.xact THEN
        PERFORM set_config(queue_service.head_setting(p_queue),
                           concat_ws(' ', least(v_first, v_known.last + 1), p_last, pg_current_xact_id()), false);
    END IF;
END $$;
CREATE FUNCTION queue_service.promote(p_now bigint, p_queue bigint, p_keys bytea[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_ready bigint;
    v_all   bigint;
BEGIN
    IF p_keys IS NULL THEN
        RETURN;
    END IF;
    WITH promoted AS (
        UPDATE messages AS m SET state = CASE WHEN due_at > p_now THEN 2 ELSE 0 END
         WHERE ctid = ANY (ARRAY(SELECT (SELECT ctid FROM messages WHERE queue_id = p_queue AND key = wanted
                                          ORDER BY id LIMIT 1)
                                   FROM unnest(p_keys) AS wanted))
           AND state = 3
           AND NOT EXISTS (SELECT FROM messages AS other
                            WHERE other.queue_id = p_queue AND other.key = m.key AND other.state = 1)
        RETURNING state
    )
    SELECT count(*), count(*) FILTER (WHERE state = 0) INTO v_all, v_ready FROM promoted;
    IF v_all > 0 THEN
        PERFORM tally(p_queue, p_ready => v_ready, p_delayed => v_all - v_ready, p_blocked => -v_all);
    END IF;
END $$;
CREATE FUNCTION queue_service.purge(p_now bigint, p_name text, p_last bigint, p_chunk integer, p_bytes bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_queue queues;
    v_ids   bigint[];
    v_rows  tid[];
BEGIN
    SELECT * INTO v_queue FROM queues WHERE name = p_name;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(id) INTO v_ids
      FROM (SELECT id, sum(size) OVER (ORDER BY id DESC) - size AS before
              FROM (SELECT id, octet_length(text) AS size FROM messages
                     WHERE queue_id = v_queue.id AND id <= p_last ORDER BY id DESC LIMIT p_chunk) AS newest) AS summed
     WHERE before <= p_bytes;
    IF v_ids IS NULL THEN
        RETURN 0;
    END IF;
    IF v_queue.keyed THEN
        PERFORM lock_keys(v_queue.id, ARRAY(
            SELECT m.key FROM unnest(v_ids) AS one (id) CROSS JOIN LATERAL (
                   SELECT key FROM messages WHERE queue_id = v_queue.id AND id = one.id LIMIT 1) AS m));
    END IF;
    v_rows := locked(v_queue.id, v_ids);
    PERFORM remove(p_now, v_queue.id, v_rows);
    RETURN cardinality(v_rows);
END $$;
CREATE FUNCTION queue_service.queue_for_writing(p_name text) RETURNS queue_service.queues
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_queue queues;
BEGIN
    LOOP
        SELECT * INTO v_queue FROM queues WHERE name = p_name;
        IF FOUND THEN
            RETURN v_queue;
        END IF;
        INSERT INTO queues (name) VALUES (p_name) ON CONFLICT (name) DO NOTHING;
    END LOOP;
END $$;
CREATE FUNCTION queue_service.raise_dead(p_now bigint, p_grave bigint, p_home queue_service.queues, p_ids bigint[], p_keys bytea[]) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_rows tid[];
    v      record;
BEGIN
    IF p_keys IS NOT NULL THEN
        IF p_grave > p_home.id THEN  -- as bury does: home first, if it is the older
            PERFORM lock_keys(p_home.id, p_keys);
        END IF;
        PERFORM lock_keys(p_grave, p_keys);
        PERFORM expect_keys(p_home, p_keys);
    END IF;
    v_rows := locked(p_grave, p_ids);
    v_rows := ARRAY(SELECT ctid FROM messages WHERE ctid = ANY (v_rows) AND state <> 1);
    PERFORM pg_current_xact_id();  -- before the ids: note_head counts on that
    WITH risen AS (
        INSERT INTO messages (queue_id, sent_at, arrived_at, state, priority, recipient, key, ttl, expires_at, fields,
                              text)
        SELECT p_home.id, sent_at, CASE WHEN lifetime(p_home, ttl) IS NULL THEN sent_at ELSE p_now END,
               CASE WHEN key IS NULL THEN 0 ELSE 3 END, priority, recipient, key, ttl,
               p_now + lifetime(p_home, ttl), fields, text
          FROM messages WHERE ctid = ANY (v_rows) ORDER BY messages.id
        RETURNING state, octet_length(text) + coalesce(octet_length(fields), 0) AS size
    )
    SELECT count(*) AS count, count(*) FILTER (WHERE state = 3) AS blocked, coalesce(sum(size), 0)::bigint AS bytes
      INTO v FROM risen;
    PERFORM arrived(p_now, p_home, v.count, v.blocked, v.bytes, p_keys);
    PERFORM remove(p_now, p_grave, v_rows);
    RETURN v.count;
END $$;
CREATE FUNCTION queue_service.receive(p_now bigint, p_wall bigint, p_names text[], p_limit integer, p_recipient bytea, p_lease bigint, p_token bigint, p_once text, p_fingerprint bytea) RETURNS SETOF queue_service.delivery
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_queue queues;
    v_reply jsonb;
    v_found delivery[];
BEGIN
    IF p_once IS NULL THEN
        RETURN QUERY SELECT * FROM claim(p_now, p_wall, p_names, p_limit, p_recipient, p_lease, p_token, true);
        RETURN;
    END IF;
    -- A key over several queues is no one queue's: what came from which must not depend on which is there now.
    IF cardinality(p_names) = 1 THEN
        SELECT * INTO v_queue FROM queues WHERE name = p_names[1];
    END IF;
    v_reply := remembered(p_now, coalesce(v_queue.id, 0), p_once, p_fingerprint);
    IF v_reply IS NULL THEN
        v_found := ARRAY(SELECT one::delivery
                           FROM claim(p_now, p_wall, p_names, p_limit, p_recipient, p_lease, p_token, true) AS one);
        IF cardinality(v_found) > 0 AND v_found[1].note IS NULL THEN  -- else asking again may find something
            PERFORM remember(coalesce(v_queue.id, 0), p_once, p_fingerprint, to_jsonb(v_found),
                             p_now + coalesce(seconds_setting(v_queue, 'dedup_window'), 300000));
        END IF;
        RETURN QUERY SELECT * FROM unnest(v_found);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM jsonb_populate_recordset(NULL::delivery, v_reply);
END $$;
CREATE FUNCTION queue_service.redrive(p_now bigint, p_name text, p_limit integer) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_queue  queues;
    v_places bigint[];
    v_moved  bigint := 0;
    v        record;
BEGIN
    SELECT * INTO v_queue FROM queues WHERE name = p_name;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_places := v_queue.id || ARRAY(SELECT g.queue_id FROM graves AS g JOIN queues AS q ON q.id = g.queue_id
                                     WHERE g.origin = p_name AND q.name IS NOT NULL);
    FOR v IN
        SELECT queue_id, origin, array_agg(id) AS ids, array_agg(key) FILTER (WHERE key IS NOT NULL) AS keys
          FROM (SELECT queue_id, origin, id, key FROM messages
                 WHERE queue_id = ANY (v_places) AND origin IS NOT NULL AND state <> 1
                   AND (queue_id = v_queue.id OR origin = p_name)
                 ORDER BY id LIMIT p_limit) AS dead
         GROUP BY queue_id, origin ORDER BY min(id)
    LOOP
        v_moved := v_moved + raise_dead(p_now, v.queue_id, queue_for_writing(v.origin), v.ids, v.keys);
    END LOOP;
    RETURN v_moved;
END $$;
CREATE FUNCTION queue_service.reject(p_now bigint, p_wall bigint, p_name text, p_id bigint, p_token bigint, p_reason text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v       held;
    v_queue queues;
BEGIN
    SELECT * INTO v FROM hold(ARRAY[p_name], ARRAY[p_id], ARRAY[p_token]);
    IF v.status = 'held' THEN
        SELECT * INTO v_queue FROM queues WHERE id = v.queue_id;
        PERFORM bury(p_now, p_wall, v_queue, ARRAY[v.spot], p_reason);
    END IF;
    RETURN v.status;
END $$;
CREATE FUNCTION queue_service.release(p_now bigint, p_wall bigint, p_name text, p_id bigint, p_token bigint, p_delay bigint) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v       held;
    v_queue queues;
BEGIN
    SELECT * INTO v FROM hold(ARRAY[p_name], ARRAY[p_id], ARRAY[p_token]);
    IF v.status = 'held' THEN
        SELECT * INTO v_queue FROM queues WHERE id = v.queue_id;
        IF max_receives(v_queue) BETWEEN 1 AND v.receive_count THEN
            PERFORM bury(p_now, p_wall, v_queue, ARRAY[v.spot], '"max_receives"');
        ELSE
            PERFORM give_back(p_now, v.queue_id, ARRAY[v.spot], CASE WHEN p_delay > 0 THEN p_now + p_delay ELSE 0 END);
        END IF;
    END IF;
    RETURN v.status;
END $$;
CREATE FUNCTION queue_service.remember(p_queue bigint, p_key text, p_fingerprint bytea, p_reply jsonb, p_until bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO replies VALUES (p_queue, p_key, p_fingerprint, p_reply, p_until)
    ON CONFLICT (queue_id, key) DO UPDATE
       SET fingerprint = EXCLUDED.fingerprint, reply = EXCLUDED.reply, forget_at = EXCLUDED.forget_at;
END $$;
CREATE FUNCTION queue_service.remembered(p_now bigint, p_queue bigint, p_key text, p_fingerprint bytea) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_known replies;
BEGIN
    PERFORM pg_advisory_xact_lock((p_queue % 2147483647)::int, hashtext(p_key));
    SELECT * INTO v_known FROM replies WHERE queue_id = p_queue AND key = p_key AND forget_at > p_now;
    IF FOUND AND v_known.fingerprint <> p_fingerprint THEN
        RAISE EXCEPTION USING ERRCODE = 'QS422', MESSAGE = 'another request';
    END IF;
    RETURN v_known.reply;
END $$;
CREATE FUNCTION queue_service.remove(p_now bigint, p_queue bigint, p_rows tid[], p_received bigint DEFAULT 0, p_acked bigint DEFAULT 0, p_expired bigint DEFAULT 0, p_dead bigint DEFAULT 0) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v record;
BEGIN
    WITH gone AS (
        DELETE FROM messages WHERE ctid = ANY (p_rows)
        RETURNING state, key, octet_length(text) + coalesce(octet_length(fields), 0) AS size
    )
    SELECT count(*) FILTER (WHERE state = 0) AS ready, count(*) FILTER (WHERE state = 1) AS leased,
           count(*) FILTER (WHERE state = 2) AS delayed, count(*) FILTER (WHERE state = 3) AS blocked,
           coalesce(sum(size), 0)::bigint AS bytes, array_agg(DISTINCT key) FILTER (WHERE key IS NOT NULL) AS keys
      INTO v FROM gone;
    PERFORM tally(p_queue, -v.ready, -v.leased, -v.delayed, -v.blocked, -v.bytes,
                  p_received => p_received, p_acked => p_acked, p_expired => p_expired, p_dead => p_dead);
    PERFORM promote(p_now, p_queue, v.keys);
END $$;
CREATE FUNCTION queue_service.seconds_setting(p_queue queue_service.queues, p_name text) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT ceil(1000 * (p_queue.settings ->> p_name)::numeric)::bigint
$$;
CREATE FUNCTION queue_service.send(p_now bigint, p_wall bigint, p_name text, p_texts bytea[], p_fields json, p_once text, p_fingerprint bytea) RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_queue queues := queue_for_writing(p_name);
    v_reply jsonb;
    v_ids   bigint[];
BEGIN
    IF p_once IS NOT NULL THEN
        v_reply := remembered(p_now, v_queue.id, p_once, p_fingerprint);
        IF v_reply IS NOT NULL THEN
            RETURN ARRAY(SELECT jsonb_array_elements_text(v_reply)::bigint);
        END IF;
    END IF;
    v_ids := store(p_now, p_wall, v_queue, p_texts, p_fields);
    IF p_once IS NOT NULL THEN
        PERFORM remember(v_queue.id, p_once, p_fingerprint, to_jsonb(v_ids),
                         p_now + coalesce(seconds_setting(v_queue, 'dedup_window'), 300000));
    END IF;
    RETURN v_ids;
END $$;
CREATE FUNCTION queue_service.store(p_now bigint, p_wall bigint, p_queue queue_service.queues, p_texts bytea[], p_fields json) RETURNS bigint[]
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_new new_message[];
BEGIN
    IF is_limited(p_queue) THEN  -- before dedup_ids and keys: in the order of locks
        PERFORM FROM queues WHERE id = p_queue.id FOR NO KEY UPDATE;
    END IF;
    SELECT array_agg((text, fields, decode(key, 'hex'), coalesce(priority, 0),
                      coalesce(decode(recipient, 'hex'), ''), coalesce(delay, 0), ttl,
                      decode(dedup_id, 'hex'))::new_message ORDER BY n)
      INTO v_new
      FROM ROWS FROM (unnest(p_texts),
                      json_to_recordset(p_fields) AS (fields text, key text, priority smallint, recipient text,
                                                      delay bigint, ttl bigint, dedup_id text))
      WITH ORDINALITY AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, n);
    IF p_fields IS NOT NULL AND EXISTS (SELECT FROM unnest(v_new) WHERE dedup_id IS NOT NULL) THEN
        RETURN insert_deduplicated(p_now, p_wall, p_queue, v_new);
    END IF;
    RETURN insert_new(p_now, p_wall, p_queue, v_new);
END $$;
CREATE FUNCTION queue_service.take(p_now bigint, p_queue queue_service.queues, p_rows tid[], p_ids bigint[], p_until bigint, p_token bigint) RETURNS SETOF queue_service.delivery
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_blocked bigint;
BEGIN
    IF p_until IS NULL THEN
        RETURN QUERY
        SELECT NULL, NULL::bigint[], p_queue.name, m.id, m.text, m.fields, m.death, m.sent_at, m.receive_count + 1,
               NULL::bigint, NULL::bigint
          FROM messages AS m WHERE ctid = ANY (p_rows) ORDER BY array_position(p_ids, m.id);
        PERFORM remove(p_now, p_queue.id, p_rows, p_received => cardinality(p_rows));
        RETURN;
    END IF;
    v_blocked := 0;  -- the keys' followers that come along were blocked, all others ready
    IF p_queue.keyed THEN
        SELECT count(*) INTO v_blocked FROM messages WHERE ctid = ANY (p_rows) AND state = 3;
    END IF;
    RETURN QUERY
    WITH leased AS (
        UPDATE messages SET state = 1, token = p_token, due_at = p_until, receive_count = receive_count + 1
         WHERE ctid = ANY (p_rows)
        RETURNING id, text, fields, death, sent_at, receive_count
    )
    SELECT NULL, NULL::bigint[], p_queue.name, m.id, m.text, m.fields, m.death, m.sent_at, m.receive_count,
           p_token, p_until
      FROM leased AS m ORDER BY array_position(p_ids, m.id);
    PERFORM tally(p_queue.id, v_blocked - cardinality(p_rows), cardinality(p_rows), 0, -v_blocked,
                  p_received => cardinality(p_rows));
END $$;
CREATE FUNCTION queue_service.tally(p_queue bigint, p_ready bigint DEFAULT 0, p_leased bigint DEFAULT 0, p_delayed bigint DEFAULT 0, p_blocked bigint DEFAULT 0, p_bytes bigint DEFAULT 0, p_sent bigint DEFAULT 0, p_received bigint DEFAULT 0, p_acked bigint DEFAULT 0, p_expired bigint DEFAULT 0, p_dead bigint DEFAULT 0) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO counts AS c
    VALUES (p_queue, pg_backend_pid() % 256, p_ready, p_leased, p_delayed, p_blocked, p_bytes, p_sent, p_received,
            p_acked, p_expired, p_dead)
    ON CONFLICT (queue_id, slot) DO UPDATE
       SET ready = c.ready + p_ready, leased = c.leased + p_leased, delayed = c.delayed + p_delayed,
           blocked = c.blocked + p_blocked, bytes = c.bytes + p_bytes, sent = c.sent + p_sent,
           received = c.received + p_received, acked = c.acked + p_acked, expired = c.expired + p_expired,
           dead_lettered = c.dead_lettered + p_dead;
END $$;
CREATE FUNCTION queue_service.transact(p_now bigint, p_wall bigint, p_ack_names text[], p_ack_ids bigint[], p_ack_tokens bigint[], p_send_names text[], p_counts integer[], p_texts bytea[], p_fields text[], p_places integer[], p_names text[], p_limit integer, p_recipient bytea, p_lease bigint, p_token bigint, p_once text, p_fingerprint bytea) RETURNS SETOF queue_service.delivery
    LANGUAGE plpgsql
    SET search_path TO 'queue_service', 'pg_temp'
    SET lock_timeout TO '4s'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    v_reply jsonb;
    v_found delivery[];
    v_bad   integer;
    v_ids   bigint[] := '{}';
    v_sent  integer := 0;
BEGIN
    IF p_once IS NOT NULL THEN
        v_reply := remembered(p_now, 0, p_once, p_fingerprint);
        IF v_reply IS NOT NULL THEN
            RETURN QUERY SELECT * FROM jsonb_populate_recordset(NULL::delivery, v_reply);
            RETURN;
        END IF;
    END IF;
    PERFORM FROM queues WHERE name = ANY (p_send_names) AND is_limited(queues) ORDER BY id FOR NO KEY UPDATE;
    PERFORM lock_all_keys(p_ack_names, p_ack_ids, p_send_names, p_fields);
    v_bad := array_position(ARRAY(SELECT status = 'held' FROM unnest(ack(p_now, p_ack_names, p_ack_ids, p_ack_tokens))
                                    AS status), false);
    IF v_bad IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'QS409', MESSAGE = (v_bad - 1)::text;
    END IF;
    FOR i IN 1..cardinality(p_send_names) LOOP
        v_ids := v_ids || store(p_now, p_wall, queue_for_writing(p_send_names[i]),
                                p_texts[v_sent + 1 : v_sent + p_counts[i]], p_fields[i]::json);
        v_sent := v_sent + p_counts[i];
    END LOOP;
    v_ids := ARRAY(SELECT v_ids[place] FROM unnest(p_places) WITH ORDINALITY AS asked (place, n) ORDER BY n);
    v_found := ARRAY[ROW(NULL, v_ids, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::delivery];
    IF p_limit IS NOT NULL THEN
        v_found := v_found || ARRAY(
            SELECT one::delivery
              FROM claim(p_now, p_wall, p_names, p_limit, p_recipient, p_lease, p_token, false) AS one);
    END IF;
    IF p_once IS NOT NULL THEN
        PERFORM remember(0, p_once, p_fingerprint, to_jsonb(v_found), p_now + 300000);
    END IF;
    RETURN QUERY SELECT * FROM unnest(v_found);
END $$;
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
    forget_at bigint NOT NULL
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0.05');
CREATE TABLE queue_service.graves (
    origin text NOT NULL,
    queue_id bigint NOT NULL
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
    again boolean DEFAULT false NOT NULL,
    priority smallint DEFAULT 0 NOT NULL,
    recipient bytea DEFAULT '\x'::bytea NOT NULL,
    key bytea,
    origin text,
    death text,
    fields text,
    text bytea NOT NULL
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='10000', autovacuum_vacuum_insert_scale_factor='0.1', autovacuum_analyze_scale_factor='0.05', autovacuum_vacuum_cost_delay='0');
ALTER TABLE ONLY queue_service.messages ALTER COLUMN text SET STORAGE EXTERNAL;
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
INSERT INTO queue_service.dedup VALUES (1, '\x642d31', 7, 1795915880079);
INSERT INTO queue_service.graves VALUES ('q', 2);
INSERT INTO queue_service.messages VALUES (1, 2, 1795915580022, 1795915580022, 0, 1799915580022, NULL, NULL, 0, 0, false, 0, '\x', NULL, NULL, NULL, NULL, '\x7365636f6e64');
INSERT INTO queue_service.messages VALUES (1, 3, 1795915580047, 1795915580047, 1799515580047, 1799915580047, NULL, NULL, 0, 2, false, 0, '\x', NULL, NULL, NULL, '{"delay": 3600000}', '\x64656c61796564');
INSERT INTO queue_service.messages VALUES (1, 4, 1795915580056, 1795915580056, 0, 1799815580056, 3900000000, NULL, 0, 0, false, 0, '\x', NULL, NULL, NULL, '{"ttl": 3900000}', '\x73686f7274');
INSERT INTO queue_service.messages VALUES (1, 7, 1795915580079, 1795915580079, 0, 1799915580079, NULL, NULL, 0, 0, false, 0, '\x', NULL, NULL, NULL, '{"dedup_id": "d-1"}', '\x6b6e6f776e');
INSERT INTO queue_service.messages VALUES (1, 8, 1795915580092, 1795915580092, 0, 1799915580092, NULL, NULL, 0, 0, false, 0, '\x', NULL, NULL, NULL, NULL, '\x6f6e6365');
INSERT INTO queue_service.messages VALUES (1, 6, 1795915580063, 1795915580063, 1795958780162, 1799915580063, NULL, 3979642658877355445, 1, 1, false, 2, '\x', '\x61', NULL, NULL, '{"key": "a", "priority": 2}', '\x6132');
INSERT INTO queue_service.messages VALUES (1, 1, 1795915580022, 1795915580022, 1795958780169, 1799915580022, NULL, 622801516220111399, 1, 1, false, 0, '\x', NULL, NULL, NULL, NULL, '\x706c61696e');
INSERT INTO queue_service.messages VALUES (2, 9, 1795915580063, 1795915580132, 1795958780215, NULL, NULL, 8254742523127263339, 2, 1, true, 2, '\x', '\x61', 'q', '{"dead_letter_from": "q", "dead_letter_reason": "no é \"quote\" \u0000 nul", "dead_letter_at": "2026-11-29T01:26:20.132Z", "dead_letter_id": "5", "dead_letter_receive_count": 1}', '{"key": "a", "priority": 2}', '\x6131');
INSERT INTO queue_service.queues OVERRIDING SYSTEM VALUE VALUES (1, 'q', 2, '{"retention": 4000000, "max_receives": 3}', true, NULL);
INSERT INTO queue_service.queues OVERRIDING SYSTEM VALUE VALUES (2, 'q.dead', 2, '{"lease": 7}', true, NULL);
INSERT INTO queue_service.replies VALUES (1, 'once', '\x6f6e6365', '[8]', 1795915880092);
INSERT INTO queue_service.replies VALUES (1, 'read', '\x72656164', '[{"id": 1, "ids": null, "note": null, "text": "\\x706c61696e", "death": null, "queue": "q", "token": 622801516220111399, "fields": null, "sent_at": 1795915580022, "leased_until": 1795958780169, "receive_count": 1}]', 1795915880169);
INSERT INTO queue_service.replies VALUES (2, 'dead', '\x64656164', '[{"id": 9, "ids": null, "note": null, "text": "\\x6131", "death": "{\"dead_letter_from\": \"q\", \"dead_letter_reason\": \"no é \\\"quote\\\" \\u0000 nul\", \"dead_letter_at\": \"2026-11-29T01:26:20.132Z\", \"dead_letter_id\": \"5\", \"dead_letter_receive_count\": 1}", "queue": "q.dead", "token": 8254742523127263339, "fields": "{\"key\": \"a\", \"priority\": 2}", "sent_at": 1795915580063, "leased_until": 1795958780215, "receive_count": 2}]', 1795915880215);
INSERT INTO queue_service.version VALUES (1);
SELECT pg_catalog.setval('queue_service.message_ids', 9, true);
SELECT pg_catalog.setval('queue_service.queues_id_seq', 2, true);
ALTER TABLE ONLY queue_service.counts
    ADD CONSTRAINT counts_pkey PRIMARY KEY (queue_id, slot);
ALTER TABLE ONLY queue_service.dedup
    ADD CONSTRAINT dedup_pkey PRIMARY KEY (queue_id, dedup_id);
ALTER TABLE ONLY queue_service.graves
    ADD CONSTRAINT graves_pkey PRIMARY KEY (queue_id, origin);
ALTER TABLE ONLY queue_service.messages
    ADD CONSTRAINT messages_pkey PRIMARY KEY (queue_id, id);
ALTER TABLE ONLY queue_service.queues
    ADD CONSTRAINT queues_name_key UNIQUE (name);
ALTER TABLE ONLY queue_service.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (id);
ALTER TABLE ONLY queue_service.replies
    ADD CONSTRAINT replies_pkey PRIMARY KEY (queue_id, key);
CREATE INDEX back ON queue_service.messages USING btree (queue_id, due_at) WHERE ((state = 0) AND again);
CREATE INDEX buried ON queue_service.messages USING btree (queue_id, origin, id) WHERE (origin IS NOT NULL);
CREATE INDEX dedup_forget ON queue_service.dedup USING btree (queue_id, forget_at);
CREATE INDEX deliverable ON queue_service.messages USING btree (queue_id, recipient, priority DESC, id) WHERE (state = 0);
CREATE INDEX due ON queue_service.messages USING btree (queue_id, due_at) WHERE (state = ANY (ARRAY[1, 2]));
CREATE INDEX expiring ON queue_service.messages USING btree (queue_id, expires_at) WHERE ((expires_at IS NOT NULL) AND (state <> 1));
CREATE INDEX keyed ON queue_service.messages USING btree (queue_id, key, id) WHERE (key IS NOT NULL);
CREATE INDEX replies_forget ON queue_service.replies USING btree (queue_id, forget_at);
