-- The changes of state that the verbs (postgres_verbs.sql) are made of. Whatever changes the state of a message goes
-- through here, together with the counts of it. In a name, p_ is a parameter and v_ a variable.
--
-- Messages are handed about by where they lie (tid), once they are locked: a locked row stays where it is, and it is
-- found again without an index, whatever the planner knows or does not know of the table.
--
-- Who changes messages of a key, or adds one, holds the lock of that key until its commit. Locks are taken in this
-- order: an Idempotency-Key's, a limited queue's row, dedup_ids, keys, messages, counts; each kind in order of queue
-- and name. What needs another order only tries, and passes over what it does not get.

SET LOCAL search_path = queue_service;

-- A message given out; or, in the first row of an answer, what else there is to tell.
CREATE TYPE delivery AS (
    note text, ids bigint[], queue text, id bigint, text bytea, fields text, death text,
    sent_at bigint, receive_count integer, token bigint, leased_until bigint
);

-- A message found by a receipt: it is 'held', or the receipt is 'stale' or the message 'missing'.
CREATE TYPE held AS (
    place integer, status text, queue_id bigint, spot tid, state smallint, key bytea, token bigint,
    receive_count integer
);

CREATE TYPE new_message AS (
    text bytea, fields text, key bytea, priority smallint, recipient bytea, delay bigint, ttl bigint, dedup_id bytea
);

CREATE FUNCTION tally(
    p_queue bigint, p_ready bigint DEFAULT 0, p_leased bigint DEFAULT 0, p_delayed bigint DEFAULT 0,
    p_blocked bigint DEFAULT 0, p_bytes bigint DEFAULT 0, p_sent bigint DEFAULT 0, p_received bigint DEFAULT 0,
    p_acked bigint DEFAULT 0, p_expired bigint DEFAULT 0, p_dead bigint DEFAULT 0
) RETURNS void LANGUAGE plpgsql AS $$
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

-- The queue, which comes into being if it was not there.
CREATE FUNCTION queue_for_writing(p_name text) RETURNS queues LANGUAGE plpgsql AS $$
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

CREATE FUNCTION seconds_setting(p_queue queues, p_name text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT ceil(1000 * (p_queue.settings ->> p_name)::numeric)::bigint
$$;

-- ms a message may live by its ttl and the queue's retention; NULL: without end.
CREATE FUNCTION lifetime(p_queue queues, p_ttl bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT least(p_ttl, seconds_setting(p_queue, 'retention'))
$$;

CREATE FUNCTION max_receives(p_queue queues) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce((p_queue.settings ->> 'max_receives')::bigint, 0)
$$;

CREATE FUNCTION is_limited(p_queue queues) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_queue.settings ?| ARRAY['max_messages', 'max_bytes']
$$;

-- Keys share 64 locks a queue: the server's table of locks has room for few thousand.
CREATE FUNCTION lock_of(p_queue bigint, p_key bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT p_queue * 64 + (hashtext(encode(p_key, 'hex')) & 63)
$$;

CREATE FUNCTION lock_keys(p_queue bigint, p_keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(number)
       FROM (SELECT DISTINCT lock_of(p_queue, key) AS number
               FROM unnest(p_keys) AS key WHERE key IS NOT NULL ORDER BY number) AS sorted;
END $$;

-- Those of these messages that are still there, locked.
CREATE FUNCTION locked(p_queue bigint, p_ids bigint[]) RETURNS tid[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(SELECT m.ctid FROM (SELECT id FROM unnest(p_ids) AS id ORDER BY id) AS one CROSS JOIN LATERAL (
                        SELECT ctid FROM messages WHERE queue_id = p_queue AND id = one.id LIMIT 1 FOR UPDATE) AS m);
END $$;

-- The first message of each key becomes ready (or delayed, by its own delay) if none of the key is leased.
CREATE FUNCTION promote(p_now bigint, p_queue bigint, p_keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
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

-- The messages, which are locked, are gone, and the next of their keys take their places.
CREATE FUNCTION remove(
    p_now bigint, p_queue bigint, p_rows tid[], p_received bigint DEFAULT 0, p_acked bigint DEFAULT 0,
    p_expired bigint DEFAULT 0, p_dead bigint DEFAULT 0
) RETURNS void LANGUAGE plpgsql AS $$
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

-- Leased or delayed messages, which are locked, wait for delivery again, from p_due on (0: at once). One with a key
-- waits blocked until the key's other leases are settled too.
CREATE FUNCTION give_back(p_now bigint, p_queue bigint, p_rows tid[], p_due bigint) RETURNS void
LANGUAGE plpgsql AS $$
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

-- The key's first message waits, unless it is leased itself: one behind it has come to be leased again.
CREATE FUNCTION block(p_queue bigint, p_key bytea) RETURNS void LANGUAGE plpgsql AS $$
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

-- Messages that were inserted blocked, if they have a key, are counted, and the first of each key promoted.
CREATE FUNCTION arrived(p_now bigint, p_queue queues, p_count bigint, p_blocked bigint, p_bytes bigint, p_keys bytea[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tally(p_queue.id, p_ready => p_count - p_blocked, p_blocked => p_blocked, p_bytes => p_bytes);
    PERFORM promote(p_now, p_queue.id, p_keys);
END $$;

-- Before messages of these keys come in.
CREATE FUNCTION expect_keys(p_queue queues, p_keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_keys IS NOT NULL THEN
        IF NOT p_queue.keyed THEN
            UPDATE queues SET keyed = true WHERE id = p_queue.id AND NOT keyed;
        END IF;
        PERFORM lock_keys(p_queue.id, p_keys);
    END IF;
END $$;

-- The messages, which are locked, move to the dead-letter queue, in order, with the story of their death (the reason
-- is JSON) and a fresh count.
CREATE FUNCTION bury(
    p_now bigint, p_wall bigint, p_queue queues, p_rows tid[], p_reason text, p_expired bigint DEFAULT 0
) RETURNS void LANGUAGE plpgsql AS $$
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

-- What time has done by now: leases and delays that ended, messages that expired. At most p_chunk of each, of which
-- the larger number is told; what others are dealing with is left to them.
CREATE FUNCTION bring_up_to_date(p_now bigint, p_wall bigint, p_queue queues, p_chunk integer) RETURNS bigint
LANGUAGE plpgsql AS $$
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

-- Whether a lease or delay has ended, or a message expired, and nobody has seen to it.
CREATE FUNCTION is_late(p_now bigint, p_queue bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT FROM messages WHERE queue_id = p_queue AND state IN (1, 2) AND due_at <= p_now)
        OR EXISTS (SELECT FROM messages
                    WHERE queue_id = p_queue AND expires_at IS NOT NULL AND state <> 1 AND expires_at <= p_now);
END $$;

-- What was answered when this Idempotency-Key was used before, or NULL; a concurrent use is waited for.
CREATE FUNCTION remembered(p_now bigint, p_queue bigint, p_key text, p_fingerprint bytea) RETURNS jsonb
LANGUAGE plpgsql AS $$
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

CREATE FUNCTION remember(p_queue bigint, p_key text, p_fingerprint bytea, p_reply jsonb, p_until bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO replies VALUES (p_queue, p_key, p_fingerprint, p_reply, p_until)
    ON CONFLICT (queue_id, key) DO UPDATE
       SET fingerprint = EXCLUDED.fingerprint, reply = EXCLUDED.reply, forget_at = EXCLUDED.forget_at;
END $$;
