-- Storing new messages: limits, deduplication, order.

SET LOCAL search_path = queue_service;

-- Raises QS429 unless the messages fit. The caller holds the row lock of a limited queue.
CREATE FUNCTION make_room(p_now bigint, p_at text, p_queue queues, p_count bigint, p_bytes bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_full jsonb;
BEGIN
    FOR attempt IN 1..2 LOOP
        SELECT jsonb_build_array(p_queue.name, setting, most, there, more) INTO v_full
          FROM (SELECT coalesce(sum(ready + leased + delayed + blocked), 0) AS messages, coalesce(sum(bytes), 0) AS bytes
                  FROM counts WHERE queue_id = p_queue.id) AS sums
         CROSS JOIN LATERAL (VALUES ('max_messages', messages, p_count), ('max_bytes', sums.bytes, p_bytes))
            AS limits (setting, there, more)
         CROSS JOIN LATERAL (SELECT (p_queue.settings ->> setting)::bigint AS most) AS settings
         WHERE there + more > most LIMIT 1;
        EXIT WHEN v_full IS NULL;
        IF attempt = 2 THEN
            RAISE EXCEPTION USING ERRCODE = 'QS429', MESSAGE = v_full::text;
        END IF;
        PERFORM bring_up_to_date(p_now, p_at, p_queue, 10000);  -- remove expired messages first
    END LOOP;
END $$;

CREATE FUNCTION insert_new(p_now bigint, p_at text, p_queue queues, p_new new_message[]) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    v_keys bytea[];
    v      record;
BEGIN
    IF is_limited(p_queue) THEN
        PERFORM make_room(p_now, p_at, p_queue, count(*),
                          sum(octet_length(text) + coalesce(octet_length(fields), 0))::bigint)
           FROM unnest(p_new);
    END IF;
    SELECT array_agg(DISTINCT key) INTO v_keys FROM unnest(p_new) WHERE key IS NOT NULL;
    PERFORM expect_keys(p_queue, v_keys);
    WITH stored AS (  -- a message with a key starts blocked; promote then makes the key's first ready
        INSERT INTO messages (queue_id, sent_at, arrived_at, state, priority, recipient, key, due_at, ttl, expires_at,
                              fields, text)
        SELECT p_queue.id, p_now, p_now, CASE WHEN key IS NOT NULL THEN 3 WHEN delay > 0 THEN 2 ELSE 0 END, priority,
               recipient, key, CASE WHEN delay > 0 THEN p_now + delay ELSE 0 END, ttl, p_now + ttl,
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

-- Returns the key among whose messages a dedup_id must be unique; '': among all.
CREATE FUNCTION dedup_key(p_queue queues, p_key bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_queue.settings ->> 'dedup_scope' = 'key' THEN coalesce(p_key, '') ELSE '' END
$$;

CREATE FUNCTION insert_deduplicated(p_now bigint, p_at text, p_queue queues, p_new new_message[]) RETURNS sent
LANGUAGE plpgsql SET enable_sort = off AS $$
DECLARE
    v_until bigint := p_now + coalesce(seconds_setting(p_queue, 'dedup_window'), 300000);
    v_fresh boolean[];
    v_ids   bigint[];
    v_sent  sent;
BEGIN
    -- The first claim of a dedup_id stores the message; concurrent ones wait here. 0 marks a new claim. From here on
    -- each dedup_id has a row, so the first row from a dedup_id (and key) on is its own.
    INSERT INTO dedup AS known (queue_id, dedup_id, key, message_id, forget_at)
    SELECT p_queue.id, dedup_id, dedup_key(p_queue, key) AS scope, 0, v_until FROM unnest(p_new) WHERE dedup_id IS NOT NULL
     GROUP BY dedup_id, scope ORDER BY dedup_id, scope
        ON CONFLICT (queue_id, dedup_id, key) DO UPDATE SET message_id = 0, forget_at = v_until
     WHERE known.forget_at <= p_now;
    SELECT array_agg(dedup_id IS NULL OR (nth = 1 AND message_id = 0) ORDER BY n) INTO v_fresh
      FROM (SELECT n, new.dedup_id, message_id,
                   row_number() OVER (PARTITION BY new.dedup_id, dedup_key(p_queue, new.key) ORDER BY n) AS nth
              FROM unnest(p_new) WITH ORDINALITY AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, n)
              LEFT JOIN LATERAL (SELECT message_id FROM dedup
                                  WHERE queue_id = p_queue.id
                                    AND (dedup_id, key) >= (new.dedup_id, dedup_key(p_queue, new.key))
                                  ORDER BY dedup_id, key LIMIT 1) AS known ON true) AS numbered;
    IF true = ANY (v_fresh) THEN
        v_ids := insert_new(p_now, p_at, p_queue, ARRAY(
            SELECT (text, fields, key, priority, recipient, delay, ttl, dedup_id)::new_message
              FROM ROWS FROM (unnest(p_new), unnest(v_fresh)) WITH ORDINALITY
                AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, fresh, n)
             WHERE fresh ORDER BY n));
        UPDATE dedup SET message_id = v_ids[nth]
          FROM (SELECT dedup_id, key, fresh, count(*) FILTER (WHERE fresh) OVER (ORDER BY n) AS nth
                  FROM ROWS FROM (unnest(p_new), unnest(v_fresh)) WITH ORDINALITY
                    AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, fresh, n)) AS stored
         CROSS JOIN LATERAL (SELECT ctid AS place FROM dedup
                              WHERE queue_id = p_queue.id
                                AND (dedup_id, key) >= (stored.dedup_id, dedup_key(p_queue, stored.key))
                              ORDER BY dedup_id, key LIMIT 1) AS claimed
         WHERE stored.fresh AND dedup.ctid = claimed.place;
    END IF;
    v_sent.duplicates := ARRAY(SELECT n - 1 FROM unnest(v_fresh) WITH ORDINALITY AS new (fresh, n) WHERE NOT fresh ORDER BY n);
    v_sent.ids := ARRAY(
        SELECT CASE WHEN fresh THEN v_ids[count(*) FILTER (WHERE fresh) OVER (ORDER BY n)] ELSE message_id END
          FROM ROWS FROM (unnest(p_new), unnest(v_fresh)) WITH ORDINALITY
            AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, fresh, n)
          LEFT JOIN LATERAL (SELECT message_id FROM dedup
                              WHERE queue_id = p_queue.id
                                AND (dedup_id, key) >= (new.dedup_id, dedup_key(p_queue, new.key))
                              ORDER BY dedup_id, key LIMIT 1) AS known ON true
         ORDER BY n);
    RETURN v_sent;
