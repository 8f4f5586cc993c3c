-- The changes of state that the functions in verbs.sql use. A function that changes messages also changes the
-- counts. A name begins with p_ for a parameter and v_ for a variable; p_at is the wall clock's time as RFC 3339.
--
-- Functions pass locked messages by their location (tid): a locked row keeps it, and a statement finds the row by it
-- without an index, whatever plan PostgreSQL chooses. Counts come from the rows that an UPDATE or DELETE returns.
--
-- A transaction that changes or adds messages of a key holds the key's lock until its commit. It takes the lock in one
-- statement and reads the messages in the next, because only the next one sees all earlier changes under the lock.
-- The order of locks is: Idempotency-Key, queues (against deletion), a limited queue's row, dedup_ids, keys, messages,
-- counts; within each kind, by queue and name. Code that needs another order only tries a lock, and skips what it
-- cannot lock.

SET LOCAL search_path = queue_service;

-- A delivered message; the first row may instead carry a note, or the ids of sent messages.
CREATE TYPE delivery AS (
    note text, ids bigint[], duplicates integer[], queue text, id bigint, text bytea, fields text, deaths text,
    sent_at bigint, receive_count integer, token bigint, leased_until bigint, first_received_at bigint
);

-- The message of a receipt; status is 'held', or the receipt is 'stale' or its message 'missing'.
CREATE TYPE held AS (
    place integer, status text, queue_id bigint, id bigint, spot tid, state smallint, key bytea, token bigint,
    receive_count integer, due_at bigint
);

CREATE TYPE new_message AS (
    text bytea, fields text, key bytea, priority smallint, recipient bytea, delay bigint, ttl bigint, dedup_id bytea
);

CREATE TYPE sent AS (ids bigint[], duplicates integer[]);

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

