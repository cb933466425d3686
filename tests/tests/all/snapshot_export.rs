//! RDS snapshot exports against the scripted endpoint and an S3 server that checks rights: each course of a task, what is
//! refused before one is started, and what comes twice or not at all.

use std::time::Duration;

use holdfast_local::lambda::{FunctionSpec, InvokeOutcome, LambdaOptions, LambdaServer};
use holdfast_local::rds::{Course, ExportTarget, ExportedTable, RdsServer, Server, Snapshot, Step};
use holdfast_local::s3::{BucketOptions, Fault, FaultAction, Permissions, S3Options, S3Server};
use holdfast_shared::domain::Manifest;
use serde_json::{Value, json};

use crate::bed::{BUCKET, binary, s3_client};

pub const SNAPSHOT_EXPORT: &str = "snapshot-export";
const KEY: (&str, &str) = ("snapshot-export-role", "snapshot-export-role-secret");
pub const ROLE: &str = "arn:aws:iam::123456789012:role/holdfast-rds-export";
pub const KMS_KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/export";
const AUTOMATED: &str = "rds:shop-2025-06-21-02-00";

fn rights() -> Permissions {
    crate::bed::rights(SNAPSHOT_EXPORT, &[""], &[])
}

pub struct Rig {
    pub s3: S3Server,
    rds: RdsServer,
    lambda: LambdaServer,
}

impl Rig {
    /// With an instance `shop`, a cluster `aurora` and an automated snapshot of each.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let s3 = S3Server::start(S3Options::default()).await.unwrap();
        s3.store().create_bucket(BUCKET, BucketOptions { versioning: true, object_lock: false }).unwrap();
        s3.store().add_key(KEY.0, KEY.1, Some(rights()));
        let rds = RdsServer::start().await.unwrap();
        rds.allow_only(crate::bed::rds_rights(SNAPSHOT_EXPORT));
        let S3Options { access_key, secret_key, region, .. } = S3Options::default();
        rds.set_target(ExportTarget { endpoint: s3.endpoint(), access_key, secret_key, region });
        rds.add_server(Server::instance("shop"));
        rds.add_server(Server::cluster("aurora"));
        rds.add_snapshot(Snapshot::automated(AUTOMATED, "shop", "2025-06-21T02:03:00Z"));
        rds.add_snapshot(Snapshot::automated("rds:shop-2025-06-20-02-00", "shop", "2025-06-20T02:03:00Z"));
        rds.add_snapshot(Snapshot::automated("rds:aurora-2025-06-21", "aurora", "2025-06-21T03:00:00Z").of_cluster());
        let lambda = LambdaServer::start(LambdaOptions::default()).await.unwrap();
        let rig = Self { s3, rds, lambda };
        rig.configure(settings);
        rig
    }

    fn configure(&self, settings: &[(&str, &str)]) {
        let mut spec = FunctionSpec::new(SNAPSHOT_EXPORT, binary(SNAPSHOT_EXPORT))
            .env("BUCKET", BUCKET)
            .env("ENVIRONMENT", "production")
            .env("RDS_SOURCES", "shop,cluster:aurora")
            .env("EXPORT_ROLE_ARN", ROLE)
            .env("EXPORT_KMS_KEY_ARN", KMS_KEY)
            .env("S3_ENDPOINT_URL", self.s3.endpoint())
            .env("S3_FORCE_PATH_STYLE", "true")
            .env("AWS_ENDPOINT_URL_RDS", self.rds.endpoint())
            .env("AWS_ACCESS_KEY_ID", KEY.0)
            .env("AWS_SECRET_ACCESS_KEY", KEY.1)
            .env("AWS_EC2_METADATA_DISABLED", "true");
        spec.timeout = Duration::from_secs(60);
        for (name, value) in settings {
            spec = spec.env(*name, *value);
        }
        self.lambda.register(spec);
    }

    pub async fn invoke(&self, payload: Value) -> InvokeOutcome {
        self.lambda.invoke(SNAPSHOT_EXPORT, payload).await.unwrap()
    }

    pub async fn run(&self, payload: Value) -> Value {
        let outcome = self.invoke(payload).await;
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    pub async fn poll(&self) -> Value {
        self.run(json!({"mode": "poll"})).await["exports"].clone()
    }

    /// Code and message.
    pub async fn fails(&self, payload: Value) -> (String, String) {
        let outcome = self.invoke(payload).await;
        assert!(outcome.is_error(), "{:#}", outcome.payload);
        let text = |field: &str| outcome.payload[field].as_str().unwrap_or_default().to_owned();
        (text("errorType"), text("errorMessage"))
    }

    pub fn keys(&self, part: &str) -> Vec<String> {
        let objects = self.s3.store().objects(BUCKET).into_iter();
        let live = objects.filter(|object| object.is_latest && !object.delete_marker).map(|object| object.key);
        live.filter(|key| key.contains(part)).collect()
    }

    pub async fn json(&self, key: &str) -> Value {
        let object = s3_client(&self.s3).get_object().bucket(BUCKET).key(key).send().await.unwrap();
        serde_json::from_slice(&object.body.collect().await.unwrap().into_bytes()).unwrap()
    }

    pub async fn manifest(&self) -> Value {
        let keys = self.keys("/metadata/");
        assert_eq!(keys.len(), 1, "{keys:?}");
        self.json(&keys[0]).await
    }

    /// As an operator could, or as time does.
    async fn edit_run(&self, id: &str, edit: impl FnOnce(&mut Value)) {
        let key = format!("runs/rds-exports/{id}.json");
        let mut run = self.json(&key).await;
        edit(&mut run);
        self.put(&key, run.to_string()).await;
    }

    pub async fn put(&self, key: &str, body: impl Into<Vec<u8>>) {
        let put = s3_client(&self.s3).put_object().bucket(BUCKET).key(key).body(body.into().into());
        put.send().await.unwrap();
    }

    fn told(&self, metric: &str) -> usize {
        self.lambda.logs(SNAPSHOT_EXPORT).join("\n").matches(&format!("\"{metric}\":1")).count()
    }

    fn started(&self) -> usize {
        self.rds.tasks().len()
    }
}

