-- Changes that become due: leases and delays end, messages expire or reach max_receives.

SET LOCAL search_path = queue_service;

-- Returns whether a lease or delay has ended: its message may come before all ready ones.
CREATE FUNCTION has_due(p_now bigint, p_queue bigint) RETURNS boolean LANGUAGE plpgsql SET enable_sort = off AS $$
BEGIN
    RETURN (SELECT due_at FROM messages WHERE queue_id = p_queue AND state IN (1, 2) ORDER BY due_at LIMIT 1) <= p_now;
END $$;

-- Returns whether the queue has expired or spent messages. Reads skip them, so their removal can wait.
CREATE FUNCTION has_spent(p_now bigint, p_queue queues) RETURNS boolean LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_cutoff bigint := cutoff(p_now, p_queue);
    v_most   bigint := max_receives(p_queue);
BEGIN
    RETURN (SELECT expires_at FROM messages WHERE queue_id = p_queue.id AND expires_at IS NOT NULL AND state <> 1
             ORDER BY expires_at LIMIT 1) <= p_now
        OR (v_cutoff >= 0
            AND (SELECT arrived_at FROM messages WHERE queue_id = p_queue.id AND state <> 1
                  ORDER BY arrived_at LIMIT 1) <= v_cutoff)
        OR (v_most > 0
            AND (SELECT receive_count FROM messages WHERE queue_id = p_queue.id AND state = 0 AND receive_count > 0
                  ORDER BY receive_count DESC LIMIT 1) >= v_most);
END $$;

-- Returns due messages to the queue, at most 10,000, and removes expired and spent ones, at most p_chunk of each kind.
-- Skips messages that other transactions have locked. Returns the largest number of one kind.
CREATE FUNCTION bring_up_to_date(p_now bigint, p_at text, p_queue queues, p_chunk integer) RETURNS bigint
LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_most    bigint  := max_receives(p_queue);
    v_cutoff  bigint  := cutoff(p_now, p_queue);
    v_buries  boolean := coalesce((p_queue.settings ->> 'dead_letter_expired')::boolean, false);
    v_grave   bigint;
    v_due     bigint;
    v_count   integer := 0;
    v_spent   tid[];
    v_back    tid[];
    v_expired tid[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(-p_queue.id) THEN
        RETURN 0;
    END IF;
    IF v_most > 0 OR v_buries THEN
        SELECT id INTO v_grave FROM queues WHERE name = grave_name(p_queue);
    END IF;
    WITH late AS MATERIALIZED (
        SELECT ctid AS spot, state = 1 AND v_most > 0 AND receive_count >= v_most AS spent FROM messages
         WHERE queue_id = p_queue.id AND state IN (1, 2) AND due_at <= p_now
           AND (key IS NULL OR try_key(p_queue.id, v_grave, key))
         ORDER BY due_at, id LIMIT 10000 FOR UPDATE SKIP LOCKED
    )
    SELECT count(*), array_agg(spot) FILTER (WHERE spent), array_agg(spot) FILTER (WHERE NOT spent)
      INTO v_due, v_spent, v_back FROM late;
    PERFORM bury(p_now, p_at, p_queue, v_spent, '"max_receives"', 'dead');
    IF v_back IS NOT NULL THEN
        PERFORM give_back(p_now, p_queue.id, v_back);
    END IF;

    SELECT array_agg(DISTINCT spot) INTO v_expired FROM (
        SELECT spot FROM (
            SELECT ctid AS spot FROM messages
             WHERE queue_id = p_queue.id AND expires_at IS NOT NULL AND state <> 1 AND expires_at <= p_now
               AND (key IS NULL OR try_key(p_queue.id, v_grave, key))
             ORDER BY expires_at LIMIT p_chunk FOR UPDATE SKIP LOCKED) AS by_ttl
        UNION ALL
        SELECT spot FROM (
            SELECT ctid AS spot FROM messages
             WHERE v_cutoff >= 0 AND queue_id = p_queue.id AND state <> 1 AND arrived_at <= v_cutoff
               AND (key IS NULL OR try_key(p_queue.id, v_grave, key))
             ORDER BY arrived_at LIMIT p_chunk FOR UPDATE SKIP LOCKED) AS by_retention) AS expired;
    IF v_buries THEN
        PERFORM bury(p_now, p_at, p_queue, v_expired, '"expired"', 'dead', 'expired');
    ELSIF v_expired IS NOT NULL THEN
        PERFORM remove(p_now, p_queue.id, v_expired, 'expired');
    END IF;

    WHILE v_most > 0 AND v_count < p_chunk LOOP  -- the next message of a key may be spent too
        WITH spent AS MATERIALIZED (
            SELECT ctid AS spot FROM messages
             WHERE queue_id = p_queue.id AND state = 0 AND receive_count > 0 AND receive_count >= v_most
               AND (key IS NULL OR try_key(p_queue.id, v_grave, key))
             ORDER BY receive_count DESC, id LIMIT p_chunk - v_count FOR UPDATE SKIP LOCKED
        )
        SELECT array_agg(spot) INTO v_spent FROM spent;
        EXIT WHEN v_spent IS NULL;
        PERFORM bury(p_now, p_at, p_queue, v_spent, '"max_receives"', 'dead');
        v_count := v_count + cardinality(v_spent);
    END LOOP;
    RETURN greatest(v_due, cardinality(v_expired), v_count);
END $$;

-- Calls bring_up_to_date after a concurrent call has ended; returns 0 if the queue does not exist.
CREATE FUNCTION catch_up(p_now bigint, p_at text, p_name text, p_chunk integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues;
BEGIN
    SELECT * INTO v_queue FROM queues WHERE name = p_name;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    PERFORM pg_advisory_xact_lock(-v_queue.id);
    RETURN bring_up_to_date(p_now, p_at, v_queue, p_chunk);
END $$;

-- Returns those of these queues for which something is due.
CREATE FUNCTION late_queues(p_now bigint, p_names text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT name FROM queues AS q
                  WHERE name = ANY (p_names) AND (has_due(p_now, q.id) OR has_spent(p_now, q)) ORDER BY name;
END $$;

-- Deletes the queue if it is unused for its setting `expires`, unless a send is in progress; returns its name or NULL.
CREATE FUNCTION expire_queue(p_now bigint, p_id bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_name text;
BEGIN
    SELECT name INTO v_name FROM queues WHERE id = p_id;
    IF NOT coalesce(pg_try_advisory_xact_lock(-1, hashtext(v_name)), false) THEN
        RETURN NULL;
    END IF;
    UPDATE queues AS q SET name = NULL, gone_at = p_now
     WHERE id = p_id AND name = v_name AND used_at + seconds_setting(q, 'expires') <= p_now
       AND (SELECT id FROM messages WHERE queue_id = p_id ORDER BY id LIMIT 1) IS NULL;
    RETURN CASE WHEN FOUND THEN v_name END;
END $$;
