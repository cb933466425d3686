//! Restores that are killed, or cut off, at every step: what was live is whole, and the next restore works.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use holdfast_local::lambda::{InvokeOptions, InvokeOutcome};
use holdfast_local::proxy::{Proxy, ProxyOptions};
use serde_json::{Value, json};

use crate::guarded::{Guarded, PASSKEY, RESTORE, code, edited};

const DATABASES: &str = "SELECT datname::text, datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database
                          WHERE datname NOT LIKE 'template%' AND datname <> 'postgres' ORDER BY 1";

/// The guarded function behind a proxy, its live database, and a backup of what that was before.
struct Scene {
    guarded: Guarded,
    proxy: Proxy,
    id: String,
}

impl Scene {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let guarded = Guarded::start().await;
        let port = guarded.bed.cluster.port();
        let proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ProxyOptions::default()).await.unwrap();
        let url = guarded.bed.cluster.url("shop").replace(&format!(":{port}/"), &format!(":{}/", proxy.addr().port()));
        let mut all = vec![("DATABASE_URL", url.as_str()), ("WORKERS", "2"), ("SAFETY_BACKUP_MINUTES", "30")];
        all.extend_from_slice(settings);
        guarded.register(&all);
        guarded.bed.cluster.execute("postgres", "COMMENT ON DATABASE shop IS 'ours'").await.unwrap();
        guarded.bed.register_export("shop", &[]);
        let id = guarded.bed.export(json!({"purpose": "test"})).await["id"].as_str().unwrap().to_owned();
        let sql = "DELETE FROM orders WHERE id > 100; UPDATE customers SET name = 'changed'";
        guarded.bed.cluster.execute("shop", sql).await.unwrap();
        Self { guarded, proxy, id }
    }

    fn request(&self, mode: &str, more: &Value) -> Value {
        let mut request = json!({"mode": mode, "passkey": PASSKEY});
        if mode != "undo" {
            request["backup"] = json!(self.id);
        }
        for (name, value) in more.as_object().unwrap() {
            request[name.as_str()] = value.clone();
        }
        request
    }

    async fn succeeds(&self, mode: &str, more: &Value) -> Value {
        let outcome = self.guarded.ask(self.request(mode, more)).await;
        assert!(!outcome.is_error(), "{mode}: {:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    async fn contents(&self, database: &str) -> Vec<(String, String)> {
        self.guarded.bed.contents(database).await.into_iter().collect()
    }

    /// Kills the function where it says `text` for the n-th time, before that or before the answer.
    async fn killed_at(&self, request: Value, (text, nth, passes): (&str, usize, bool)) -> String {
        self.proxy.stop_at(text, nth, passes);
        let killing = async {
            let stopped = tokio::time::timeout(Duration::from_secs(30), self.proxy.stopped()).await;
            assert!(stopped.is_ok(), "{text} was never said");
            self.guarded.bed.lambda.kill_instances(RESTORE);
        };
        let asking = tokio::time::timeout(Duration::from_secs(100), self.guarded.ask(request));
        let (outcome, ()) = tokio::join!(asking, killing);
        let outcome = outcome.unwrap_or_else(|_| panic!("{text}: the death was not noticed"));
        assert_eq!(outcome.payload["errorType"], "Runtime.ExitError", "{text}: {:#}", outcome.payload);
        self.proxy.cut_all();
        self.proxy.heal();
        outcome.request_id
    }

    /// Delivers a request again when its run can no longer be alive.
    async fn again(&self, request_id: &str, request: Value) -> InvokeOutcome {
        self.let_leases_expire().await;
        let key = self.guarded.keys(&format!("{request_id}.json"));
        let key = key.iter().find(|key| key.starts_with("restores/")).unwrap();
        let mut record = self.guarded.json(key).await;
        record["running_until"] = json!("2020-01-01T00:00:00Z");
        self.guarded.put(key, record.to_string()).await;
        self.guarded.ask_as(request_id, request).await
    }

    /// As if a minute had passed since.
    async fn let_leases_expire(&self) {
        for key in self.guarded.keys("restores/leases/") {
            let mut lease: Value = serde_json::from_slice(&self.guarded.bed.get(&key).await).unwrap();
            lease["expires"] = json!("2020-01-01T00:00:00Z");
            self.guarded.put(&key, lease.to_string()).await;
        }
    }

    /// What a poll tells the alarm.
    async fn drill_age_hours(&self) -> f64 {
        let poll = self.guarded.ask(json!({"mode": "resume"})).await;
        assert!(!poll.is_error(), "{:#}", poll.payload);
        let mut lines = poll.log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.find(|line| line["RestoreDrillAgeHours"].is_number()).expect("the poll told no age");
        assert_eq!([&line["App"], &line["Environment"], &line["Database"]], ["holdfast", "test", "shop"]);
        line["RestoreDrillAgeHours"].as_f64().unwrap()
    }

    /// Names, connection limits and comments of databases.
    async fn databases(&self) -> Vec<(String, i32, Option<String>)> {
        let client = self.guarded.bed.cluster.connect("postgres").await.unwrap();
        let rows = client.query(DATABASES, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_is_killed_anywhere_leaves_the_old_database_or_the_new_one() {
    let scene = Scene::start(&[]).await;
    let old = scene.contents("shop").await;
    let swap = || scene.request("swap", &json!({}));
    for (number, step) in [
        ("CREATE DATABASE", 1, false),
        ("CREATE DATABASE", 1, true),
        ("COMMENT ON DATABASE", 1, false),
        ("CREATE TABLE", 1, false),
        ("FROM STDIN", 1, true),
        ("ADD CONSTRAINT", 1, false),
        ("customers (id, name) TO STDOUT", 1, true),
        ("ANALYZE", 1, true),
        (" OWNER TO ", 1, false),
        ("RENAME TO", 1, false),
        ("RENAME TO", 1, true),
        ("COMMIT", 1, false),
    ]
    .into_iter()
    .enumerate()
    {
        if number == 4 {
            // While it works, no other works on the same database.
            scene.proxy.stop_at(step.0, step.1, step.2);
            let second = async {
                scene.proxy.stopped().await;
                let outcome = scene.guarded.ask(swap()).await;
                scene.guarded.bed.lambda.kill_instances(RESTORE);
                outcome
            };
            let (_, second) = tokio::join!(scene.guarded.ask(swap()), second);
            assert_eq!(code(&second), "restore-target-busy");
            scene.proxy.cut_all();
            scene.proxy.heal();
        } else {
            scene.killed_at(swap(), step).await;
        }
        assert_eq!(scene.contents("shop").await, old, "{step:?}");
        let databases = scene.databases().await;
        assert!(!databases.iter().any(|(name, ..)| name.contains("_before_")), "{step:?}: {databases:?}");
        // What is left is not to be taken for a database that is complete.
        let left = databases.iter().filter(|(name, ..)| name.contains("_restore_"));
        assert!(left.clone().all(|(_, limit, _)| *limit > 1_000_000_000), "{step:?}: {databases:?}");
        scene.let_leases_expire().await;
    }

    // Killed between the commit and its answer: the new one is there, and the old one beside it.
    scene.killed_at(swap(), ("COMMIT", 1, true)).await;
    scene.let_leases_expire().await;
    let before = format!("shop_before_{}", scene.id);
    let names = |databases: &[(String, i32, Option<String>)]| -> Vec<String> {
        databases.iter().map(|(name, ..)| name.clone()).collect()
    };
    let databases = scene.databases().await;
    assert_eq!(names(&databases), ["shop".to_owned(), before.clone()]);
    assert_eq!((databases[0].1, databases[0].2.as_deref()), (-1, Some("ours")));
    assert_eq!(scene.contents(&before).await, old);
    let new = scene.contents("shop").await;
    assert_ne!(new, old);

    // The same for the way back.
    scene.killed_at(scene.request("undo", &json!({})), ("COMMIT", 1, false)).await;
    scene.let_leases_expire().await;
    assert_eq!((scene.contents("shop").await, scene.contents(&before).await), (new.clone(), old.clone()));
    scene.killed_at(scene.request("undo", &json!({})), ("COMMIT", 1, true)).await;
    scene.let_leases_expire().await;
    assert_eq!(scene.contents("shop").await, old);

    scene.succeeds("swap", &json!({})).await;
    assert_eq!(scene.contents("shop").await, new);
    let undone = format!("shop_undone_{}", scene.id);
    assert_eq!(names(&scene.databases().await), ["shop".to_owned(), before, undone]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_killed_leave_the_old_rows_and_no_schema() {
    let scene = Scene::start(&[]).await;
    let old = scene.contents("shop").await;
    let client = scene.guarded.bed.cluster.connect("shop").await.unwrap();
    let schema = async || -> bool {
        let sql = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname LIKE 'restore%')";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let chosen = json!({"tables": ["public.orders", "public.customers"]});
    let original = json!({"tables": ["public.orders", "public.customers"], "into": "original"});
    for step in [("CREATE SCHEMA", 1, true), ("FROM STDIN", 1, true), ("ANALYZE", 1, false)] {
        scene.killed_at(scene.request("tables", &chosen), step).await;
        assert_eq!(
            scene.contents("shop").await.into_iter().filter(|(name, _)| !name.contains("restore_")).collect::<Vec<_>>(),
            old
        );
        scene.let_leases_expire().await;
    }
    scene.succeeds("tables", &chosen).await;
    assert!(schema().await);
    client.batch_execute(&format!("DROP SCHEMA \"restore_{}\" CASCADE", scene.id)).await.unwrap();

    for step in [
        ("LOCK TABLE", 1, true),
        ("TRUNCATE", 1, true),
        ("FROM STDIN", 2, true),
        ("ALTER TABLE public.orders ADD CONSTRAINT", 1, false),
        ("COMMIT", 1, false),
    ] {
        scene.killed_at(scene.request("tables", &original), step).await;
        // Not only are they there: nobody holds them.
        client.batch_execute("SET lock_timeout = '5s'; BEGIN; LOCK TABLE orders; ROLLBACK").await.unwrap();
        assert_eq!(scene.contents("shop").await, old, "{step:?}");
        scene.let_leases_expire().await;
    }
    scene.killed_at(scene.request("tables", &original), ("COMMIT", 1, true)).await;
    scene.let_leases_expire().await;
    let new = scene.contents("shop").await;
    assert_ne!(new, old);
    scene.succeeds("tables", &original).await;
    assert_eq!(scene.contents("shop").await, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_works_through_the_function_and_is_written_down() {
    let scene = Scene::start(&[]).await;
    let old = scene.contents("shop").await;
    // Schedules deliver at least once, each time by an invocation of its own: one drill.
    let drill = json!({"source": "holdfast.schedule", "schedule_arn": "arn:drill", "scheduled_time": "2025-06-22T05:00:00Z",
                       "mode": "verify", "backup": scene.id});
    let (one, two) = tokio::join!(scene.guarded.ask(drill.clone()), scene.guarded.ask(drill.clone()));
    let third = scene.guarded.ask(drill).await;
    let log = scene.guarded.bed.lambda.logs(RESTORE).join("\n");
    assert_eq!(log.matches("\"RestoreDrillSucceeded\":1.0").count(), 1, "{log}");
    assert!(!log.contains("RestoreDrillFailed") && !log.contains("RestoreFailed"), "{log}");
    assert!(![&one, &two, &third].into_iter().any(InvokeOutcome::is_error), "{one:#?}\n{two:#?}\n{third:#?}");
    assert_eq!((&third.payload["status"], &third.payload["duplicate"]), (&json!("complete"), &json!(true)));
    let records = scene.guarded.keys("restores/20");
    let record = scene.guarded.json(&records[0]).await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert!([&one.request_id, &two.request_id].into_iter().any(|id| record["invocation"] == json!(id)), "{record:#}");
    let key = scene.guarded.bed.manifests().pop().unwrap();
    let manifest: Value = serde_json::from_slice(&scene.guarded.bed.get(&key).await).unwrap();
    assert_eq!(manifest["verified"]["by"], "restore-drill");

    let made = scene.succeeds("new_database", &json!({})).await;
    // Each poll says how long ago the drill was, whatever was restored since.
    let timings = "restores/timings/test/shop.json";
    assert_eq!(scene.guarded.json(timings).await["mode"], "new_database");
    assert!((0.0..0.2).contains(&scene.drill_age_hours().await));
    let nine_days_ago = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(216)).to_string();
    let edit = edited(scene.guarded.json(timings).await, |last| last["drilled"] = json!(nine_days_ago));
    scene.guarded.put(timings, edit.to_string()).await;
    assert!((216.0..216.2).contains(&scene.drill_age_hours().await));
    let copy = made["database"].as_str().unwrap().to_owned();
    let new = scene.contents(&copy).await;
    assert_ne!(new, old);
    let databases = scene.databases().await;
    let made = databases.iter().find(|(name, ..)| *name == copy).unwrap();
    assert_eq!((made.1, &made.2), (-1, &None), "it is a database like any other");

    let receipt = scene.succeeds("tables", &json!({"tables": ["orders"]})).await;
    assert_eq!(receipt["schema"], json!(format!("restore_{}", scene.id)));
    assert_eq!((&receipt["rows"], &receipt["proved_by"]), (&json!(2000), &json!("fingerprints")));
    let drop = format!("DROP SCHEMA \"restore_{}\" CASCADE", scene.id);
    scene.guarded.bed.cluster.execute("shop", &drop).await.unwrap();
    scene.succeeds("swap", &json!({"keep_previous_days": 7})).await;
    assert_eq!(scene.contents("shop").await, new);
    // Which one comes back is told before and after.
    let plan = scene.guarded.plan(json!({"mode": "plan", "plan_for": "undo"})).await;
    let undone = scene.succeeds("undo", &json!({})).await;
    let since = plan["restore"]["put_aside"].as_str().unwrap();
    assert!(plan["steps"].to_string().contains(since), "{plan:#}");
    assert_eq!((&undone["came_back"], &undone["put_aside"]), (&plan["restore"]["previous"], &json!(since)));
    assert_eq!(undone["came_back"], json!(format!("shop_before_{}", scene.id)));
    assert_eq!(scene.contents("shop").await, old);
    let outcome = scene.guarded.ask(scene.request("tables", &json!({"tables": ["*"], "into": "original"}))).await;
    assert!(!outcome.is_error(), "{:#}", outcome.payload);
    assert_eq!(scene.contents("shop").await, new);
    let record = scene.guarded.record(&outcome.request_id).await;
    assert_eq!((&record["state"], &record["outcome"]), (&json!("succeeded"), &outcome.payload));
    assert_eq!(record["cleared"]["safety_backup"], json!(scene.id));
    // The comment says what was put aside, and goes with the name where somebody else wrote it.
    let databases = scene.databases().await;
    assert_eq!(databases[0].2.as_deref(), Some("ours"), "{databases:?}");

    let outcome = scene.guarded.ask(scene.request("tables", &json!({"tables": ["nothing"]}))).await;
    assert_eq!(code(&outcome), "restore-tables-not-found");
    assert_eq!(scene.guarded.record(&outcome.request_id).await["state"], json!("refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_meanwhile_fails_the_restore_and_nothing_else() {
    let mut scene = Scene::start(&[]).await;
    let old = scene.contents("shop").await;
    for (mode, more) in [
        ("swap", json!({})),
        ("tables", json!({"tables": ["orders"], "into": "original"})),
        ("tables", json!({"tables": ["orders"]})),
    ] {
        scene.proxy.stop_at("FROM STDIN", 1, true);
        let request = scene.request(mode, &more);
        let Scene { guarded, proxy, .. } = &mut scene;
        let options = InvokeOptions::default();
        let lambda = &guarded.bed.lambda;
        let cluster = &mut guarded.bed.cluster;
        let restarting = async {
            proxy.stopped().await;
            cluster.restart().await.unwrap();
            proxy.cut_all();
            proxy.heal();
        };
        let (outcome, ()) = tokio::join!(lambda.invoke_with(RESTORE, request, options), restarting);
        let outcome = outcome.unwrap();
        assert_eq!(code(&outcome), "database-connection-lost", "{:#}", outcome.payload);
        assert_eq!(scene.contents("shop").await, old, "{mode}");
        assert_eq!(scene.databases().await.len(), 1, "{mode}: nothing is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_done_is_not_done_again() {
    let scene = Scene::start(&[]).await;
    let old = scene.contents("shop").await;
    scene.succeeds("swap", &json!({})).await;
    // An older swap's: a second undo would take it. One without a note comes back never.
    for decoy in ["shop_before_20200101-000000", "shop_before_29990101-000000"] {
        scene.guarded.bed.cluster.create_database(decoy).await.unwrap();
    }
    let note = json!({"holdfast": "replaced", "by_backup": "20200101-000000", "at": "2020-01-01T00:00:00Z", "keep_until": null});
    let comment = format!("COMMENT ON DATABASE \"shop_before_20200101-000000\" IS '{note}'");
    scene.guarded.bed.cluster.execute("postgres", &comment).await.unwrap();
    let undo = scene.request("undo", &json!({}));
    let request_id = scene.killed_at(undo.clone(), ("COMMIT", 1, true)).await;
    assert_eq!(scene.contents("shop").await, old);
    assert_eq!(code(&scene.again(&request_id, undo).await), "restore-interrupted");
    assert_eq!(scene.contents("shop").await, old);
    let record = scene.guarded.record(&request_id).await;
    assert_eq!((&record["state"], &record["attempt"]), (&json!("failed"), &json!(2)));
    assert_eq!(record["cleared"]["restore"]["mode"], "undo", "{record:#}");
    let plan = scene.guarded.plan(json!({"mode": "plan", "plan_for": "undo"})).await;
    assert_eq!(plan["restore"]["previous"], "shop_before_20200101-000000", "{plan:#}");
    assert!(plan["warnings"].to_string().contains("shop_before_29990101-000000 does not come back"), "{plan:#}");

    let tables = scene.request("tables", &json!({"tables": ["orders"], "into": "original"}));
    let request_id = scene.killed_at(tables.clone(), ("COMMIT", 1, true)).await;
    scene.guarded.bed.cluster.execute("shop", "INSERT INTO orders VALUES (-1, 1, 'written since')").await.unwrap();
    let since = scene.contents("shop").await;
    assert_eq!(code(&scene.again(&request_id, tables).await), "restore-interrupted");
    assert_eq!(scene.contents("shop").await, since);

    // One that was killed before anything could have happened is done by the next delivery.
    let copy = scene.request("new_database", &json!({"target_database": "copy"}));
    let request_id = scene.killed_at(copy.clone(), ("FROM STDIN", 1, true)).await;
    let outcome = scene.again(&request_id, copy).await;
    assert!(!outcome.is_error(), "{:#}", outcome.payload);
}
