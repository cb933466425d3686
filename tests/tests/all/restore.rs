//! Our own restore, engine only: the database it makes is the source, and what stock `pg_restore` makes; damage is told
//! by table and leaves no database behind.

use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use holdfast_local::postgres::Installation;
use holdfast_local::s3::S3Options;
use holdfast_shared::config::{ObjectChecksum, StoreConfig};
use holdfast_shared::domain::{KeyPrefix, Manifest};
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::connect::Target;
use holdfast_shared::store::Store;
use restore_trigger::engine::{Engine, Options, Origin, Receipt};
use serde_json::json;

use crate::bed::{BUCKET, Bed};
use crate::schema;

const WORKERS: usize = 3;

async fn store(bed: &Bed) -> Store {
    let options = S3Options::default();
    let credentials = Credentials::new(options.access_key, options.secret_key, None, None, "tests");
    let aws = aws_config::SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(options.region))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    let config = StoreConfig {
        bucket: BUCKET.to_owned(),
        prefix: KeyPrefix::default(),
        endpoint_url: Some(bed.s3.endpoint()),
        region: None,
        force_path_style: true,
        checksum: ObjectChecksum::Crc64Nvme,
        credentials_secret_arn: None,
        kms_key_id: None,
        storage_class: None,
    };
    Store::connect(&aws, config).await.unwrap()
}

async fn engine(bed: &Bed) -> Engine {
    Engine {
        store: store(bed).await,
        target: Target::from_url(&bed.cluster.url("postgres")).unwrap(),
        workers: WORKERS,
        lock_timeout: Duration::from_secs(10),
        maintenance_work_mem_mb: 64,
        deadline: Instant::now() + Duration::from_secs(100),
    }
}

fn origin(manifest: &Manifest) -> Origin {
    let artifact = &manifest.artifacts["dump"];
    Origin { key: artifact.key.clone(), version_id: artifact.version_id.clone(), manifest: Some(manifest.clone()) }
}

async fn restore(bed: &Bed, origin: &Origin, name: &str) -> Result<Receipt, Fault> {
    engine(bed).await.new_database(origin, name, Options::default()).await
}

async fn exists(bed: &Bed, database: &str) -> bool {
    let client = bed.cluster.connect("postgres").await.unwrap();
    let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    client.query_one(sql, &[&database]).await.unwrap().get(0)
}

/// Exports, restores with our engine and with `pg_restore`, and compares both with the source.
async fn equals_its_source(major: u16, compression: &str) {
    let bed = Bed::start(major).await;
    schema::create(&bed.cluster, "source", 2_000).await;
    bed.register_export("source", &[("COMPRESSION", compression)]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    let manifest = bed.manifest(&receipt).await;
    let client = Installation::client_at_least(major).unwrap();
    assert_eq!(client.major, major, "a pg_dump of another major writes for its own");

    let restored = restore(&bed, &origin(&manifest), "restored").await.unwrap();
    assert_eq!((restored.rows, restored.large_objects), (manifest.rows(), 3), "{restored:?}");
    assert_eq!((restored.proved_by, restored.left_out.as_slice()), ("fingerprints", [].as_slice()));
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
    assert_eq!(bed.schema(&client, "restored"), bed.schema(&client, "source"));

    let stock = Installation::client(17).unwrap();
    let file = bed.dump_file(&receipt).await;
    bed.restore(if compression.starts_with("zstd") { &stock } else { &client }, &file, "stock", &[]).await;
    assert_eq!(bed.contents("restored").await, bed.contents("stock").await);
    assert_eq!(bed.schema(&client, "restored"), bed.schema(&client, "stock"));

    // Without a manifest: one stream a table, proved by counts.
    let foreign = Origin { manifest: None, ..origin(&manifest) };
    let restored = restore(&bed, &foreign, "foreign").await.unwrap();
    assert_eq!((restored.rows, restored.proved_by), (manifest.rows(), "row counts"));
    assert_eq!(bed.contents("foreign").await, bed.contents("source").await);
}

macro_rules! majors {
    ($($name:ident: $major:literal, $compression:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() { equals_its_source($major, $compression).await; })*
    };
}

majors! {
    restores_into_15: 15, "gzip:1";
    restores_into_15_uncompressed: 15, "none";
    restores_into_16: 16, "gzip:1";
    restores_into_17: 17, "zstd:1";
    restores_into_18: 18, "gzip:1";
    restores_into_18_zstd: 18, "zstd:3";
}

/// One byte changed in each of the larger tables' data, one table at a time.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_by_table_and_leaves_nothing_behind() {
    let bed = Bed::start(17).await;
    schema::create(&bed.cluster, "source", 500).await;
    bed.register_export("source", &[]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    let manifest = bed.manifest(&receipt).await;
    let artifact = &manifest.artifacts["dump"];
    let body = bed.get(&artifact.key).await;
    for table in manifest.tables.iter().filter(|table| table.rows > 100) {
        let piece = table.pieces[0];
        let mut damaged = body.clone();
        damaged[(piece.offset + piece.length / 2) as usize] ^= 0x10;
        let put = bed.client().await.put_object().bucket(BUCKET).key(&artifact.key).body(damaged.into());
        let version_id = put.send().await.unwrap().version_id;
        let origin = Origin { version_id, ..origin(&manifest) };
        let fault = restore(&bed, &origin, "restored").await.unwrap_err();
        assert!(fault.message.contains(&table.name), "{}: {fault}", table.name);
        assert!(matches!(fault.code, "backup-damaged" | "table-load-failed"), "{fault:?}");
        assert!(!exists(&bed, "restored").await, "{fault}");
    }
    // The version the manifest names is still whole.
    restore(&bed, &origin(&manifest), "restored").await.unwrap();
}
