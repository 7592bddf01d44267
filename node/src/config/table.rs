//! Every option, once: key in the file, flag, environment variable, kind of value, meaning.
//!
//! The key is the source: `query.timeout` in the file (as `query:` with `timeout:` below it) is `--query-timeout` as a
//! flag and `ENGRAM_QUERY_TIMEOUT` in the environment. The order is the order of help texts and of the written-out
//! configuration.

use super::Config;
use super::codec::{
    Address, Addresses, Advertised, Bytes, Codec, Count, Count32, Filter, Folder, Form, Hidden, Maybe, Millis,
    Partitions, Ranges, Replicas, Size, Some1, Sse, StoreUrl, Sums, Switch, Text, Time, Tries, Word,
};

/// One option.
pub struct Key {
    /// Its key in the file, with dots.
    pub name: &'static str,
    /// What a person should write.
    pub expects: &'static str,
    /// The placeholder in help texts.
    pub short: &'static str,
    /// What it means, in which unit, who changes it and when.
    pub help: &'static str,
    /// Whether the flag may stand alone, for "true".
    pub switch: bool,
    /// Whether its value is shown to nobody.
    pub secret: bool,
    /// Sets it from text.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
    /// Its value as text.
    pub get: fn(&Config) -> String,
}

impl Key {
    /// The flag without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace('.', "-")
    }

    /// The environment variable.
    #[must_use]
    pub fn env(&self) -> String {
        format!("ENGRAM_{}", self.name.replace(['.', '-'], "_").to_ascii_uppercase())
    }

    /// The section of the file, empty at the top.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(section, _)| section)
    }
}

/// What a section is about.
#[must_use]
pub fn section_title(section: &str) -> &'static str {
    match section {
        "" => "Node",
        "cluster" => "Cluster",
        "cluster.tls" => "TLS between nodes",
        "query" => "Queries",
        "write" => "Writes",
        "log" => "The log of samples",
        "blocks" => "From memory to blocks",
        "block-cache" => "Reading blocks",
        "object-store" => "Where blocks are kept",
        "compaction" => "What becomes of blocks",
        "limits" => "Limits of a tenant that has none of its own",
        _ => "Other",
    }
}

macro_rules! key {
    ($name:literal, $codec:ty, $($field:ident).+, $help:literal) => {
        Key {
            name: $name,
            expects: <$codec as Codec>::EXPECTS,
            short: <$codec as Codec>::SHORT,
            help: $help,
            switch: matches!(<$codec as Codec>::SHORT.as_bytes(), b"BOOL"),
            secret: matches!(<$codec as Codec>::SHORT.as_bytes(), b"SECRET"),
            set: |config, text| {
                config.$($field).+ = <$codec as Codec>::read(text)?;
                Ok(())
            },
            get: |config| <$codec as Codec>::show(&config.$($field).+),
        }
    };
}

