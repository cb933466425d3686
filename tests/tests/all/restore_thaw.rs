//! Restores of archived dumps: approved, thawed, gone on with once, and only with what was approved.

use std::time::Duration;

use futures::future::join_all;
use holdfast_local::s3::{Fault, FaultAction};
use serde_json::{Value, json};

use crate::bed::{BUCKET, EXPORT};
use crate::guarded::{Guarded, PASSKEY, code, codes, edited};

const AN_HOUR: Duration = Duration::from_secs(3600);

/// A bed whose thaws last until they are finished, and its backup, with the dump in a storage class.
async fn archived(class: &str) -> (Guarded, String, String) {
    let guarded = Guarded::with(&[("EXPORT_FUNCTION_NAME", EXPORT)]).await;
    guarded.bed.register_export("shop", &[]);
    let receipt = guarded.bed.export(json!({"purpose": "test"})).await;
    let text = |pointer: &str| receipt.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let (id, key) = (text("/id"), text("/artifacts/dump/key"));
    guarded.bed.store().set_thaw_delay(AN_HOUR);
    guarded.bed.store().transition(&key, class);
    (guarded, id, key)
}

fn thawed(bucket: &str, key: &str) -> Value {
    json!({"version": "0", "id": "1", "detail-type": "Object Restore Completed", "source": "aws.s3", "account": "123456789012",
           "time": "2025-06-21T18:00:00Z", "region": "us-east-1", "resources": [format!("arn:aws:s3:::{bucket}")],
           "detail": {"version": "0", "bucket": {"name": bucket}, "object": {"key": key, "size": 1, "etag": "e"},
                      "request-id": "r", "requester": "s3.amazonaws.com",
                      "restore-expiry-time": "2025-06-24T00:00:00Z", "source-storage-class": "GLACIER"}})
}

fn poll() -> Value {
    json!({"source": "holdfast.schedule", "schedule_arn": "arn:aws:scheduler:us-east-1:123456789012:schedule/default/poll",
           "scheduled_time": "2025-06-21T18:00:00Z", "mode": "resume"})
}

impl Guarded {
    /// Asks for a restore and expects that it waits.
    async fn waits(&self, request_id: &str, payload: Value) -> Value {
        let outcome = self.ask_as(request_id, payload).await;
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        assert_eq!(outcome.payload["status"], json!("thawing"), "{:#}", outcome.payload);
        let record = self.record(request_id).await;
        assert_eq!(record["state"], json!("thawing"), "{record:#}");
        assert_eq!(self.json(&waiting_key(request_id)).await["request_id"], json!(request_id));
        outcome.payload
    }

    fn thaws(&self) -> usize {
        self.bed.store().requests().iter().filter(|request| request.operation == "RestoreObject").count()
    }

    async fn ended(&self, request_id: &str, state: &str) -> Value {
        let record = self.record(request_id).await;
        assert_eq!(record["state"], json!(state), "{record:#}");
        assert_eq!(self.bed.get(&waiting_key(request_id)).await, b"", "nothing waits any more");
        record
    }

    async fn pin(&self, id: &str, request_id: &str) -> Value {
        self.json(&format!("pins/{id}/{request_id}.json")).await
    }

    async fn change_record(&self, request_id: &str, change: impl FnOnce(&mut Value)) {
        let keys = self.keys(&format!("{request_id}.json"));
        let key = keys.iter().find(|key| key.starts_with("restores/20")).unwrap();
        let record = edited(self.json(key).await, change);
        self.put(key, record.to_string()).await;
    }
}

/// The entry of a restore that waits cannot be written.
pub fn entry_stays(request_id: &str) -> Fault {
    let denied = FaultAction::Status { status: 403, code: "AccessDenied".into() };
    let key_contains = Some(waiting_key(request_id));
    Fault { key_contains, times: u64::MAX, ..Fault::next("PutObject", denied) }
}

