//! Retention of what RDS makes: folders of Parquet files, which never stand in for a backup, and manual snapshots of our
//! taking, which go under the same policy. Nobody else's snapshot is touched.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use holdfast_local::lambda::{FunctionSpec, LambdaOptions, LambdaServer};
use holdfast_local::rds::{RdsServer, Snapshot};
use holdfast_local::s3::{BucketOptions, S3Options, S3Server};
use serde_json::{Value, json};

use crate::bed::{BUCKET, binary, s3_client};

const RETENTION: &str = "retention";
const KEY: (&str, &str) = ("retention-role", "retention-role-secret");
const LAST_TWO: &str = r#"{"rules":[{"keep_last":2}]}"#;

struct Rig {
    s3: S3Server,
    rds: RdsServer,
    lambda: LambdaServer,
}

impl Rig {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let s3 = S3Server::start(S3Options::default()).await.unwrap();
        s3.store().create_bucket(BUCKET, BucketOptions { versioning: true, object_lock: false }).unwrap();
        s3.store().add_key(KEY.0, KEY.1, Some(crate::retention_rig::rights()));
        let rds = RdsServer::start().await.unwrap();
        rds.allow_only(crate::bed::rds_rights(RETENTION));
        let lambda = LambdaServer::start(LambdaOptions::default()).await.unwrap();
        let mut spec = FunctionSpec::new(RETENTION, binary(RETENTION))
            .env("BUCKET", BUCKET)
            .env("ENVIRONMENT", "production")
            .env("RETENTION_POLICY", LAST_TWO)
            .env("S3_ENDPOINT_URL", s3.endpoint())
            .env("S3_FORCE_PATH_STYLE", "true")
            .env("AWS_ENDPOINT_URL_RDS", rds.endpoint())
            .env("AWS_ACCESS_KEY_ID", KEY.0)
            .env("AWS_SECRET_ACCESS_KEY", KEY.1)
            .env("AWS_EC2_METADATA_DISABLED", "true");
        spec.timeout = Duration::from_secs(120);
        for (name, value) in settings {
            spec = spec.env(*name, *value);
        }
        lambda.register(spec);
        Self { s3, rds, lambda }
    }

    async fn put(&self, key: &str, body: String) {
        let body = ByteStream::from(body.into_bytes());
        s3_client(&self.s3).put_object().bucket(BUCKET).key(key).body(body).send().await.unwrap();
    }

    async fn run(&self, payload: Value) -> Value {
        let outcome = self.lambda.invoke(RETENTION, payload).await.unwrap();
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    async fn fails(&self) -> String {
        let outcome = self.lambda.invoke(RETENTION, json!({})).await.unwrap();
        assert!(outcome.is_error(), "{:#}", outcome.payload);
        outcome.payload["errorMessage"].as_str().unwrap().to_owned()
    }

    fn present(&self, part: &str) -> BTreeSet<String> {
        let objects = self.s3.store().objects(BUCKET).into_iter();
        let live = objects.filter(|object| object.is_latest && !object.delete_marker).map(|object| object.key);
        live.filter(|key| key.contains(part)).collect()
    }

    fn snapshots(&self) -> BTreeSet<String> {
        self.rds.snapshots().into_iter().map(|snapshot| snapshot.id).collect()
    }

    async fn backup(&self, manifest: &Value) {
        let id = manifest["timestamp"].as_str().unwrap();
        for artifact in manifest["artifacts"].as_object().unwrap().values() {
            let key = artifact["key"].as_str().unwrap();
            let names: &[&str] =
                if key.ends_with('/') { &["export_info.json", "shop/public.a/1/part.parquet"] } else { &[""] };
            for name in names {
                self.put(&format!("{key}{name}"), "data".to_owned()).await;
            }
        }
        let (year, month, day) = (&id[..4], &id[4..6], &id[6..8]);
        self.put(&format!("postgres-exports/metadata/{year}-{month}-{day}/{id}.json"), manifest.to_string()).await;
    }
}

fn day(day: u8) -> String {
    format!("202506{day:02}-020000")
}

