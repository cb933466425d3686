//! Retention on an S3 server that checks its rights, and backups for it to judge.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use holdfast_local::lambda::{FunctionSpec, InvokeOutcome, LambdaOptions, LambdaServer};
use holdfast_local::s3::{BucketOptions, Permissions, S3Options, S3Server};
use serde_json::{Value, json};

use crate::bed::{BUCKET, function};

pub const RETENTION: &str = "retention";
pub const KEY: (&str, &str) = ("retention-role", "retention-role-secret");
pub const LEASE: &str = "runs/retention/lease.json";
pub const STATE: &str = "runs/retention/state.json";
pub const LAST_TWO: &str = r#"{"rules":[{"keep_last":2}]}"#;

/// No version may be deleted, and no manifest at all.
pub fn rights() -> Permissions {
    crate::bed::rights(RETENTION, &[""], &[])
}

pub struct Rig {
    pub s3: S3Server,
    pub lambda: LambdaServer,
    client: aws_sdk_s3::Client,
}

impl Rig {
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        Self::on(S3Options::default(), settings).await
    }

    pub async fn on(options: S3Options, settings: &[(&str, &str)]) -> Self {
        let s3 = S3Server::start(options).await.unwrap();
        s3.store().create_bucket(BUCKET, BucketOptions { versioning: true, object_lock: false }).unwrap();
        s3.store().add_key(KEY.0, KEY.1, Some(rights()));
        let lambda = LambdaServer::start(LambdaOptions::default()).await.unwrap();
        lambda.register(spec(&s3, settings));
        let client = crate::bed::s3_client(&s3);
        Self { s3, lambda, client }
    }

    pub fn client(&self) -> aws_sdk_s3::Client {
        self.client.clone()
    }

    pub async fn put(&self, key: &str, body: impl Into<Vec<u8>>) {
        let body = ByteStream::from(body.into());
        self.client().put_object().bucket(BUCKET).key(key).body(body).send().await.unwrap();
    }

    pub async fn json(&self, key: &str) -> Value {
        let object = self.client().get_object().bucket(BUCKET).key(key).send().await.unwrap();
        serde_json::from_slice(&object.body.collect().await.unwrap().into_bytes()).unwrap()
    }

    /// As if what has been reported had been reported a day before.
    pub async fn a_day_passes(&self) {
        let mut state = self.json(STATE).await;
        for at in state["reported"].as_object_mut().unwrap().values_mut() {
            let reported: jiff::Timestamp = at.as_str().unwrap().parse().unwrap();
            *at = json!(reported - jiff::SignedDuration::from_hours(24));
        }
        self.put(STATE, state.to_string()).await;
    }

    /// A backup with its artifacts.
    pub async fn backup(&self, manifest: &Value) {
        for artifact in manifest["artifacts"].as_object().unwrap().values() {
            let key = artifact["key"].as_str().unwrap();
            if key.ends_with('/') {
                self.put(&format!("{key}a.parquet"), "data").await;
                self.put(&format!("{key}shop/b.parquet"), "data").await;
            } else {
                self.put(key, "data").await;
            }
        }
        self.put(&manifest_key(manifest["timestamp"].as_str().unwrap()), manifest.to_string()).await;
    }

    pub async fn invoke(&self, payload: Value) -> InvokeOutcome {
        self.lambda.invoke(RETENTION, payload).await.unwrap()
    }

    pub async fn run(&self, payload: Value) -> Value {
        let outcome = self.invoke(payload).await;
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    /// Code and message.
    pub async fn fails(&self, payload: Value) -> (String, String) {
        let outcome = self.invoke(payload).await;
        assert!(outcome.is_error(), "{:#}", outcome.payload);
        let text = |field: &str| outcome.payload[field].as_str().unwrap_or_default().to_owned();
        (text("errorType"), text("errorMessage"))
    }

    /// Keys whose current version is an object.
    pub fn present(&self) -> BTreeSet<String> {
        let objects = self.s3.store().objects(BUCKET).into_iter();
        objects.filter(|object| object.is_latest && !object.delete_marker).map(|object| object.key).collect()
    }

    pub fn dumps(&self) -> Vec<String> {
        let keys = self.present().into_iter().filter(|key| key.contains("/dumps/"));
        keys.map(|key| key.rsplit('/').next().unwrap()[..8].to_owned()).collect()
    }

    /// What writes or deletes, by operation.
    pub fn changes(&self) -> BTreeMap<String, usize> {
        let mut changes = BTreeMap::new();
        for request in self.s3.store().requests() {
            let lease = request.key.as_deref() == Some(LEASE);
            if !lease && !request.operation.starts_with("Get") && !request.operation.starts_with("List") {
                *changes.entry(request.operation).or_default() += 1;
            }
        }
        changes
    }

    /// Nothing was ever deleted but by a marker.
    pub fn no_version_was_deleted(&self) {
        for request in self.s3.store().requests() {
            let deletes = request.operation.starts_with("DeleteObject");
            assert!(!deletes || !request.query.contains("versionId"), "{request:?}");
        }
        let refused = self.s3.store().requests().into_iter().find(|request| request.operation == "DeleteObjectVersion");
        assert!(refused.is_none());
    }
}

pub fn spec(s3: &S3Server, settings: &[(&str, &str)]) -> FunctionSpec {
    let usual = [("ENVIRONMENT", "production"), ("DEADLINE_MARGIN_SECONDS", "1")];
    let mut spec = function(RETENTION, s3, KEY, &[&usual, settings].concat());
    spec.timeout = Duration::from_secs(120);
    spec
}

pub fn manifest_key(id: &str) -> String {
    format!("postgres-exports/metadata/{}-{}-{}/{id}.json", &id[..4], &id[4..6], &id[6..8])
}

pub fn dump_key(id: &str) -> String {
    format!("postgres-exports/dumps/{}-{}-{}/{id}.dump", &id[..4], &id[4..6], &id[6..8])
}

/// A verified daily backup of production's `shop`.
pub fn manifest(id: &str) -> Value {
    json!({
        "timestamp": id, "manifest_version": 1, "state": "complete", "environment": "production", "purpose": "daily_backup",
        "source": {"type": "postgresql", "instance": "db", "database": "shop", "snapshot_id": "1"},
        "artifacts": {"dump": {"key": dump_key(id), "size_bytes": 4, "compression": "zstd:1"}},
        "tables": [{"schema": "public", "name": "orders", "rows": 1000, "bytes": 50000, "fingerprint": "x", "pieces": []}],
        "verified": {"at": "2025-01-01T00:00:00Z", "by": "read-back"},
        "kept_field": {"b": 1, "a": 2},
    })
}

/// The n-th of January 2025.
pub fn day(n: usize) -> String {
    format!("202501{n:02}-020000")
}

pub async fn days(rig: &Rig, days: std::ops::RangeInclusive<usize>) {
    for n in days {
        rig.backup(&manifest(&day(n))).await;
    }
}

pub fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect()
}