fn waiting_key(request_id: &str) -> String {
    format!("restores/waiting/test/{request_id}.json")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_dump_is_thawed_and_restored_once_whatever_is_delivered() {
    let (guarded, id, key) = archived("GLACIER").await;
    let plan = guarded.plan(json!({"mode": "plan", "backup": &id})).await;
    assert_eq!(plan["allowed"], json!(true), "{plan:#}");
    assert_eq!(plan["archived"]["thaws_within"], json!({"from": "3 hours", "to": "5 hours"}));
    assert!(plan["steps"][0].as_str().unwrap().contains("thaw"), "{plan:#}");
    assert_eq!(guarded.thaws(), 0, "a plan asks for nothing");
    let wrong = json!({"backup": &id, "passkey": "wrong passkey 1"});
    assert_eq!(guarded.refused(wrong).await, "restore-passkey-rejected");
    assert_eq!(guarded.thaws(), 0, "nothing is thawed that was not approved");

    let ask = json!({"backup": "latest", "passkey": PASSKEY, "tier": "bulk", "requested_by": "tests"});
    let receipt = guarded.waits("cold-1", ask.clone()).await;
    assert_eq!((&receipt["thaws_within"], &receipt["dump"]["key"]), (&json!("12 hours"), &json!(key)));
    assert!(receipt["expected_by"].as_str().unwrap() > jiff::Timestamp::now().to_string().as_str());
    let pin = guarded.pin(&id, "cold-1").await;
    assert_eq!((&pin["released"], &pin["expires"]), (&json!(false), &receipt["approval_expires"]));
    let lease = guarded.json(&format!("restores/leases/test/shop_{id}.json")).await;
    assert_eq!(lease["state"], json!("released"), "nobody works on the target while it is waited for");
    assert_eq!(guarded.ask_as("cold-1", ask).await.payload["duplicate"], json!(true));
    assert_eq!(guarded.thaws(), 1);

    // Too early, not ours, and nobody's.
    for event in [poll(), thawed(BUCKET, &key), json!({"mode": "resume"})] {
        let outcome = guarded.ask(event).await;
        assert_eq!(outcome.payload["waiting"][0]["request_id"], json!("cold-1"), "{:#}", outcome.payload);
    }
    assert_eq!(guarded.refused(thawed("another", &key)).await, "event-of-another-bucket");
    let other = guarded.ask(thawed(BUCKET, "postgres-exports/raw/2025-06-21/x.tar.gz")).await;
    assert_eq!(other.payload["status"], json!("ignored"), "{:#}", other.payload);
    let wrapped =
        json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": thawed(BUCKET, &key).to_string()}}]});
    assert_eq!(guarded.refused(wrapped).await, "restore-not-from-events");
    // An entry that somebody has put there opens nothing.
    let refused = guarded.keys("restores/20").into_iter().find(|key| !key.contains("cold-1")).unwrap();
    let (date, refused) = (&refused[9..19], refused.rsplit('/').next().unwrap().strip_suffix(".json").unwrap());
    let forged = json!({"request_id": refused, "date": date, "attempt": 1});
    guarded.put(&waiting_key(refused), forged.to_string()).await;
    assert!(!guarded.databases().await.contains(&format!("shop_{id}")));

    guarded.bed.store().finish_thaws();
    let deliveries = (0..20).map(|n| guarded.ask(if n % 5 == 0 { poll() } else { thawed(BUCKET, &key) }));
    let answers = join_all(deliveries).await;
    let done = answers.iter().filter(|answer| answer.payload["resumed"][0]["request_id"] == json!("cold-1"));
    assert_eq!(done.count(), 1, "{answers:#?}");
    assert!(answers.iter().all(|answer| !answer.is_error()), "{answers:#?}");
    let record = guarded.ended("cold-1", "succeeded").await;
    assert_eq!((&record["outcome"]["rows"], &record["requested_by"]), (&json!(2_500), &json!("tests")), "{record:#}");
    assert_eq!(guarded.pin(&id, "cold-1").await["released"], json!(true));
    assert_eq!(guarded.bed.contents(&format!("shop_{id}")).await, guarded.bed.contents("shop").await);
    let again = guarded.ask(thawed(BUCKET, &key)).await;
    assert_eq!((&again.payload["status"], guarded.thaws()), (&json!("ignored"), 1), "{:#}", again.payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_on_with_is_looked_at_again() {
    let (guarded, id, key) = archived("DEEP_ARCHIVE").await;
    let new = |name: &str| json!({"backup": &id, "target_database": name, "passkey": PASSKEY});
    let with = |mut payload: Value, field: &str, value: Value| {
        payload[field] = value;
        payload
    };
    let fast = with(new("fast"), "tier", json!("expedited"));
    assert_eq!(guarded.refused(fast).await, "restore-tier-unavailable");
    let swap = json!({"mode": "swap", "backup": &id, "passkey": PASSKEY});
    assert_eq!(guarded.refused(swap.clone()).await, "restore-thaw-without-safety-backup");
    let plan = json!({"mode": "plan", "plan_for": "swap", "backup": &id});
    assert_eq!(codes(&guarded.plan(plan).await["refusals"]), ["restore-thaw-without-safety-backup"]);
    assert_eq!(guarded.thaws(), 0);

    // From long ago, as what is archived is.
    let manifest_key = guarded.keys("/metadata/").remove(0);
    let aged = edited(guarded.json(&manifest_key).await, |m| m["export_complete"] = json!("2025-06-21T00:00:00Z"));
    guarded.put(&manifest_key, aged.to_string()).await;
    for name in ["taken", "late", "changed", "down", "kept"] {
        guarded.waits(name, new(name)).await;
    }
    let swap = with(swap, "take_safety_backup", json!(true));
    let receipt = guarded.waits("swap", swap).await;
    assert_eq!((&receipt["thaws_within"], &receipt["tier"]), (&json!("12 hours"), &json!("standard")));
    assert_eq!(guarded.keys("/metadata/").len(), 1, "a safety backup from now would be of no use");
    guarded.waits("drill", json!({"mode": "verify", "backup": &id})).await;

    guarded.bed.store().finish_thaws();
    guarded.bed.cluster.create_database("taken").await.unwrap();
    guarded
        .change_record("late", |record| record["waits_for"]["approval_expires"] = json!("2025-06-21T00:00:00Z"))
        .await;
    guarded.change_record("changed", |record| record["asked"]["target_database"] = json!("other")).await;
    guarded.change_record("kept", |record| record["running_until"] = json!("2999-01-01T00:00:00Z")).await;
    guarded.change_record("kept", |record| record["state"] = json!("running")).await;

    // A server that is down for a moment costs an attempt, and not the thaw.
    let database = guarded.bed.cluster.url("shop");
    let closed = database.replace(&format!(":{}", guarded.bed.cluster.port()), ":1");
    guarded.register(&[("DATABASE_URL", &closed)]);
    assert_eq!(guarded.refused(poll()).await, "restore-resume-failed", "every one that failed is named");
    let tried = guarded.record("down").await;
    assert_eq!((&tried["attempt"], &tried["state"]), (&json!(2), &json!("thawing")), "{tried:#}");
    assert_eq!(codes(&tried["problems"]), ["database-unreachable"]);
    guarded.register(&[("EXPORT_FUNCTION_NAME", EXPORT)]);

    // The lease of another restore is waited for.
    let lease = "restores/leases/test/down.json";
    let held = edited(guarded.json(lease).await, |lease| {
        (lease["state"], lease["expires"]) = (json!("held"), json!("2999-01-01T00:00:00Z"));
        lease["request_id"] = json!("another");
    });
    guarded.put(lease, held.to_string()).await;
    for _ in 0..3 {
        guarded.ask(poll()).await;
    }
    for (name, code) in [
        ("taken", "restore-target-exists"),
        ("late", "restore-approval-expired"),
        ("changed", "restore-not-as-approved"),
    ] {
        let record = guarded.ended(name, "refused").await;
        assert_eq!(codes(&record["problems"]), [code]);
    }
    let databases = guarded.databases().await;
    assert!(
        !databases.iter().any(|name| ["late", "changed", "other", "down", "kept"].contains(&name.as_str())),
        "{databases:?}"
    );
    assert_eq!(guarded.record("kept").await["state"], json!("running"), "another invocation's");
    let busy = guarded.record("down").await;
    assert_eq!((&busy["state"], &busy["attempt"]), (&json!("thawing"), &json!(2)), "being busy is no attempt");
    assert_eq!(guarded.pin(&id, "down").await["released"], json!(false), "what waits keeps its pin");
    guarded.ended("drill", "succeeded").await;
    assert_eq!(guarded.bed.manifest(&json!({"id": &id})).await.verified.unwrap().by, "restore-drill");

    let record = guarded.ended("swap", "succeeded").await;
    let safety = record["cleared"]["safety_backup"].as_str().unwrap();
    assert_ne!(safety, id);
    assert!(databases.contains(&format!("shop_before_{id}")), "{databases:?}");
    let released = edited(guarded.json(lease).await, |lease| lease["state"] = json!("released"));
    guarded.put(lease, released.to_string()).await;
    assert_eq!(guarded.ask(thawed(BUCKET, &key)).await.payload["resumed"][0]["request_id"], json!("down"));
    let receipt = guarded.ended("down", "succeeded").await;

    // The next plan says how long it took.
    let plan = guarded.plan(json!({"mode": "plan", "backup": &id})).await;
    let total = receipt["outcome"]["seconds"]["total"].as_f64().unwrap();
    let last = &plan["last_time"];
    assert_eq!((&last["mode"], &last["backup_id"], &last["rows"]), (&json!("new_database"), &json!(id), &json!(2500)));
    assert_eq!(last["seconds"], receipt["outcome"]["seconds"]);
    assert_eq!(plan["estimate"]["seconds"], json!(total.ceil()), "{:#}", plan["estimate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_gone_is_asked_for_again_and_what_died_is_told() {
    let (guarded, id, key) = archived("GLACIER").await;
    let new = |name: &str| json!({"backup": &id, "target_database": name, "passkey": PASSKEY});
    // S3 has no capacity: nothing waits.
    let status = FaultAction::Status { status: 503, code: "GlacierExpeditedRetrievalNotAvailable".into() };
    guarded.bed.store().faults().always("RestoreObject", status);
    let mut fast = new("fast");
    fast["tier"] = json!("expedited");
    assert_eq!(code(&guarded.ask_as("fast", fast).await), "restore-expedited-unavailable");
    guarded.ended("fast", "failed").await;
    assert_eq!(guarded.pin(&id, "fast").await["released"], json!(true));
    guarded.bed.store().faults().clear();

    // Killed between the record and RestoreObject: the poll asks for the thaw, and then goes on.
    let hang = FaultAction::Hang(Duration::from_secs(30));
    guarded.bed.store().faults().push(Fault::next("RestoreObject", hang));
    let kill = async {
        crate::scene::struck(&guarded.bed).await;
        guarded.bed.lambda.kill_instances(crate::guarded::RESTORE);
    };
    tokio::join!(guarded.ask_as("killed", new("killed")), kill);
    assert_eq!(guarded.record("killed").await["state"], json!("running"));
    guarded.change_record("killed", |record| record["running_until"] = json!("2025-06-21T00:00:00Z")).await;
    let lease = "restores/leases/test/killed.json";
    let expired = edited(guarded.json(lease).await, |lease| lease["expires"] = json!("2025-06-21T00:00:00Z"));
    guarded.put(lease, expired.to_string()).await;
    let polled = guarded.ask(poll()).await;
    assert_eq!(polled.payload["resumed"][0]["answer"]["status"], json!("thawing"), "{:#}", polled.payload);

    // Thawed, and nobody came before the copy was gone. One that S3 has no capacity for at that moment is asked for again.
    guarded.bed.store().finish_thaws();
    guarded.bed.store().transition(&key, "GLACIER");
    let status = FaultAction::Status { status: 503, code: "GlacierExpeditedRetrievalNotAvailable".into() };
    guarded.bed.store().faults().always("RestoreObject", status);
    assert_eq!(guarded.refused(poll()).await, "restore-expedited-unavailable");
    guarded.bed.store().faults().clear();
    assert_eq!(guarded.record("killed").await["state"], json!("thawing"));
    let polled = guarded.ask(poll()).await;
    assert_eq!(polled.payload["resumed"][0]["answer"]["status"], json!("thawing"), "{:#}", polled.payload);
    // An entry that cannot be emptied makes no failure of what is restored, and is emptied by the next poll.
    guarded.bed.store().finish_thaws();
    guarded.bed.store().faults().push(entry_stays("killed"));
    let polled = guarded.ask(poll()).await;
    assert_eq!(polled.payload["resumed"][0]["request_id"], json!("killed"), "{:#}", polled.payload);
    assert_eq!(guarded.record("killed").await["state"], json!("succeeded"));
    guarded.bed.store().faults().clear();
    assert_eq!(guarded.ask(poll()).await.payload["status"], json!("ignored"));
    guarded.ended("killed", "succeeded").await;

    // One that died yesterday, and whose second delivery comes after midnight.
    guarded.bed.store().transition(&key, "GLACIER");
    let yesterday = (jiff::Timestamp::now() - AN_HOUR * 24).to_string();
    let overnight = edited(guarded.record("fast").await, |record| {
        (record["request_id"], record["state"]) = (json!("overnight"), json!("running"));
        (record["started"], record["running_until"]) = (json!(yesterday), json!(yesterday));
        (record["cleared"], record["waits_for"], record["problems"]) = (Value::Null, Value::Null, json!([]));
    });
    guarded.put(&format!("restores/{}/overnight.json", &yesterday[..10]), overnight.to_string()).await;
    guarded.waits("overnight", new("overnight")).await;
    assert_eq!(guarded.record("overnight").await["attempt"], json!(2));

    // One whose engine was at work when it died.
    guarded.waits("dead", new("dead")).await;
    let died = |record: &mut Value| {
        record["state"] = json!("running");
        record["waits_for"] = Value::Null;
        record["running_until"] = json!("2025-06-21T00:00:00Z");
    };
    guarded.change_record("dead", died).await;
    assert_eq!(guarded.refused(poll()).await, "restore-interrupted");
    guarded.ended("dead", "failed").await;

    // Old dumps of other origin lie in the archive as well.
    guarded.put("imports/old.dump", guarded.bed.get(&key_of_warm(&guarded).await).await).await;
    guarded.bed.store().transition("imports/old.dump", "DEEP_ARCHIVE");
    let import = json!({"import": "old.dump", "target_database": "imported", "passkey": PASSKEY});
    guarded.waits("import", import).await;
    guarded.bed.store().finish_thaws();
    guarded.ask(thawed(BUCKET, "imports/old.dump")).await;
    guarded.ended("import", "succeeded").await;
    assert_eq!(guarded.bed.contents("imported").await, guarded.bed.contents("shop").await);
    guarded.ask(poll()).await;
    guarded.ended("overnight", "succeeded").await;
}

/// The dump of a fresh export.
async fn key_of_warm(guarded: &Guarded) -> String {
    let receipt = guarded.bed.export(json!({"purpose": "test"})).await;
    receipt["artifacts"]["dump"]["key"].as_str().unwrap().to_owned()
}
