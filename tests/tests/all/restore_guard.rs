//! What stands before a restore: who asks, from where, for what, onto which server.
//!
//! That a restore was allowed shows in its record (`cleared`), whatever the engine makes of it then.

use serde_json::{Value, json};

use crate::bed::EXPORT;
use crate::guarded::{BACKUP, Guarded, PASSKEY, code, codes, edited, manifest, manifest_key};

#[tokio::test]
async fn a_plan_says_everything_that_is_against_a_restore_and_changes_nothing() {
    let guarded = Guarded::with(&[("RESTORE_PASSKEY_SECRET_ARN", ""), ("TARGET_SYSTEM_IDENTIFIER", "")]).await;
    guarded.put_manifest("", &edited(manifest("", BACKUP), |m| m["verified"] = Value::Null)).await;
    let (databases, objects) = (guarded.databases().await, guarded.keys("").len());

    let swap = json!({"mode": "plan", "plan_for": "swap", "backup": BACKUP});
    let plan = guarded.plan(swap.clone()).await;
    let against = codes(&plan["refusals"]);
    for code in [
        "restore-passkey-not-configured",
        "restore-backup-not-verified",
        "restore-server-not-configured",
        "restore-safety-backup-missing",
    ] {
        assert!(against.contains(&code), "{code} in {against:?}");
    }
    assert_eq!((against.len(), &plan["allowed"], &plan["passkey"]), (4, &json!(false), &json!("required")));
    assert!(plan["refusals"].to_string().contains(&guarded.system_identifier), "{:#}", plan["refusals"]);
    assert_eq!((&plan["backup"]["rows"], &plan["backup"]["pg_restore_major"]), (&json!(2000), &json!(17)));
    assert_eq!(plan["estimate"]["seconds"], json!(25.0));
    assert_eq!(plan["restore"]["previous"], json!(format!("shop_before_{BACKUP}")));

    guarded.register(&[]);
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    let plan = guarded.plan(json!({"mode": "plan", "backup": "latest"})).await;
    assert_eq!((&plan["allowed"], &plan["refusals"]), (&json!(true), &json!([])));
    assert_eq!(plan["restore"], json!({"mode": "new_database", "database": format!("shop_{BACKUP}")}));
    // What cannot be seen is told as well, beside the rest.
    let plan = guarded.plan(json!({"mode": "plan", "plan_for": "undo", "target_database": "nothing"})).await;
    let against = codes(&plan["refusals"]);
    for code in ["restore-target-missing", "restore-nothing-to-undo", "restore-safety-backup-missing"] {
        assert!(against.contains(&code), "{code} in {against:?}");
    }
    let plan = guarded.plan(json!({"mode": "plan", "backup": "20240101-000000"})).await;
    assert_eq!(codes(&plan["refusals"]), ["backup-not-found"]);

    assert_eq!(guarded.databases().await, databases);
    assert_eq!(guarded.keys("").len(), objects + 4, "a record each, and nothing else: {:?}", guarded.keys(""));
    assert_eq!(guarded.secrets.reads(), 0);
}

#[tokio::test]
async fn nothing_but_a_request_starts_a_restore() {
    let guarded = Guarded::start().await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    let request = json!({"backup": BACKUP, "passkey": PASSKEY}).to_string();
    let schedule = |mode: &str| {
        json!({"source": "holdfast.schedule", "schedule_arn": "arn:s", "scheduled_time": "2025-06-21T02:00:00Z", "mode": mode,
               "backup": "latest"})
    };
    for (number, event) in [
        json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": request}}]}),
        json!({"Records": [{"eventSource": "aws:sqs", "body": request}]}),
        json!({"alarmArn": "a", "time": "t", "alarmData": {"alarmName": "x", "state": {"value": "ALARM"}}}),
        schedule("new_database"),
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = guarded.ask_as(&format!("event-{number}"), event).await;
        assert_eq!(code(&outcome), "restore-not-from-events");
        let record = guarded.record(&outcome.request_id).await;
        assert_eq!((&record["state"], &record["asked"]), (&json!("refused"), &Value::Null), "{record:#}");
    }
    assert_eq!(guarded.secrets.reads(), 0);
    // A drill may be. There is no dump behind the manifest, and a second delivery of the event does not tell so again.
    let outcome = guarded.ask(schedule("verify")).await;
    let key = guarded.keys("restores/20").into_iter().find(|key| !key.contains("event-")).unwrap();
    let record = guarded.json(&key).await;
    assert!(record["cleared"].is_object() && outcome.log.join("\n").contains("RestoreDrillFailed"), "{record:#}");
    assert_eq!((&record["requested_by"], &record["mode"]), (&json!("schedule"), &json!("verify")));
    let again = guarded.ask(schedule("verify")).await;
    assert_eq!(code(&again), "restore-already-answered");
    assert!(!again.log.join("\n").contains("RestoreDrillFailed"), "counted once");
}

