-- The requests on messages: each is one function call, and so one round trip and one transaction, which no client can
-- leave open.
--
-- Their cached plans must fit tables of any size and content, because the statistics are always of an earlier moment:
-- with a plan for few messages, each message of a batch would read all of a queue. So a lookup that runs for each
-- message names the order of the one index that it needs, and its function cannot sort (enable_sort), which leaves
-- PostgreSQL no other plan. test_plans.py counts the rows that each verb reads.

SET LOCAL search_path = queue_service;

CREATE FUNCTION send(
    p_now bigint, p_at text, p_name text, p_texts bytea[], p_fields json, p_once text, p_fingerprint bytea,
    p_create boolean DEFAULT true
) RETURNS sent LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues := queue_for_writing(p_now, p_name, p_create);
    v_reply jsonb;
    v_sent  sent;
BEGIN
    IF p_once IS NOT NULL THEN
        v_reply := remembered(p_now, v_queue.id, p_once, p_fingerprint);
        IF v_reply IS NOT NULL THEN
            RETURN jsonb_populate_record(NULL::sent, v_reply);
        END IF;
    END IF;
    v_sent := store(p_now, p_at, v_queue, p_texts, p_fields);
    IF p_once IS NOT NULL THEN
        PERFORM remember(v_queue.id, p_once, p_fingerprint,
                         p_now + coalesce(seconds_setting(v_queue, 'dedup_window'), 300000), to_jsonb(v_sent));
    END IF;
    RETURN v_sent;
END $$;

-- Returns the deliveries of a stored reply; of leased messages only those not settled or leased again since. Raises
-- QS413 for more than p_reserved bytes, as claim does.
CREATE FUNCTION given_before(p_reply jsonb, p_reserved bigint) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
DECLARE
    v_size bigint := octet_length(p_reply::text);
BEGIN
    IF v_size > p_reserved THEN
        RAISE EXCEPTION USING ERRCODE = 'QS413', MESSAGE = v_size::text;
    END IF;
    RETURN QUERY SELECT * FROM jsonb_populate_recordset(NULL::delivery, p_reply) AS given
                  WHERE given.token IS NULL
                     OR EXISTS (SELECT FROM messages AS m
                                 WHERE m.queue_id = (SELECT q.id FROM queues AS q WHERE q.name = given.queue)
                                   AND m.id = given.id AND abs(m.token) = given.token);
END $$;

CREATE FUNCTION receive(
    p_now bigint, p_at text, p_names text[], p_limit integer, p_recipient bytea, p_lease bigint, p_token bigint,
    p_once text, p_fingerprint bytea, p_reserved bigint DEFAULT NULL, p_must_exist boolean DEFAULT false, p_holder text DEFAULT NULL
) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues;
    v_reply jsonb;
    v_found delivery[];
BEGIN
    IF p_once IS NULL THEN
        RETURN QUERY SELECT * FROM claim(p_now, p_at, p_names, p_limit, p_recipient, p_lease, p_token, true,
                                         p_reserved, p_must_exist, p_holder);
        RETURN;
    END IF;
    -- The store remembers a key over several queues, because the result must not depend on which of them exist now.
    -- A queue remembers its own key: the lock prevents its deletion, and a queue that does not exist yet is not read.
    IF cardinality(p_names) = 1 THEN
        PERFORM pg_advisory_xact_lock_shared(-1, hashtext(p_names[1]));
        SELECT * INTO v_queue FROM queues WHERE name = p_names[1];
        IF NOT FOUND AND NOT p_must_exist THEN
            RETURN;
        END IF;
    END IF;
    v_reply := remembered(p_now, coalesce(v_queue.id, 0), p_once, p_fingerprint);
    IF v_reply IS NULL THEN
        v_found := ARRAY(SELECT one::delivery
                           FROM claim(p_now, p_at, p_names, p_limit, p_recipient, p_lease, p_token, true, p_reserved,
                                      p_must_exist, p_holder) AS one);
        IF cardinality(v_found) > 0 AND v_found[1].note IS NULL THEN  -- else a retry may find messages
            PERFORM remember(coalesce(v_queue.id, 0), p_once, p_fingerprint,
                             p_now + coalesce(seconds_setting(v_queue, 'dedup_window'), 300000), to_jsonb(v_found));
        END IF;
        RETURN QUERY SELECT * FROM unnest(v_found);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM given_before(v_reply, p_reserved);
