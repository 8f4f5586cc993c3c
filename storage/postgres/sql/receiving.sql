-- Delivering messages: which come next, and how they are leased or removed.

SET LOCAL search_path = queue_service;

-- Returns the recipients of a read: p_recipient, or (NULL) those with ready messages in this queue, at most 1,000.
-- Finds each by one index lookup after the one before.
CREATE FUNCTION recipients(p_queue bigint, p_recipient bytea) RETURNS bytea[]
LANGUAGE plpgsql SET enable_sort = off AS $$
BEGIN
    IF p_recipient IS NOT NULL THEN
        RETURN ARRAY[p_recipient];
    END IF;
    RETURN ARRAY(
        WITH RECURSIVE found (recipient) AS (
            (SELECT recipient FROM messages WHERE queue_id = p_queue AND state = 0 ORDER BY recipient LIMIT 1)
            UNION ALL
            SELECT next.recipient FROM found CROSS JOIN LATERAL (
                   SELECT recipient FROM messages
                    WHERE queue_id = p_queue AND state = 0 AND recipient > found.recipient
                    ORDER BY recipient LIMIT 1) AS next
        )
        SELECT recipient FROM found LIMIT 1000);
END $$;

-- Returns the limit of a receive_count: only messages below it are delivered.
CREATE FUNCTION fewer_than(p_queue queues) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT least(coalesce(nullif(max_receives(p_queue), 0), 2147483647), 2147483647)::integer
$$;

-- Returns an id: all messages with a lower one are past the queue's retention, so reads can skip them. The order of ids
-- differs from the order of arrival by at most a minute, because senders commit late and the nodes' clocks differ.
CREATE FUNCTION first_living(p_queue bigint, p_cutoff bigint) RETURNS bigint
LANGUAGE plpgsql SET enable_sort = off AS $$
BEGIN
    RETURN coalesce((SELECT id FROM messages WHERE queue_id = p_queue AND state <> 1 AND arrived_at <= p_cutoff - 60000
                      ORDER BY arrived_at DESC LIMIT 1), 0);
END $$;

-- Locks the keys of the next messages, after concurrent senders with these keys have committed.
CREATE FUNCTION wait_for_keys(p_queue bigint, p_limit integer, p_recipient bytea) RETURNS void
LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_keys bytea[];
BEGIN
    SELECT array_agg(key) FILTER (WHERE key IS NOT NULL) INTO v_keys FROM (
        SELECT next.key FROM unnest(recipients(p_queue, p_recipient)) AS one CROSS JOIN LATERAL (
               SELECT key, priority, id FROM messages WHERE queue_id = p_queue AND recipient = one AND state = 0
                ORDER BY priority DESC, id NULLS FIRST LIMIT p_limit) AS next
         ORDER BY next.priority DESC, next.id LIMIT p_limit) AS first;
    PERFORM lock_keys(p_queue, v_keys);
END $$;

-- Locks and returns the next messages in order of delivery; of each key only the first, whose key it locks too. Skips
-- what other transactions have locked. p_recipient NULL selects all recipients.
CREATE FUNCTION heads(p_now bigint, p_queue queues, p_limit integer, p_recipient bytea) RETURNS tid[]
LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_most       integer := fewer_than(p_queue);
    v_cutoff     bigint  := cutoff(p_now, p_queue);
    v_from       bigint  := CASE WHEN v_cutoff >= 0 THEN first_living(p_queue.id, v_cutoff) ELSE 0 END;
    v_recipients bytea[] := recipients(p_queue.id, p_recipient);
BEGIN
    IF cardinality(v_recipients) = 1 THEN
        RETURN ARRAY(
            SELECT head.spot FROM generate_series(9, 0, -1) AS rank CROSS JOIN LATERAL (
                   SELECT ctid AS spot FROM messages AS m
                    WHERE queue_id = p_queue.id AND recipient = v_recipients[1] AND state = 0 AND priority = rank
                      AND id >= v_from AND NOT has_expired(p_now, v_cutoff, m)
                      AND receive_count < v_most
                      AND (key IS NULL OR try_key(p_queue.id, NULL, key))
                    ORDER BY id NULLS FIRST LIMIT p_limit FOR UPDATE SKIP LOCKED) AS head
             LIMIT p_limit);
    END IF;
    -- Choose without locks first, with a surplus for messages that others take meanwhile.
    RETURN ARRAY(
        SELECT head.spot FROM (
               SELECT next.spot FROM unnest(v_recipients) AS one CROSS JOIN LATERAL (
                      SELECT ctid AS spot, priority, id FROM messages AS m
                       WHERE queue_id = p_queue.id AND recipient = one AND state = 0
                         AND id >= v_from AND NOT has_expired(p_now, v_cutoff, m)
                         AND receive_count < v_most
                       ORDER BY priority DESC, id NULLS FIRST LIMIT p_limit + 64) AS next
                ORDER BY next.priority DESC, next.id LIMIT p_limit + 64) AS chosen
         CROSS JOIN LATERAL (
               SELECT ctid AS spot FROM messages AS m
                WHERE ctid = chosen.spot AND state = 0 AND (key IS NULL OR try_key(p_queue.id, NULL, key))
                LIMIT 1 FOR UPDATE SKIP LOCKED) AS head
         LIMIT p_limit);
