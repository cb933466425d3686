//! Restores that fail half way because room, time or data are not there: what was live is whole, and nothing else is left.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_local::s3::{Fault as StoreFault, FaultAction};
use holdfast_shared::domain::Manifest;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::Restore;
use serde_json::json;

use crate::bed::{BUCKET, Bed};
use crate::engine::{backup, cleared, engine, exists, exported};
use crate::scene::struck;

async fn fails(bed: &Bed, asked: Restore, manifest: &Manifest, seconds: u64) -> Fault {
    let clearance = cleared(bed, asked, backup(manifest), Some(manifest)).await;
    let mut engine = engine(bed).await;
    engine.deadline = Instant::now() + Duration::from_secs(seconds);
    engine.carry_out(clearance).await.unwrap_err()
}

fn modes() -> Vec<Restore> {
    let tables = || vec!["big".parse().unwrap()];
    vec![
        Restore::NewDatabase { database: "copy".into() },
        Restore::Swap { database: "live".into(), shadow: "live_shadow".into(), previous: "live_before".into() },
        Restore::TablesIntoSchema { database: "live".into(), schema: "restore_x".into(), tables: tables() },
        Restore::TablesInPlace { database: "live".into(), tables: tables() },
    ]
}

/// The live database is as it was, and nothing else is there.
async fn nothing_happened(bed: &Bed, before: &std::collections::BTreeMap<String, String>) {
    assert_eq!(&bed.contents("live").await, before);
    for left in ["copy", "live_shadow", "live_before"] {
        assert!(!exists(bed, left).await, "{left}");
    }
    let client = bed.cluster.connect("live").await.unwrap();
    let sql = "SELECT count(*) FROM pg_namespace WHERE nspname = 'restore_x'";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    client.batch_execute("SET lock_timeout = '5s'; BEGIN; LOCK TABLE big; ROLLBACK").await.unwrap();
}

/// A small file system, for as long as it lives.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m,mode=777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(directory.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_what_was_there() {
    let small = Small::mount(36);
    let bed = Bed::start(17).await;
    bed.cluster.create_database("live").await.unwrap();
    let rows = "CREATE TABLE big (id int, t text) TABLESPACE :space;
                INSERT INTO big SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 22000) g";
    let full = if let Some(small) = &small {
        let space = format!("CREATE TABLESPACE small LOCATION '{}'", small.path().display());
        std::fs::set_permissions(small.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        // The server's own user has to own it.
        let directory = small.path().join("space");
        std::fs::create_dir(&directory).unwrap();
        let owner = std::fs::metadata(bed.cluster.data_directory()).unwrap();
        std::os::unix::fs::chown(&directory, Some(owner_of(&owner).0), Some(owner_of(&owner).1)).unwrap();
        let space = space.replace(&small.path().display().to_string(), &directory.display().to_string());
        bed.cluster.execute("postgres", &space).await.unwrap();
        bed.cluster.execute("live", &rows.replace(":space", "small")).await.unwrap();
        true
    } else {
        // Where nothing may be mounted, the server says so without being it.
        bed.cluster.execute("live", &rows.replace(":space", "pg_default")).await.unwrap();
        let check = "CREATE FUNCTION no_room(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
                       IF $1 = 20000 AND current_setting('application_name') = 'holdfast-restore'
                       THEN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END IF; RETURN true; END $$;
                     ALTER TABLE big ADD CHECK (no_room(id))";
        bed.cluster.execute("live", check).await.unwrap();
        false
    };
    let manifest = exported(&bed, "live").await;
    let before = bed.contents("live").await;
    for asked in modes() {
        let fault = fails(&bed, asked.clone(), &manifest, 60).await;
        assert_eq!(fault.code, "target-disk-full", "{asked:?}, full: {full}: {fault}");
        nothing_happened(&bed, &before).await;
    }
}