#[tokio::test]
async fn the_latest_is_the_newest_that_is_what_it_says() {
    let guarded = Guarded::with(&[("KEY_PREFIX", "test/")]).await;
    let root = "test/";
    for id in ["20250601-000000", "20250610-000000"] {
        guarded.put_manifest(root, &manifest(root, id)).await;
    }
    let newer = |second: u32| format!("20250611-0000{second:02}");
    guarded.put_manifest(root, &edited(manifest(root, &newer(1)), |m| m["state"] = json!("expired"))).await;
    guarded.put_manifest(root, &edited(manifest(root, &newer(2)), |m| m["verified"] = Value::Null)).await;
    guarded.put_manifest(root, &edited(manifest(root, &newer(3)), |m| m["manifest_version"] = json!(2))).await;
    guarded.put_manifest(root, &edited(manifest(root, &newer(4)), |m| m["source"]["database"] = json!("other"))).await;
    guarded
        .put_manifest(root, &edited(manifest(root, &newer(5)), |m| m["selection"] = json!({"include": ["public.a"]})))
        .await;
    let elsewhere = edited(manifest(root, &newer(6)), |m| m["artifacts"]["dump"]["key"] = json!("evil/x.dump"));
    guarded.put_manifest(root, &elsewhere).await;
    guarded.put(&manifest_key(root, &newer(7)), "{\"manifest_version\":1").await;
    guarded.put(&manifest_key(root, &newer(8)), manifest(root, BACKUP).to_string()).await;
    // Newest of all, verified as it may call itself: what cannot be restored is not the latest.
    guarded.put_manifest(root, &edited(manifest(root, &newer(9)), |m| m["restorable"] = json!(false))).await;
    guarded.put(&format!("{root}postgres-exports/metadata/2025-06-11/notes.json"), "{}").await;
    guarded.put(&format!("{root}postgres-exports/metadata/9999-99-99/x.json"), "{}").await;
    let staging = edited(manifest("staging/", "20250620-000000"), |m| m["environment"] = json!("staging"));
    guarded.put_manifest("staging/", &staging).await;

    let chosen = async |payload: Value| {
        let mut payload = payload;
        payload["mode"] = json!("plan");
        let plan = guarded.plan(payload).await;
        let code = plan["refusals"][0]["code"].as_str().map(str::to_owned);
        (plan["backup"]["id"].as_str().map(str::to_owned).or(code).unwrap_or_default(), plan)
    };
    let (id, plan) = chosen(json!({"backup": "latest"})).await;
    assert_eq!(id, "20250610-000000");
    let warnings = plan["warnings"].to_string();
    for told in ["version 2", "evil", "not valid JSON", BACKUP, "notes.json"] {
        let told = if told == "evil" { "its dump is not at" } else { told };
        assert!(warnings.contains(told), "{told} in {warnings}");
    }
    assert!(!warnings.contains(&newer(9)), "nothing is wrong with it: {warnings}");
    for (payload, expected) in [
        (json!({"before": "2025-06-10T00:00:00Z"}), "20250601-000000"),
        (json!({"before": "2025-06-10T00:00:01Z"}), "20250610-000000"),
        (json!({"before": "2025-01-01T00:00:00Z"}), "backup-not-found"),
        (json!({"backup": "latest@staging"}), "20250620-000000"),
        (json!({"backup": "20250620-000000@staging"}), "20250620-000000"),
        (json!({"backup": "20250620-000000"}), "backup-not-found"),
        (json!({"backup": "latest@nowhere"}), "store-access-denied"),
        (json!({"backup": "latest", "source_database": "other"}), &newer(4)),
        (json!({"backup": newer(1)}), "backup-expired"),
        (json!({"backup": newer(3)}), "manifest-unreadable"),
        (json!({"backup": newer(6)}), "manifest-unreadable"),
        (json!({"backup": newer(8)}), "manifest-unreadable"),
        (json!({"backup": newer(9)}), "backup-not-restorable"),
        (json!({"import": "old.dump"}), "import-not-found"),
    ] {
        assert_eq!(chosen(payload.clone()).await.0, expected, "{payload}");
    }
    // Tombstones are kept for ever: twenty days of hours lie before the one that was kept.
    for hour in 0..480 {
        let id = format!("202401{:02}-{:02}0000", 10 + hour / 24, hour % 24);
        guarded.put_manifest(root, &edited(manifest(root, &id), |m| m["state"] = json!("expired"))).await;
    }
    guarded.put_manifest(root, &manifest(root, "20240105-000000")).await;
    assert_eq!(chosen(json!({"before": "2024-01-30T00:00:00Z"})).await.0, "20240105-000000");
    // What a schedule backs up is all that the deployment does.
    let scheduled = edited(manifest(root, "20250612-000000"), |m| {
        m["selection"] = json!({"include": ["public.*"]});
        m["event_key"] = json!("test/shop schedule:arn:nightly:2025-06-12T00:00:00Z");
    });
    guarded.put_manifest(root, &scheduled).await;
    assert_eq!(chosen(json!({"backup": "latest"})).await.0, "20250612-000000");
}