END $$;

-- Returns how many messages (at most p_most) a waiting reader could take now, and when more may be due.
CREATE FUNCTION outlook(p_now bigint, p_names text[], p_recipient bytea, p_most integer, OUT ready bigint, OUT due bigint)
LANGUAGE plpgsql SET enable_sort = off AS $$
BEGIN
    SELECT coalesce(sum(here.ready), 0), min(here.due) INTO ready, due
      FROM queues AS q CROSS JOIN LATERAL (
           SELECT (SELECT count(*) FROM (
                          SELECT FROM unnest(recipients(q.id, p_recipient)) AS one CROSS JOIN LATERAL (
                                 SELECT FROM messages AS m
                                  WHERE queue_id = q.id AND recipient = one AND state = 0
                                    AND NOT has_expired(p_now, cutoff(p_now, q), m)
                                    AND (max_receives(q) = 0 OR receive_count < max_receives(q))
                                  ORDER BY priority DESC LIMIT p_most) AS next LIMIT p_most) AS ready)
                + (SELECT count(*) FROM (
                          SELECT FROM messages WHERE queue_id = q.id AND state IN (1, 2) AND due_at <= p_now
                           ORDER BY due_at LIMIT p_most) AS late) AS ready,
                  (SELECT due_at FROM messages WHERE queue_id = q.id AND state IN (1, 2) AND due_at > p_now
                    ORDER BY due_at LIMIT 1) AS due
           ) AS here
     WHERE name = ANY (p_names) AND (settings ->> 'paused')::boolean IS NOT TRUE;
END $$;

-- Locks and returns the messages of receipts; with p_dead also locks their keys in the dead-letter queues.
CREATE FUNCTION hold(p_now bigint, p_names text[], p_ids bigint[], p_tokens bigint[], p_dead boolean DEFAULT false)
RETURNS SETOF held LANGUAGE plpgsql AS $$
DECLARE
    v_queues bigint[];
    v_keyed  boolean;
BEGIN
    PERFORM note_use(p_now, q) FROM queues AS q WHERE name = ANY (p_names) AND settings ? 'expires';
    SELECT array_agg(q.id ORDER BY n), bool_or(q.keyed) INTO v_queues, v_keyed
      FROM unnest(p_names) WITH ORDINALITY AS receipt (name, n)
      LEFT JOIN LATERAL (SELECT id, keyed FROM queues WHERE queues.name = receipt.name LIMIT 1) AS q ON true;
    IF v_keyed THEN
        PERFORM lock_pairs(array_agg(place.id), array_agg(m.key))
           FROM unnest(v_queues, p_ids) AS receipt (queue_id, id) CROSS JOIN LATERAL (
                SELECT key FROM messages WHERE queue_id = receipt.queue_id AND id = receipt.id LIMIT 1) AS m
          CROSS JOIN LATERAL (
                SELECT receipt.queue_id AS id UNION ALL
                SELECT grave.id FROM queues AS q JOIN queues AS grave ON grave.name = grave_name(q)
                 WHERE p_dead AND q.id = receipt.queue_id) AS place
          WHERE m.key IS NOT NULL;
    END IF;
    RETURN QUERY
    SELECT n::integer, CASE WHEN m.spot IS NULL THEN 'missing' WHEN abs(m.token) IS DISTINCT FROM receipt.token
                            THEN 'stale' ELSE 'held' END,
           m.queue_id, m.id, m.spot, m.state, m.key, m.token, m.receive_count, m.due_at
      FROM (SELECT * FROM unnest(v_queues, p_ids, p_tokens) WITH ORDINALITY AS receipt (queue_id, id, token, n)
             ORDER BY queue_id, id) AS receipt
      LEFT JOIN LATERAL (SELECT ctid AS spot, queue_id, id, state, key, token, receive_count, due_at FROM messages
                          WHERE queue_id = receipt.queue_id AND id = receipt.id LIMIT 1 FOR UPDATE) AS m ON true;
END $$;

