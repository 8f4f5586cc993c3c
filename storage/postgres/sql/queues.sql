-- Changes of whole queues.

SET LOCAL search_path = queue_service;

-- Hides the queue from all requests, after sends in progress; upkeep removes its contents. Returns whether the setting
-- dead_letter_queue was set.
CREATE FUNCTION delete_queue(p_now bigint, p_name text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues;
BEGIN
    PERFORM pg_advisory_xact_lock(-1, hashtext(p_name));
    v_queue := queue_named(p_name);
    UPDATE queues SET name = NULL, gone_at = p_now WHERE id = v_queue.id;
    RETURN v_queue.settings ? 'dead_letter_queue';
END $$;

-- Finds the messages to purge: of the newest 10,000 up to p_last, of these p_ids and (unless NULL) with this p_reason,
-- 32 MiB of text. Also returns the last id that it read.
CREATE FUNCTION find_purged(
    p_queue bigint, p_last bigint, p_ids bigint[], p_reason text, OUT ids bigint[], OUT looked_at bigint
) LANGUAGE plpgsql SET enable_bitmapscan = off SET enable_sort = off AS $$
BEGIN
    WITH scanned AS (
        SELECT * FROM (
               SELECT id, octet_length(text) AS size, NULL AS deaths FROM messages
                WHERE p_ids IS NULL AND p_reason IS NULL AND queue_id = p_queue AND id <= p_last
                ORDER BY id DESC LIMIT 10000) AS newest
        UNION ALL
        SELECT * FROM (
               SELECT id, octet_length(text) AS size, deaths FROM messages
                WHERE p_ids IS NULL AND p_reason IS NOT NULL AND queue_id = p_queue AND origin IS NOT NULL AND id <= p_last
                ORDER BY id DESC NULLS LAST LIMIT 10000) AS dead
        UNION ALL
        SELECT m.* FROM (SELECT DISTINCT id FROM unnest(p_ids) AS id WHERE id <= p_last) AS one CROSS JOIN LATERAL (
               SELECT id, octet_length(text) AS size, deaths FROM messages
                WHERE queue_id = p_queue AND id = one.id LIMIT 1) AS m
    ), bounded AS (
        SELECT * FROM (
               SELECT *, sum(coalesce(octet_length(deaths), 0)) OVER (ORDER BY id DESC) AS passed FROM scanned) AS summed
         WHERE passed - coalesce(octet_length(deaths), 0) <= 32 * 1024 * 1024
    ), chosen AS (
        SELECT id, sum(size) OVER (ORDER BY id DESC) - size <= 32 * 1024 * 1024 AS fits FROM bounded
         WHERE p_reason IS NULL OR last_death(deaths, 'dead_letter_reason') = p_reason
    )
    SELECT array_agg(id) FILTER (WHERE fits),
           CASE WHEN bool_and(fits) IS NOT FALSE THEN (SELECT min(id) FROM bounded) ELSE min(id) FILTER (WHERE fits) END
      INTO ids, looked_at FROM chosen;
END $$;

-- Does a step of a purge of all messages up to the last id at the first step, or of some of them. Begins with the newest,
-- so that no next message of a key becomes ready. Ends when none is left.
CREATE FUNCTION purge(p_now bigint, p_name text, p_state jsonb, p_ids bigint[], p_reason text) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues := queue_named(p_name);
    v_last  bigint := coalesce((p_state ->> 'last')::bigint,
                               (SELECT max(id) FROM messages WHERE queue_id = v_queue.id), 0);
    v_count bigint := coalesce((p_state ->> 'count')::bigint, 0);
    v_found record;
    v_ids   bigint[];
    v_rows  tid[];
BEGIN
    v_found := find_purged(v_queue.id, v_last, p_ids, p_reason);
    IF v_found.looked_at IS NULL THEN
        RETURN jsonb_build_object('count', v_count, 'done', true);
    END IF;
    v_ids := coalesce(v_found.ids, '{}');
    PERFORM FROM dedup WHERE queue_id = v_queue.id AND message_id = ANY (v_ids) ORDER BY dedup_id FOR UPDATE;
    IF v_queue.keyed THEN
        PERFORM lock_keys(v_queue.id, ARRAY(
            SELECT m.key FROM unnest(v_ids) AS one (id) CROSS JOIN LATERAL (
                   SELECT key FROM messages WHERE queue_id = v_queue.id AND id = one.id LIMIT 1) AS m));
    END IF;
    v_rows := locked(v_queue.id, v_ids);
    DELETE FROM dedup
     WHERE queue_id = v_queue.id AND message_id = ANY (ARRAY(SELECT id FROM messages WHERE ctid = ANY (v_rows)));
    v_count := v_count + remove(p_now, v_queue.id, v_rows, VARIADIC '{}');
    RETURN jsonb_build_object('count', v_count, 'done', false, 'last', v_found.looked_at - 1);
END $$;

CREATE TYPE dead AS (queue_id bigint, id bigint, origin text, key bytea);

-- Finds the dead letters to redrive: of the first p_scan after p_after, in order of their ids, that are in this queue
-- or (in p_graves) came from it; with p_any also other messages in this queue. Also returns the last id that it read. A
-- bitmap scan would read all of a queue.
CREATE FUNCTION find_dead(
    p_queue queues, p_graves bigint[], p_after bigint, p_scan bigint, p_limit bigint, p_ids bigint[], p_reason text,
    p_any boolean, OUT wanted dead[], OUT looked_at bigint
) LANGUAGE plpgsql SET enable_bitmapscan = off SET enable_sort = off AS $$
BEGIN
    WITH scanned AS (
        SELECT m.* FROM unnest(p_graves || p_queue.id) AS place CROSS JOIN LATERAL (
               SELECT queue_id, id, origin, key, state, deaths, octet_length(text) AS size FROM messages
                WHERE p_ids IS NULL AND queue_id = place AND origin = p_queue.name AND id > p_after
                ORDER BY id NULLS FIRST LIMIT p_scan) AS m
        UNION
        SELECT * FROM (
               SELECT queue_id, id, origin, key, state, deaths, octet_length(text) AS size FROM messages
                WHERE p_ids IS NULL AND queue_id = p_queue.id AND origin IS NOT NULL AND id > p_after
                ORDER BY id NULLS FIRST LIMIT p_scan) AS here
        UNION
        SELECT * FROM (
               SELECT queue_id, id, origin, key, state, deaths, octet_length(text) AS size FROM messages
                WHERE p_any AND queue_id = p_queue.id AND id > p_after
                ORDER BY id LIMIT p_scan) AS whatever
        UNION
        SELECT m.* FROM unnest(p_graves || p_queue.id) AS place, unnest(p_ids) AS one CROSS JOIN LATERAL (
               SELECT queue_id, id, origin, key, state, deaths, octet_length(text) AS size FROM messages
                WHERE queue_id = place AND id = one AND id > p_after LIMIT 1) AS m
         WHERE m.origin IS NOT NULL AND (m.queue_id = p_queue.id OR m.origin = p_queue.name)
        ORDER BY id LIMIT p_scan
    ), numbered AS (
        SELECT *, sum(size) OVER (ORDER BY id) - size AS before, row_number() OVER (ORDER BY id) AS n FROM scanned
         WHERE state <> 1 AND (p_reason IS NULL OR last_death(deaths, 'dead_letter_reason') = p_reason)
    ), chosen AS (
        SELECT *, before <= 32 * 1024 * 1024 AND n <= p_limit AS fits FROM numbered
    )
    SELECT array_agg((queue_id, id, origin, key)::dead ORDER BY id) FILTER (WHERE fits),
           CASE WHEN bool_and(fits) IS NOT FALSE THEN (SELECT max(id) FROM scanned)
                ELSE max(id) FILTER (WHERE fits) END
      INTO wanted, looked_at FROM chosen;
END $$;

-- Does a step of a redrive: moves at most 10,000 dead letters. Skips leased ones, and those that were dead-lettered
-- after the first step. Ends when none is left. With p_here moves only those in this queue; with p_to moves all its
-- messages to that queue, and forgets their deaths.
CREATE FUNCTION redrive(
    p_now bigint, p_name text, p_state jsonb, p_limit bigint, p_ids bigint[], p_reason text,
    p_here boolean DEFAULT false, p_to text DEFAULT NULL
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues := queue_named(p_name);
    v_last  bigint := coalesce((p_state ->> 'last')::bigint, pg_sequence_last_value('message_ids'), 0);
    v_count bigint := coalesce((p_state ->> 'count')::bigint, 0);
    v_left  bigint := least(p_limit - v_count, 10000);
    v_found record;
    v_dead  dead[];
    v_rows  tid[];
    v       record;
BEGIN
    v_found := find_dead(
        v_queue, ARRAY(SELECT g.queue_id FROM graves AS g JOIN queues AS q ON q.id = g.queue_id
                        WHERE NOT p_here AND g.origin = p_name AND q.name IS NOT NULL AND q.id <> v_queue.id),
        coalesce((p_state ->> 'after')::bigint, 0),
        -- for a reason read more than wanted from each dead-letter queue, because not every message has that reason
        CASE WHEN p_reason IS NULL OR v_left = 0 THEN v_left ELSE least(v_left + 1000, 10000) END,
        v_left, p_ids, p_reason, p_to IS NOT NULL);
    IF v_found.looked_at IS NULL THEN
        RETURN jsonb_build_object('count', v_count, 'done', true);
    END IF;
    v_dead := ARRAY(SELECT (queue_id, id, coalesce(p_to, origin), key)::dead FROM unnest(v_found.wanted) WHERE id <= v_last);
    PERFORM queue_for_writing(p_now, origin)
       FROM (SELECT DISTINCT origin FROM unnest(v_dead) ORDER BY origin) AS home;
    PERFORM lock_pairs(array_agg(place.id), array_agg(key))
       FROM unnest(v_dead) AS one CROSS JOIN LATERAL (
            SELECT one.queue_id AS id UNION ALL SELECT queues.id FROM queues WHERE name = one.origin) AS place
      WHERE key IS NOT NULL;
    FOR v IN
        SELECT queue_id, origin, array_agg(id) AS ids FROM unnest(v_dead) GROUP BY queue_id, origin ORDER BY min(id)
    LOOP
        v_rows := locked(v.queue_id, v.ids);
        v_rows := ARRAY(SELECT ctid FROM messages WHERE ctid = ANY (v_rows) AND state <> 1);
        v_count := v_count + move(p_now, v.queue_id, queue_for_writing(p_now, v.origin), v_rows,
                                  CASE WHEN p_to IS NULL THEN NULL ELSE '' END, VARIADIC '{}');
    END LOOP;
    RETURN jsonb_build_object('count', v_count, 'done', v_found.looked_at >= v_last, 'last', v_last,
                              'after', v_found.looked_at);
END $$;

-- Set the search_path and the wait for locks inside the functions, so that they do not depend on the caller's session.
DO $$
DECLARE
    v_verb regprocedure;
BEGIN
    FOR v_verb IN SELECT oid::regprocedure FROM pg_proc
                   WHERE pronamespace = 'queue_service'::regnamespace
                     AND proname IN ('send', 'receive', 'outlook', 'ack', 'settle', 'extend', 'release', 'reject',
                                     'transact', 'delete_message', 'reschedule', 'dead_letter', 'late_queues',
                                     'catch_up', 'expire_queue', 'delete_queue', 'purge', 'redrive')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = queue_service, pg_temp', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET lock_timeout = ''4s''', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET jit = off', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET enable_hashjoin = off', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET enable_mergejoin = off', v_verb);
    END LOOP;
END $$;