#[tokio::test]
async fn the_server_has_to_be_the_configured_one_of_this_environment() {
    let guarded = Guarded::start().await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    let request = json!({"backup": BACKUP, "passkey": PASSKEY});
    guarded.register(&[("TARGET_SYSTEM_IDENTIFIER", "7")]);
    assert_eq!(guarded.refused(request.clone()).await, "restore-wrong-server");

    guarded.register(&[]);
    guarded
        .bed
        .cluster
        .execute("postgres", "ALTER DATABASE shop SET holdfast.environment = 'production'")
        .await
        .unwrap();
    // Of the database that is the target, or else of the live one: a new one has no setting of its own.
    let tables = json!({"mode": "tables", "tables": ["public.*"], "backup": BACKUP, "passkey": PASSKEY});
    for asked in [&tables, &request, &json!({"mode": "verify", "backup": BACKUP})] {
        assert_eq!(guarded.refused(asked.clone()).await, "restore-wrong-environment", "{asked}");
        let plan = edited(asked.clone(), |plan| {
            plan["plan_for"] = plan["mode"].as_str().map_or(json!("new_database"), |mode| json!(mode));
            plan["mode"] = json!("plan");
            plan.as_object_mut().unwrap().remove("passkey");
        });
        let plan = guarded.plan(plan).await;
        assert_eq!(codes(&plan["refusals"]), ["restore-wrong-environment"], "{asked}");
    }
    guarded.bed.cluster.create_database("scratch").await.unwrap();
    let setting = "ALTER DATABASE scratch SET holdfast.environment = 'test'";
    guarded.bed.cluster.execute("postgres", setting).await.unwrap();
    guarded.passes(edited(tables.clone(), |tables| tables["target_database"] = json!("scratch"))).await;
    guarded.bed.cluster.execute("postgres", "ALTER DATABASE shop SET holdfast.environment = 'test'").await.unwrap();
    guarded.passes(tables).await;

    // The server that another environment's backup was taken from is that environment's.
    let staging = edited(manifest("", "20250622-000000"), |m| {
        m["environment"] = json!("staging");
        m["server"]["system_identifier"] = json!(guarded.system_identifier);
    });
    guarded.put_manifest("", &staging).await;
    let foreign = json!({"backup": "20250622-000000@staging", "passkey": PASSKEY});
    guarded.bed.cluster.execute("postgres", "ALTER DATABASE shop RESET holdfast.environment").await.unwrap();
    assert_eq!(guarded.refused(foreign.clone()).await, "restore-wrong-environment");
    // One that two environments share says whose the database is.
    guarded.bed.cluster.execute("postgres", "ALTER DATABASE shop SET holdfast.environment = 'test'").await.unwrap();
    guarded.passes(foreign).await;

    for (payload, code) in [
        (json!({"target_database": "shop"}), "restore-target-exists"),
        (json!({"target_database": "x".repeat(64)}), "restore-name-invalid"),
        (json!({"mode": "swap", "target_database": "postgres"}), "restore-target-reserved"),
        (json!({"mode": "swap", "target_database": "nothing"}), "restore-target-missing"),
        (json!({"mode": "swap"}), "restore-safety-backup-missing"),
    ] {
        let mut request = request.clone();
        for (name, value) in payload.as_object().unwrap() {
            request[name] = value.clone();
        }
        assert_eq!(guarded.refused(request).await, code, "{payload}");
    }
}