-- Calls hold for one receipt; raises QS409 or QS410 if it is stale or its message missing.
CREATE FUNCTION hold_one(p_now bigint, p_name text, p_id bigint, p_token bigint, p_dead boolean DEFAULT false)
RETURNS held LANGUAGE plpgsql AS $$
DECLARE
    v held;
BEGIN
    SELECT * INTO v FROM hold(p_now, ARRAY[p_name], ARRAY[p_id], ARRAY[p_token], p_dead);
    IF v.status <> 'held' THEN
        RAISE EXCEPTION USING ERRCODE = CASE v.status WHEN 'stale' THEN 'QS409' ELSE 'QS410' END, MESSAGE = v.status;
    END IF;
    RETURN v;
END $$;

-- Returns whether the lease has neither ended nor been released.
CREATE FUNCTION is_leased(p_now bigint, p held) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p.state = 1 AND p.token > 0 AND p.due_at > p_now
$$;

-- Removes the messages of valid receipts, with p_held only leased ones; returns the status of each receipt.
CREATE FUNCTION ack(p_now bigint, p_names text[], p_ids bigint[], p_tokens bigint[], p_held boolean) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    v_held held[] := ARRAY(SELECT one::held FROM hold(p_now, p_names, p_ids, p_tokens) AS one);
    v      record;
BEGIN
    IF p_held THEN
        v_held := ARRAY(SELECT (place, CASE WHEN status = 'held' AND NOT is_leased(p_now, one) THEN 'stale' ELSE status END,
                                queue_id, id, spot, state, key, token, receive_count, due_at)::held
                          FROM unnest(v_held) AS one);
    END IF;
    FOR v IN
        SELECT queue_id, array_agg(DISTINCT spot) AS spots FROM unnest(v_held) WHERE status = 'held'
         GROUP BY queue_id ORDER BY queue_id
    LOOP
        PERFORM remove(p_now, v.queue_id, v.spots, 'acked');
    END LOOP;
    RETURN ARRAY(SELECT status FROM unnest(v_held) ORDER BY place);
END $$;

CREATE FUNCTION settle(p_now bigint, p_name text, p_id bigint, p_token bigint, p_held boolean) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v held := hold_one(p_now, p_name, p_id, p_token);
BEGIN
    IF p_held AND NOT is_leased(p_now, v) THEN
        RAISE EXCEPTION USING ERRCODE = 'QS409', MESSAGE = 'stale';
    END IF;
    PERFORM remove(p_now, v.queue_id, ARRAY[v.spot], 'acked');
    RETURN true;
END $$;

-- Extends the leases of valid receipts to p_until, expired leases too, but not released ones. Returns p_until and the
-- status of each receipt.
CREATE FUNCTION extend(p_now bigint, p_names text[], p_ids bigint[], p_tokens bigint[], p_until bigint) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    v_held  held[] := ARRAY(SELECT one::held FROM hold(p_now, p_names, p_ids, p_tokens) AS one);
    v_stale integer[];
    v       held;
BEGIN
    v_stale := ARRAY(SELECT place FROM unnest(v_held) WHERE status = 'held' AND token < 0);
    UPDATE messages SET due_at = p_until
     WHERE ctid = ANY (ARRAY(SELECT spot FROM unnest(v_held) WHERE status = 'held' AND state = 1));
    FOR v IN
        SELECT * FROM unnest(v_held) WHERE status = 'held' AND state <> 1 AND token > 0 ORDER BY queue_id, id
    LOOP
        IF v.state = 3 AND locks_keys(v.queue_id) AND leased_by(v.queue_id, v.key) <> v.token THEN
            v_stale := v_stale || v.place;
            CONTINUE;
        END IF;
        UPDATE messages SET state = 1, due_at = p_until WHERE ctid = v.spot;
        PERFORM tally(v.queue_id, -(v.state = 0)::int, 1, -(v.state = 2)::int, -(v.state = 3)::int);
        IF v.key IS NOT NULL AND locks_keys(v.queue_id) THEN
            PERFORM block(v.queue_id, v.key);
        END IF;
    END LOOP;
    RETURN jsonb_build_array(p_until, ARRAY(
        SELECT CASE WHEN place = ANY (v_stale) THEN 'stale' ELSE status END FROM unnest(v_held) ORDER BY place));
END $$;