/// RDS's event through EventBridge.
fn event(id: &str, arn: &str) -> Value {
    let of_cluster = arn.contains(":cluster-snapshot:");
    let [detail_type, source_type] = match of_cluster {
        true => ["RDS DB Cluster Snapshot Event", "CLUSTER_SNAPSHOT"],
        false => ["RDS DB Snapshot Event", "SNAPSHOT"],
    };
    json!({"version": "0", "detail-type": detail_type, "source": "aws.rds", "account": "123456789012",
           "time": "2025-06-21T02:05:00Z", "region": "us-east-1", "resources": [arn],
           "detail": {"EventCategories": ["creation"], "SourceType": source_type, "SourceArn": arn, "EventID": id,
                      "Date": "2025-06-21T02:05:00.000Z", "SourceIdentifier": arn.rsplit("snapshot:").next(),
                      "Message": "Automated snapshot created"}})
}

/// The same event in other words.
fn saying(id: &str, arn: &str, message: &str) -> Value {
    let mut event = event(id, arn);
    event["detail"]["Message"] = json!(message);
    event
}

/// The same event through SNS.
fn notification(id: &str, arn: &str) -> Value {
    let message = json!({"Event Source": "db-snapshot", "Event Time": "2025-06-21 02:05:00.000", "Source ARN": arn,
        "Event ID": format!("http://docs.amazonwebservices.com/AmazonRDS/latest/UserGuide/USER_Events.html#{id}"),
        "Event Message": "Automated snapshot created"});
    json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": message.to_string()}}]})
}

