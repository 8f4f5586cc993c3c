-- The verbs of the Store that write: each is one statement to its caller, and so one round trip and one transaction,
-- which no client can leave open. They are planned for tables that may be of any size tomorrow: the plans are kept,
-- and one made for a small table would read the whole of a large one.

SET LOCAL search_path = queue_service;

CREATE FUNCTION send(
    p_now bigint, p_wall bigint, p_name text, p_texts bytea[], p_fields json, p_once text, p_fingerprint bytea
) RETURNS bigint[] LANGUAGE plpgsql AS $$
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

CREATE FUNCTION receive(
    p_now bigint, p_wall bigint, p_names text[], p_limit integer, p_recipient bytea, p_lease bigint, p_token bigint,
    p_once text, p_fingerprint bytea
) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
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

-- The messages of receipts, locked.
CREATE FUNCTION hold(p_names text[], p_ids bigint[], p_tokens bigint[]) RETURNS SETOF held LANGUAGE plpgsql AS $$
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

-- Removes the messages of those receipts that hold; what became of each.
CREATE FUNCTION ack(p_now bigint, p_names text[], p_ids bigint[], p_tokens bigint[]) RETURNS text[]
LANGUAGE plpgsql AS $$
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

-- The lease ends at p_until; one that had ended holds again.
CREATE FUNCTION extend(p_now bigint, p_name text, p_id bigint, p_token bigint, p_until bigint) RETURNS text
LANGUAGE plpgsql AS $$
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

-- The message is given back for delivery after p_delay ms, or buried when it has been received too often.
CREATE FUNCTION release(p_now bigint, p_wall bigint, p_name text, p_id bigint, p_token bigint, p_delay bigint)
RETURNS text LANGUAGE plpgsql AS $$
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

CREATE FUNCTION reject(p_now bigint, p_wall bigint, p_name text, p_id bigint, p_token bigint, p_reason text)
RETURNS text LANGUAGE plpgsql AS $$
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

-- Of the messages of receipts, and of those about to be sent: one after the other, two transactions over the same
-- queues could wait for each other.
CREATE FUNCTION lock_all_keys(p_ack_names text[], p_ack_ids bigint[], p_send_names text[], p_fields text[])
RETURNS void LANGUAGE plpgsql AS $$
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

-- Receipts settled, messages sent (p_counts[i] of p_texts to queue i, with p_fields[i]; p_places tells where in p_texts
-- the request's first, second … is), messages taken: all or, when a receipt does not hold, nothing. The first row carries the ids of what was sent; p_limit is NULL to take nothing.
CREATE FUNCTION transact(
    p_now bigint, p_wall bigint, p_ack_names text[], p_ack_ids bigint[], p_ack_tokens bigint[], p_send_names text[],
    p_counts integer[], p_texts bytea[], p_fields text[], p_places integer[], p_names text[], p_limit integer, p_recipient bytea,
    p_lease bigint, p_token bigint, p_once text, p_fingerprint bytea
) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
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