fn owner_of(metadata: &std::fs::Metadata) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    (metadata.uid(), metadata.gid())
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_is_over_and_data_that_is_gone_leave_what_was_there() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("live").await.unwrap();
    let rows =
        "CREATE TABLE big (id int, t text); INSERT INTO big SELECT g, md5(g::text) FROM generate_series(1, 3000) g";
    bed.cluster.execute("live", rows).await.unwrap();
    let manifest = exported(&bed, "live").await;
    let before = bed.contents("live").await;
    let artifact = &manifest.artifacts["dump"];
    for asked in modes() {
        // The table of contents is read, and its rows do not come.
        let late = StoreFault::nth("GetObject", 2, FaultAction::Delay(Duration::from_secs(20)));
        bed.store().faults().push(late);
        let fault = fails(&bed, asked.clone(), &manifest, 2).await;
        bed.store().faults().clear();
        assert_eq!(fault.code, "restore-deadline", "{asked:?}: {fault}");
        nothing_happened(&bed, &before).await;
    }
    // Deleted in a versioned bucket: the version that the manifest names is still there.
    bed.client().await.delete_object().bucket(BUCKET).key(&artifact.key).send().await.unwrap();
    let asked = Restore::Verify { scratch: "copy".into() };
    let clearance = cleared(&bed, asked, backup(&manifest), None).await;
    engine(&bed).await.carry_out(clearance).await.unwrap();
    // Gone for good, as retention's rules do it later.
    let version = artifact.version_id.as_deref().unwrap();
    bed.client().await.delete_object().bucket(BUCKET).key(&artifact.key).version_id(version).send().await.unwrap();
    for asked in modes() {
        let fault = fails(&bed, asked.clone(), &manifest, 30).await;
        assert_eq!(fault.code, "backup-object-missing", "{asked:?}: {fault}");
        nothing_happened(&bed, &before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_committed_are_told_as_such_whatever_comes_after() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("live").await.unwrap();
    let rows = "CREATE TABLE big AS SELECT g AS id FROM generate_series(1, 3000) g";
    bed.cluster.execute("live", rows).await.unwrap();
    let manifest = exported(&bed, "live").await;
    let before = bed.contents("live").await;
    bed.cluster.execute("live", "DELETE FROM big").await.unwrap();
    let asked = Restore::TablesInPlace { database: "live".into(), tables: vec!["big".parse().unwrap()] };
    let clearance = cleared(&bed, asked, backup(&manifest), Some(&manifest)).await;
    let mut engine = engine(&bed).await;
    engine.deadline = Instant::now() + Duration::from_secs(4);
    bed.store().faults().push(StoreFault::nth("GetObject", 2, FaultAction::Delay(Duration::from_secs(1))));
    // Who comes next keeps ANALYZE waiting until the time is over.
    let next = async {
        struck(&bed).await;
        let client = bed.cluster.connect("live").await.unwrap();
        client.batch_execute("BEGIN; LOCK TABLE big IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
        client
    };
    let (receipt, _client) = tokio::join!(engine.carry_out(clearance), next);
    let receipt = receipt.unwrap();
    assert!(receipt.notes.iter().any(|note| note.contains("was not analyzed: no time")), "{:?}", receipt.notes);
    assert_eq!(bed.contents("live").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_the_backup_leaves_out_is_not_emptied() {
    let bed = Bed::start(17).await;
    bed.cluster.create_database("live").await.unwrap();
    let tables = "CREATE TABLE days (d int) PARTITION BY RANGE (d);
        CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10);
        CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM (10) TO (20); INSERT INTO days VALUES (1), (11)";
    bed.cluster.execute("live", tables).await.unwrap();
    bed.register_export("live", &[("EXCLUDE_TABLES", "public.days_2")]);
    let manifest = bed.manifest(&bed.export(json!({"purpose": "test"})).await).await;
    let before = bed.contents("live").await;
    let in_place = async |table: &str| {
        let asked = Restore::TablesInPlace { database: "live".into(), tables: vec![table.parse().unwrap()] };
        let clearance = cleared(&bed, asked, backup(&manifest), Some(&manifest)).await;
        engine(&bed).await.carry_out(clearance).await
    };
    let fault = in_place("days").await.unwrap_err();
    assert_eq!(fault.code, "restore-table-without-rows", "{fault}");
    assert!(fault.message.contains("days_2"), "{fault}");
    in_place("days_1").await.unwrap();
    assert_eq!(bed.contents("live").await, before);
}