/// All options.
pub static KEYS: &[Key] = &[
    key!("data-dir", Folder, data_dir, "Where this node keeps its data. One process at a time owns it."),
    key!(
        "http-listen",
        Address,
        http_listen,
        "Address of the HTTP API. The default is reached from this machine only; 0.0.0.0:9009 from all."
    ),
    key!("grpc-listen", Address, grpc_listen, "Address for the other nodes of the cluster."),
    key!("node-name", Word, node_name, "Name of this node, for people; \"auto\" is the machine's."),
    key!(
        "zone",
        Word,
        zone,
        "What fails together with this node (rack, availability zone). Replicas of a partition go to different zones."
    ),
    key!(
        "join",
        Addresses,
        join,
        "gRPC addresses of nodes of the cluster, this one among them if you like: a node without data asks them to let it in. None: this node is a cluster of its own."
    ),
    key!(
        "bootstrap-expect",
        Count32,
        bootstrap_expect,
        "How many nodes of join must see each other before they make a new cluster; 0: never make one, only join. The same on all of them, at most the number of addresses in join and more than half of it. Has no effect once a node belongs to a cluster."
    ),
    key!(
        "grpc-advertise",
        Advertised,
        grpc_advertise,
        "Where other nodes reach this one's gRPC port; auto: the address it listens on, or that of the network card towards them."
    ),
    key!(
        "http-advertise",
        Advertised,
        http_advertise,
        "Where this node's HTTP port is reached, for people and tools; auto: as grpc-advertise."
    ),
    key!(
        "replication-factor",
        Replicas,
        replication_factor,
        "Replicas of each partition, in different zones where there are enough; fewer nodes than that hold one each. The same on all nodes."
    ),
    key!(
        "partitions",
        Partitions,
        partitions,
        "Partitions of the cluster. Read once, when the cluster is made; it never changes after."
    ),
    key!(
        "shard-size",
        Count32,
        shard_size,
        "Partitions a new tenant's series are spread over; 0: all. It can grow later."
    ),
    key!(
        "tenants-max",
        Count32,
        tenants_max,
        "Most tenants of the cluster, so that a sender cannot make more by inventing names."
    ),
    key!(
        "retention",
        Millis,
        retention_ms,
        "How long samples are kept behind a tenant's newest one, unless the tenant says otherwise; 0 keeps them for ever."
    ),
    key!(
        "shutdown-timeout",
        Time,
        shutdown_timeout,
        "How long requests in flight may go on after the node is told to stop."
    ),
    key!("log-level", Filter, log_level, "Which events of the node are logged."),
    key!("log-format", Form, log_format, "Lines for people, or JSON for machines."),
    key!(
        "promql-experimental",
        Switch,
        promql_experimental,
        "Allow the experimental functions and operators of PromQL. They may change or go in any release."
    ),
    key!(
        "cluster.suspect-after",
        Time,
        cluster.suspect_after,
        "How long a node may be silent before the leader calls it suspect. It keeps its replicas."
    ),
    key!(
        "cluster.dead-after",
        Time,
        cluster.dead_after,
        "How long a node may be silent before it is dead for good: its replicas are made elsewhere, and it can only come back as a new node. Longer than your longest restart."
    ),
    key!("cluster.clock-skew-max", Time, cluster.clock_skew_max, "How far a joining node's clock may be off."),
    key!(
        "cluster.repair-every",
        Time,
        cluster.repair_every,
        "How often a node compares its replicas with those of others and takes what it lacks."
    ),
    key!(
        "cluster.snapshot-every",
        Some1,
        cluster.snapshot_every,
        "Entries of the metadata's log after which it is written out as a whole, and all but a tenth of so many are forgotten; a node that lacks some of those gets the whole. Small ones are for tests."
    ),
    key!(
        "cluster.plain-text",
        Switch,
        cluster.plain_text,
        "Let nodes speak without TLS although other machines reach grpc-listen: only where the network is trusted, for whoever reaches that port can read and write everything."
    ),
    key!(
        "cluster.tls.cert",
        Text,
        cluster.tls.cert,
        "PEM file with this node's certificate, and those between it and the CA; nothing: no TLS. Other nodes look at the CA and at cluster.tls.name. Read again when it changes, as the two below."
    ),
    key!("cluster.tls.key", Text, cluster.tls.key, "PEM file with the certificate's key."),
    key!(
        "cluster.tls.ca",
        Text,
        cluster.tls.ca,
        "PEM file with the CA that signs the nodes' certificates; with both while one is replaced by another."
    ),
    key!(
        "cluster.tls.name",
        Word,
        cluster.tls.name,
        "DNS name that the certificate of every node bears, the same on all nodes. Changed when a CA signs other certificates too."
    ),
    key!(
        "query.timeout",
        Time,
        query.timeout,
        "Longest a query may take, waiting for its turn included. Requests may ask for less."
    ),
    key!(
        "query.slow-after",
        Millis,
        query.slow_after_ms,
        "A query that takes longer is logged with its text and what it cost; 0: none is."
    ),
    key!(
        "query.lookback",
        Time,
        query.lookback,
        "How far back an instant selector looks for a sample. Longer than two scrape intervals."
    ),
    key!(
        "query.concurrent-max",
        Some1,
        query.concurrent_max,
        "Queries this node evaluates at once; others wait. More needs more CPUs and memory."
    ),
    key!(
        "query.queue-max",
        Some1,
        query.queue_max,
        "Queries of one tenant that may wait for their turn; more are refused with 429."
    ),
    key!(
        "query.samples-max",
        Count,
        query.samples_max,
        "Most samples one query may hold in memory, whatever the tenant's limit; 16 bytes each."
    ),
    key!(
        "query.bytes-max",
        Size,
        query.bytes_max,
        "Most bytes of samples and labels one query may hold in memory, whatever the tenant's limit."
    ),
    key!(
        "query.node-samples-max",
        Count,
        query.node_samples_max,
        "Most samples all queries of this node hold in memory together, 16 bytes each; above it a query ends with 503."
    ),
    key!(
        "query.push-down",
        Switch,
        query.push_down,
        "Whether other nodes sum up the series that lie with them, instead of shipping them to the node that was asked. Off: to compare, or when sums are suspected."
    ),
    key!(
        "write.body-bytes-max",
        Size,
        write.body_bytes_max,
        "Largest body of a remote-write request, compressed; larger ones are refused with 413."
    ),
    key!(
        "write.decoded-bytes-max",
        Size,
        write.decoded_bytes_max,
        "Largest body of a remote-write request after decompression."
    ),
    key!(
        "write.in-flight-bytes-max",
        Size,
        write.in_flight_bytes_max,
        "Bytes of all write requests in flight, as sent and as unpacked; above it new ones are refused with 503."
    ),
    key!(
        "write.timeout",
        Time,
        write.timeout,
        "How long a write may wait until a majority of replicas has it on disk."
    ),
    key!(
        "log.segment-bytes-max",
        Size,
        log.segment_bytes_max,
        "Size of one file of the log of samples. Files are allocated whole, so small disks want smaller ones."
    ),
    key!(
        "log.checkpoint-bytes-min",
        Size,
        log.checkpoint_bytes_min,
        "A log smaller than this is left alone; a larger one is rewritten in short when it has grown enough. Recovery reads all of it."
    ),
    key!(
        "blocks.window",
        Time,
        blocks.window,
        "The time of one block cut from memory, a multiple of 5m up to 1d; all tools of the format expect 2h. Shorter ones are for tests. Left alone once there is data."
    ),
    key!(
        "blocks.seal-delay",
        Millis,
        blocks.seal_delay_ms,
        "How far past the end of a window a tenant's newest sample must be before the window is cut, besides what may come late."
    ),
    key!(
        "blocks.seal-late-max",
        Millis,
        blocks.seal_late_max_ms,
        "Longest wait for samples that may come late; those that come later are cut to blocks of their own."
    ),
    key!(
        "blocks.seal-idle",
        Millis,
        blocks.seal_idle_ms,
        "A tenant that has sent nothing for so long, by this node's clock, is cut to blocks as it is; 0: never."
    ),
    key!(
        "blocks.work-dir",
        Text,
        blocks.work_dir,
        "Where blocks are built before they are uploaded, emptied at every start; nothing: blocks-work in the data directory. It needs room for a few windows of the largest tenants, and nobody else may use it."
    ),
    key!(
        "blocks.scrub-bytes-per-second",
        Size,
        blocks.scrub_bytes_per_second,
        "How fast blocks are read again to find damage, one after the other for ever. Raised when a round takes too long, lowered when the store or the network is too busy."
    ),
    key!(
        "object-store.url",
        StoreUrl,
        object_store.url,
        "Where blocks are kept for years; nothing: in the directory blocks of the data directory. Changed when the data moves."
    ),
    key!(
        "object-store.endpoint",
        Text,
        object_store.endpoint,
        "http:// or https:// address of the store when it is not the provider's own: MinIO, Ceph, a test. Without a bucket in it."
    ),
    key!(
        "object-store.region",
        Text,
        object_store.region,
        "Region of the bucket (S3); nothing: AWS_REGION, else us-east-1."
    ),
    key!(
        "object-store.path-style",
        Switch,
        object_store.path_style,
        "Whether the bucket is named in the path of a request (S3); false: in the name of the host."
    ),
    key!(
        "object-store.access-key",
        Text,
        object_store.access_key,
        "Name of the key (S3), of the account (Azure); nothing: AWS_ACCESS_KEY_ID, a role of the machine or the pod; AZURE_STORAGE_ACCOUNT_NAME."
    ),
    key!(
        "object-store.secret-key",
        Hidden,
        object_store.secret_key,
        "The key itself (S3, Azure); nothing: as for the access key."
    ),
    key!(
        "object-store.service-account",
        Text,
        object_store.service_account,
        "File with a service account's key (GCS); nothing: GOOGLE_APPLICATION_CREDENTIALS, else the machine's own account."
    ),
    key!(
        "object-store.anonymous",
        Switch,
        object_store.anonymous,
        "Send requests without a signature: for public buckets."
    ),
    key!(
        "object-store.sse",
        Sse,
        object_store.encryption,
        "What the store does with bytes at rest (S3): as the bucket says, with a key of its own, of the key service once or twice, or of ours."
    ),
    key!(
        "object-store.sse-kms-key",
        Text,
        object_store.sse_kms_key,
        "Name of the key service's key, for sse kms and kms-twice."
    ),
    key!(
        "object-store.sse-customer-key",
        Hidden,
        object_store.sse_customer_key,
        "Our key, 32 bytes in base64, for sse customer. Who loses it loses the blocks."
    ),
    key!(
        "object-store.checksum",
        Sums,
        object_store.checksum,
        "What the store holds uploads against and keeps with them (S3), besides the SHA-256 in the signature: sha256 where the bucket asks for it (object lock), crc64nvme the same for less CPU where the store knows it."
    ),
    key!(
        "object-store.timeout",
        Time,
        object_store.timeout,
        "Longest one request may take, its body included; it is sent again then."
    ),
    key!(
        "object-store.connect-timeout",
        Time,
        object_store.connect_timeout,
        "Longest until a connection to the store is there."
    ),
    key!(
        "object-store.retries-max",
        Tries,
        object_store.retries_max,
        "How often a request that failed by the store's fault is sent again."
    ),
    key!(
        "object-store.retry-timeout",
        Time,
        object_store.retry_timeout,
        "After this long a request is not sent again."
    ),
    key!(
        "object-store.backoff-min",
        Time,
        object_store.backoff_min,
        "First wait before a request is sent again; each further one is longer."
    ),
    key!("object-store.backoff-max", Time, object_store.backoff_max, "Longest wait before a request is sent again."),
    key!(
        "object-store.requests-max",
        Some1,
        object_store.requests_max,
        "Requests in flight of this node; others wait. More when the store is far and many queries are cold."
    ),
    key!(
        "object-store.part-bytes",
        Size,
        object_store.part_bytes,
        "Files larger than this are uploaded in parts of this size, at least 5MiB; four parts are in memory at once."
    ),
    key!(
        "block-cache.index-bytes-max",
        Size,
        block_cache.index_bytes_max,
        "Memory for the opened indexes of blocks. More when many blocks are read again and again."
    ),
    key!(
        "block-cache.memory-bytes-max",
        Size,
        block_cache.memory_bytes_max,
        "Memory for parts of blocks that lie in a bucket; a directory needs none."
    ),
    key!(
        "block-cache.disk-bytes-max",
        Bytes,
        block_cache.disk_bytes_max,
        "Space below cache in the data directory for parts of blocks that lie in a bucket; 0: none."
    ),
    key!(
        "block-cache.in-flight-bytes-max",
        Size,
        block_cache.in_flight_bytes_max,
        "Bytes of blocks on their way from a bucket, over all queries; others wait."
    ),
    key!(
        "block-cache.hedging",
        Switch,
        block_cache.hedging,
        "Whether a request to a bucket that takes longer than 19 of 20 is sent a second time; at most one in ten is."
    ),
    key!(
        "compaction.ranges",
        Ranges,
        compaction.ranges_ms,
        "Lengths of time whose blocks become one, each a multiple of the one before and of the window; shorter ones are without effect. Longer ones: fewer blocks to look into, more bytes rewritten."
    ),
    key!(
        "compaction.interval",
        Time,
        compaction.interval,
        "How often to look for something to do, besides after each job."
    ),
    key!(
        "compaction.jobs-max",
        Some1,
        compaction.jobs_max,
        "Jobs this node does at once; each keeps a CPU busy. More when compaction falls behind."
    ),
    key!(
        "compaction.series-max",
        Count,
        compaction.series_max,
        "Series a block is meant to have; larger tenants are divided by series. Indexes are held in memory while a block is written."
    ),
    key!(
        "compaction.bytes-max",
        Size,
        compaction.bytes_max,
        "Bytes a block is meant to have; above it, as with series."
    ),
    key!(
        "compaction.space-bytes-max",
        Size,
        compaction.space_bytes_max,
        "Bytes of the data directory that jobs may use for copies and results; one job alone may use more."
    ),
    key!(
        "compaction.deletion-delay",
        Millis,
        compaction.deletion_delay_ms,
        "How long deleted series, hidden at once, stay in blocks: so that several deletions cost one rewrite."
    ),
    key!(
        "compaction.grace",
        Millis,
        compaction.grace_ms,
        "How long the objects of a block that is not read any more stay: longer than the longest query."
    ),
    key!(
        "compaction.orphan-age",
        Millis,
        compaction.orphan_after_ms,
        "Age at which objects of ours that no metadata names are deleted: longer than the longest upload."
    ),
    key!(
        "limits.ingestion-rate",
        Count,
        limits.ingestion_rate,
        "Samples a second a tenant may send, over the cluster; 0: no limit."
    ),
    key!(
        "limits.ingestion-burst-size",
        Count,
        limits.ingestion_burst_size,
        "Samples it may send at once above the rate."
    ),
    key!("limits.max-label-name-length", Count32, limits.max_label_name_length, "Longest label name, in bytes."),
    key!(
        "limits.max-label-value-length",
        Count32,
        limits.max_label_value_length,
        "Longest label value, in bytes, the metric's name too."
    ),
    key!("limits.max-label-names-per-series", Count32, limits.max_label_names_per_series, "Most labels of a series."),
    key!(
        "limits.enforce-metric-name",
        Switch,
        limits.enforce_metric_name,
        "Whether every series must have a metric name."
    ),
    key!(
        "limits.max-global-series-per-user",
        Count,
        limits.max_global_series_per_user,
        "Most active series of a tenant, over the cluster; 0: no limit."
    ),
    key!(
        "limits.creation-grace-period",
        Millis,
        limits.creation_grace_period_ms,
        "How far ahead of this node's clock a sample may lie."
    ),
    key!(
        "limits.out-of-order-time-window",
        Millis,
        limits.out_of_order_time_window_ms,
        "How far behind the tenant's newest sample one may still come; 0: series must be in order."
    ),
    key!(
        "limits.compactor-blocks-retention-period",
        Maybe,
        limits.compactor_blocks_retention_period_ms,
        "How far behind the tenant's newest sample a block may lie before it is deleted; 0: for ever; auto: as retention says."
    ),
    key!("limits.max-exemplars", Count32, limits.max_exemplars, "Exemplars kept in memory; 0: none."),
    key!("limits.max-metadata-per-user", Count32, limits.max_metadata_per_user, "Metrics with metadata kept."),
    key!(
        "limits.max-metadata-length",
        Count32,
        limits.max_metadata_length,
        "Longest help text, unit or name in metadata, in bytes; longer texts are cut."
    ),
    key!(
        "limits.max-native-histogram-buckets",
        Count32,
        limits.max_native_histogram_buckets,
        "Most buckets of a native histogram; 0: no limit."
    ),
    key!("limits.max-query-length", Millis, limits.max_query_length_ms, "Longest time range of a query; 0: no limit."),
    key!(
        "limits.max-fetched-series-per-query",
        Count,
        limits.max_fetched_series_per_query,
        "Most series one query may touch; 0: no limit."
    ),
    key!(
        "limits.max-fetched-chunk-bytes-per-query",
        Bytes,
        limits.max_fetched_chunk_bytes_per_query,
        "Most bytes of chunks one query may read from blocks; 0: no limit."
    ),
    key!(
        "limits.max-samples-per-query",
        Count,
        limits.max_samples_per_query,
        "Most samples one query may hold in memory."
    ),
    key!(
        "limits.max-bytes-per-query",
        Count,
        limits.max_bytes_per_query,
        "Bytes of samples and labels one query may hold in memory. 0: no limit but the node's."
    ),
];