#[tokio::test]
async fn changing_what_is_there_needs_a_recent_backup_of_it() {
    let guarded = Guarded::start().await;
    guarded.put_manifest("", &manifest("", BACKUP)).await;
    let swap = json!({"mode": "swap", "backup": BACKUP, "passkey": PASSKEY});
    assert_eq!(guarded.refused(swap.clone()).await, "restore-safety-backup-missing");
    let take = edited(swap.clone(), |swap| swap["take_safety_backup"] = json!(true));
    let outcome = guarded.ask(take.clone()).await;
    assert_eq!(code(&outcome), "restore-safety-backup-missing", "no export function is configured");
    assert!(
        outcome.payload["errorMessage"].as_str().unwrap().contains("EXPORT_FUNCTION_NAME"),
        "{:#}",
        outcome.payload
    );

    // An export of another database is no way back.
    guarded.register(&[("EXPORT_FUNCTION_NAME", EXPORT)]);
    guarded.bed.cluster.create_database("other").await.unwrap();
    guarded.bed.register_export("other", &[]);
    let outcome = guarded.ask(take.clone()).await;
    assert_eq!(code(&outcome), "restore-safety-backup-missing");
    assert!(outcome.payload["errorMessage"].as_str().unwrap().contains("one was taken"), "{:#}", outcome.payload);
    guarded.bed.register_export("shop", &[]);
    let exports = guarded.keys("/metadata/").len();
    // Nor is one of the configured database where another one would be changed: none is taken.
    guarded.bed.cluster.create_database("third").await.unwrap();
    let third = edited(take.clone(), |take| take["target_database"] = json!("third"));
    assert_eq!(guarded.refused(third.clone()).await, "restore-safety-backup-missing");
    let plan = guarded.plan(edited(third, |plan| {
        (plan["mode"], plan["plan_for"]) = (json!("plan"), json!("swap"));
        plan.as_object_mut().unwrap().remove("passkey");
    }));
    let plan = plan.await;
    assert_eq!(codes(&plan["refusals"]), ["restore-safety-backup-missing"], "{plan:#}");
    assert_eq!(plan["safety_backup"]["would_be_taken"], json!(false), "{plan:#}");
    // Not for a restore that may not be done anyway.
    let reserved = edited(take.clone(), |take| take["target_database"] = json!("postgres"));
    assert_eq!(guarded.refused(reserved).await, "restore-target-reserved");
    assert_eq!(guarded.keys("/metadata/").len(), exports);

    let record = guarded.passes(take.clone()).await;
    assert_eq!(guarded.keys("/metadata/").len(), exports + 1);
    let safety = record["cleared"]["safety_backup"].as_str().unwrap();
    let taken = guarded.json(&manifest_key("", safety)).await;
    assert_eq!((&taken["purpose"], &taken["source"]["database"]), (&json!("safety_backup"), &json!("shop")));
    // It is there now, and recent.
    guarded.passes(swap).await;

    // One that an attempt had taken which died since is too old for the next attempt: that has another one taken.
    guarded.put_manifest("", &edited(taken, |taken| taken["export_complete"] = json!("2025-06-21T14:31:00Z"))).await;
    let request_id = record["request_id"].as_str().unwrap();
    let died = edited(record.clone(), |record| {
        (record["state"], record["running_until"]) = (json!("running"), json!("2025-06-21T14:31:00Z"));
    });
    let keys = guarded.keys(&format!("{request_id}.json"));
    guarded.put(keys.iter().find(|key| key.starts_with("restores/20")).unwrap(), died.to_string()).await;
    guarded.ask_as(request_id, take).await;
    let again = guarded.record(request_id).await;
    assert_eq!(again["attempt"], json!(2), "{again:#}");
    let old = safety;
    let safety = again["cleared"]["safety_backup"].as_str().unwrap();
    assert_ne!(safety, old, "{again:#}");

    // What cannot be restored is no way back, however recent.
    let now = jiff::Timestamp::now();
    // Not the id of the one that was just taken.
    let id = (now + jiff::SignedDuration::from_mins(1)).strftime("%Y%m%d-%H%M%S").to_string();
    let mut newer = edited(manifest("", &id), |newer| newer["export_complete"] = json!(now));
    let found = async |newer: &Value| {
        guarded.put_manifest("", newer).await;
        let plan = guarded.plan(json!({"mode": "plan", "plan_for": "swap", "backup": BACKUP})).await;
        plan["safety_backup"]["found"]["id"].clone()
    };
    newer["restorable"] = json!(false);
    assert_eq!(found(&newer).await, safety);
    newer["restorable"] = json!(true);
    newer["server"]["role"] = json!("standby");
    assert_eq!(found(&newer).await, safety, "a standby may lag behind");
    newer["server"]["role"] = json!("primary");
    assert_eq!(found(&newer).await, json!(id));
}

