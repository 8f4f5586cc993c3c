-- Giving messages out: which come next, and how they are leased or removed.

SET LOCAL search_path = queue_service;

-- What a session knows of the plain messages of a queue (unaddressed, of priority 0, never given out or delayed): that
-- none with an id below `head` waits. Else each read would walk over all that those before it have left behind, which
-- cannot be cleared away while any transaction in the cluster is open that began before. Further: a message id, and the
-- transaction in which it was the last one. It is kept in a setting of the session's own; NULL: nothing is known.
CREATE FUNCTION head_setting(p_queue bigint) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- A pooler's session may outlive the schema; the next one of this name is another, and its ids begin anew.
    RETURN 'queue_service.head_' || 'queue_service'::regnamespace::oid || '_' || p_queue;
END $$;

CREATE FUNCTION known_head(p_queue bigint, OUT head bigint, OUT last bigint, OUT xact bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_known bigint[] := string_to_array(nullif(current_setting(queue_service.head_setting(p_queue), true), ''), ' ');
BEGIN
    head := v_known[1];
    last := v_known[2];
    xact := v_known[3];
END $$;

-- Learns it anew; p_last was the last message id of all before this transaction had a number. A sender has its number
-- before its messages have ids. So once all transactions with numbers below `xact` have ended, whatever is not to be seen
-- yet has an id above `last`; and of what can be seen, all that has been given out comes back marked, if it does.
CREATE FUNCTION note_head(p_queue bigint, p_last bigint) RETURNS void LANGUAGE plpgsql AS $$
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

-- Whether all that wait unaddressed are plain. Each order is that of one index, which the planner so has to take.
CREATE FUNCTION are_plain(p_queue bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM messages WHERE queue_id = p_queue AND state = 0 AND again ORDER BY due_at LIMIT 1;
    IF FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM messages WHERE queue_id = p_queue AND recipient = '' AND state = 0 AND priority > 0
      ORDER BY priority DESC, id LIMIT 1;
    RETURN NOT FOUND;
END $$;

-- What choose gives of a queue in which all that wait unaddressed are plain.
CREATE FUNCTION choose_plain(
    p_queue bigint, p_limit integer, p_room bigint, p_first boolean, p_head bigint,
    OUT spots tid[], OUT ids bigint[], OUT bytes bigint, OUT cut boolean
) LANGUAGE plpgsql AS $$
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

-- The next messages in order of delivery, locked, and the bytes of their texts; the first that p_room bytes do not hold ends them
-- (p_first: unless it is the first of all). Messages of a key go with its head, and compete by their own priority
-- once those before them are taken: that is, none comes before the largest rank among it and those before it.
CREATE FUNCTION choose(
    p_now bigint, p_queue queues, p_limit integer, p_recipient bytea, p_room bigint, p_first boolean,
    OUT spots tid[], OUT ids bigint[], OUT bytes bigint, OUT cut boolean
) LANGUAGE plpgsql AS $$
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

-- The messages, leased until p_until or (NULL) removed, in order of p_ids.
CREATE FUNCTION take(p_now bigint, p_queue queues, p_rows tid[], p_ids bigint[], p_until bigint, p_token bigint)
RETURNS SETOF delivery LANGUAGE plpgsql AS $$
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

-- Messages that had been received too often when they would be given out: max_receives was lowered since.
CREATE FUNCTION bury_spent(p_now bigint, p_wall bigint, p_queue queues, p_limit integer, p_recipient bytea)
RETURNS void LANGUAGE plpgsql AS $$
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

-- What these queues have for a reader, in its order of preference. Its lease is in ms, -1 for the queue's setting,
-- NULL to remove and take. A row with the note 'late' says: ask again, a queue has yet to be caught up with.
CREATE FUNCTION claim(
    p_now bigint, p_wall bigint, p_names text[], p_limit integer, p_recipient bytea, p_lease bigint, p_token bigint,
    p_wait boolean
) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
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
