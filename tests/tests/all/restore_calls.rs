//! A restore whose store fails, refuses, or sees the function die, at any call: it ends well, or the live database is as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use holdfast_local::s3::{Fault, FaultAction};
use serde_json::{Value, json};

use crate::guarded::{Guarded, PASSKEY, RESTORE};
use crate::scene::{HELD, struck};

type Contents = BTreeMap<String, String>;

/// The function, a backup of `shop`, and what has been changed there since.
struct Scene {
    guarded: Guarded,
    id: String,
    old: Contents,
    new: Contents,
}

impl Scene {
    async fn start() -> Self {
        let guarded = Guarded::with(&[("WORKERS", "2"), ("SAFETY_BACKUP_MINUTES", "60")]).await;
        let new = guarded.bed.contents("shop").await;
        guarded.bed.register_export("shop", &[]);
        let id = guarded.bed.export(json!({"purpose": "test"})).await["id"].as_str().unwrap().to_owned();
        guarded.bed.cluster.execute("shop", "DELETE FROM orders WHERE id > 100").await.unwrap();
        let old = guarded.bed.contents("shop").await;
        Self { guarded, id, old, new }
    }

    fn request(&self, mode: &str) -> Value {
        json!({"mode": mode, "backup": self.id, "passkey": PASSKEY})
    }

    fn strike(&self, fault: Fault) {
        self.guarded.bed.store().faults().push(fault);
    }

    fn heal(&self) {
        self.guarded.bed.store().faults().clear();
    }

    async fn drop(&self, database: &str) {
        let sql = format!("DROP DATABASE IF EXISTS \"{database}\" WITH (FORCE)");
        self.guarded.bed.cluster.execute("postgres", &sql).await.unwrap();
    }

    /// Operations and the kinds of object they were for, of a swap that ends well; it is undone.
    async fn calls(&self) -> BTreeMap<(String, String), u64> {
        self.guarded.bed.store().clear_requests();
        let outcome = self.guarded.ask(self.request("swap")).await;
        assert!(!outcome.is_error(), "{:#}", outcome.payload);
        let mut calls = BTreeMap::new();
        for request in self.guarded.bed.store().requests() {
            *calls.entry((request.operation, kind(&request.key.unwrap_or_default()))).or_default() += 1;
        }
        self.back().await;
        calls
    }

    /// Where a swap has happened, it is undone.
    async fn back(&self) {
        let (before, undone) = (format!("shop_before_{}", self.id), format!("shop_undone_{}", self.id));
        if self.guarded.databases().await.contains(&before) {
            let outcome = self.guarded.ask(json!({"mode": "undo", "passkey": PASSKEY})).await;
            assert!(!outcome.is_error(), "{:#}", outcome.payload);
            assert_eq!(self.guarded.bed.contents(&undone).await, self.new);
            self.drop(&undone).await;
        }
        assert_eq!(self.guarded.bed.contents("shop").await, self.old);
    }

    /// As if their time had passed.
    async fn let_leases_expire(&self) {
        for key in self.guarded.keys("restores/leases/") {
            let mut lease = self.guarded.json(&key).await;
            if lease["expires"].is_string() {
                lease["expires"] = json!("2020-01-01T00:00:00Z");
                self.guarded.put(&key, lease.to_string()).await;
            }
        }
    }
}

/// The first two folders of a key.
fn kind(key: &str) -> String {
    key.split('/').take(2).collect::<Vec<_>>().join("/")
}

fn status(status: u16, code: &str) -> FaultAction {
    FaultAction::Status { status, code: code.to_owned() }
}

fn at((operation, kind): &(String, String), nth: u64, action: FaultAction) -> Fault {
    const OPERATIONS: [&str; 4] = ["GetObject", "HeadObject", "ListObjectsV2", "PutObject"];
    let operation = OPERATIONS.into_iter().find(|known| known == operation).unwrap_or_else(|| panic!("{operation}"));
    let key_contains = (!kind.is_empty()).then(|| kind.clone());
    Fault { key_contains, ..Fault::nth(operation, nth, action) }
}

