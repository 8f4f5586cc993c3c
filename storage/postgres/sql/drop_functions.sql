-- Removes all functions and their types before an upgrade; the caller creates them again after it.

SET LOCAL search_path = queue_service;

DO $$
DECLARE
    v_function regprocedure;
    v_type     regtype;
BEGIN
    FOR v_function IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'queue_service'::regnamespace LOOP
        EXECUTE format('DROP FUNCTION %s', v_function);
    END LOOP;
    FOR v_type IN SELECT reltype::regtype FROM pg_class WHERE relnamespace = 'queue_service'::regnamespace AND relkind = 'c' LOOP
        EXECUTE format('DROP TYPE %s', v_type);
    END LOOP;
END $$;