-- Returns the message to the queue for delivery after p_delay ms, or dead-letters it at max_receives. If not p_counted,
-- the delivery does not count.
CREATE FUNCTION release(
    p_now bigint, p_at text, p_name text, p_id bigint, p_token bigint, p_delay bigint, p_counted boolean
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v       held := hold_one(p_now, p_name, p_id, p_token, true);
    v_queue queues;
BEGIN
    SELECT * INTO v_queue FROM queues WHERE id = v.queue_id;
    IF p_counted AND max_receives(v_queue) BETWEEN 1 AND v.receive_count THEN
        PERFORM bury(p_now, p_at, v_queue, ARRAY[v.spot], '"max_receives"', 'dead');
        RETURN true;
    END IF;
    IF NOT p_counted AND v.token > 0 THEN
        UPDATE messages SET receive_count = receive_count - 1 WHERE ctid = v.spot RETURNING ctid INTO v.spot;
    END IF;
    PERFORM give_back(p_now, v.queue_id, ARRAY[v.spot], p_now + p_delay);
    RETURN true;
END $$;

CREATE FUNCTION reject(p_now bigint, p_at text, p_name text, p_id bigint, p_token bigint, p_reason text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v       held := hold_one(p_now, p_name, p_id, p_token, true);
    v_queue queues;
BEGIN
    SELECT * INTO v_queue FROM queues WHERE id = v.queue_id;
    PERFORM bury(p_now, p_at, v_queue, ARRAY[v.spot], p_reason, 'dead');
    RETURN true;
END $$;

-- Locks and returns a message that is not leased, and its key (also in p_grave). Raises QS410, QS423.
CREATE FUNCTION free_message(p_now bigint, p_queue queues, p_id bigint, p_grave bigint DEFAULT NULL) RETURNS tid
LANGUAGE plpgsql AS $$
DECLARE
    v_key  bytea;
    v_spot tid;
    v      record;
BEGIN
    SELECT key INTO v_key FROM messages WHERE queue_id = p_queue.id AND id = p_id;
    PERFORM lock_pairs(ARRAY[p_queue.id, p_grave], ARRAY[v_key, v_key]);
    SELECT ctid AS spot, state, has_expired(p_now, cutoff(p_now, p_queue), m) AS expired INTO v
      FROM messages AS m WHERE queue_id = p_queue.id AND id = p_id FOR UPDATE;
    IF NOT FOUND OR v.expired THEN
        RAISE EXCEPTION USING ERRCODE = 'QS410', MESSAGE = 'missing';
    ELSIF v.state = 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'QS423', MESSAGE = 'leased';
    END IF;
    RETURN v.spot;
END $$;

CREATE FUNCTION delete_message(p_now bigint, p_name text, p_id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues := queue_named(p_name);
BEGIN
    PERFORM remove(p_now, v_queue.id, ARRAY[free_message(p_now, v_queue, p_id)], VARIADIC '{}');
    RETURN true;
END $$;

CREATE FUNCTION reschedule(p_now bigint, p_name text, p_id bigint, p_delay bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues := queue_named(p_name);
    v_spot  tid    := free_message(p_now, v_queue, p_id);
BEGIN
    IF p_delay > 0 OR NOT EXISTS (SELECT FROM messages WHERE ctid = v_spot AND state = 0) THEN  -- else it is ready already
        PERFORM give_back(p_now, v_queue.id, ARRAY[v_spot], p_now + p_delay);
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION dead_letter(p_now bigint, p_at text, p_name text, p_id bigint, p_reason text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues := queue_named(p_name);
    v_grave queues := queue_for_writing(p_now, grave_name(v_queue));
BEGIN
    PERFORM bury(p_now, p_at, v_queue, ARRAY[free_message(p_now, v_queue, p_id, v_grave.id)], p_reason, 'dead');
    RETURN true;
END $$;

-- Locks the keys of acked and sent messages together, because two transactions that lock them in turn could deadlock.
CREATE FUNCTION lock_all_keys(p_ack_names text[], p_ack_ids bigint[], p_send_names text[], p_fields text[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_pairs(array_agg(queue_id), array_agg(key)) FROM (
        SELECT m.queue_id, m.key
          FROM unnest(p_ack_names, p_ack_ids) AS receipt (name, id) CROSS JOIN LATERAL (
               SELECT queue_id, key FROM messages
                WHERE queue_id = (SELECT queues.id FROM queues WHERE queues.name = receipt.name AND keyed)
                  AND id = receipt.id LIMIT 1) AS m
        UNION ALL
        SELECT (SELECT id FROM queues WHERE queues.name = sent.name), decode(new.key, 'hex')
          FROM unnest(p_send_names, p_fields) AS sent (name, fields)
         CROSS JOIN LATERAL json_to_recordset(sent.fields::json) AS new (key text)
    ) AS keys WHERE key IS NOT NULL;
END $$;

-- Settles receipts, sends messages and takes messages, or does nothing and raises QS409 if a receipt is invalid.
-- p_counts[i] of p_texts go to queue i, with p_fields[i]; p_places gives the place in p_texts of the request's first,
-- second … message. The first row has the ids of the sent messages; p_limit is NULL to take nothing.
CREATE FUNCTION transact(
    p_now bigint, p_at text, p_ack_names text[], p_ack_ids bigint[], p_ack_tokens bigint[], p_send_names text[],
    p_counts integer[], p_texts bytea[], p_fields text[], p_places integer[], p_names text[], p_limit integer,
    p_recipient bytea, p_lease bigint, p_token bigint, p_once text, p_fingerprint bytea,
    p_reserved bigint DEFAULT NULL, p_must_exist boolean DEFAULT false, p_holder text DEFAULT NULL
) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
DECLARE
    v_reply jsonb;
    v_found delivery[];
    v_acked text[];
    v_bad   integer;
    v_some  sent;
    v_all   sent := ROW('{}', '{}');
    v_sent  integer := 0;
BEGIN
    IF p_once IS NOT NULL THEN
        v_reply := remembered(p_now, 0, p_once, p_fingerprint);
        IF v_reply IS NOT NULL THEN
            RETURN QUERY SELECT * FROM given_before(v_reply, p_reserved);
            RETURN;
        END IF;
    END IF;
    PERFORM queue_for_writing(p_now, name) FROM unnest(p_send_names) AS name;
    PERFORM FROM queues WHERE name = ANY (p_send_names) AND is_limited(queues) ORDER BY id FOR NO KEY UPDATE;
    PERFORM lock_all_keys(p_ack_names, p_ack_ids, p_send_names, p_fields);
    v_acked := ack(p_now, p_ack_names, p_ack_ids, p_ack_tokens, false);
    v_bad := array_position(ARRAY(SELECT status = 'held' FROM unnest(v_acked) AS status), false);
    IF v_bad IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'QS409', MESSAGE = v_acked[v_bad] || ' ' || v_bad - 1;
    END IF;
    FOR i IN 1..cardinality(p_send_names) LOOP
        v_some := store(p_now, p_at, queue_for_writing(p_now, p_send_names[i]),
                        p_texts[v_sent + 1 : v_sent + p_counts[i]], p_fields[i]::json);
        v_all.ids := v_all.ids || v_some.ids;
        v_all.duplicates := v_all.duplicates || ARRAY(SELECT v_sent + one FROM unnest(v_some.duplicates) AS one);
        v_sent := v_sent + p_counts[i];
    END LOOP;
    SELECT ARRAY[ROW(NULL, coalesce(array_agg(v_all.ids[place] ORDER BY n), '{}'),
                     coalesce(array_agg(n - 1 ORDER BY n) FILTER (WHERE place - 1 = ANY (v_all.duplicates)), '{}'),
                     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::delivery]
      INTO v_found FROM unnest(p_places) WITH ORDINALITY AS asked (place, n);
    IF p_limit IS NOT NULL THEN
        v_found := v_found || ARRAY(
            SELECT one::delivery
              FROM claim(p_now, p_at, p_names, p_limit, p_recipient, p_lease, p_token, false, p_reserved,
                         p_must_exist, p_holder) AS one);
    END IF;
    IF p_once IS NOT NULL THEN
        PERFORM remember(0, p_once, p_fingerprint, p_now + 300000, to_jsonb(v_found));
    END IF;
    RETURN QUERY SELECT * FROM unnest(v_found);
END $$;
