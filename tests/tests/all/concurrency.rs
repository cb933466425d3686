//! Locks and traffic beside an export: one point in time, no wait beyond the lock timeout, no definition changed.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use std::net::{Ipv4Addr, SocketAddr};

use holdfast_local::postgres::{Installation, StopMode};
use holdfast_local::proxy::{Proxy, ProxyOptions};
use serde_json::json;

use crate::bed::{BUCKET, Bed, EXPORT};

const SMALL_PARTS: (&str, &str) = ("PART_SIZE_BYTES", "5242880");

/// Tables of 8 MB that cost nothing to make: text that is stored as it is.
async fn wide_tables(bed: &Bed, database: &str, count: usize) {
    bed.cluster.create_database(database).await.unwrap();
    for i in 0..count {
        let sql = format!(
            "CREATE TABLE wide_{i} (id int, t text); ALTER TABLE wide_{i} ALTER t SET STORAGE EXTERNAL;
             INSERT INTO wide_{i} SELECT g, repeat(md5('{i}/' || g), 2500) FROM generate_series(1, 100) g;
             CREATE TABLE small_{i} (x int); INSERT INTO small_{i} VALUES ({i});"
        );
        bed.cluster.execute(database, &sql).await.unwrap();
    }
}

/// The way to the server at so many megabytes a second for each connection, and the database's URL by it.
async fn slowly(bed: &Bed, megabytes: u64) -> (Proxy, String) {
    let options = ProxyOptions { bytes_per_second_per_connection: Some(megabytes << 20), ..ProxyOptions::default() };
    let port = bed.cluster.port();
    let proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), options).await.unwrap();
    let url = bed.cluster.url("source").replace(&format!(":{port}/"), &format!(":{}/", proxy.addr().port()));
    (proxy, url)
}