async fn each_call_once(action: FaultAction) {
    let scene = Scene::start().await;
    for (call, count) in scene.calls().await {
        for nth in 1..=count.min(2) {
            let moment = format!("{action:?} at {call:?} {nth}");
            scene.strike(at(&call, nth, action.clone()));
            let outcome = scene.guarded.ask(scene.request("swap")).await;
            assert_eq!(scene.guarded.bed.store().faults().pending(), 0, "{moment} was not met");
            scene.heal();
            assert!(!outcome.is_error(), "{moment}: {:#}", outcome.payload);
            assert_eq!(scene.guarded.bed.contents("shop").await, scene.new, "{moment}");
            let record = scene.guarded.record(&outcome.request_id).await;
            assert_eq!((&record["state"], &record["outcome"]), (&json!("succeeded"), &outcome.payload), "{moment}");
            scene.back().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failure_at_any_call_of_a_restore_is_survived() {
    join_all([each_call_once(status(503, "SlowDown")), each_call_once(FaultAction::ResetAfter)]).await;
}

/// From one call on, the store does not answer as it should. How many restores ended well all the same.
async fn from_each_call_on(action: FaultAction, times: u64) -> u64 {
    let (scene, mut ended_well) = (Scene::start().await, 0);
    for (call, count) in scene.calls().await {
        for nth in BTreeSet::from([1, count]) {
            let moment = format!("{action:?} from {call:?} {nth} on");
            scene.strike(Fault { times, ..at(&call, nth, action.clone()) });
            let outcome = scene.guarded.ask(scene.request("swap")).await;
            scene.heal();
            let live = scene.guarded.bed.contents("shop").await;
            ended_well += u64::from(!outcome.is_error());
            let expected = if outcome.is_error() { &scene.old } else { &scene.new };
            assert_eq!(&live, expected, "{moment}: {:#}", outcome.payload);
            scene.let_leases_expire().await;
            scene.back().await;
        }
    }
    ended_well
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_or_lies_leaves_the_old_database_or_the_proved_one() {
    let (refused, spoiled) = tokio::join!(
        from_each_call_on(status(403, "AccessDenied"), 1000),
        from_each_call_on(FaultAction::CorruptBody, 1),
    );
    // What tells of a restore may fail without undoing it, and reads that arrive spoiled are made again.
    assert!((1..20).contains(&refused) && spoiled > 10, "{refused}, {spoiled}");
}

/// Dead before a call is carried out, or after.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_call_of_a_restore_leaves_one_whole_database() {
    let scene = Scene::start().await;
    let mut moments = 0;
    for (call, count) in scene.calls().await {
        for nth in BTreeSet::from([1, count]) {
            moments += 1;
            let action =
                if moments % 2 == 0 { FaultAction::Hang(HELD) } else { FaultAction::Delay(Duration::from_millis(60)) };
            scene.strike(at(&call, nth, action));
            let kill = async {
                struck(&scene.guarded.bed).await;
                scene.guarded.bed.lambda.kill_instances(RESTORE);
            };
            let (outcome, ()) = tokio::join!(scene.guarded.ask(scene.request("swap")), kill);
            scene.heal();
            let moment = format!("killed at {call:?} {nth}");
            assert_eq!(outcome.payload["errorType"], "Runtime.ExitError", "{moment}: {:#}", outcome.payload);
            tokio::time::sleep(Duration::from_millis(80)).await;
            let swapped = scene.guarded.databases().await.iter().any(|name| name.contains("_before_"));
            let expected = if swapped { &scene.new } else { &scene.old };
            assert_eq!(&scene.guarded.bed.contents("shop").await, expected, "{moment}");
            scene.let_leases_expire().await;
            scene.back().await;
            if moments % 4 == 0 {
                let outcome = scene.guarded.ask(scene.request("swap")).await;
                assert!(!outcome.is_error(), "{moment}: {:#}", outcome.payload);
                scene.back().await;
                let left = scene.guarded.databases().await;
                assert_eq!(left, ["postgres", "shop", "template0", "template1"], "{moment}");
            }
        }
    }
    assert!(moments > 10, "{moments} moments only");
}