END $$;

-- Returns the bytes that a read of this message returns.
CREATE FUNCTION read_size(p_message messages) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT octet_length(p_message.text)::bigint + coalesce(octet_length(p_message.fields), 0)
           + coalesce(octet_length(p_message.deaths), 0)
$$;

-- Locks the next messages in order of delivery, up to the first that exceeds p_room bytes (with p_first, at least one);
-- returns them with the bytes of their texts and fields. A key's later messages compete by their own priority after
-- the earlier ones are taken: each ranks by the largest rank of it and those before it. With key_lock head it follows
-- them, before all other keys.
CREATE FUNCTION choose(
    p_now bigint, p_queue queues, p_limit integer, p_recipient bytea, p_room bigint, p_first boolean,
    OUT spots tid[], OUT ids bigint[], OUT bytes bigint, OUT cut boolean
) LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_most   integer := fewer_than(p_queue);
    v_cutoff bigint := cutoff(p_now, p_queue);
    v_locks  boolean := p_queue.settings ->> 'key_lock' IS DISTINCT FROM 'head';
    v_heads  tid[]  := heads(p_now, p_queue, p_limit, p_recipient);
BEGIN
    IF p_limit = 1 THEN  -- a shorter statement for the most frequent read
        SELECT v_heads, ARRAY[id], read_size(m), read_size(m) > p_room AND NOT p_first
          INTO spots, ids, bytes, cut FROM messages AS m WHERE ctid = v_heads[1];
        IF cut THEN
            ids := NULL;
        END IF;
        RETURN;
    END IF;
    -- Read the heads' followers in a statement of its own: changes.sql says why.
    WITH firsts AS MATERIALIZED (
        SELECT ctid AS spot, id, priority, key, read_size(m) AS size FROM messages AS m WHERE ctid = ANY (v_heads)
    ), chains AS (
        SELECT id AS head, spot, id, priority, size FROM firsts
        UNION ALL
        SELECT firsts.id, behind.spot, behind.id, behind.priority, behind.size
          FROM firsts CROSS JOIN LATERAL (
                SELECT spot, id, priority, size,
                       bool_and((p_recipient IS NULL OR recipient = p_recipient) AND due_at <= p_now
                                AND NOT expired AND state = 3
                                AND receive_count < v_most) OVER (ORDER BY id NULLS FIRST) AS free
                  FROM (SELECT ctid AS spot, id, priority, read_size(m) AS size, recipient, due_at, state, receive_count,
                               has_expired(p_now, v_cutoff, m) AS expired FROM messages AS m
                         WHERE queue_id = p_queue.id AND key = firsts.key AND id > firsts.id
                         ORDER BY id NULLS FIRST LIMIT p_limit - 1 FOR UPDATE) AS next
               ) AS behind
         WHERE firsts.key IS NOT NULL AND behind.free
    ), ranked AS (
        SELECT spot, id, size, CASE WHEN v_locks THEN max(place) OVER chain ELSE first_value(place) OVER chain END AS rank
          FROM (SELECT *, (9 - priority::bigint << 59) + id AS place FROM chains) AS placed
        WINDOW chain AS (PARTITION BY head ORDER BY id)
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

-- Leases the messages until p_until, or (NULL) removes them; returns them in order of p_ids.
CREATE FUNCTION take(
    p_now bigint, p_queue queues, p_rows tid[], p_ids bigint[], p_until bigint, p_token bigint, p_holder text
) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
DECLARE
    v record;
BEGIN
    IF p_until IS NULL THEN
        RETURN QUERY
        SELECT NULL, NULL::bigint[], NULL::integer[], p_queue.name, m.id, m.text, m.fields, m.deaths, m.sent_at,
               m.receive_count + 1, NULL::bigint, NULL::bigint, NULL::bigint
          FROM messages AS m WHERE ctid = ANY (p_rows) ORDER BY array_position(p_ids, m.id);
        PERFORM remove(p_now, p_queue.id, p_rows, 'received');
        RETURN;
    END IF;
    WITH old AS MATERIALIZED (  -- ready, except a key's followers, which were blocked
        SELECT ctid AS spot, state FROM messages WHERE ctid = ANY (p_rows)
    ), leased AS (
        UPDATE messages AS m SET state = 1, token = p_token, due_at = p_until, receive_count = receive_count + 1,
                                 first_received_at = coalesce(first_received_at, p_now), holder = p_holder
          FROM old WHERE m.ctid = old.spot
        RETURNING old.state AS was, m.id, ROW(NULL, NULL, NULL, p_queue.name, m.id, m.text, m.fields, m.deaths,
                                              m.sent_at, m.receive_count, p_token, p_until,
                                              m.first_received_at)::delivery AS given
    )
    SELECT count(*) AS count, count(*) FILTER (WHERE was = 3) AS blocked,
           array_agg(given ORDER BY array_position(p_ids, id)) AS given
      INTO v FROM leased;
    PERFORM tally(p_queue.id, v.blocked - v.count, v.count, 0, -v.blocked, p_received => v.count);
    RETURN QUERY SELECT * FROM unnest(v.given);
END $$;

-- Takes the next messages of these queues, in their order. p_lease is in ms, -1 for the queue's setting, NULL to remove
-- them. Raises QS413 for more than p_reserved bytes, with the number in its message. A row with the note 'late' means:
-- call again, because too much is due for one transaction. Raises QS404 if all queues must exist and one does not.
CREATE FUNCTION claim(
    p_now bigint, p_at text, p_names text[], p_limit integer, p_recipient bytea, p_lease bigint, p_token bigint,
    p_wait boolean, p_reserved bigint, p_must_exist boolean, p_holder text
) RETURNS SETOF delivery LANGUAGE plpgsql AS $$
DECLARE
    v_queue  queues;
    v_chosen record;
    v_due    boolean;
    v_taken  integer := 0;
    v_most   bigint := 16 * 1024 * 1024;
    v_room   bigint := v_most;
BEGIN
    IF p_must_exist THEN
        PERFORM queue_named(name) FROM unnest(p_names) AS name;
    END IF;
    FOR v_queue IN
        SELECT q.* FROM unnest(p_names) WITH ORDINALITY AS asked (name, place)
          JOIN queues AS q USING (name) ORDER BY place
    LOOP
        PERFORM note_use(p_now, v_queue);
        v_due := has_due(p_now, v_queue.id);
        IF v_due OR has_spent(p_now, v_queue) THEN
            IF v_due THEN  -- wait for a concurrent call: what it returns to the queue may come first
                PERFORM pg_advisory_xact_lock(-v_queue.id);
            END IF;
            p_wait := false;
            IF bring_up_to_date(p_now, p_at, v_queue, 100) >= 10000 THEN
                IF v_taken = 0 THEN
                    RETURN NEXT jsonb_populate_record(NULL::delivery, '{"note": "late"}');
                END IF;
                RETURN;
            END IF;
        END IF;
        CONTINUE WHEN (v_queue.settings ->> 'paused')::boolean;
        IF p_wait AND v_queue.keyed THEN  -- or the read skips a head whose key is locked by a sender
            PERFORM wait_for_keys(v_queue.id, p_limit - v_taken, p_recipient);
            p_wait := false;  -- now this transaction holds keys and must not wait for others
        END IF;
        v_chosen := choose(p_now, v_queue, p_limit - v_taken, p_recipient, v_room, v_taken = 0);
        CONTINUE WHEN v_chosen.ids IS NULL AND v_chosen.cut IS NOT TRUE;
        IF v_chosen.ids IS NOT NULL THEN
            v_room := v_room - v_chosen.bytes;
            IF v_most - v_room > p_reserved THEN
                RAISE EXCEPTION USING ERRCODE = 'QS413', MESSAGE = (v_most - v_room)::text;
            END IF;
            RETURN QUERY SELECT * FROM take(
                p_now, v_queue, v_chosen.spots, v_chosen.ids,
                p_now + CASE p_lease WHEN -1 THEN coalesce(seconds_setting(v_queue, 'lease'), 30000) ELSE p_lease END,
                p_token, p_holder);
            v_taken := v_taken + cardinality(v_chosen.ids);
        END IF;
        EXIT WHEN v_chosen.cut OR v_taken = p_limit;
    END LOOP;
END $$;