/// Waits until rows are under way.
async fn rows_flow(proxy: &Proxy) {
    let before = proxy.bytes_to_client();
    while proxy.bytes_to_client() < before + 4_000_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn nothing_is_left(bed: &Bed) {
    assert!(bed.manifests().is_empty(), "{:?}", bed.manifests());
    assert!(bed.store().pending_uploads(BUCKET).is_empty(), "{:?}", bed.store().pending_uploads(BUCKET));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_a_lock_is_named() {
    let bed = Bed::start(15).await;
    bed.cluster.create_database("source").await.unwrap();
    bed.cluster.execute("source", "CREATE TABLE a (x int); CREATE TABLE b (x int)").await.unwrap();
    let holder = bed.cluster.connect("source").await.unwrap();
    let sql = "SET application_name = 'migration 7'; BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE";
    holder.batch_execute(sql).await.unwrap();
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);

    bed.register_export("source", &[("LOCK_TIMEOUT_MS", "700")]);
    let began = Instant::now();
    let (code, message) = bed.export_fails(json!({})).await;
    assert_eq!(code, "table-locked", "{message}");
    for part in ["public.b", &pid.to_string(), "postgres", "migration 7"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(!message.contains("public.a"), "{message}");
    assert!((Duration::from_millis(700)..Duration::from_secs(6)).contains(&began.elapsed()), "{:?}", began.elapsed());
    nothing_is_left(&bed);
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(bed.export(json!({})).await["tables"], 2);
}

/// An index that is being rebuilt blocks reading what is stored out of line: in the middle of a COPY.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_met_in_the_middle_of_a_table() {
    let bed = Bed::start(15).await;
    wide_tables(&bed, "source", 3).await;
    let holder = bed.cluster.connect("source").await.unwrap();
    holder.batch_execute("BEGIN; REINDEX TABLE wide_1").await.unwrap();
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    bed.register_export("source", &[("LOCK_TIMEOUT_MS", "1500"), SMALL_PARTS]);
    let began = Instant::now();
    let (code, message) = bed.export_fails(json!({})).await;
    assert_eq!(code, "table-locked", "{message}");
    assert!(message.contains(&pid.to_string()) && message.contains("wide_1"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    nothing_is_left(&bed);

    // A rebuild that ends within the lock timeout costs time, not the backup.
    bed.register_export("source", &[("LOCK_TIMEOUT_MS", "20000"), SMALL_PARTS]);
    let (receipt, ()) = tokio::join!(bed.export(json!({})), async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        holder.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(receipt["tables"], 6);
}

/// Changes of definition that wait for the export's locks neither fail it nor are seen by it.
#[tokio::test(flavor = "multi_thread")]
async fn definitions_change_while_exporting() {
    let bed = Bed::start(15).await;
    wide_tables(&bed, "source", 6).await;
    let before = bed.contents("source").await;
    let client = Installation::client(15).unwrap();
    let schema = bed.schema(&client, "source");
    let (proxy, url) = slowly(&bed, 8).await;
    bed.register_export("source", &[SMALL_PARTS, ("WORKERS", "3"), ("DATABASE_URL", &url)]);

    let changes = async {
        rows_flow(&proxy).await;
        let mut running = Vec::new();
        for i in 0..6 {
            for sql in [
                format!("ALTER TABLE wide_{i} DROP COLUMN t"),
                format!("{} TABLE small_{i}", if i % 2 == 0 { "DROP" } else { "TRUNCATE" }),
            ] {
                let connection = bed.cluster.connect("source").await.unwrap();
                running.push(tokio::spawn(async move { connection.batch_execute(&sql).await }));
            }
        }
        running
    };
    let (outcome, running) = tokio::join!(bed.invoke(json!({})), changes);
    assert!(!outcome.is_error(), "{:#}", outcome.payload);
    assert!(outcome.log.iter().any(|line| line.contains("is locked for this session")), "no lock was met");
    bed.restore(&client, &bed.dump_file(&outcome.payload).await, "restored", &[]).await;
    assert_eq!(bed.contents("restored").await, before);
    assert_eq!(bed.schema(&client, "restored"), schema);
    for change in running {
        tokio::time::timeout(Duration::from_secs(10), change).await.unwrap().unwrap().unwrap();
    }
    assert!(!bed.contents("source").await.contains_key("public.small_0"), "the changes went through afterwards");
}

/// A `pg_dump` that lets something happen at a chosen moment, once.
fn meddling_pg_dump(bed: &Bed, meddling: &str) -> String {
    let client = Installation::client(bed.cluster.major()).unwrap();
    let (pg_dump, psql) = (client.tool("pg_dump"), client.tool("psql"));
    let flag = bed.directory.path().join("meddled");
    let script = format!(
        "#!/bin/bash\nPG_DUMP='{}'; PSQL='{} -qX'\nif [ \"$1\" = --version ] || [ -e '{flag}' ]; then exec \"$PG_DUMP\" \"$@\"; fi\ntouch '{flag}'\n{meddling}\n",
        pg_dump.display(),
        psql.display(),
        flag = flag.display()
    );
    let path = bed.directory.path().join("pg_dump");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// A table that goes between the snapshot and the lock: seen as it was never there.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_before_it_is_locked() {
    let bed = Bed::start(15).await;
    wide_tables(&bed, "source", 2).await;
    let pg_dump = meddling_pg_dump(&bed, "$PSQL -c 'DROP TABLE wide_0' && exec \"$PG_DUMP\" \"$@\"");
    bed.register_export("source", &[("PG_DUMP", &pg_dump)]);
    let receipt = bed.export(json!({})).await;
    assert_eq!(receipt["tables"], 3);
    bed.restore(&Installation::client(15).unwrap(), &bed.dump_file(&receipt).await, "restored", &[]).await;
    assert_eq!(bed.contents("restored").await, bed.contents("source").await);
}

/// A change that waits behind `pg_dump`'s lock, and that our own lock would wait behind in turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_queued_between_two_locks() {
    let bed = Bed::start(15).await;
    wide_tables(&bed, "source", 2).await;
    let meddling = "\"$PG_DUMP\" \"$@\" | { sleep 0.5; $PSQL -c 'ALTER TABLE wide_0 ADD COLUMN late int DEFAULT 7' >/dev/null 2>&1 </dev/null & sleep 0.7; cat; }";
    let pg_dump = meddling_pg_dump(&bed, meddling);
    bed.register_export("source", &[("PG_DUMP", &pg_dump), ("LOCK_TIMEOUT_MS", "3000")]);
    let receipt = bed.export(json!({})).await;
    bed.restore(&Installation::client(15).unwrap(), &bed.dump_file(&receipt).await, "restored", &[]).await;
    let contents = bed.contents("source").await;
    assert_eq!(bed.contents("restored").await, contents);
    let late = bed.cluster.connect("restored").await.unwrap().query_one("SELECT sum(late) FROM wide_0", &[]).await;
    assert_eq!(late.unwrap().get::<_, i64>(0), 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_during_the_export() {
    let bed = Bed::start(15).await;
    wide_tables(&bed, "source", 4).await;
    bed.cluster
        .execute(
            "source",
            "CREATE TABLE left_side (id int PRIMARY KEY, amount int, pad text); CREATE TABLE right_side (id int PRIMARY KEY, amount int, pad text);
             INSERT INTO left_side SELECT g, 100, repeat(md5(g::text), 100) FROM generate_series(1, 2000) g;
             INSERT INTO right_side SELECT g, 100, repeat(md5(g::text), 100) FROM generate_series(1, 2000) g;",
        )
        .await
        .unwrap();
    let (_proxy, url) = slowly(&bed, 12).await;
    bed.register_export("source", &[SMALL_PARTS, ("WORKERS", "3"), ("DATABASE_URL", &url)]);
    let stop = AtomicBool::new(false);
    let traffic = |seed: i32| {
        let (bed, stop) = (&bed, &stop);
        async move {
            let client = bed.cluster.connect("source").await.unwrap();
            let mut done = 0;
            while !stop.load(Ordering::Relaxed) {
                let (a, b, amount) = (1 + (done * 7 + seed) % 2000, 1 + (done * 13 + seed * 5) % 2000, 1 + done % 50);
                let new = 10_000 + seed * 1_000_000 + done;
                // Two rows a side move; the sum over both and the equality of counts hold after every commit.
                let sql = format!(
                    "BEGIN; UPDATE left_side SET amount = amount - {amount} WHERE id = {a}; UPDATE right_side SET amount = amount + {amount} WHERE id = {a};
                     INSERT INTO left_side VALUES ({new}, 5, repeat('n', 3000)); INSERT INTO right_side VALUES ({new}, -5, repeat('n', 3000));
                     DELETE FROM left_side WHERE id = {b} + 1000000; DELETE FROM right_side WHERE id = {b} + 1000000; COMMIT"
                );
                client.batch_execute(&sql).await.unwrap();
                done += 1;
            }
            done
        }
    };
    let export = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let receipt = bed.export(json!({})).await;
        stop.store(true, Ordering::Relaxed);
        receipt
    };
    let (receipt, done, more) = tokio::join!(export, traffic(1), traffic(2));
    assert!(done > 50 && more > 50, "{done} and {more} transactions");
    bed.restore(&Installation::client(15).unwrap(), &bed.dump_file(&receipt).await, "restored", &[]).await;
    let restored = bed.cluster.connect("restored").await.unwrap();
    let sql = "SELECT (SELECT sum(amount) FROM left_side) + (SELECT sum(amount) FROM right_side),
                      (SELECT count(*) FROM left_side) - (SELECT count(*) FROM right_side), (SELECT count(*) FROM left_side)";
    let row = restored.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (400_000, 0));
    assert!(row.get::<_, i64>(2) > 2000, "the snapshot was taken during the traffic");
    let manifest = bed.manifest(&receipt).await;
    let rows = |name: &str| manifest.tables.iter().find(|table| table.name == name).unwrap().rows;
    assert_eq!(i64::try_from(rows("left_side")).unwrap(), row.get::<_, i64>(2));
    assert_eq!(rows("left_side"), rows("right_side"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_goes_away_in_the_middle() {
    let mut bed = Bed::start(15).await;
    wide_tables(&bed, "source", 6).await;
    let (proxy, url) = slowly(&bed, 8).await;
    bed.register_export("source", &[SMALL_PARTS, ("COMPRESSION", "none"), ("DATABASE_URL", &url)]);
    for killed in [false, true] {
        let (outcome, ()) = tokio::join!(bed.lambda.invoke(EXPORT, json!({})), async {
            rows_flow(&proxy).await;
            if killed {
                bed.cluster.kill().await.unwrap();
            } else {
                bed.cluster.stop(StopMode::Fast).await.unwrap();
            }
        });
        let outcome = outcome.unwrap();
        assert_eq!(outcome.payload["errorType"], "database-connection-lost", "{:#}", outcome.payload);
        nothing_is_left(&bed);
        bed.cluster.start_again().await.unwrap();
    }
    assert_eq!(bed.export(json!({})).await["tables"], 12);
}
