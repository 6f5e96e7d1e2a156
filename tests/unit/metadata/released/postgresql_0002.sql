CREATE TABLE public.agents (
    agent_uid text NOT NULL,
    node_id bigint NOT NULL,
    agent_epoch bigint NOT NULL,
    zone text NOT NULL,
    agent_group text NOT NULL,
    host text NOT NULL,
    port integer NOT NULL,
    http_address text NOT NULL,
    version text NOT NULL,
    roles text NOT NULL,
    registered_ms bigint NOT NULL,
    fenced_ms bigint NOT NULL
);
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.answers (
    agent_epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    answer bytea NOT NULL
);
CREATE TABLE public.calls (
    call_id text NOT NULL,
    answer bytea NOT NULL,
    answered_ms bigint NOT NULL
);
CREATE TABLE public.consumer_groups (
    group_id bytea NOT NULL,
    record bytea NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE public.counters (
    name text NOT NULL,
    value bigint NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE public.dropped_partitions (
    partition_key bigint NOT NULL
);
CREATE TABLE public.extents (
    partition_key bigint NOT NULL,
    base_offset bigint NOT NULL,
    last_offset bigint NOT NULL,
    segment_id bigint NOT NULL,
    byte_position bigint NOT NULL,
    byte_length bigint NOT NULL,
    max_timestamp_ms bigint NOT NULL,
    running_timestamp_ms bigint NOT NULL,
    commit_ms bigint NOT NULL
);
CREATE TABLE public.group_offsets (
    group_id bytea NOT NULL,
    partition_key bigint NOT NULL,
    committed_offset bigint NOT NULL,
    leader_epoch bigint NOT NULL,
    metadata bytea NOT NULL,
    commit_ms bigint NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE public.leader (
    one boolean DEFAULT true NOT NULL,
    generation bigint NOT NULL,
    CONSTRAINT leader_one_check CHECK (one)
);
CREATE TABLE public.meta (
    name text NOT NULL,
    value text NOT NULL
);
CREATE SEQUENCE public.partition_keys
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE public.partitions (
    partition_key bigint NOT NULL,
    topic_id bytea NOT NULL,
    partition integer NOT NULL,
    log_start_offset bigint DEFAULT 0 NOT NULL,
    producer_id_floor bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='80');
CREATE TABLE public.producers (
    partition_key bigint NOT NULL,
    producer_id bigint NOT NULL,
    state bytea NOT NULL,
    updated_ms bigint NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE public.renewals (
    one boolean DEFAULT true NOT NULL,
    generation bigint NOT NULL,
    renewed bigint NOT NULL,
    CONSTRAINT renewals_one_check CHECK (one)
)
WITH (fillfactor='10');
CREATE TABLE public.segments (
    segment_id bigint NOT NULL,
    agent_epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    segment_key text NOT NULL,
    byte_length bigint NOT NULL,
    commit_ms bigint NOT NULL
);
CREATE TABLE public.topics (
    topic_id bytea NOT NULL,
    name text NOT NULL,
    partition_count integer NOT NULL,
    configs text NOT NULL,
    created_ms bigint NOT NULL
);
INSERT INTO public.agents VALUES ('agent-1', 1, 3, 'zone-a', 'default', '10.0.0.1', 9092, '10.0.0.1:8080', '0.1.0', 'proxy,jobs', 1700000000000, 0);
INSERT INTO public.alembic_version VALUES ('0002');
INSERT INTO public.answers VALUES (3, 4, '\x666f7572');
INSERT INTO public.calls VALUES ('c/1', '\x616e73776572', 1700000000000);
INSERT INTO public.consumer_groups VALUES ('\x67726f7570', '\x87a867726f75705f6964a567726f7570ad67656e65726174696f6e5f696403ad70726f746f636f6c5f74797065a8636f6e73756d6572ad70726f746f636f6c5f6e616d65a572616e6765a96c65616465725f6964a36d2d31a76d656d626572739188a96d656d6265725f6964a36d2d31b167726f75705f696e7374616e63655f6964a87374617469632d31a9636c69656e745f6964a6636c69656e74ab636c69656e745f686f7374a92f31302e302e302e31b4726562616c616e63655f74696d656f75745f6d73cdea60b273657373696f6e5f74696d656f75745f6d73cd2710a970726f746f636f6c739192a572616e6765c40200ffaa61737369676e6d656e74c40101b073746174655f6368616e6765645f6d73cd2328');
INSERT INTO public.counters VALUES ('agent_epoch', 3);
INSERT INTO public.counters VALUES ('node_id', 1);
INSERT INTO public.counters VALUES ('producer_id', 1000);
INSERT INTO public.extents VALUES (1, 0, 4, 1, 0, 200, 1000, 1000, 1700000000000);
INSERT INTO public.extents VALUES (2, 0, 5, 1, 200, 100, 1000, 1000, 1700000000000);
INSERT INTO public.extents VALUES (1, 5, 8, 2, 0, 100, 7000, 7000, 1700000000000);
INSERT INTO public.group_offsets VALUES ('\x67726f7570', 1, 5, -1, '\x6d', 1700000000000);
INSERT INTO public.leader VALUES (true, 1);
INSERT INTO public.meta VALUES ('cluster_id', 'zWE-MNjxSt-Rt1hKImWx9Q');
INSERT INTO public.partitions VALUES (1, '\x1e2feb89414c443c9027c4d1c386bbc4', 0, 0, 0);
INSERT INTO public.partitions VALUES (2, '\x1e2feb89414c443c9027c4d1c386bbc4', 1, 0, 0);
INSERT INTO public.producers VALUES (1, 0, '\x9200929300020093030605', 1700000000000);
INSERT INTO public.renewals VALUES (true, 1, 0);
INSERT INTO public.segments VALUES (1, 3, 1, 'segments/1', 400, 1700000000000);
INSERT INTO public.segments VALUES (2, 3, 2, 'segments/2', 300, 1700000000000);
INSERT INTO public.segments VALUES (3, 3, 3, 'segments/3', 90, 1700000000000);
INSERT INTO public.segments VALUES (4, 3, 4, 'segments/4', 80, 1700000000000);
INSERT INTO public.topics VALUES ('\x1e2feb89414c443c9027c4d1c386bbc4', 'logs', 2, '{"retention.ms": "1000"}', 1700000000000);
SELECT pg_catalog.setval('public.partition_keys', 3, true);
ALTER TABLE ONLY public.agents
    ADD CONSTRAINT agents_pkey PRIMARY KEY (agent_uid);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.answers
    ADD CONSTRAINT answers_pkey PRIMARY KEY (agent_epoch, sequence);
ALTER TABLE ONLY public.calls
    ADD CONSTRAINT calls_pkey PRIMARY KEY (call_id);
ALTER TABLE ONLY public.consumer_groups
    ADD CONSTRAINT consumer_groups_pkey PRIMARY KEY (group_id);
ALTER TABLE ONLY public.counters
    ADD CONSTRAINT counters_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.dropped_partitions
    ADD CONSTRAINT dropped_partitions_pkey PRIMARY KEY (partition_key);
ALTER TABLE ONLY public.extents
    ADD CONSTRAINT extents_pkey PRIMARY KEY (partition_key, base_offset);
ALTER TABLE ONLY public.group_offsets
    ADD CONSTRAINT group_offsets_pkey PRIMARY KEY (group_id, partition_key);
ALTER TABLE ONLY public.leader
    ADD CONSTRAINT leader_pkey PRIMARY KEY (one);
ALTER TABLE ONLY public.meta
    ADD CONSTRAINT meta_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.partitions
    ADD CONSTRAINT partitions_pkey PRIMARY KEY (partition_key);
ALTER TABLE ONLY public.partitions
    ADD CONSTRAINT partitions_topic_id_partition_key UNIQUE (topic_id, partition);
ALTER TABLE ONLY public.producers
    ADD CONSTRAINT producers_pkey PRIMARY KEY (partition_key, producer_id);
ALTER TABLE ONLY public.renewals
    ADD CONSTRAINT renewals_pkey PRIMARY KEY (one);
ALTER TABLE ONLY public.segments
    ADD CONSTRAINT segments_agent_epoch_sequence_key UNIQUE (agent_epoch, sequence);
ALTER TABLE ONLY public.segments
    ADD CONSTRAINT segments_pkey PRIMARY KEY (segment_id);
ALTER TABLE ONLY public.topics
    ADD CONSTRAINT topics_pkey PRIMARY KEY (topic_id);
CREATE INDEX group_offsets_by_partition ON public.group_offsets USING btree (partition_key);
