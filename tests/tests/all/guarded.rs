//! A bed with the restore function on it, for tests of what it allows and does: servers, secrets, rights and records.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_local::lambda::{InvokeOptions, InvokeOutcome};
use holdfast_local::s3::Permissions;
use holdfast_local::secrets::SecretsServer;
use serde_json::{Value, json};

use crate::bed::{BUCKET, Bed, binary, function};
use crate::scene::small_database;

pub const RESTORE: &str = "restore-trigger";
const ROLE: (&str, &str) = ("restore-role", "restore-role-secret");
pub const PASSKEY: &str = "correct horse battery";
pub const PASSKEY_SECRET: &str = "arn:passkey";
pub const BACKUP: &str = "20250621-143000";
const MAJOR: u16 = 17;

fn restore_rights() -> Permissions {
    crate::bed::rights(RESTORE, &["", "test/"], &["", "test/", "staging/"])
}

/// What `restore-trigger hash-passkey` makes of a line.
pub fn hash(passkey: &str) -> (bool, String) {
    let mut child = Command::new(binary(RESTORE))
        .arg("hash-passkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{passkey}").unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// A bed with the restore function for its database `shop`.
pub struct Guarded {
    pub bed: Bed,
    pub secrets: SecretsServer,
    pub system_identifier: String,
}

impl Guarded {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings over the usual ones; an empty one is not set.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let bed = Bed::start(MAJOR).await;
        small_database(&bed, "shop").await;
        bed.store().add_key(ROLE.0, ROLE.1, Some(restore_rights()));
        let secrets = SecretsServer::start().await.unwrap();
        secrets.set(PASSKEY_SECRET, hash(PASSKEY).1);
        let client = bed.cluster.connect("shop").await.unwrap();
        let row = client.query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await.unwrap();
        let guarded = Self { bed, secrets, system_identifier: row.get(0) };
        guarded.register(settings);
        guarded
    }

    pub fn register(&self, settings: &[(&str, &str)]) {
        let (database, secrets) = (self.bed.cluster.url("shop"), self.secrets.endpoint());
        let usual = [
            ("ENVIRONMENT", "test"),
            ("DATABASE_URL", &database),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", secrets),
            ("AWS_ENDPOINT_URL_LAMBDA", &self.bed.lambda.endpoint()),
            ("RESTORE_PASSKEY_SECRET_ARN", PASSKEY_SECRET),
            ("TARGET_SYSTEM_IDENTIFIER", &self.system_identifier),
        ];
        let mut spec = function(RESTORE, &self.bed.s3, ROLE, &[&usual, settings].concat());
        spec.timeout = Duration::from_secs(90);
        self.bed.lambda.register(spec);
    }

    pub async fn ask(&self, payload: Value) -> InvokeOutcome {
        self.bed.lambda.invoke(RESTORE, payload).await.unwrap()
    }

    pub async fn ask_as(&self, request_id: &str, payload: Value) -> InvokeOutcome {
        let options = InvokeOptions { request_id: Some(request_id.to_owned()), ..InvokeOptions::default() };
        self.bed.lambda.invoke_with(RESTORE, payload, options).await.unwrap()
    }

    /// Asks and expects a refusal or failure; its code.
    pub async fn refused(&self, payload: Value) -> String {
        code(&self.ask(payload).await)
    }

    /// Asks, and expects that the guard let it pass; the record.
    pub async fn passes(&self, payload: Value) -> Value {
        let outcome = self.ask(payload).await;
        let record = self.record(&outcome.request_id).await;
        assert!(record["cleared"].is_object(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        record
    }

    pub async fn plan(&self, payload: Value) -> Value {
        let outcome = self.ask(payload).await;
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    pub fn keys(&self, part: &str) -> Vec<String> {
        let objects = self.bed.store().objects(BUCKET);
        let mut keys: Vec<String> =
            objects.into_iter().map(|object| object.key).filter(|key| key.contains(part)).collect();
        // One entry a version.
        keys.dedup();
        keys
    }

    pub async fn json(&self, key: &str) -> Value {
        serde_json::from_slice(&self.bed.get(key).await).unwrap()
    }

    pub async fn record(&self, request_id: &str) -> Value {
        let keys = self.keys(&format!("{request_id}.json"));
        let key = keys.iter().find(|key| key.contains("restores/")).unwrap_or_else(|| panic!("{keys:?}"));
        self.json(key).await
    }

    pub async fn put(&self, key: &str, body: impl Into<Vec<u8>>) {
        let put = self.bed.client().await.put_object().bucket(BUCKET).key(key);
        put.body(body.into().into()).send().await.unwrap();
    }

    pub async fn put_manifest(&self, root: &str, manifest: &Value) {
        let id = manifest["timestamp"].as_str().unwrap();
        self.put(&manifest_key(root, id), manifest.to_string()).await;
    }

    pub async fn databases(&self) -> Vec<String> {
        let client = self.bed.cluster.connect("postgres").await.unwrap();
        let rows = client.query("SELECT datname::text FROM pg_database ORDER BY 1", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

pub fn code(outcome: &InvokeOutcome) -> String {
    assert!(outcome.is_error(), "{:#}", outcome.payload);
    outcome.payload["errorType"].as_str().unwrap_or_default().to_owned()
}

pub fn codes(problems: &Value) -> Vec<&str> {
    problems.as_array().unwrap().iter().map(|problem| problem["code"].as_str().unwrap()).collect()
}

fn day(id: &str) -> String {
    format!("{}-{}-{}", &id[..4], &id[4..6], &id[6..8])
}

pub fn manifest_key(root: &str, id: &str) -> String {
    format!("{root}postgres-exports/metadata/{}/{id}.json", day(id))
}

/// A backup of `shop`, from a server that is not the bed's.
pub fn manifest(root: &str, id: &str) -> Value {
    let dump = format!("{root}postgres-exports/dumps/{}/{id}.dump", day(id));
    json!({
        "timestamp": id, "export_date": day(id),
        "source": {"type": "postgresql", "instance": "h", "database": "shop", "snapshot_id": "s"},
        "export_duration_minutes": 1, "export_complete": "2025-06-21T14:31:00Z", "manifest_version": 1,
        "state": "complete", "environment": "test", "purpose": "daily_backup", "created_by": "schedule",
        "event_key": "k",
        "server": {"version": "17.5", "major": 17, "system_identifier": "1", "wal_lsn": null, "role": "primary",
                   "encoding": "UTF8"},
        "artifacts": {"dump": {"key": dump, "size_bytes": 1000, "compression": "zstd:1", "archive_version": "1.16",
                               "pg_restore_major": 17, "pg_dump_version": "17.5"}},
        "tables": [{"schema": "public", "name": "orders", "rows": 2000, "bytes": 50000,
                    "fingerprint": "xxh3-128-sum:00000000000000000000000000000000", "columns": ["id"], "offset": 10,
                    "length": 900, "pieces": []}],
        "schema_fingerprint": "f",
        "durations_seconds": {"to_first_row": 0.1, "data": 10.0, "commit": 0.1, "total": 10.2},
        "verified": {"at": "2025-06-21T14:31:00Z", "by": "read-back"},
    })
}

pub fn edited(mut manifest: Value, edit: impl FnOnce(&mut Value)) -> Value {
    edit(&mut manifest);
    manifest
}