CREATE FUNCTION seconds_setting(p_queue queues, p_name text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT ceil(1000 * (p_queue.settings ->> p_name)::numeric)::bigint
$$;

CREATE FUNCTION max_receives(p_queue queues) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce((p_queue.settings ->> 'max_receives')::bigint, 0)
$$;

CREATE FUNCTION is_limited(p_queue queues) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_queue.settings ?| ARRAY['max_messages', 'max_bytes']
$$;

-- Returns the time up to which arrived messages are past the queue's retention.
CREATE FUNCTION cutoff(p_now bigint, p_queue queues) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(p_now - queue_service.seconds_setting(p_queue, 'retention'), -1)
$$;

CREATE FUNCTION has_expired(p_now bigint, p_cutoff bigint, m messages) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT m.state <> 1 AND (m.arrived_at <= p_cutoff OR coalesce(m.expires_at <= p_now, false))
$$;

-- Returns the same as dead_letter_name in storage/model.py.
CREATE FUNCTION grave_name(p_queue queues) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(p_queue.settings ->> 'dead_letter_queue', CASE
        WHEN length(p_queue.name) <= 75 OR right(p_queue.name, 5) <> '.dead' THEN left(p_queue.name, 75)
        ELSE left(p_queue.name, 62) || '.' || left(encode(sha256(p_queue.name::bytea), 'hex'), 12)
    END || '.dead')
$$;

-- Records the use of the queue if it has the setting `expires`.
CREATE FUNCTION note_use(p_now bigint, p_queue queues) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_queue.used_at + least(seconds_setting(p_queue, 'expires') / 10, 1000) <= p_now THEN
        UPDATE queues SET used_at = p_now
         WHERE id = (SELECT id FROM queues WHERE id = p_queue.id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
END $$;

-- Returns the queue, and creates it if needed, or raises QS404; blocks its deletion until this transaction ends.
CREATE FUNCTION queue_for_writing(p_now bigint, p_name text, p_create boolean DEFAULT true) RETURNS queues
LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(-1, hashtext(p_name));
    LOOP
        SELECT * INTO v_queue FROM queues WHERE name = p_name;
        IF FOUND THEN
            PERFORM note_use(p_now, v_queue);
            RETURN v_queue;
        END IF;
        IF NOT p_create THEN
            RAISE EXCEPTION USING ERRCODE = 'QS404', MESSAGE = p_name;
        END IF;
        INSERT INTO queues (name, used_at, created_at, modified_at) VALUES (p_name, p_now, p_now, p_now)
        ON CONFLICT (name) DO NOTHING;
    END LOOP;
END $$;

CREATE FUNCTION queue_named(p_name text) RETURNS queues LANGUAGE plpgsql AS $$
DECLARE
    v_queue queues;
BEGIN
    SELECT * INTO v_queue FROM queues WHERE name = p_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'QS404', MESSAGE = p_name;
    END IF;
    RETURN v_queue;
END $$;

-- Returns the number of the key's lock. A queue's keys share 64 locks, because the server's lock table is small.
CREATE FUNCTION lock_of(p_queue bigint, p_key bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT p_queue * 64 + (hashtext(encode(p_key, 'hex')) & 63)
$$;

-- Locks these pairs of queue and key, in the order of their lock numbers.
CREATE FUNCTION lock_pairs(p_queues bigint[], p_keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(number)
       FROM (SELECT DISTINCT lock_of(queue_id, key) AS number FROM unnest(p_queues, p_keys) AS pair (queue_id, key)
              WHERE queue_id IS NOT NULL AND key IS NOT NULL ORDER BY number) AS sorted;
END $$;

CREATE FUNCTION lock_keys(p_queue bigint, p_keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_keys IS NOT NULL THEN
        PERFORM lock_pairs(array_fill(p_queue, ARRAY[cardinality(p_keys)]), p_keys);
    END IF;
END $$;

-- Tries to lock the key without waiting, in its queue and in p_grave (unless NULL); returns whether it did.
CREATE FUNCTION try_key(p_queue bigint, p_grave bigint, p_key bytea) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN pg_try_advisory_xact_lock(lock_of(p_queue, p_key))
           AND (p_grave IS NULL OR pg_try_advisory_xact_lock(lock_of(p_grave, p_key)));
END $$;

-- Locks these keys and marks the queue as keyed, before messages with the keys are added.
CREATE FUNCTION expect_keys(p_queue queues, p_keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_keys IS NOT NULL THEN
        IF NOT p_queue.keyed THEN
            UPDATE queues SET keyed = true WHERE id = p_queue.id AND NOT keyed;
        END IF;
        PERFORM lock_keys(p_queue.id, p_keys);
    END IF;
END $$;

-- Locks those of these messages that still exist, and returns their locations.
CREATE FUNCTION locked(p_queue bigint, p_ids bigint[]) RETURNS tid[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(SELECT m.ctid FROM (SELECT id FROM unnest(p_ids) AS id ORDER BY id) AS one CROSS JOIN LATERAL (
                        SELECT ctid FROM messages WHERE queue_id = p_queue AND id = one.id LIMIT 1 FOR UPDATE) AS m);
END $$;

-- Returns the token of the key's lease, or NULL if it has none.
CREATE FUNCTION leased_by(p_queue bigint, p_key bytea) RETURNS bigint LANGUAGE plpgsql SET enable_sort = off AS $$
BEGIN
    RETURN (SELECT token FROM messages WHERE queue_id = p_queue AND key = p_key AND state = 1 ORDER BY token LIMIT 1);
END $$;

-- Returns whether a lease locks all messages of its key; else only those after it.
CREATE FUNCTION locks_keys(p_queue bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT settings ->> 'key_lock' IS DISTINCT FROM 'head' FROM queues WHERE id = p_queue
$$;

-- Makes the first message of each key ready (or delayed, by its own delay) unless a lease locks it.
CREATE FUNCTION promote(p_now bigint, p_queue bigint, p_keys bytea[]) RETURNS void
LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_locks boolean;
    v_ready bigint;
    v_all   bigint;
BEGIN
    IF p_keys IS NULL THEN
        RETURN;
    END IF;
    v_locks := locks_keys(p_queue);
    WITH promoted AS (
        UPDATE messages AS m SET state = CASE WHEN due_at > p_now THEN 2 ELSE 0 END, due_at = greatest(due_at, p_now)
         WHERE ctid = ANY (ARRAY(SELECT (SELECT ctid FROM messages WHERE queue_id = p_queue AND key = wanted
                                          ORDER BY id NULLS FIRST LIMIT 1)
                                   FROM unnest(p_keys) AS wanted))
           AND state = 3
           AND (NOT v_locks
                OR (SELECT id FROM messages AS other
                     WHERE other.queue_id = p_queue AND other.key = m.key AND other.state = 1
                     ORDER BY token LIMIT 1) IS NULL)
        RETURNING state
    )
    SELECT count(*), count(*) FILTER (WHERE state = 0) INTO v_all, v_ready FROM promoted;
    IF v_all > 0 THEN
        PERFORM tally(p_queue, p_ready => v_ready, p_delayed => v_all - v_ready, p_blocked => -v_all);
    END IF;
END $$;

-- Removes locked messages and promotes the next ones of their keys; returns their number, and adds it to these totals:
-- received, acked, expired, dead.
CREATE FUNCTION remove(p_now bigint, p_queue bigint, p_rows tid[], VARIADIC p_totals text[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v record;
BEGIN
    WITH gone AS (
        DELETE FROM messages WHERE ctid = ANY (p_rows)
        RETURNING state, key, octet_length(text) + coalesce(octet_length(fields), 0) AS size
    )
    SELECT count(*) FILTER (WHERE state = 0) AS ready, count(*) FILTER (WHERE state = 1) AS leased,
           count(*) FILTER (WHERE state = 2) AS delayed, count(*) FILTER (WHERE state = 3) AS blocked,
           count(*) AS count, coalesce(sum(size), 0)::bigint AS bytes,
           array_agg(DISTINCT key) FILTER (WHERE key IS NOT NULL) AS keys
      INTO v FROM gone;
    PERFORM tally(p_queue, -v.ready, -v.leased, -v.delayed, -v.blocked, -v.bytes,
                  p_received => CASE WHEN 'received' = ANY (p_totals) THEN v.count ELSE 0 END,
                  p_acked => CASE WHEN 'acked' = ANY (p_totals) THEN v.count ELSE 0 END,
                  p_expired => CASE WHEN 'expired' = ANY (p_totals) THEN v.count ELSE 0 END,
                  p_dead => CASE WHEN 'dead' = ANY (p_totals) THEN v.count ELSE 0 END);
    PERFORM promote(p_now, p_queue, v.keys);
    RETURN v.count;
END $$;

-- Returns locked messages to the queue, and their number. With p_due they were released: deliver them from then on, and
-- end the right to extend their leases. With NULL their leases or delays have ended.
-- A message with a key stays blocked until it is the key's first and the key has no lease.
CREATE FUNCTION give_back(p_now bigint, p_queue bigint, p_rows tid[], p_due bigint DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v record;
BEGIN
    WITH old AS MATERIALIZED (
        SELECT ctid AS spot, state FROM messages WHERE ctid = ANY (p_rows)
    ), back AS (
        UPDATE messages AS m
           SET state = CASE WHEN m.key IS NOT NULL THEN 3 WHEN p_due > p_now THEN 2 ELSE 0 END,
               due_at = coalesce(p_due, due_at), token = CASE WHEN p_due IS NULL THEN token ELSE -abs(token) END
          FROM old WHERE m.ctid = old.spot
        RETURNING m.state, old.state AS was, m.key
    )
    SELECT count(*) AS count, count(*) FILTER (WHERE state = 0) - count(*) FILTER (WHERE was = 0) AS ready,
           -count(*) FILTER (WHERE was = 1) AS leased,
           count(*) FILTER (WHERE state = 2) - count(*) FILTER (WHERE was = 2) AS delayed,
           count(*) FILTER (WHERE state = 3) - count(*) FILTER (WHERE was = 3) AS blocked,
           array_agg(DISTINCT key) FILTER (WHERE key IS NOT NULL) AS keys
      INTO v FROM back;
    PERFORM tally(p_queue, v.ready, v.leased, v.delayed, v.blocked);
    PERFORM promote(p_now, p_queue, v.keys);
    RETURN v.count;
END $$;

-- Blocks the key's first message unless it is leased, because the lease of a later one was renewed.
CREATE FUNCTION block(p_queue bigint, p_key bytea) RETURNS void LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_first messages;
BEGIN
    SELECT * INTO v_first FROM messages WHERE queue_id = p_queue AND key = p_key ORDER BY id NULLS FIRST LIMIT 1;
    IF v_first.state IN (0, 2) THEN
        UPDATE messages SET state = 3 WHERE queue_id = p_queue AND id = v_first.id;
        PERFORM tally(p_queue, p_ready => -(v_first.state = 0)::int, p_delayed => -(v_first.state = 2)::int,
                      p_blocked => 1);
    END IF;
END $$;

-- Returns a field of the last death. A reason may hold U+0000, which PostgreSQL's JSON functions refuse.
CREATE FUNCTION last_death(p_deaths text, p_name text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(p_deaths, '\u0000', '\ufffd')::json -> -1 ->> p_name
$$;

-- Returns the deaths without the last one, or NULL if it was the only one.
CREATE FUNCTION without_last(p_deaths text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT '[' || string_agg(death::text, ', ' ORDER BY n) || ']'
      FROM json_array_elements(p_deaths::json) WITH ORDINALITY AS died (death, n)
     WHERE n < json_array_length(p_deaths::json)
$$;

-- Moves messages in order, with a receive_count of 0; returns their number. The caller has locked them, and their keys
-- in both queues. p_story is the beginning of the JSON of a death; NULL removes the last death instead, '' all deaths.
CREATE FUNCTION move(p_now bigint, p_from bigint, p_to queues, p_rows tid[], p_story text, VARIADIC p_totals text[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_keys bytea[];
    v_were bigint[];
    v      record;
BEGIN
    SELECT array_agg(DISTINCT key) FILTER (WHERE key IS NOT NULL),
           array_agg(last_death(deaths, 'dead_letter_id')::bigint ORDER BY id) FILTER (WHERE p_story IS NULL)
      INTO v_keys, v_were FROM messages WHERE ctid = ANY (p_rows);
    PERFORM expect_keys(p_to, v_keys);
    WITH moved AS (
        INSERT INTO messages (queue_id, sent_at, arrived_at, first_received_at, state, priority, recipient, key, ttl,
                              expires_at, origin, deaths, fields, text)
        SELECT p_to.id, sent_at, p_now, CASE WHEN p_story <> '' THEN first_received_at END,
               CASE WHEN key IS NULL THEN 0 ELSE 3 END, priority, recipient, key, ttl,
               CASE WHEN story IS NULL THEN p_now + ttl END, last_death(story, 'dead_letter_from'), story, fields, text
          FROM messages AS m CROSS JOIN LATERAL (
               SELECT CASE WHEN p_story IS NULL THEN without_last(deaths) WHEN p_story <> '' THEN
                          coalesce(left(deaths, -1) || ', ', '[') || p_story || ', "dead_letter_id": "' || m.id
                          || '", "dead_letter_receive_count": ' || receive_count || '}]' END AS story) AS history
         WHERE m.ctid = ANY (p_rows) ORDER BY m.id
        RETURNING id, state, octet_length(text) + coalesce(octet_length(fields), 0) AS size
    )
    SELECT count(*) FILTER (WHERE state = 0) AS ready, count(*) FILTER (WHERE state = 3) AS blocked,
           coalesce(sum(size), 0)::bigint AS bytes, array_agg(id ORDER BY id) AS ids
      INTO v FROM moved;
    IF p_story IS NULL THEN  -- move dedup_ids too; SKIP LOCKED: another transaction may wait for a key
        UPDATE dedup SET message_id = known.id
          FROM (SELECT one.id, place FROM unnest(v_were, v.ids) AS one (was, id) CROSS JOIN LATERAL (
                       SELECT ctid AS place FROM dedup WHERE queue_id = p_to.id AND message_id = one.was
                        LIMIT 1 FOR UPDATE SKIP LOCKED) AS found) AS known
         WHERE dedup.ctid = known.place;
    END IF;
    PERFORM tally(p_to.id, p_ready => v.ready, p_blocked => v.blocked, p_bytes => v.bytes);
    PERFORM promote(p_now, p_to.id, v_keys);
    RETURN remove(p_now, p_from, p_rows, VARIADIC p_totals);
END $$;

-- Dead-letters messages. The caller has locked them, and their keys in both queues. The reason is JSON.
CREATE FUNCTION bury(p_now bigint, p_at text, p_queue queues, p_rows tid[], p_reason text, VARIADIC p_totals text[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_grave queues;
BEGIN
    IF cardinality(p_rows) > 0 THEN
        v_grave := queue_for_writing(p_now, grave_name(p_queue));
        INSERT INTO graves VALUES (p_queue.name, v_grave.id) ON CONFLICT DO NOTHING;
        PERFORM move(p_now, p_queue.id, v_grave, p_rows,
                     '{"dead_letter_from": "' || p_queue.name || '", "dead_letter_reason": ' || p_reason
                     || ', "dead_letter_at": "' || p_at || '"', VARIADIC p_totals);
    END IF;
END $$;

-- Returns the reply stored under this Idempotency-Key, or NULL; waits for a concurrent request with the key.
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

-- Stores the reply unless it is NULL, and returns it.
CREATE FUNCTION remember(p_queue bigint, p_key text, p_fingerprint bytea, p_until bigint, p_reply jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    IF p_reply IS NOT NULL THEN
        INSERT INTO replies VALUES (p_queue, p_key, p_fingerprint, p_reply, p_until)
        ON CONFLICT (queue_id, key) DO UPDATE
           SET fingerprint = EXCLUDED.fingerprint, reply = EXCLUDED.reply, forget_at = EXCLUDED.forget_at;
    END IF;
    RETURN p_reply;
END $$;
