//! The passkey of a restore: asked for, counted before it is looked at, locked out, and written nowhere.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::guarded::{BACKUP, Guarded, PASSKEY, PASSKEY_SECRET, RESTORE, code, codes, hash, manifest};

#[tokio::test]
async fn only_the_right_passkey_opens_and_it_is_written_nowhere() {
    let guarded = Guarded::start().await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    let request = |passkey: Value| json!({"backup": BACKUP, "passkey": passkey, "requested_by": "tests"});
    assert_eq!(guarded.refused(json!({"backup": BACKUP})).await, "restore-passkey-missing");
    let outcome = guarded.ask(request(json!("hunter2-hunter2"))).await;
    assert_eq!(code(&outcome), "restore-passkey-rejected");
    let log = outcome.log.join("\n");
    for metric in ["RestoreAttempted", "RestoreRefused", "RestorePasskeyRejected"] {
        assert!(log.contains(&format!("\"{metric}\":1.0")), "{metric}: {log}");
    }
    assert!(log.contains("restore-passkey-rejected"), "{log}");
    assert_eq!(
        guarded.refused(json!({"backup": BACKUP, "passkey": "hunter2-hunter2", "bucket": "x"})).await,
        "request-unknown-fields"
    );
    let record = guarded.passes(request(json!(PASSKEY))).await;
    assert_eq!((&record["requested_by"], &record["backup_id"]), (&json!("tests"), &json!(BACKUP)));
    assert_eq!(record["target"], json!(format!("shop_{BACKUP}")));

    guarded.secrets.set(PASSKEY_SECRET, "not a hash");
    assert_eq!(guarded.refused(request(json!(PASSKEY))).await, "secret-unreadable");
    guarded.register(&[("RESTORE_PASSKEY_SECRET_ARN", "")]);
    assert_eq!(guarded.refused(request(json!(PASSKEY))).await, "restore-passkey-not-configured");

    for key in guarded.keys("") {
        let body = String::from_utf8_lossy(&guarded.bed.get(&key).await).into_owned();
        assert!(!body.contains(PASSKEY) && !body.contains("hunter2") && !body.contains("$argon2"), "{key}: {body}");
    }
    let log = guarded.bed.lambda.logs(RESTORE).join("\n");
    assert!(!log.contains(PASSKEY) && !log.contains("hunter2") && !log.contains("$argon2"), "{log}");
    // Every attempt has left a record, and only one was let pass.
    let records = guarded.keys("restores/20");
    assert_eq!(records.len(), 6, "{records:?}");
}

#[tokio::test]
async fn five_wrong_passkeys_lock_out_the_right_one_and_drills_go_on() {
    let guarded = Guarded::start().await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    for number in 0..5 {
        let wrong = json!({"backup": BACKUP, "passkey": format!("wrong passkey {number}")});
        assert_eq!(guarded.refused(wrong).await, "restore-passkey-rejected");
    }
    let right = json!({"backup": BACKUP, "passkey": PASSKEY});
    assert_eq!(guarded.refused(right).await, "restore-locked-out");
    assert_eq!(guarded.secrets.reads(), 5, "a locked-out passkey is not looked at");
    let plan = guarded.plan(json!({"mode": "plan", "backup": BACKUP})).await;
    assert_eq!(codes(&plan["refusals"]), ["restore-locked-out"]);
    guarded.passes(json!({"mode": "verify"})).await;
    // There is no dump behind this manifest: the drill fails, and is no attempt to restore.
    let drill = guarded.ask(json!({"mode": "verify"})).await.log.join("\n");
    assert!(drill.contains("\"RestoreDrillFailed\":1.0") && !drill.contains("RestoreAttempted"), "{drill}");

    // Which took the verification away.
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    // Fifteen minutes later.
    let key = guarded.keys("restores/lockout/").remove(0);
    let mut state = guarded.json(&key).await;
    state["locked_until"] = json!("2025-06-21T14:30:00Z");
    guarded.put(&key, state.to_string()).await;
    guarded.passes(json!({"backup": BACKUP, "passkey": PASSKEY})).await;
    // What cannot be read allows nothing.
    guarded.put(&key, "{").await;
    assert_eq!(guarded.refused(json!({"backup": BACKUP, "passkey": PASSKEY})).await, "restore-lockout-unreadable");
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_the_same_time_are_no_more_guesses() {
    let guarded = Guarded::start().await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    let guesses =
        (0..16).map(|number| guarded.ask(json!({"backup": BACKUP, "passkey": format!("wrong passkey {number}")})));
    let outcomes = join_all(guesses).await;
    let codes: Vec<String> = outcomes.iter().map(code).collect();
    let rejected = codes.iter().filter(|code| *code == "restore-passkey-rejected").count();
    assert_eq!((rejected, guarded.secrets.reads()), (5, 5), "{codes:?}");
    assert!(codes.iter().all(|code| code.starts_with("restore-")), "{codes:?}");
    assert_eq!(guarded.refused(json!({"backup": BACKUP, "passkey": PASSKEY})).await, "restore-locked-out");
}

#[test]
fn the_helper_hashes_one_line_and_nothing_short() {
    let (ok, hashed) = hash(PASSKEY);
    assert!(ok && hashed.starts_with("$argon2id$"), "{hashed}");
    let (ok, hashed) = hash("short");
    assert!(!ok && hashed.is_empty(), "{hashed}");
}
