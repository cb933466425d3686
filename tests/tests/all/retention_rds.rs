//! Retention of what RDS makes: folders of Parquet files, which never stand in for a backup, and manual snapshots of our
//! taking, which go under the same policy. Nobody else's snapshot is touched.

use std::collections::BTreeSet;

use holdfast_local::rds::{RdsServer, Snapshot};
use serde_json::{Value, json};

use crate::bed::BUCKET;
use crate::retention_rig::{LAST_TWO, RETENTION, Rig, ids};

async fn start(settings: &[(&str, &str)]) -> (Rig, RdsServer) {
    let rds = RdsServer::start().await.unwrap();
    rds.allow_only(crate::bed::rds_rights(RETENTION));
    let endpoint = rds.endpoint();
    let usual = [("RETENTION_POLICY", LAST_TWO), ("AWS_ENDPOINT_URL_RDS", endpoint.as_str())];
    (Rig::start(&[&usual, settings].concat()).await, rds)
}

fn present(rig: &Rig, part: &str) -> BTreeSet<String> {
    rig.present().into_iter().filter(|key| key.contains(part)).collect()
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
    let (rig, rds) = start(&[("RETENTION_POLICY", r#"{"rules":[{"keep_last":1}]}"#)]).await;
    // Newer exports, also one that says it is of the same database, push no dump out.
    rig.backup(&dump(1, "shop-db")).await;
    for n in 2..=5 {
        rig.backup(&export(n)).await;
    }
    let dry = rig.run(json!({"dry_run": true})).await;
    assert_eq!(dry["plan"]["snapshots"], Value::Null);
    assert_eq!(ids(&dry["plan"]["expire"]), [day(2), day(3), day(4)]);
    let kept = &dry["plan"]["keep"][0];
    assert!(kept["id"] == day(1) && kept["reasons"].to_string().contains("newest verified"), "{kept}");
    assert_eq!(present(&rig, "rds-exports/").len(), 8, "a dry run deletes nothing");

    let real = rig.run(json!({})).await;
    assert_eq!(real["plan"]["expire"], dry["plan"]["expire"]);
    let left = present(&rig, "rds-exports/");
    assert!(left.len() == 2 && left.iter().all(|key| key.contains(&day(5))), "{left:?}");
    assert_eq!(present(&rig, "/dumps/").len(), 1);
    let deleted = rig.s3.store().objects(BUCKET).into_iter().filter(|object| object.delete_marker).count();
    assert_eq!(deleted, 6, "each object by a marker, and every version is still there");
    assert_eq!(present(&rig, "/metadata/").len(), 5, "tombstones stay");
    assert_eq!(rig.run(json!({})).await["done"]["expired"], 0);
    assert!(rds.calls().is_empty(), "RDS is asked nothing unless it is configured");

    // A deletion by hand of the last dump is refused as ever, whatever exports there are.
    assert_eq!(rig.fails(json!({"delete": day(1)})).await.0, "retention-last-verified");
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
    let (rig, rds) = start(&[("PRUNE_RDS_SNAPSHOTS", "true"), ("RDS_SOURCES", "shop,cluster:aurora")]).await;
    rds.set_page_size(3);
    for n in 1..=6 {
        rds.add_snapshot(ours(n));
    }
    for n in 10..=14 {
        rds.add_snapshot(Snapshot { server: "aurora".into(), ..ours(n).of_cluster() });
    }
    let mut held = export(12);
    held["hold"] = json!(true);
    rig.backup(&held).await;
    // Of a later release: it may say the same in other words.
    let key = crate::retention_rig::manifest_key(&day(10));
    rig.put(&key, json!({"manifest_version": 2, "holds": ["legal"]}).to_string()).await;
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
        rds.add_snapshot(snapshot);
    }
    let pin = json!({"backup_id": day(1), "request_id": "r-1", "purpose": "restore"});
    rig.put(&format!("pins/{}/r-1.json", day(1)), pin.to_string()).await;
    let run = json!({
        "backup_id": day(2), "event_key": "e", "environment": "production", "server": {"kind": "instance", "id": "shop"},
        "snapshot_id": format!("manual-export-{}", day(2)), "purpose": "rds_export", "created_by": "schedule",
        "begun": "2025-06-02T02:00:00Z", "state": "exporting", "written_by": "r", "revision": 1,
    });
    rig.put(&format!("runs/rds-exports/{}.json", day(2)), run.to_string()).await;
    // Another one exports a snapshot once more.
    let mut again = run;
    (again["backup_id"], again["snapshot_id"]) = (json!(day(21)), json!(format!("manual-export-{}", day(4))));
    rig.put(&format!("runs/rds-exports/{}.json", day(21)), again.to_string()).await;

    let dry = rig.run(json!({"dry_run": true})).await;
    assert_eq!(ids(&dry["plan"]["snapshots"]["delete"]), [day(3), day(11)]);
    let kept = dry["plan"]["snapshots"]["keep"].to_string();
    for reason in
        ["pinned by r-1", "its export is under way", "newest", "last 2", "hold", "its manifest is not understood"]
    {
        assert!(kept.contains(reason), "{reason} in {kept}");
    }
    assert!(rds.calls_of("DeleteDBSnapshot").is_empty());

    // One cannot be deleted: the other is, and the run says so.
    rds.fail("DeleteDBSnapshot", 400, "InvalidDBSnapshotState", "it is being copied", 1);
    let message = rig.fails(json!({})).await.1;
    assert!(message.contains(&day(3)) && message.contains("being copied"), "{message}");
    let real = rig.run(json!({})).await;
    assert_eq!(ids(&real["plan"]["snapshots"]["delete"]), [day(3)]);
    assert_eq!(real["done"]["snapshots_deleted"], json!([format!("manual-export-{}", day(3))]));
    assert_eq!(rds.calls_of("DeleteDBClusterSnapshot").len(), 1);
    stays.extend([1, 2, 4, 5, 6, 10, 12, 13, 14].map(|n| format!("manual-export-{}", day(n))));
    let left: BTreeSet<String> = rds.snapshots().into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(left, stays);
    assert_eq!(rig.run(json!({})).await["done"]["snapshots_deleted"], json!([]));

    // Rights that are missing fail the run, and not what it does in the bucket.
    for n in 1..=4 {
        rig.backup(&dump(n, "shop")).await;
    }
    rds.fail("DescribeDBSnapshots", 403, "AccessDenied", "not authorized to perform: rds:DescribeDBSnapshots", 1);
    let message = rig.fails(json!({})).await.1;
    assert!(message.contains("rds-access-denied") && message.contains("rds:DescribeDBSnapshots"), "{message}");
    assert_eq!(present(&rig, "/dumps/").len(), 3, "all but the pinned one beyond the last two");

    // What blocks the databases of an environment blocks its snapshots.
    let mut unverified = dump(20, "other");
    unverified.as_object_mut().unwrap().remove("verified");
    rig.backup(&unverified).await;
    rds.add_snapshot(ours(10));
    let blocked = rig.run(json!({"dry_run": true})).await;
    assert_eq!(blocked["plan"]["snapshots"]["delete"], json!([]));
    assert!(blocked["plan"]["snapshots"]["keep"].to_string().contains("blocked: no_verified_backup"), "{blocked:#}");
}