END $$;

-- Stores messages in order; returns their ids, and the places of duplicates, which get the first message's id. Raises
-- QS400 for a text longer than the queue's max_message_bytes.
-- p_fields is NULL, or a JSON array with an object for each text; bytes in it are in hex.
CREATE FUNCTION store(p_now bigint, p_at text, p_queue queues, p_texts bytea[], p_fields json) RETURNS sent
LANGUAGE plpgsql AS $$
DECLARE
    v_new   new_message[];
    v_delay bigint := coalesce(seconds_setting(p_queue, 'delay'), 0);
    v_hash  boolean := coalesce((p_queue.settings ->> 'dedup_content')::boolean, false);
BEGIN
    IF p_queue.settings ? 'max_message_bytes'
       AND EXISTS (SELECT FROM unnest(p_texts) AS text
                    WHERE octet_length(text) > (p_queue.settings ->> 'max_message_bytes')::bigint) THEN
        RAISE EXCEPTION USING ERRCODE = 'QS400', MESSAGE = p_queue.settings ->> 'max_message_bytes';
    END IF;
    IF is_limited(p_queue) THEN  -- before dedup_ids and keys, by the order of locks
        SELECT * INTO p_queue FROM queues WHERE id = p_queue.id FOR NO KEY UPDATE;
    END IF;
    SELECT array_agg((text, fields, decode(key, 'hex'), coalesce(priority, 0),
                      coalesce(decode(recipient, 'hex'), ''), coalesce(delay, v_delay), ttl,
                      CASE WHEN v_hash AND dedup_id IS NULL THEN convert_to(encode(sha256(text), 'hex'), 'UTF8')
                           ELSE decode(dedup_id, 'hex') END)::new_message ORDER BY n)
      INTO v_new
      FROM ROWS FROM (unnest(p_texts),
                      json_to_recordset(p_fields) AS (fields text, key text, priority smallint, recipient text,
                                                      delay bigint, ttl bigint, dedup_id text))
      WITH ORDINALITY AS new (text, fields, key, priority, recipient, delay, ttl, dedup_id, n);
    IF v_hash OR (p_fields IS NOT NULL AND EXISTS (SELECT FROM unnest(v_new) WHERE dedup_id IS NOT NULL)) THEN
        RETURN insert_deduplicated(p_now, p_at, p_queue, v_new);
    END IF;
    RETURN ROW(insert_new(p_now, p_at, p_queue, v_new), '{}'::integer[])::sent;
END $$;
