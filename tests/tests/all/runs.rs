//! Runs that meet, die, or run out of time; what a run says of itself.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use holdfast_local::lambda::{InvokeOptions, InvokeOutcome};
use holdfast_local::proxy::{Proxy, ProxyOptions};
use holdfast_local::s3::{BucketOptions, Fault, FaultAction, S3Options, S3Server};
use holdfast_shared::domain::{BackupId, ObjectKey};
use holdfast_shared::store::lease::Acquired;
use serde_json::{Value, json};

use crate::bed::{BUCKET, Bed, EXPORT, connected};
use crate::scene::{
    HELD, MAJOR, SEVERAL_PARTS, all_proved, change_lease, killed_at, larger_database, lease_key, let_lease_expire,
    listed, night, proved, small_database, struck, until,
};

/// Long enough for the other side to act meanwhile.
const A_MOMENT: Duration = Duration::from_secs(3);

async fn several_parts_bed() -> Bed {
    let bed = Bed::start(MAJOR).await;
    larger_database(&bed, "shop").await;
    bed.register_export("shop", &SEVERAL_PARTS);
    bed
}

fn error(outcome: &InvokeOutcome) -> (&str, &str) {
    assert!(outcome.is_error(), "{:#}", outcome.payload);
    (outcome.payload["errorType"].as_str().unwrap(), outcome.payload["errorMessage"].as_str().unwrap())
}

