//! What the tests of events, runs and store faults share: a small database, moments to stop at, and a judge.

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_local::postgres::Installation;
use holdfast_local::s3::Fault;
use holdfast_shared::config::ObjectChecksum;
use holdfast_shared::domain::Manifest;
use serde_json::{Value, json};

use crate::bed::{BUCKET, Bed, EXPORT, comparable, run};

/// Whose client reads every compression.
pub const MAJOR: u16 = 17;
/// How long a held call would last if nobody ended it.
pub const HELD: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(20);

/// A few small tables: one export takes a fraction of a second.
pub async fn small_database(bed: &Bed, database: &str) {
    bed.cluster.create_database(database).await.unwrap();
    let sql = "CREATE TABLE customers (id int PRIMARY KEY, name text);
               INSERT INTO customers SELECT g, 'customer ' || g FROM generate_series(1, 500) g;
               CREATE TABLE orders (id int, customer int REFERENCES customers, note text);
               INSERT INTO orders SELECT g, 1 + g % 500, md5(g::text) FROM generate_series(1, 2000) g;
               ANALYZE";
    bed.cluster.execute(database, sql).await.unwrap();
}

/// Besides, rows enough for two parts of the smallest size, uncompressed.
pub async fn larger_database(bed: &Bed, database: &str) {
    small_database(bed, database).await;
    let sql = "CREATE TABLE readings (id int, payload text);
               INSERT INTO readings SELECT g, repeat(md5(g::text), 40) FROM generate_series(1, 5000) g;
               ANALYZE";
    bed.cluster.execute(database, sql).await.unwrap();
}

/// Settings under which [`larger_database`] takes several parts.
pub const SEVERAL_PARTS: [(&str, &str); 3] =
    [("COMPRESSION", "none"), ("PART_SIZE_BYTES", "5242880"), ("DEADLINE_MARGIN_SECONDS", "5")];

/// An event of an EventBridge rule.
pub fn scheduled(time: &str) -> Value {
    json!({"version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "detail-type": "Scheduled Event", "source": "aws.events",
           "account": "123456789012", "time": time, "region": "us-east-1",
           "resources": ["arn:aws:events:us-east-1:123456789012:rule/nightly"], "detail": {}})
}

/// The n-th night's event.
pub fn night(n: usize) -> Value {
    scheduled(&format!("2025-{:02}-{:02}T02:00:00Z", 1 + n / 28, 1 + n % 28))
}

/// Waits until every programmed fault has struck.
pub async fn struck(bed: &Bed) {
    until("the fault strikes", || bed.store().faults().pending() == 0).await;
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Invokes, and kills the function where the fault has struck.
pub async fn killed_at(bed: &Bed, event: Value, fault: Fault) {
    bed.store().faults().push(fault);
    let kill = async {
        struck(bed).await;
        bed.lambda.kill_instances(EXPORT);
    };
    let (outcome, ()) = tokio::join!(bed.invoke(event), kill);
    bed.store().faults().clear();
    assert_eq!(outcome.payload["errorType"], "Runtime.ExitError", "{:#}", outcome.payload);
}

/// As if a minute had passed since the run died that holds the lease.
pub async fn let_lease_expire(bed: &Bed, database: &str) {
    change_lease(bed, database, |lease| lease["expires"] = json!("2020-01-01T00:00:00Z")).await;
}

pub async fn change_lease(bed: &Bed, database: &str, change: impl FnOnce(&mut Value)) {
    let key = lease_key(database);
    let mut lease: Value = serde_json::from_slice(&bed.get(&key).await).unwrap();
    change(&mut lease);
    put(bed, &key, lease.to_string()).await;
}

pub fn lease_key(database: &str) -> String {
    format!("runs/leases/test/{database}.json")
}

pub async fn put(bed: &Bed, key: &str, body: String) {
    let body = aws_sdk_s3::primitives::ByteStream::from(body.into_bytes());
    bed.client().await.put_object().bucket(BUCKET).key(key).body(body).send().await.unwrap();
}

/// Every manifest in the bucket.
pub async fn listed(bed: &Bed) -> Vec<Manifest> {
    let mut manifests = Vec::new();
    for key in bed.manifests() {
        manifests.push(Manifest::parse(&bed.get(&key).await).unwrap());
    }
    manifests
}

/// The dump is the object that the manifest describes, and a stock `pg_restore` reads all of it. Returns its SQL, the
/// lines in order, as rows come in any.
pub async fn proved(bed: &Bed, manifest: &Manifest) -> String {
    let artifact = &manifest.artifacts["dump"];
    let body = bed.get(&artifact.key).await;
    assert_eq!(body.len() as u64, artifact.size_bytes);
    if let Some(label) = &artifact.checksum {
        let algorithm: ObjectChecksum = label.split(':').next().unwrap().parse().unwrap();
        let checksum = algorithm.of(&[Bytes::from(body.clone())]).unwrap();
        assert_eq!(&algorithm.label(checksum), label);
    }
    let file = bed.directory.path().join(format!("{}.proof", manifest.timestamp));
    std::fs::write(&file, body).unwrap();
    let client = Installation::client(MAJOR).unwrap();
    let sql = comparable(&run(client.command("pg_restore").args(["-f", "-"]).arg(&file)));
    assert_eq!(sql.matches("\nCOPY ").count(), manifest.tables.len(), "{sql:.2000}");
    let mut lines: Vec<&str> = sql.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// [`proved`], for all that is listed. Returns how many backups that are.
pub async fn all_proved(bed: &Bed, expected_sql: &str) -> usize {
    let manifests = listed(bed).await;
    for manifest in &manifests {
        assert!(proved(bed, manifest).await == expected_sql, "{} restores something else", manifest.timestamp);
    }
    manifests.len()
}
