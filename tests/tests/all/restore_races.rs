//! Restores beside retention, where a backup that is read stays and one that goes is not restored, and beside each other.

use std::time::Duration;

use futures::FutureExt;
use holdfast_local::lambda::InvokeOutcome;
use holdfast_local::s3::{Fault, FaultAction};
use serde_json::{Value, json};

use crate::bed::{BUCKET, EXPORT};
use crate::guarded::{BACKUP, Guarded, PASSKEY, RESTORE, code, edited, manifest};
use crate::retention_rig::{KEY, RETENTION, rights, spec};
use crate::scene::{night, struck, until};

/// Longer than a run of retention.
const DELAY: FaultAction = FaultAction::Delay(Duration::from_secs(3));

struct Race {
    guarded: Guarded,
}

impl Race {
    /// Backups of three nights; retention wants the last one.
    async fn start() -> (Self, [String; 3]) {
        let guarded = Guarded::start().await;
        guarded.bed.store().add_key(KEY.0, KEY.1, Some(rights()));
        let policy = [("ENVIRONMENT", "test"), ("RETENTION_POLICY", r#"{"rules":[{"keep_last":1}]}"#)];
        guarded.bed.lambda.register(spec(&guarded.bed.s3, &policy));
        guarded.bed.register_export("shop", &[]);
        let mut ids = Vec::new();
        for n in 0..3 {
            ids.push(guarded.bed.export(night(n)).await["id"].as_str().unwrap().to_owned());
        }
        (Self { guarded }, ids.try_into().unwrap())
    }

    /// Slows down the next call about such a key.
    fn slow(&self, operation: &'static str, key: &str) {
        let fault = Fault { key_contains: Some(key.to_owned()), ..Fault::next(operation, DELAY) };
        self.guarded.bed.store().faults().push(fault);
    }

    async fn restore(&self, id: &str, name: &str) -> InvokeOutcome {
        self.guarded.ask(json!({"backup": id, "target_database": name, "passkey": PASSKEY})).await
    }

    async fn retain(&self) -> InvokeOutcome {
        self.guarded.bed.lambda.invoke(RETENTION, json!({})).await.unwrap()
    }

    /// Its current version, not one that was deleted.
    async fn has_dump(&self, id: &str) -> bool {
        let key = format!("postgres-exports/dumps/{}-{}-{}/{id}.dump", &id[..4], &id[4..6], &id[6..8]);
        self.guarded.bed.client().await.head_object().bucket(BUCKET).key(key).send().await.is_ok()
    }

    async fn has(&self, name: &str) -> bool {
        self.guarded.databases().await.iter().any(|database| database == name)
    }
}

/// The backups whose data a run has deleted.
fn expired(outcome: &InvokeOutcome) -> Vec<&str> {
    let (plan, done) = (&outcome.payload["plan"], &outcome.payload["done"]);
    let ids: Vec<&str> = ["expire", "resume"]
        .iter()
        .flat_map(|list| plan[*list].as_array().unwrap_or_else(|| panic!("{:#}", outcome.payload)))
        .map(|expiry| expiry["id"].as_str().unwrap())
        .collect();
    assert_eq!(done["expired"], json!(ids.len()), "{:#}", outcome.payload);
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_and_a_restore_of_what_it_wants_to_expire() {
    let (race, [first, second, _]) = Race::start().await;
    let bed = &race.guarded.bed;

    // The rows are being read: the pin keeps retention away from this one, and from no other.
    race.slow("GetObject", &format!("{first}.dump"));
    let retaining = async {
        struck(bed).await;
        race.retain().await
    };
    let (restored, retained) = tokio::join!(race.restore(&first, "one"), retaining);
    assert!(!restored.is_error(), "{:#}", restored.payload);
    assert_eq!(expired(&retained), [second.as_str()], "{:#}", retained.payload);
    assert!(retained.payload["plan"]["keep"].to_string().contains("pinned by"), "{:#}", retained.payload);
    assert_eq!(bed.contents("one").await, bed.contents("shop").await);
    assert!(race.has_dump(&first).await && !race.has_dump(&second).await);

    // Retention is done before the pin is written: the manifest that is read then says so.
    race.slow("PutObject", &format!("pins/{first}"));
    let retaining = async {
        struck(bed).await;
        race.retain().await
    };
    let (restored, retained) = tokio::join!(race.restore(&first, "two"), retaining);
    assert_eq!(expired(&retained), [first.as_str()], "{:#}", retained.payload);
    assert_eq!(code(&restored), "backup-expired", "{:#}", restored.payload);
    assert!(!race.has("two").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_between_pin_and_rows_and_a_pin_of_a_dead_restore() {
    let (race, [first, second, _]) = Race::start().await;
    let bed = &race.guarded.bed;

    // The tombstone comes when the restore has read the manifest and reads rows: it is written, and the rows stay.
    race.slow("PutObject", &format!("{first}.json"));
    let restoring = async {
        struck(bed).await;
        race.slow("GetObject", &format!("{first}.dump"));
        race.restore(&first, "one").await
    };
    let (retained, restored) = tokio::join!(race.retain(), restoring);
    assert!(!restored.is_error(), "{:#}", restored.payload);
    assert_eq!(code(&retained), "retention-incomplete", "{:#}", retained.payload);
    assert!(retained.payload.to_string().contains("its data stays while it is pinned"), "{:#}", retained.payload);
    assert_eq!(bed.contents("one").await, bed.contents("shop").await);
    // Released now: what was begun is finished. Once more is not to be had.
    assert_eq!(expired(&race.retain().await), [first.as_str()]);
    assert_eq!(code(&race.restore(&first, "two").await), "backup-expired");

    // Of a killed restore the pin stays for as long as its run could have lived.
    let fourth = bed.export(night(3)).await["id"].as_str().unwrap().to_owned();
    let third = race.guarded.keys("/metadata/").into_iter().rev().nth(1).unwrap();
    let third = third.rsplit('/').next().unwrap().trim_end_matches(".json").to_owned();
    assert!(third < fourth && third > second);
    race.slow("GetObject", &format!("{third}.dump"));
    let killing = async {
        struck(bed).await;
        bed.lambda.kill_instances(RESTORE);
    };
    let (killed, ()) = tokio::join!(race.restore(&third, "three"), killing);
    assert_eq!(killed.payload["errorType"], "Runtime.ExitError");
    assert_eq!(expired(&race.retain().await), [] as [&str; 0]);
    let key = format!("pins/{third}/{}.json", killed.request_id);
    let mut pin = race.guarded.json(&key).await;
    let expires: jiff::Timestamp = pin["expires"].as_str().unwrap().parse().unwrap();
    assert!(expires > jiff::Timestamp::now(), "{pin}");
    pin["expires"] = json!("2025-01-02T00:00:00Z");
    race.guarded.put(&key, pin.to_string()).await;
    assert_eq!(expired(&race.retain().await), [third.as_str()]);
    assert!(!race.has_dump(&third).await && race.has_dump(&fourth).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_held_while_its_safety_backup_is_taken_and_nothing_is_done_to_one_that_is_lost() {
    let guarded = Guarded::with(&[("EXPORT_FUNCTION_NAME", EXPORT)]).await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    guarded.bed.register_export("shop", &[("LOCK_TIMEOUT_MS", "60000")]);
    let swap = json!({"mode": "swap", "backup": BACKUP, "passkey": PASSKEY, "take_safety_backup": true});
    // The export waits for as long as this does.
    let application = guarded.bed.cluster.connect("shop").await.unwrap();
    application.batch_execute("BEGIN; LOCK TABLE orders").await.unwrap();
    let meanwhile = async {
        let lease = "restores/leases/test/shop.json";
        until("the target is taken", || !guarded.keys(lease).is_empty()).await;
        // As if its time had passed while the backup was taken.
        let past = json!("2025-06-21T00:00:00Z");
        guarded
            .put(lease, edited(guarded.json(lease).await, |lease| lease["expires"] = past.clone()).to_string())
            .await;
        while guarded.json(lease).await["expires"] == past {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(guarded.refused(swap.clone()).await, "restore-target-busy");
        let taken = edited(guarded.json(lease).await, |lease| lease["request_id"] = json!("another"));
        guarded.put(lease, taken.to_string()).await;
        application.batch_execute("ROLLBACK").await.unwrap();
    };
    let asked = guarded.ask_as("slow", swap.clone());
    let (outcome, ()) =
        tokio::join!(asked, tokio::time::timeout(Duration::from_secs(50), meanwhile).map(Result::unwrap));
    assert_eq!(code(&outcome), "lease-lost", "{:#}", outcome.payload);
    let record = guarded.record("slow").await;
    assert_eq!((&record["state"], &record["cleared"]), (&json!("failed"), &Value::Null), "{record:#}");
    let pin = guarded.json(&format!("pins/{BACKUP}/slow.json")).await;
    assert_eq!(pin["released"], json!(true), "{pin:#}");
}

#[tokio::test]
async fn a_backup_is_pinned_while_it_is_read_and_tombstones_are_seen_after() {
    let guarded = Guarded::with(&[("KEY_PREFIX", "test/")]).await;
    let staging = edited(manifest("staging/", BACKUP), |m| m["environment"] = json!("staging"));
    guarded.put_manifest("staging/", &staging).await;
    let request = json!({"backup": "latest@staging", "passkey": PASSKEY});
    let outcome = guarded.ask_as("pins-1", request.clone()).await;
    let pin = guarded.json(&format!("staging/pins/{BACKUP}/pins-1.json")).await;
    assert_eq!(pin["released"], json!(true), "{:#}", outcome.payload);
    assert_eq!((&pin["backup_id"], &pin["request_id"]), (&json!(BACKUP), &json!("pins-1")));
    assert!(pin["purpose"].as_str().unwrap().starts_with("restore"), "{pin}");
    let writes: Vec<String> = guarded.bed.store().requests().iter().map(|request| format!("{request:?}")).collect();
    let at = |operation: &str, part: &str, from_end: bool| {
        let found = |line: &String| line.contains(operation) && line.contains(part);
        if from_end { writes.iter().rposition(found) } else { writes.iter().position(found) }
    };
    assert!(at("PutObject", "staging/pins/", false) < at("GetObject", "staging/postgres-exports/metadata/", true));

    let expired = edited(staging, |m| m["state"] = json!("expired"));
    guarded.put_manifest("staging/", &expired).await;
    let by_id = json!({"backup": format!("{BACKUP}@staging"), "passkey": PASSKEY});
    assert_eq!(guarded.refused(by_id).await, "backup-expired");
}

#[tokio::test]
async fn a_request_runs_once_and_a_target_has_one_restore() {
    let guarded = Guarded::start().await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    let plan = json!({"mode": "plan", "backup": BACKUP});
    assert_eq!(guarded.ask_as("plan-1", plan.clone()).await.payload["duplicate"], Value::Null);
    assert_eq!(guarded.ask_as("plan-1", plan).await.payload["duplicate"], json!(true));

    let wrong = json!({"backup": BACKUP, "passkey": "wrong passkey 1"});
    assert_eq!(code(&guarded.ask_as("wrong-1", wrong.clone()).await), "restore-passkey-rejected");
    let again = guarded.ask_as("wrong-1", wrong).await;
    assert_eq!(code(&again), "restore-already-answered");
    assert!(
        again.payload["errorMessage"].as_str().unwrap().contains("restore-passkey-rejected"),
        "{:#}",
        again.payload
    );
    assert!(!again.log.join("\n").contains("RestoreRefused"), "counted once");
    assert_eq!(guarded.secrets.reads(), 1);

    // One that is running, one that died, and one that died yesterday.
    let key = guarded.keys("wrong-1.json").remove(0);
    let template = guarded.json(&key).await;
    let running = |id: &str, until: &str| {
        edited(template.clone(), |record| {
            record["request_id"] = json!(id);
            record["state"] = json!("running");
            record["running_until"] = json!(until);
            record["problems"] = json!([]);
        })
        .to_string()
    };
    let right = json!({"backup": BACKUP, "passkey": PASSKEY});
    guarded.put(&key.replace("wrong-1", "alive"), running("alive", "2999-01-01T00:00:00Z")).await;
    assert_eq!(code(&guarded.ask_as("alive", right.clone()).await), "restore-in-progress");
    guarded.put(&key.replace("wrong-1", "dead"), running("dead", "2025-01-01T00:00:00Z")).await;
    guarded.ask_as("dead", right.clone()).await;
    let record = guarded.record("dead").await;
    assert_eq!((&record["attempt"], record["cleared"].is_object()), (&json!(2), true), "{record:#}");
    let yesterday = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().yesterday().unwrap();
    guarded.put(&format!("restores/{yesterday}/late.json"), running("late", "2999-01-01T00:00:00Z")).await;
    assert_eq!(code(&guarded.ask_as("late", right.clone()).await), "restore-in-progress");

    let held = json!({"state": "held", "backup_id": BACKUP, "event_key": "restore:other", "request_id": "other",
                      "since": "2025-06-21T14:30:00Z", "expires": "2999-01-01T00:00:00Z"});
    let lease = guarded.keys(&format!("restores/leases/test/shop_{BACKUP}.json")).remove(0);
    assert_eq!(guarded.json(&lease).await["state"], json!("released"));
    guarded.put(&lease, held.to_string()).await;
    let busy = guarded.ask(right).await;
    assert_eq!(code(&busy), "restore-target-busy");
    assert!(busy.payload["errorMessage"].as_str().unwrap().contains("request other"), "{:#}", busy.payload);
    guarded.passes(json!({"backup": BACKUP, "passkey": PASSKEY, "target_database": "another"})).await;
}
