//! The restore engine without the guard in front of it: it is cleared as if everything had been seen.

use std::time::{Duration, Instant};

use holdfast_shared::domain::Manifest;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::{
    Clearance, Facts, Options, Passkey, Restore, SafetyBackup, Source, TargetServer, clear,
};
use holdfast_shared::postgres::connect::Target;
use jiff::{SignedDuration, Timestamp};
use restore_trigger::engine::{Engine, Receipt};
use serde_json::json;

use crate::bed::{BUCKET, Bed, connected};

const WORKERS: usize = 3;

pub async fn engine(bed: &Bed) -> Engine {
    let store = connected(&bed.s3).await;
    Engine {
        own_store: store.clone(),
        store,
        target: Target::from_url(&bed.cluster.url("postgres")).unwrap(),
        workers: WORKERS,
        lock_timeout: Duration::from_secs(10),
        maintenance_work_mem_mb: 64,
        deadline: Instant::now() + Duration::from_secs(100),
    }
}

pub fn backup(manifest: &Manifest) -> Source {
    Source::Backup(Box::new(manifest.clone()))
}

pub fn new(database: &str) -> Restore {
    Restore::NewDatabase { database: database.to_owned() }
}

/// Everything that a clearance demands is so.
pub async fn cleared(bed: &Bed, asked: Restore, source: Source, safety: Option<&Manifest>) -> Clearance {
    cleared_with(bed, asked, source, safety, |_| ()).await
}

pub async fn cleared_with(
    bed: &Bed,
    asked: Restore,
    source: Source,
    safety: Option<&Manifest>,
    choose: impl FnOnce(&mut Options),
) -> Clearance {
    let mut options = Options::default();
    choose(&mut options);
    let client = bed.cluster.connect("postgres").await.unwrap();
    let identifier: String =
        client.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await.unwrap().get(0);
    let databases = client.query("SELECT datname::text FROM pg_database", &[]).await.unwrap();
    let facts = Facts {
        restore: asked,
        options,
        source,
        passkey: Passkey::Accepted,
        environment: "test".parse().unwrap(),
        target: Some(TargetServer {
            major: u32::from(bed.cluster.major()),
            system_identifier: Some(identifier.clone()),
            environment: Some("test".to_owned()),
            databases: databases.iter().map(|row| row.get(0)).collect(),
            ..TargetServer::default()
        }),
        configured_system_identifier: Some(identifier),
        live_database: "source".to_owned(),
        export_function: false,
        safety_backup: safety.map(SafetyBackup::of),
        safety_window: SignedDuration::from_mins(5),
        accepts_left_out: Vec::new(),
        now: Timestamp::now(),
    };
    clear(facts).unwrap()
}

pub async fn restore(bed: &Bed, source: Source, name: &str) -> Result<Receipt, Fault> {
    let clearance = cleared(bed, new(name), source, None).await;
    engine(bed).await.carry_out(clearance).await
}

/// Version and size.
pub async fn put(bed: &Bed, key: &str, body: Vec<u8>) -> (Option<String>, u64) {
    let size = body.len() as u64;
    let sent = bed.client().await.put_object().bucket(BUCKET).key(key).body(body.into()).send().await.unwrap();
    (sent.version_id, size)
}

pub async fn exists(bed: &Bed, database: &str) -> bool {
    let client = bed.cluster.connect("postgres").await.unwrap();
    let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    client.query_one(sql, &[&database]).await.unwrap().get(0)
}

pub async fn exported(bed: &Bed, database: &str) -> Manifest {
    bed.register_export(database, &[]);
    let receipt = bed.export(json!({"purpose": "test"})).await;
    bed.manifest(&receipt).await
}