#[tokio::test]
async fn a_deployment_that_leaves_tables_out_swaps_and_loses_nothing() {
    let guarded = Guarded::with(&[("EXPORT_FUNCTION_NAME", EXPORT)]).await;
    let settings = [("EXCLUDE_TABLES", "public.orders"), ("EXCLUDE_TABLE_DATA", "public.customers")];
    guarded.bed.register_export("shop", &settings);
    let backup = guarded.bed.export(json!({})).await["id"].clone();
    let swap = json!({"mode": "swap", "backup": backup, "passkey": PASSKEY});
    let accepting = |patterns: &[&str]| edited(swap.clone(), |swap| swap["accept_left_out"] = json!(patterns));
    assert_eq!(guarded.refused(swap.clone()).await, "restore-backup-partial");
    assert_eq!(guarded.refused(accepting(&["public.orders"])).await, "restore-backup-partial");
    let all = accepting(&["public.orders", "public.customers"]);
    // Nothing else has these tables: no day is set on which they may go.
    let dated = edited(all.clone(), |all| all["keep_previous_days"] = json!(7));
    assert_eq!(guarded.refused(dated).await, "request-malformed");

    let outcome = guarded.ask(all).await;
    let answer = &outcome.payload;
    assert!(!outcome.is_error(), "{answer:#}\n{}", outcome.log.join("\n"));
    let previous = format!("shop_before_{}", backup.as_str().unwrap());
    assert_eq!((&answer["status"], &answer["previous"]), (&json!("complete"), &json!(previous)));
    assert_eq!(answer["backup"], backup);
    let notes = answer["notes"].to_string();
    assert!(notes.contains("public.orders") && notes.contains("public.customers"), "{notes}");
    assert!(answer["next"].as_str().unwrap().contains("undo"), "{answer:#}");
    let count = async |database: &str, table: &str| {
        let client = guarded.bed.cluster.connect(database).await.unwrap();
        let row = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await;
        row.ok().map(|row| row.get::<_, i64>(0))
    };
    assert_eq!((count("shop", "orders").await, count("shop", "customers").await), (None, Some(0)));
    assert_eq!((count(&previous, "orders").await, count(&previous, "customers").await), (Some(2000), Some(500)));

    let undone = guarded.ask(json!({"mode": "undo", "passkey": PASSKEY})).await;
    assert!(!undone.is_error(), "{:#}", undone.payload);
    assert!(undone.payload.get("rows").is_none(), "an undo loads nothing: {:#}", undone.payload);
    assert_eq!((count("shop", "orders").await, count("shop", "customers").await), (Some(2000), Some(500)));

    // What people bring that is no archive is named as what it is.
    for (name, body, looks) in
        [("plain.sql", "--\n-- PostgreSQL database dump\n--\nSET x = 1;\n", "plain SQL"), ("empty.dump", "", "empty")]
    {
        guarded.put(&format!("imports/{name}"), body).await;
        let outcome = guarded.ask(json!({"import": name, "target_database": "brought", "passkey": PASSKEY})).await;
        assert_eq!(code(&outcome), "import-not-an-archive", "{:#}", outcome.payload);
        assert!(outcome.payload["errorMessage"].as_str().unwrap().contains(looks), "{:#}", outcome.payload);
        assert_eq!(guarded.record(&outcome.request_id).await["state"], "refused");
        let plan = guarded.plan(json!({"mode": "plan", "import": name, "target_database": "brought"})).await;
        assert_eq!(plan["refusals"][0]["code"], "import-not-an-archive", "{plan:#}");
    }
    assert_eq!(guarded.keys("restores/waiting/"), [] as [String; 0]);
}