/// As `snapshot-export` writes it, but for what retention does not read.
fn export(n: u8) -> Value {
    let folder = format!("postgres-exports/rds-exports/2025-06-{n:02}/export-{}/", day(n));
    json!({
        "timestamp": day(n), "manifest_version": 1, "state": "complete", "restorable": false, "environment": "production",
        "purpose": "rds_export", "source": {"type": "rds", "instance": "shop-db", "snapshot_id": "rds:shop-db"},
        "artifacts": {"rds-export": {"key": folder, "size_bytes": 8, "objects": 2, "compression": "gzip", "format": "parquet"}},
        "tables": [{"database": "shop", "schema": "public", "name": "a", "bytes": 4, "size_gb": 4e-9}],
    })
}

fn dump(n: u8, database: &str) -> Value {
    json!({
        "timestamp": day(n), "manifest_version": 1, "state": "complete", "environment": "production",
        "purpose": "daily_backup", "source": {"type": "postgresql", "instance": "shop-db", "database": database, "snapshot_id": "1"},
        "artifacts": {"dump": {"key": format!("postgres-exports/dumps/2025-06-{n:02}/{}.dump", day(n)), "size_bytes": 4}},
        "verified": {"at": "2025-06-01T03:00:00Z", "by": "read-back"},
        "tables": [{"schema": "public", "name": "a", "rows": 1, "bytes": 4}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_go_by_the_policy_and_never_stand_in_for_a_backup() {
    let rig = Rig::start(&[("RETENTION_POLICY", r#"{"rules":[{"keep_last":1}]}"#)]).await;
    // Newer exports, also one that says it is of the same database, push no dump out.
    rig.backup(&dump(1, "shop-db")).await;
    for n in 2..=5 {
        rig.backup(&export(n)).await;
    }
    let dry = rig.run(json!({"dry_run": true})).await;
    assert_eq!(dry["plan"]["snapshots"], Value::Null);
    let expired: Vec<&str> =
        dry["plan"]["expire"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(expired, [day(2), day(3), day(4)]);
    let kept = &dry["plan"]["keep"][0];
    assert!(kept["id"] == day(1) && kept["reasons"].to_string().contains("newest verified"), "{kept}");
    assert_eq!(rig.present("rds-exports/").len(), 8, "a dry run deletes nothing");

    let real = rig.run(json!({})).await;
    assert_eq!(real["plan"]["expire"], dry["plan"]["expire"]);
    let left = rig.present("rds-exports/");
    assert!(left.len() == 2 && left.iter().all(|key| key.contains(&day(5))), "{left:?}");
    assert_eq!(rig.present("/dumps/").len(), 1);
    let deleted = rig.s3.store().objects(BUCKET).into_iter().filter(|object| object.delete_marker).count();
    assert_eq!(deleted, 6, "each object by a marker, and every version is still there");
    assert_eq!(rig.present("/metadata/").len(), 5, "tombstones stay");
    assert_eq!(rig.run(json!({})).await["done"]["expired"], 0);
    assert!(rig.rds.calls().is_empty(), "RDS is asked nothing unless it is configured");

    // A deletion by hand of the last dump is refused as ever, whatever exports there are.
    let outcome = rig.lambda.invoke(RETENTION, json!({"delete": day(1)})).await.unwrap();
    assert_eq!(outcome.payload["errorType"], "retention-last-verified");
}

fn ours(n: u8) -> Snapshot {
    let mut snapshot =
        Snapshot::manual(&format!("manual-export-{}", day(n)), "shop", &format!("2025-06-{n:02}T02:00:00Z"));
    let tags =
        [("holdfast:environment", "production"), ("holdfast:backup-id", &day(n)), ("holdfast:purpose", "rds_export")];
    snapshot.tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_snapshots_of_our_taking_go_by_the_same_policy_and_no_others() {
    let rig = Rig::start(&[("PRUNE_RDS_SNAPSHOTS", "true"), ("RDS_SOURCES", "shop,cluster:aurora")]).await;
    rig.rds.set_page_size(3);
    for n in 1..=6 {
        rig.rds.add_snapshot(ours(n));
    }
    for n in 11..=14 {
        rig.rds.add_snapshot(Snapshot { server: "aurora".into(), ..ours(n).of_cluster() });
    }
    let mut held = export(12);
    held["hold"] = json!(true);
    rig.backup(&held).await;
    let foreign = [
        Snapshot::automated("rds:shop-2025-06-01-02-00", "shop", "2025-06-01T02:00:00Z"),
        Snapshot::manual("before-migration", "shop", "2025-06-01T02:00:00Z"),
        Snapshot::manual(&format!("manual-export-{}", day(7)), "shop", "2025-06-01T02:00:00Z"),
        Snapshot { server: "other".into(), ..ours(8) },
    ];
    let mut staging = ours(9);
    staging.tags.insert("holdfast:environment".into(), "staging".into());
    let mut stays: BTreeSet<String> = foreign.iter().chain([&staging]).map(|snapshot| snapshot.id.clone()).collect();
    for snapshot in foreign.into_iter().chain([staging]) {
        rig.rds.add_snapshot(snapshot);
    }
    let pin = json!({"backup_id": day(1), "request_id": "r-1", "purpose": "restore"});
    rig.put(&format!("pins/{}/r-1.json", day(1)), pin.to_string()).await;
    let run = json!({
        "backup_id": day(2), "event_key": "e", "environment": "production", "server": {"kind": "instance", "id": "shop"},
        "snapshot_id": format!("manual-export-{}", day(2)), "purpose": "rds_export", "created_by": "schedule",
        "begun": "2025-06-02T02:00:00Z", "state": "exporting", "written_by": "r", "revision": 1,
    });
    rig.put(&format!("runs/rds-exports/{}.json", day(2)), run.to_string()).await;

    let dry = rig.run(json!({"dry_run": true})).await;
    let ids = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&dry["plan"]["snapshots"]["delete"]), [day(3), day(4), day(11)]);
    let kept = dry["plan"]["snapshots"]["keep"].to_string();
    for reason in ["pinned by r-1", "its export is under way", "newest", "last 2", "hold"] {
        assert!(kept.contains(reason), "{reason} in {kept}");
    }
    assert!(rig.rds.calls_of("DeleteDBSnapshot").is_empty());

    // One cannot be deleted: the other is, and the run says so.
    rig.rds.fail("DeleteDBSnapshot", 400, "InvalidDBSnapshotState", "it is being copied", 1);
    let message = rig.fails().await;
    assert!(message.contains(&day(3)) && message.contains("being copied"), "{message}");
    let real = rig.run(json!({})).await;
    assert_eq!(ids(&real["plan"]["snapshots"]["delete"]), [day(3)]);
    assert_eq!(real["done"]["snapshots_deleted"], json!([format!("manual-export-{}", day(3))]));
    assert_eq!(rig.rds.calls_of("DeleteDBClusterSnapshot").len(), 1);
    stays.extend([1, 2, 5, 6, 12, 13, 14].map(|n| format!("manual-export-{}", day(n))));
    assert_eq!(rig.snapshots(), stays);
    assert_eq!(rig.run(json!({})).await["done"]["snapshots_deleted"], json!([]));

    // Rights that are missing fail the run, and not what it does in the bucket.
    for n in 1..=4 {
        rig.backup(&dump(n, "shop")).await;
    }
    rig.rds.fail("DescribeDBSnapshots", 403, "AccessDenied", "not authorized to perform: rds:DescribeDBSnapshots", 1);
    let message = rig.fails().await;
    assert!(message.contains("rds-access-denied") && message.contains("rds:DescribeDBSnapshots"), "{message}");
    assert_eq!(rig.present("/dumps/").len(), 3, "all but the pinned one beyond the last two");

    // What blocks the databases of an environment blocks its snapshots.
    let mut unverified = dump(20, "other");
    unverified.as_object_mut().unwrap().remove("verified");
    rig.backup(&unverified).await;
    rig.rds.add_snapshot(ours(10));
    let blocked = rig.run(json!({"dry_run": true})).await;
    assert_eq!(blocked["plan"]["snapshots"]["delete"], json!([]));
    assert!(blocked["plan"]["snapshots"]["keep"].to_string().contains("blocked: no_verified_backup"), "{blocked:#}");
}
