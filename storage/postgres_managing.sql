-- What is done to whole queues.

SET LOCAL search_path = queue_service;

-- As bring_up_to_date, of a queue that may be gone meanwhile; who is at it already is waited for.
CREATE FUNCTION catch_up(p_now bigint, p_wall bigint, p_name text, p_chunk integer) RETURNS bigint
LANGUAGE plpgsql AS $$
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

-- Keeps settings if p_version is still that of the settings; a new retention holds for all messages that are there.
-- The queue comes into being if it was not there (and p_version is 1).
CREATE FUNCTION configure(p_name text, p_version integer, p_settings jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
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

-- Removes p_chunk messages (of p_bytes text) up to id p_last, newest first: no key's next one shows up. How many; NULL: no such queue.
CREATE FUNCTION purge(p_now bigint, p_name text, p_last bigint, p_chunk integer, p_bytes bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
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

-- Dead letters that lie in this queue or came from it go back, in order of death; how many (p_limit at most).
CREATE FUNCTION redrive(p_now bigint, p_name text, p_limit integer) RETURNS bigint LANGUAGE plpgsql AS $$
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

CREATE FUNCTION raise_dead(p_now bigint, p_grave bigint, p_home queues, p_ids bigint[], p_keys bytea[]) RETURNS bigint
LANGUAGE plpgsql AS $$
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

-- The verbs find their tables whatever the caller's search_path, and wait for locks as long as an answer may take.
DO $$
DECLARE
    v_verb regprocedure;
BEGIN
    FOR v_verb IN SELECT oid::regprocedure FROM pg_proc
                   WHERE pronamespace = 'queue_service'::regnamespace
                     AND proname IN ('send', 'receive', 'ack', 'extend', 'release', 'reject', 'transact', 'catch_up',
                                     'configure', 'purge', 'redrive')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = queue_service, pg_temp', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET lock_timeout = ''4s''', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET jit = off', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET enable_hashjoin = off', v_verb);
        EXECUTE format('ALTER FUNCTION %s SET enable_mergejoin = off', v_verb);
    END LOOP;
END $$;