async fn lease(bed: &Bed) -> Value {
    serde_json::from_slice(&bed.get(&lease_key("shop")).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_runs_on_one_database_the_second_is_told_who_holds_the_lease() {
    let bed = several_parts_bed().await;
    bed.export(night(1)).await;
    bed.store().faults().push(Fault::next("UploadPart", FaultAction::Delay(A_MOMENT)));
    let second = async {
        struck(&bed).await;
        let refused = bed.invoke_as("second", json!({})).await;
        let held = lease(&bed).await;
        // What is done already needs no lease.
        assert_eq!(bed.export(night(1)).await["duplicate"], true);
        (refused, held)
    };
    let (first, (refused, held)) = tokio::join!(bed.invoke_as("first", night(0)), second);
    assert!(!first.is_error(), "{:#}", first.payload);
    let (code, message) = error(&refused);
    assert_eq!(code, "export-lease-held");
    for named in
        ["20250101-020000", "request first", held["since"].as_str().unwrap(), held["expires"].as_str().unwrap()]
    {
        assert!(message.contains(named), "{named}: {message}");
    }
    assert_eq!(lease(&bed).await["state"], "released");
    assert_eq!(bed.invoke_as("second", json!({})).await.payload["duplicate"], false);
    assert_eq!(bed.manifests().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_loses_its_lease_lists_nothing() {
    let bed = several_parts_bed().await;
    // Held in its read-back, as a function that AWS has frozen would be.
    bed.store().faults().push(Fault {
        key_contains: Some("/dumps/".to_owned()),
        ..Fault::nth("HeadObject", 2, FaultAction::Delay(A_MOMENT))
    });
    let successor = async {
        struck(&bed).await;
        change_lease(&bed, "shop", |lease| {
            lease["request_id"] = json!("successor");
            lease["since"] = json!("2030-01-01T00:00:00Z");
        })
        .await;
    };
    let (outcome, ()) = tokio::join!(bed.invoke(night(0)), successor);
    assert_eq!(error(&outcome).0, "lease-lost");
    assert_eq!(bed.manifests(), Vec::<String>::new());
    assert_eq!(lease(&bed).await["request_id"], "successor", "the lease of another run was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_of_a_dead_run_holds_until_it_expires() {
    let bed = several_parts_bed().await;
    killed_at(&bed, night(0), Fault::nth("UploadPart", 2, FaultAction::Hang(HELD))).await;
    assert_eq!(bed.manifests(), Vec::<String>::new());
    assert_eq!(bed.store().pending_uploads(BUCKET).len(), 1);
    assert_eq!(bed.export_fails(night(1)).await.0, "export-lease-held");
    let_lease_expire(&bed, "shop").await;

    // Whoever takes over and dies before it has swept leaves the sweep to the next.
    killed_at(&bed, night(2), Fault::next("AbortMultipartUpload", FaultAction::Hang(HELD))).await;
    assert_eq!(bed.store().pending_uploads(BUCKET).len(), 1);
    let_lease_expire(&bed, "shop").await;
    let receipt = bed.export(night(3)).await;
    assert_eq!(bed.store().pending_uploads(BUCKET), []);
    proved(&bed, &bed.manifest(&receipt).await).await;
    // The nights that were lost can be made up for.
    for lost in 0..3 {
        assert_eq!(bed.export(night(lost)).await["duplicate"], false);
    }
    assert_eq!(bed.manifests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_knows_its_own_writes_from_another_runs() {
    let s3 = S3Server::start(S3Options::default()).await.unwrap();
    s3.store().create_bucket(BUCKET, BucketOptions::default()).unwrap();
    let store = connected(&s3).await;
    let id: BackupId = "20250101-020000".parse().unwrap();
    let key = ObjectKey::Lease { environment: "test".parse().unwrap(), database: "shop".to_owned() };
    let acquire = async |request: &str| match store.acquire_lease(key.clone(), id, "event", request).await.unwrap() {
        Acquired::Lease { lease, .. } => Ok(lease),
        Acquired::HeldBy(record) => Err(record.request_id),
    };

    // A renewal that is carried out, and whose answer nobody waits for.
    let mut lease = acquire("one").await.unwrap();
    s3.store().faults().push(Fault { times: 9, ..Fault::next("PutObject", FaultAction::ResetAfter) });
    let written = || s3.store().requests().iter().filter(|request| request.operation == "PutObject").count() > 1;
    tokio::select! {
        renewed = lease.renew(&store) => panic!("{renewed:?}"),
        () = until("the renewal is written", written) => {}
    }
    s3.store().faults().clear();
    assert_eq!(acquire("two").await.unwrap_err(), "one");
    lease.renew(&store).await.unwrap();
    lease.release(&store).await.unwrap();

    // Of many at once one gets it, and whoever comes later is told which.
    let names: Vec<String> = (0..8).map(|n| format!("racer {n}")).collect();
    let raced = join_all(names.iter().map(|name| acquire(name))).await;
    let (won, told): (Vec<_>, Vec<_>) = raced.into_iter().partition(Result::is_ok);
    let holders: BTreeSet<String> = told.into_iter().map(Result::unwrap_err).collect();
    assert_eq!((won.len(), holders.len()), (1, 1));
    assert_eq!(acquire("late").await.unwrap_err(), *holders.first().unwrap());
}

/// The calls that a good run makes, in the order in which they are answered.
async fn calls(bed: &Bed, event: Value) -> Vec<(String, String)> {
    bed.store().clear_requests();
    bed.export(event).await;
    let requests = bed.store().requests();
    requests.into_iter().map(|request| (request.operation, request.key.unwrap_or_default())).collect()
}

/// The distinct moments: operation, kind of object, how many such calls.
fn moments(calls: &[(String, String)]) -> Vec<(&'static str, &'static str, u64)> {
    const OPERATIONS: [&str; 6] =
        ["PutObject", "GetObject", "HeadObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"];
    const KINDS: [&str; 4] = ["runs/ids/", "runs/leases/", "/dumps/", "/metadata/"];
    let mut moments = Vec::new();
    for operation in OPERATIONS {
        for kind in KINDS {
            let count = calls.iter().filter(|(o, key)| o == operation && key.contains(kind)).count();
            if count > 0 {
                moments.push((operation, kind, count as u64));
            }
        }
    }
    let covered: u64 = moments.iter().map(|(_, _, count)| count).sum();
    assert_eq!(covered, calls.len() as u64, "a call of another kind: {calls:?}");
    moments
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_call_lists_nothing_and_the_next_run_sweeps_up() {
    let bed = several_parts_bed().await;
    let calls = calls(&bed, night(0)).await;
    let expected = proved(&bed, &listed(&bed).await[0]).await;
    let (mut backups, mut nights) = (1, 0);
    for (operation, kind, count) in moments(&calls) {
        for nth in 1..=count.min(3) {
            nights += 1;
            let event = night(nights);
            // Held before it is carried out; or carried out while the function is already dead.
            let action =
                if nights % 2 == 0 { FaultAction::Hang(HELD) } else { FaultAction::Delay(Duration::from_millis(60)) };
            let fault = Fault { key_contains: Some(kind.to_owned()), ..Fault::nth(operation, nth, action) };
            let late = matches!(fault.action, FaultAction::Delay(_));
            killed_at(&bed, event.clone(), fault).await;
            if late {
                tokio::time::sleep(Duration::from_millis(80)).await;
            }
            let moment = format!("killed at {operation} {nth} of {kind}");
            // Only a manifest that was on its way when the function died may have come to be.
            let arrived = bed.manifests().len() - backups;
            let may_arrive = late && operation == "PutObject" && kind == "/metadata/"
                || (operation, kind, nth) == ("PutObject", "runs/leases/", count);
            assert!(arrived == 0 || may_arrive, "{moment}: listed");
            backups += arrived;
            if bed.store().objects(BUCKET).iter().any(|object| object.key == lease_key("shop")) {
                let_lease_expire(&bed, "shop").await;
            }
            // The same event again, or the next night's.
            let again = nights % 3 != 0;
            if !again {
                nights += 1;
            }
            let receipt = bed.export(if again { event } else { night(nights) }).await;
            assert_eq!(receipt["duplicate"], json!(again && arrived == 1), "{moment}");
            backups += usize::from(receipt["duplicate"] == false);
            assert_eq!(bed.manifests().len(), backups, "{moment}");
            // One that no lease names yet is empty, and left to the bucket's lifecycle.
            let left: Vec<_> =
                bed.store().pending_uploads(BUCKET).into_iter().filter(|upload| upload.parts > 0).collect();
            assert_eq!(left, [], "{moment}");
        }
    }
    assert!(nights > 15, "{nights} moments only");
    assert_eq!(all_proved(&bed, &expected).await, backups);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_run_died_between_object_and_manifest_makes_its_backup_after_all() {
    let bed = several_parts_bed().await;
    let manifest =
        Fault { key_contains: Some("/metadata/".to_owned()), ..Fault::next("PutObject", FaultAction::Hang(HELD)) };
    killed_at(&bed, night(0), manifest).await;
    let dumps = || bed.store().objects(BUCKET).into_iter().filter(|o| o.key.contains("/dumps/")).collect::<Vec<_>>();
    let orphan = dumps();
    assert_eq!((orphan.len(), bed.manifests().len()), (1, 0));
    bed.cluster.execute("shop", "INSERT INTO customers VALUES (501, 'came later')").await.unwrap();
    let_lease_expire(&bed, "shop").await;
    let receipt = bed.export(night(0)).await;
    assert_eq!((&receipt["id"], &receipt["duplicate"]), (&json!("20250101-020000"), &json!(false)));
    assert_eq!(dumps().iter().filter(|dump| dump.is_latest).count(), 1);
    assert_ne!(receipt["artifacts"]["dump"]["version_id"], json!(orphan[0].version_id));
    assert!(proved(&bed, &bed.manifest(&receipt).await).await.contains("came later"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_nears_its_deadline_stops_says_how_far_it_came_and_leaves_nothing() {
    let bed = several_parts_bed().await;
    bed.store().faults().push(Fault::nth("UploadPart", 2, FaultAction::Delay(HELD)));
    let options = InvokeOptions { timeout: Some(Duration::from_secs(8)), ..InvokeOptions::default() };
    let began = Instant::now();
    let outcome = bed.lambda.invoke_with(EXPORT, night(0), options).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "stopped after {:?}", began.elapsed());
    let (code, message) = error(&outcome);
    assert_eq!(code, "deadline-reached");
    for named in ["5 s before", "MB had been stored", "Timeout", "MemorySize", "WORKERS"] {
        assert!(message.contains(named), "{named}: {message}");
    }
    assert!(!message.contains(" 0.0 MB"), "the first part had been stored: {message}");
    assert_eq!(bed.store().pending_uploads(BUCKET), []);
    assert_eq!(
        (lease(&bed).await["state"].clone(), lease(&bed).await.get("upload").cloned()),
        (json!("released"), None)
    );
    assert_eq!(bed.manifests(), Vec::<String>::new());
    bed.store().faults().clear();
    assert_eq!(bed.export(night(0)).await["id"], "20250101-020000");
}

/// The lines that are tracing's; the others have to be metrics.
fn parsed(log: &[String]) -> (Vec<Value>, Vec<Value>) {
    let lines = log.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")));
    lines.partition(|line: &Value| line.get("_aws").is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn receipt_logs_and_metrics_say_what_was_done_and_no_secret() {
    let bed = several_parts_bed().await;
    // A role with a password that would be found again anywhere.
    bed.cluster
        .execute("postgres", "CREATE ROLE exporter LOGIN PASSWORD 'pass-4711-word' IN ROLE pg_read_all_data")
        .await
        .unwrap();
    let url = bed.cluster.url_as("exporter", "pass-4711-word", "shop");
    // Slow enough for a line of progress.
    let options = ProxyOptions { bytes_per_second_per_connection: Some(1_150_000), ..ProxyOptions::default() };
    let proxy = Proxy::start(([127, 0, 0, 1], bed.cluster.port()).into(), options).await.unwrap();
    let slow_url = url.replace(&format!(":{}/", bed.cluster.port()), &format!(":{}/", proxy.addr().port()));
    let with_url = |url: &str| {
        let settings = [&SEVERAL_PARTS[..], &[("DATABASE_URL", url)]].concat();
        bed.register_export("shop", &settings);
    };
    with_url(&slow_url);
    let good = bed.invoke(night(0)).await;
    assert!(!good.is_error(), "{:#}", good.payload);
    let receipt = &good.payload;
    let fields: BTreeSet<&str> = receipt.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "artifacts",
        "bytes",
        "database",
        "duplicate",
        "durations_seconds",
        "environment",
        "id",
        "purpose",
        "rows",
        "status",
        "tables",
        "warnings",
    ];
    assert_eq!(fields, BTreeSet::from(expected));
    assert_eq!(
        (&receipt["tables"], &receipt["rows"], &receipt["status"]),
        (&json!(3), &json!(7_500), &json!("complete"))
    );
    assert!(receipt["bytes"].as_u64().unwrap() > 6_000_000);
    assert_eq!(receipt["warnings"], json!([]));
    let total = receipt["durations_seconds"]["total"].as_f64().unwrap();
    assert!((5.0..60.0).contains(&total), "{total}");

    let (lines, metrics) = parsed(&good.log);
    let begun = lines.iter().position(|line| line["message"] == "export begins").unwrap();
    for line in &lines[begun..] {
        assert_eq!(line["span"]["backup_id"], "20250101-020000", "{line}");
        assert_eq!(line["level"], "INFO", "{line}");
    }
    let progress = lines.iter().find(|line| line["message"] == "exporting").unwrap();
    assert!(progress["text_bytes"].as_u64().unwrap() > 0, "{progress}");
    let [metric] = &metrics[..] else { panic!("{metrics:?}") };
    let definition = &metric["_aws"]["CloudWatchMetrics"][0];
    assert_eq!(
        (&definition["Namespace"], &definition["Dimensions"]),
        (&json!("Holdfast"), &json!([["App", "Environment", "Database"]]))
    );
    assert_eq!([&metric["App"], &metric["Environment"], &metric["Database"]], ["holdfast", "test", "shop"]);
    let named: Vec<&str> =
        definition["Metrics"].as_array().unwrap().iter().map(|m| m["Name"].as_str().unwrap()).collect();
    assert_eq!(named, ["BackupSucceeded", "BackupDurationSeconds", "BackupBytes", "BackupRows"]);
    assert_eq!((&metric["BackupSucceeded"], &metric["BackupRows"]), (&json!(1.0), &json!(7_500.0)));
    assert_eq!(metric["BackupBytes"].as_f64(), receipt["artifacts"]["dump"]["size_bytes"].as_f64());
    assert!(named.iter().all(|name| metric[*name].is_number()));

    with_url(&url);

    // A failure inside the run: one error line, with the backup id, and a metric.
    bed.store().faults().deny("UploadPart");
    let failed = bed.invoke(night(1)).await;
    bed.store().faults().clear();
    let (lines, metrics) = parsed(&failed.log);
    let loud: Vec<&Value> = lines.iter().filter(|line| line["level"] == "ERROR" || line["level"] == "WARN").collect();
    let [line] = loud[..] else { panic!("{loud:?}") };
    assert_eq!((&line["code"], &line["span"]["backup_id"]), (&json!("store-access-denied"), &json!("20250102-020000")));
    assert_eq!(metrics.len(), 1);
    assert_eq!((&metrics[0]["BackupFailed"], &metrics[0]["code"]), (&json!(1.0), &json!("store-access-denied")));

    // A password that is wrong is not told either.
    with_url(&url.replace("4711", "wrong"));
    let rejected = bed.invoke(night(2)).await;
    assert_eq!(error(&rejected).0, "database-login-rejected");
    let mut told = bed.lambda.logs(EXPORT);
    told.extend(good.log.iter().chain(&failed.log).chain(&rejected.log).cloned());
    told.extend([&good, &failed, &rejected].map(|outcome| outcome.payload.to_string()));
    for object in bed.store().objects(BUCKET).iter().filter(|object| !object.key.contains("/dumps/")) {
        told.push(String::from_utf8(bed.get(&object.key).await).unwrap());
    }
    for secret in ["pass-4711-word", "pass-wrong-word", "export-role-secret"] {
        assert!(told.iter().all(|text| !text.contains(secret)), "{secret} was told");
    }
    assert!(told.iter().any(|text| text.contains("exporter")), "nothing would be found here");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_of_an_export_are_few_however_many_tables_there_are() {
    let bed = Bed::start(MAJOR).await;
    small_database(&bed, "shop").await;
    bed.register_export("shop", &[]);
    let few = calls(&bed, night(0)).await;
    let steady = calls(&bed, night(1)).await;
    let tables: String = (0..200).map(|n| format!("CREATE TABLE t{n} AS SELECT {n} AS n;")).collect();
    bed.cluster.execute("shop", &tables).await.unwrap();
    let many = calls(&bed, night(2)).await;
    for (calls, limit) in [(&few, 20), (&steady, 20), (&many, 25)] {
        assert!(calls.len() <= limit, "{} requests: {calls:#?}", calls.len());
    }
}