fn arn(snapshot: &str) -> String {
    format!("arn:aws:rds:us-east-1:123456789012:snapshot:{snapshot}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_automated_snapshot_is_exported_once_followed_and_listed() {
    let rig = Rig::start(&[]).await;
    let begun = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&begun["status"], &begun["id"]), (&json!("exporting"), &json!("20250621-020500")));
    let again = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!(again["task"]["status"], "STARTING");
    let told = rig.run(notification("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&told["id"], &told["task"]["percent"]), (&begun["id"], &json!(40)));
    assert!(rig.keys("/metadata/").is_empty(), "nothing is listed before the end");

    let [start] = &rig.rds.calls_of("StartExportTask")[..] else { panic!("{:?}", rig.rds.calls()) };
    for (name, value) in [
        ("ExportTaskIdentifier", "export-20250621-020500"),
        ("SourceArn", &arn(AUTOMATED)),
        ("S3BucketName", BUCKET),
        ("S3Prefix", "postgres-exports/rds-exports/2025-06-21"),
        ("IamRoleArn", ROLE),
        ("KmsKeyId", KMS_KEY),
    ] {
        assert_eq!(start.parameter(name), Some(value));
    }
    assert_eq!(start.parameter("ExportOnly.member.1"), None);

    let done = rig.run(event("RDS-EVENT-0161", &arn(AUTOMATED))).await;
    assert_eq!((&done["status"], &done["tables"], &done["warnings"]), (&json!("complete"), &json!(2), &json!([])));
    let folder = "postgres-exports/rds-exports/2025-06-21/export-20250621-020500/";
    let manifest = rig.manifest().await;
    assert_eq!((&manifest["manifest_version"], &manifest["restorable"]), (&json!(1), &json!(false)));
    assert_eq!((&manifest["source"]["type"], &manifest["source"]["instance"]), (&json!("rds"), &json!("shop")));
    assert_eq!(manifest["source"]["snapshot_id"], AUTOMATED);
    assert_eq!(manifest["artifacts"]["rds-export"]["key"], folder);
    assert_eq!(manifest["exports"]["rds-export"]["path"], format!("s3://{BUCKET}/{folder}"));
    assert_eq!(manifest["task"]["total_exported_gb"], 4.2e-6);
    let written = rig.keys(folder);
    let stored: u64 = rig.s3.store().objects(BUCKET).iter().filter(|o| o.key.starts_with(folder)).map(|o| o.size).sum();
    assert_eq!(manifest["artifacts"]["rds-export"]["objects"], written.len());
    assert_eq!(manifest["artifacts"]["rds-export"]["size_bytes"], stored);
    let tables = manifest["tables"].as_array().unwrap();
    assert_eq!((&tables[0]["name"], &tables[0]["bytes"]), (&json!("customers"), &json!(1_200)));
    assert_eq!((&tables[1]["schema"], &tables[1]["size_gb"]), (&json!("public"), &json!(3e-6)));
    assert!(manifest["verified"].is_null());
    let refused = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err();
    assert!(refused.to_string().contains("cannot be restored"), "{refused}");
    assert_eq!(
        (rig.told("SnapshotExportSucceeded"), rig.told("BackupSucceeded")),
        (1, 0),
        "no dead man's switch is held"
    );

    // Whatever comes late changes nothing, and starts nothing.
    assert_eq!(rig.run(event("RDS-EVENT-0161", &arn(AUTOMATED))).await["status"], "ignored");
    let late = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&late["status"], &late["state"]), (&json!("duplicate"), &json!("complete")));
    assert_eq!(rig.run(json!({"snapshot": AUTOMATED})).await["status"], "duplicate");
    assert_eq!(rig.poll().await, json!([]));
    assert_eq!((rig.started(), rig.keys("/metadata/").len()), (1, 1));

    // Another choice of tables is another export; the same one only by request.
    let chosen = rig.run(json!({"snapshot": arn(AUTOMATED), "tables": ["shop.public.orders"]})).await;
    assert_eq!(
        (&chosen["status"], rig.rds.tasks()[1].only.as_slice()),
        (&json!("exporting"), &["shop.public.orders".to_owned()][..])
    );
    for _ in 0..3 {
        rig.poll().await;
    }
    assert_eq!(rig.run(json!({"snapshot": AUTOMATED, "again": true})).await["status"], "exporting");
    assert_eq!(rig.started(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_get_lost_and_the_poll_follows_to_the_end() {
    let rig = Rig::start(&[("SCHEDULED_SNAPSHOT", "newest"), ("EXPORT_ON", "none")]).await;
    assert_eq!(rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await["status"], "ignored");
    let schedule = json!({"source": "holdfast.schedule", "schedule_arn": "arn:aws:scheduler:us-east-1:123456789012:schedule/default/rds",
                          "scheduled_time": "2025-06-21T04:00:00Z", "purpose": "weekly_parquet"});
    let begun = rig.run(schedule.clone()).await;
    let begun = begun["exports"].as_array().unwrap();
    assert_eq!(begun.len(), 2, "one of the instance, one of the cluster");
    assert_eq!((&begun[0]["snapshot"], &begun[0]["id"]), (&json!(AUTOMATED), &json!("20250621-040000")));
    assert_eq!((&begun[1]["server"], &begun[1]["id"]), (&json!("cluster:aurora"), &json!("20250621-040001")));
    assert_eq!(rig.run(schedule).await["exports"].as_array().unwrap().len(), 2);
    assert_eq!(rig.started(), 2, "a schedule that is retried starts nothing anew");
    let mut seen: Vec<String> = Vec::new();
    let mut poll =
        json!({"source": "holdfast.schedule", "schedule_arn": "arn:poll", "scheduled_time": "2025-06-21T04:15:00Z"});
    poll["mode"] = json!("poll");
    while seen.last().is_none_or(|last| last != "complete") {
        let exports = rig.run(poll.clone()).await["exports"].clone();
        seen.push(exports[0]["status"].as_str().unwrap().to_owned());
        assert!(seen.len() < 6, "{seen:?}");
    }
    assert_eq!(rig.keys("/metadata/").len(), 2);
    let cluster = rig.json("postgres-exports/metadata/2025-06-21/20250621-040001.json").await;
    assert_eq!((&cluster["source"]["kind"], &cluster["purpose"]), (&json!("cluster"), &json!("weekly_parquet")));
    assert!(rig.rds.tasks()[1].source_arn.contains(":cluster-snapshot:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_taken_first_is_waited_for_and_its_own_event_starts_no_second_export() {
    let rig = Rig::start(&[("SCHEDULED_SNAPSHOT", "manual"), ("EXPORT_ON", "both"), ("RDS_SOURCES", "shop")]).await;
    rig.rds.set_creating(2);
    let schedule =
        json!({"source": "holdfast.schedule", "schedule_arn": "arn:s", "scheduled_time": "2025-06-21T14:30:00Z"});
    let begun = rig.run(schedule.clone()).await;
    assert_eq!((&begun["status"], &begun["snapshot"]), (&json!("waiting"), &json!("manual-export-20250621-143000")));
    assert_eq!(rig.run(schedule).await["status"], "waiting");
    assert_eq!(rig.rds.calls_of("CreateDBSnapshot").len(), 1);
    let taken = rig.rds.snapshots().into_iter().find(|snapshot| snapshot.id.starts_with("manual-export-")).unwrap();
    assert_eq!(taken.tags["holdfast:environment"], "production");
    assert_eq!(taken.tags["holdfast:backup-id"], "20250621-143000");
    assert_eq!(rig.poll().await[0]["status"], "waiting");
    assert_eq!(rig.started(), 0);
    let started = rig.run(event("RDS-EVENT-0042", &arn(&taken.id))).await;
    assert_eq!((&started["status"], &started["id"]), (&json!("exporting"), &json!("20250621-143000")));
    for _ in 0..3 {
        rig.poll().await;
    }
    let late = rig.run(event("RDS-EVENT-0042", &arn(&taken.id))).await;
    assert_eq!((late["status"].as_str(), rig.started()), (Some("duplicate"), 1));
    assert_eq!(rig.manifest().await["source"]["snapshot_id"], "manual-export-20250621-143000");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rds_fails_is_told_with_its_reason_and_not_listed() {
    let rig = Rig::start(&[]).await;
    let cause = "An unknown internal error occurred: table public.blobs holds a value of 600 MB";
    rig.rds.script_task(Course { steps: vec![Step::new("IN_PROGRESS", 10), Step::failed(cause)], ..Course::default() });
    rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    rig.poll().await;
    let (code, message) = rig.fails(event("RDS-EVENT-0159", &arn(AUTOMATED))).await;
    assert!(
        code == "snapshot-export-failed" && message.contains(cause) && message.contains(AUTOMATED),
        "{code} {message}"
    );
    assert_eq!(rig.told("SnapshotExportFailed"), 1);
    assert!(rig.keys("/metadata/").is_empty());
    assert_eq!(rig.poll().await, json!([]), "it has ended");
    let late = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&late["status"], &late["state"]), (&json!("duplicate"), &json!("failed")));

    // By hand it is begun anew, under another id; and then it is canceled.
    rig.rds
        .script_task(Course { steps: vec![Step::new("CANCELING", 3), Step::new("CANCELED", 3)], ..Course::default() });
    assert_eq!(rig.run(json!({"snapshot": AUTOMATED})).await["status"], "exporting");
    assert_eq!(rig.poll().await[0]["task"]["status"], "CANCELING");
    assert_eq!(rig.fails(json!({"mode": "poll"})).await.0, "snapshot-export-canceled");
    assert!(rig.keys("/metadata/").is_empty());

    // Complete, but a table of it is not.
    let tables = vec![
        ExportedTable::complete("shop.public.orders", 10),
        ExportedTable::failed("shop.public.blobs", "a row is near 2 GB"),
        ExportedTable { status: "SKIPPED".into(), ..ExportedTable::failed("shop.public.a/b", "a slash in the name") },
    ];
    let end = Step::new("COMPLETE", 100).warning("1 table was skipped");
    rig.rds.script_task(Course { steps: vec![Step::new("IN_PROGRESS", 9), end], tables });
    rig.run(json!({"snapshot": AUTOMATED})).await;
    let message = "Export task x: Table extraction failed for table blobs due to its size.";
    assert_eq!(rig.run(saying("RDS-EVENT-0484", &arn(AUTOMATED), message)).await["status"], "exporting");
    let done = rig.poll().await;
    assert_eq!((&done[0]["status"], &done[0]["tables"]), (&json!("complete"), &json!(1)));
    let manifest = rig.manifest().await;
    let warnings = manifest["warnings"].to_string();
    for told in ["1 table was skipped", "blobs is FAILED: a row is near 2 GB", "a/b is SKIPPED", "due to its size"] {
        assert!(warnings.contains(told), "{told} in {warnings}");
    }
    assert!(manifest["notes"].as_str().unwrap().contains("blobs"));
    assert_eq!(rig.told("SnapshotExportWarnings"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_have_events_of_their_own_and_each_export_of_a_snapshot_hears_of_its_own() {
    let rig = Rig::start(&[("EXPORT_ON", "both")]).await;
    let of_cluster = |id: &str| arn(id).replace(":snapshot:", ":cluster-snapshot:");
    let automated = of_cluster("rds:aurora-2025-06-21");
    let steps = vec![Step::new("IN_PROGRESS", 20), Step::new("IN_PROGRESS", 60), Step::new("COMPLETE", 100)];
    rig.rds.script_task(Course { steps, ..Course::default() });
    let begun = rig.run(event("RDS-EVENT-0169", &automated)).await;
    assert_eq!((&begun["server"], &begun["status"]), (&json!("cluster:aurora"), &json!("exporting")));
    let other = rig.run(json!({"snapshot": automated, "tables": ["shop.public.orders"]})).await;
    assert!(other["status"] == "queued" && other["id"] != begun["id"], "{other}");

    // How far it is stands in the log, and what is told of one is not put down to the other.
    let progress = "Export task export-20250621-020500: Export progress is at 20% with 1 table(s) in-progress";
    let told = rig.run(saying("RDS-EVENT-0494", &automated, progress)).await;
    assert_eq!((&told["status"], told["exports"].as_array().unwrap().len()), (&json!("several"), 2));
    let log = rig.lambda.logs(SNAPSHOT_EXPORT).join("\n");
    assert!(log.contains(progress) && log.contains("the export task is under way"), "{log}");
    let failed = "Export task export-20250621-020500: Table extraction failed for table public.blobs due to its size.";
    rig.run(saying("RDS-EVENT-0489", &automated, failed)).await;
    let failures = async |id: &Value| {
        rig.json(&format!("runs/rds-exports/{}.json", id.as_str().unwrap())).await["table_failures"].clone()
    };
    assert_eq!(failures(&begun["id"]).await, json!([failed]));
    assert_eq!(failures(&other["id"]).await, Value::Null);
    let ended = rig.run(event("RDS-EVENT-0164", &automated)).await;
    assert_eq!(
        (&ended["exports"][0]["status"], &ended["exports"][0]["warnings"]),
        (&json!("complete"), &json!([failed]))
    );
    // Its task was the only thing that the other waited for.
    assert_eq!(ended["exports"][1]["status"], "exporting");

    let manual = Snapshot::manual("before-migration", "aurora", "2025-06-21T05:00:00Z").of_cluster();
    let manual_arn = manual.arn();
    rig.rds.add_snapshot(manual);
    let canceled = vec![Step::new("STARTING", 0), Step::new("CANCELED", 0)];
    rig.rds.script_task(Course { steps: canceled, ..Course::default() });
    assert_eq!(rig.run(event("RDS-EVENT-0075", &manual_arn)).await["status"], "exporting");
    assert_eq!(rig.run(saying("RDS-EVENT-0491", &manual_arn, "")).await["task"]["status"], "STARTING");
    assert_eq!(rig.fails(event("RDS-EVENT-0163", &manual_arn)).await.0, "snapshot-export-canceled");
    rig.rds.add_snapshot(Snapshot::manual("before-release", "shop", "2025-06-21T05:00:00Z"));
    assert_eq!(rig.run(event("RDS-EVENT-0042", &arn("before-release"))).await["status"], "exporting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_starts_for_hours_is_warned_of_once_and_may_end_well() {
    let rig = Rig::start(&[]).await;
    let mut steps = vec![Step::new("STARTING", 0); 3];
    steps.push(Step::new("COMPLETE", 100));
    rig.rds.script_task(Course { steps, ..Course::default() });
    rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    rig.poll().await;
    assert_eq!(rig.told("SnapshotExportWarnings"), 0);
    let five_hours_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(5);
    rig.edit_run("20250621-020500", |run| run["task"]["started"] = json!(five_hours_ago)).await;
    for _ in 0..2 {
        assert_eq!(rig.poll().await[0]["task"]["status"], "STARTING");
    }
    assert_eq!((rig.told("SnapshotExportWarnings"), rig.told("SnapshotExportFailed")), (1, 0));
    assert!(rig.lambda.logs(SNAPSHOT_EXPORT).join("\n").contains("STARTING for more than 240 minutes"));
    assert_eq!(rig.poll().await[0]["status"], "complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_waited_for_and_beyond_that_left_to_the_next_poll() {
    let rig = Rig::start(&[]).await;
    rig.rds.fail("StartExportTask", 400, "Throttling", "Rate exceeded", 12);
    let begun = std::time::Instant::now();
    assert_eq!(rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await.0, "rds-throttled");
    assert!(begun.elapsed() > Duration::from_secs(9), "three and six seconds between three rounds");
    assert_eq!((rig.started(), rig.rds.calls_of("StartExportTask").len()), (0, 12));
    // Nor does a right that is missing end the run: it is granted, and the next poll goes on.
    rig.rds.fail("StartExportTask", 403, "AccessDenied", "not authorized to perform: iam:PassRole", 1);
    let (code, message) = rig.fails(json!({"mode": "poll"})).await;
    assert!(code == "rds-access-denied" && message.contains("iam:PassRole"), "{code} {message}");
    assert_eq!((rig.poll().await[0]["status"].as_str(), rig.started()), (Some("exporting"), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_is_waited_for_and_so_is_another_task_of_the_same_snapshot() {
    let rig = Rig::start(&[]).await;
    let other = crate::rds_client::client(&rig.rds.endpoint()).await;
    let begin = async |id: &str, snapshot: &str| {
        let source = arn(snapshot).parse().unwrap();
        let (bucket, prefix) = ("elsewhere", "p");
        let export = holdfast_shared::rds::NewExport {
            id,
            source: &source,
            bucket,
            prefix,
            role_arn: ROLE,
            kms_key_id: KMS_KEY,
            only: &[],
        };
        other.start_export(&export).await.unwrap();
    };
    for n in 0..4 {
        rig.rds.add_snapshot(Snapshot::manual(&format!("other-{n}"), "other", "2025-06-01T02:00:00Z"));
        begin(&format!("other-{n}"), &format!("other-{n}")).await;
    }
    begin("same", AUTOMATED).await;
    let queued = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert!(queued["status"] == "queued" && queued["reason"].as_str().unwrap().contains("same"), "{queued}");
    let finish = async |id: &str| {
        for _ in 0..3 {
            other.export_task(id).await.unwrap();
        }
    };
    finish("same").await;
    rig.rds.add_snapshot(Snapshot::manual("other-5", "other", "2025-06-01T02:00:00Z"));
    begin("other-5", "other-5").await;
    let queued = rig.poll().await;
    assert!(
        queued[0]["status"] == "queued" && queued[0]["reason"].as_str().unwrap().contains("5 export tasks"),
        "{queued}"
    );
    assert!(rig.rds.calls_of("StartExportTask").iter().all(|call| call.parameter("S3BucketName") == Some("elsewhere")));
    finish("other-1").await;
    // RDS may know of more than it lists.
    rig.rds.fail("StartExportTask", 400, "ExportTaskLimitReachedFault", "You can't have more tasks.", 1);
    assert_eq!(rig.poll().await[0]["status"], "queued");
    rig.rds.fail("StartExportTask", 400, "Throttling", "Rate exceeded", 2);
    assert_eq!(rig.poll().await[0]["status"], "exporting");
    assert_eq!(rig.rds.tasks().iter().filter(|task| task.bucket == BUCKET).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_exported_is_refused_before_a_task_is_started() {
    let rig = Rig::start(&[]).await;
    let add = |id: &str, edit: fn(&mut Snapshot)| {
        let mut snapshot = Snapshot::manual(id, "shop", "2025-06-01T02:00:00Z");
        edit(&mut snapshot);
        rig.rds.add_snapshot(snapshot);
    };
    add("plain", |snapshot| snapshot.encrypted = false);
    add("mysql", |snapshot| snapshot.engine = "mysql".into());
    add("others", |snapshot| snapshot.server = "other".into());
    add("broken", |snapshot| snapshot.status = Some("failed".into()));
    let mut serverless = Snapshot::manual("serverless", "aurora", "2025-06-01T02:00:00Z").of_cluster();
    serverless.engine_mode = "serverless".into();
    rig.rds.add_snapshot(serverless);
    let foreign = "arn:aws:rds:us-east-1:999999999999:snapshot:rds:shop-2025-06-21-02-00";
    for (payload, code) in [
        (json!({"snapshot": "plain"}), "snapshot-not-encrypted"),
        (json!({"snapshot": "serverless"}), "snapshot-serverless-v1"),
        (json!({"snapshot": "mysql"}), "snapshot-engine-unsupported"),
        (json!({"snapshot": "others"}), "snapshot-not-ours"),
        (json!({"snapshot": "broken"}), "snapshot-not-available"),
        (json!({"snapshot": "absent"}), "snapshot-not-found"),
        (json!({"snapshot": foreign}), "snapshot-not-ours"),
        (event("RDS-EVENT-0091", foreign), "snapshot-not-ours"),
        (event("RDS-EVENT-0161", foreign), "snapshot-not-ours"),
        (
            event("RDS-EVENT-0091", &AUTOMATED.replace("rds:", "arn:aws:rds:eu-west-1:123456789012:snapshot:")),
            "snapshot-not-ours",
        ),
        (json!({"take_snapshot": true, "server": "other"}), "snapshot-not-ours"),
        (json!({"snapshot": AUTOMATED, "bucket": "someone-elses"}), "request-unknown-fields"),
    ] {
        assert_eq!(rig.fails(payload.clone()).await.0, code, "{payload}");
    }
    let others = rig.run(event("RDS-EVENT-0091", &arn("others"))).await;
    assert!(others["status"] == "ignored" && others["reason"].as_str().unwrap().contains("other"), "{others}");
    assert_eq!((rig.started(), rig.keys("runs/").len()), (0, 0));

    // A role and a key that RDS could not be handed.
    for (name, value, code) in [
        ("EXPORT_ROLE_ARN", "arn:aws:iam::999999999999:role/x", "snapshot-export-role-not-ours"),
        ("EXPORT_KMS_KEY_ARN", "arn:aws:kms:eu-west-1:123456789012:key/x", "snapshot-export-key-elsewhere"),
    ] {
        rig.configure(&[(name, value)]);
        assert_eq!(rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await.0, code);
        assert_eq!(rig.fails(json!({"take_snapshot": true, "server": "shop"})).await.0, code);
    }
    rig.configure(&[]);
    assert!(rig.rds.calls_of("CreateDBSnapshot").is_empty() && rig.keys("runs/").is_empty());

    // What only RDS knows: the code says which, and once it is put right the same event starts the export.
    rig.rds.disable_key(KMS_KEY);
    let (code, message) = rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert!(code == "rds-key-not-accessible" && message.contains("not enabled"), "{code} {message}");
    rig.configure(&[("EXPORT_KMS_KEY_ARN", "arn:aws:kms:us-east-1:123456789012:key/other")]);
    rig.rds.add_missing_role(ROLE);
    let (code, message) = rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert!(code == "rds-export-role-not-found" && message.contains("isn't allowed to assume"), "{code} {message}");
    rig.configure(&[
        ("EXPORT_KMS_KEY_ARN", "arn:aws:kms:us-east-1:123456789012:key/other"),
        ("EXPORT_ROLE_ARN", "arn:aws:iam::123456789012:role/other"),
    ]);
    for (name, code) in [
        ("IamRoleMissingPermissions", "rds-export-role-rights"),
        ("InvalidS3BucketFault", "rds-bucket-not-accessible"),
        ("InvalidExportOnly", "rds-export-only-invalid"),
    ] {
        rig.rds.fail("StartExportTask", 400, name, "no", 1);
        assert_eq!(rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await.0, code);
    }
    assert_eq!(rig.poll().await, json!([]), "each of these has ended");
    assert_eq!(rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await["status"], "exporting");

    // A snapshot without encryption goes where it is allowed.
    rig.configure(&[
        ("REQUIRE_ENCRYPTED_SNAPSHOT", "false"),
        ("EXPORT_ROLE_ARN", "arn:aws:iam::123456789012:role/other"),
        ("EXPORT_KMS_KEY_ARN", "arn:aws:kms:us-east-1:123456789012:key/other"),
    ]);
    assert_eq!(rig.run(json!({"snapshot": "plain"})).await["status"], "exporting");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_get_lost_and_files_that_are_late_lose_and_double_nothing() {
    let rig = Rig::start(&[]).await;
    // The task is started, and nobody could write that down.
    let unavailable = FaultAction::Status { status: 503, code: "ServiceUnavailable".into() };
    let started =
        Fault { times: 20, key_contains: Some("runs/rds-exports/".into()), ..Fault::nth("PutObject", 2, unavailable) };
    rig.s3.store().faults().push(started);
    let (code, _) = rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((code.as_str(), rig.started()), ("store-unavailable", 1));
    rig.s3.store().faults().clear();
    let found = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&found["status"], rig.started()), (&json!("exporting"), 1));

    // The manifest is written, and its answer lost.
    let lost = Fault { key_contains: Some("/metadata/".into()), ..Fault::next("PutObject", FaultAction::ResetAfter) };
    rig.s3.store().faults().push(lost);
    for _ in 0..3 {
        rig.poll().await;
    }
    assert_eq!(rig.keys("/metadata/").len(), 1);

    // Complete, and without files: no manifest, an error, and the next poll looks again.
    let empty = Course { steps: vec![Step::new("STARTING", 0), Step::new("complete", 100)], tables: Vec::new() };
    let rig = Rig::start(&[]).await;
    rig.rds.script_task(empty);
    rig.rds.set_target(ExportTarget {
        endpoint: rig.s3.endpoint(),
        access_key: "nobody".into(),
        secret_key: "s".into(),
        region: "us-east-1".into(),
    });
    rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!(rig.poll().await[0]["status"], "exporting");
    let (code, message) = rig.fails(json!({"mode": "poll"})).await;
    assert!(code == "snapshot-export-files-missing" && message.contains("export-20250621-020500"), "{code} {message}");
    assert!(rig.keys("/metadata/").is_empty());
    let folder = "postgres-exports/rds-exports/2025-06-21/export-20250621-020500/";
    let info =
        json!({"exportTaskIdentifier": "export-20250621-020500", "status": "COMPLETE", "totalExportedDataInGB": 0.0});
    rig.put(&format!("{folder}export_info_export-20250621-020500.json"), info.to_string()).await;
    rig.put(&format!("{folder}shop/public.orders/1/part-00000.gz.parquet"), "P").await;
    let (code, message) = rig.fails(json!({"mode": "poll"})).await;
    assert!(code == "snapshot-export-files-missing" && message.contains("export_tables_info"), "{code} {message}");
    let tables = json!({"perTableStatus": [{"target": "shop.public.orders", "status": "COMPLETE"}]});
    rig.put(&format!("{folder}export_tables_info_export-20250621-020500_from_1_to_1.json"), tables.to_string()).await;
    assert_eq!(rig.poll().await[0]["status"], "complete");

    // Files that never come are waited for as long as anything is.
    let (older, id) = ("rds:shop-2025-06-20-02-00", "20250620-020500");
    let steps = vec![Step::new("STARTING", 0), Step::new("COMPLETE", 100)];
    rig.rds.script_task(Course { steps, tables: Vec::new() });
    let mut created = event("RDS-EVENT-0091", &arn(older));
    created["detail"]["Date"] = json!("2025-06-20T02:05:00.000Z");
    rig.run(created).await;
    rig.poll().await;
    rig.fails(json!({"mode": "poll"})).await;
    let days_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(48);
    rig.edit_run(id, |run| run["task"]["completed"] = json!(days_ago)).await;
    assert_eq!(rig.fails(event("RDS-EVENT-0161", &arn(older))).await.0, "snapshot-export-files-missing");
    assert_eq!(
        (rig.poll().await, rig.json(&format!("runs/rds-exports/{id}.json")).await["state"].clone()),
        (json!([]), json!("failed"))
    );

    // Many deliveries at once.
    let rig = Rig::start(&[]).await;
    let deliveries = (0..6).map(|_| rig.invoke(event("RDS-EVENT-0091", &arn(AUTOMATED))));
    let outcomes = futures::future::join_all(deliveries).await;
    assert!(outcomes.iter().all(|outcome| !outcome.is_error()), "{outcomes:#?}");
    assert_eq!(rig.started(), 1);
}
