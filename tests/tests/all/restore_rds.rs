//! New RDS servers of snapshots and of moments: what is refused, what is asked of RDS, and how it is followed.

use std::time::Duration;

use futures::future::join_all;
use holdfast_local::lambda::InvokeOptions;
use holdfast_local::rds::{RdsServer, Server, Snapshot};
use serde_json::{Value, json};

use crate::guarded::{Guarded, PASSKEY, RESTORE, code, codes, edited};
use crate::restore_thaw::entry_stays;

const ANOTHERS: &str = "arn:aws:rds:us-east-1:999999999999:snapshot:manual-1";

struct Rig {
    guarded: Guarded,
    rds: RdsServer,
}

impl Rig {
    async fn start(source: &str) -> Self {
        let (guarded, rds) = (Guarded::start().await, RdsServer::start().await.unwrap());
        rds.allow_only(crate::bed::rds_rights(RESTORE));
        let rig = Self { guarded, rds };
        rig.register(&[("RDS_SOURCE", source)]);
        rig
    }

    fn register(&self, settings: &[(&str, &str)]) {
        let endpoint = self.rds.endpoint();
        let usual = [("AWS_ENDPOINT_URL_RDS", endpoint.as_str()), ("DEADLINE_MARGIN_SECONDS", "10")];
        self.guarded.register(&[&usual, settings].concat());
    }

    async fn ask_within(&self, seconds: u64, request_id: &str, payload: Value) -> Value {
        let timeout = Some(Duration::from_secs(seconds));
        let options = InvokeOptions { request_id: Some(request_id.to_owned()), timeout, ..InvokeOptions::default() };
        let outcome = self.guarded.bed.lambda.invoke_with(RESTORE, payload, options).await.unwrap();
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
        outcome.payload
    }

    async fn poll(&self) -> Value {
        self.guarded.ask(json!({"mode": "resume"})).await.payload
    }

    fn made(&self, action: &str) -> usize {
        self.rds.calls_of(action).len()
    }
}

fn with(mut payload: Value, fields: &Value) -> Value {
    payload.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    payload
}

fn source() -> Server {
    Server {
        subnet_group: Some("private".into()),
        security_groups: vec!["sg-7".into(), "sg-8".into()],
        parameter_group: Some("tuned".into()),
        iam_auth: true,
        port: 5433,
        tags: [("team", "data"), ("aws:cloudformation:stack-name", "x")].map(|(k, v)| (k.into(), v.into())).into(),
        ..Server::instance("shop")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_becomes_an_instance_like_its_source() {
    let rig = Rig::start("shop").await;
    rig.rds.add_server(source());
    rig.rds.add_snapshot(Snapshot::automated("rds:shop-2025-06-20-02-00", "shop", "2025-06-20T02:00:00Z"));
    rig.rds.add_snapshot(Snapshot::automated("rds:shop-2025-06-21-02-00", "shop", "2025-06-21T02:00:00Z"));
    rig.rds.add_snapshot(Snapshot {
        status: Some("creating".into()),
        ..Snapshot::manual("new", "shop", "2025-06-22T02:00:00Z")
    });
    rig.rds.add_snapshot(Snapshot::manual("others", "crm", "2025-06-21T02:00:00Z"));
    rig.rds.add_snapshot(Snapshot::manual("manual-1", "shop", "2025-06-01T02:00:00Z"));
    let ask = json!({"mode": "rds_snapshot", "snapshot": "latest", "instance": "shop-2", "passkey": PASSKEY});
    let plan = rig.guarded.plan(json!({"mode": "plan", "plan_for": "rds_snapshot", "instance": "shop-2"})).await;
    assert_eq!(plan["allowed"], json!(true), "{plan:#}");
    assert_eq!(plan["rds"]["snapshot"]["id"], json!("rds:shop-2025-06-21-02-00"));
    assert_eq!(plan["rds"]["new"]["security_groups"], json!(["sg-7", "sg-8"]));

    for (fields, expected) in [
        (json!({"passkey": Value::Null}), "restore-passkey-missing"),
        (json!({"snapshot": "absent"}), "restore-rds-snapshot-unknown"),
        (json!({"snapshot": "others"}), "restore-rds-snapshot-foreign"),
        (json!({"snapshot": ANOTHERS}), "restore-rds-snapshot-foreign"),
        (json!({"snapshot": "new"}), "restore-rds-snapshot-not-available"),
        (json!({"instance": "shop"}), "restore-rds-target-exists"),
        (json!({"instance": "shop_2"}), "restore-name-invalid"),
        (json!({"role": "arn:aws:iam::999999999999:role/x"}), "request-unknown-fields"),
    ] {
        assert_eq!(rig.guarded.refused(with(ask.clone(), &fields)).await, expected, "{fields}");
    }
    rig.register(&[]);
    assert_eq!(rig.guarded.refused(ask.clone()).await, "restore-rds-not-configured");
    rig.register(&[("RDS_SOURCE", "shop")]);
    assert_eq!(rig.made("RestoreDBInstanceFromDBSnapshot"), 0);

    rig.rds.set_creating(3);
    let outcome = rig.guarded.ask_as("made", ask.clone()).await;
    let receipt = &outcome.payload;
    assert!(!outcome.is_error(), "{receipt:#}\n{}", outcome.log.join("\n"));
    assert_eq!((&receipt["status"], &receipt["endpoint"]["port"]), (&json!("available"), &json!(5433)));
    assert_eq!(receipt["endpoint"]["address"], json!("shop-2.abc.us-east-1.rds.amazonaws.com"));
    assert_eq!(receipt["made_of"]["snapshot"], json!("rds:shop-2025-06-21-02-00"));
    assert!(outcome.log.join("\n").contains("\"RestoreSucceeded\":1.0"));
    let call = rig.rds.calls_of("RestoreDBInstanceFromDBSnapshot").remove(0);
    let parameter = |name: &str| call.parameters.get(name).map(String::as_str).unwrap_or_default();
    for (name, value) in [
        ("DBSubnetGroupName", "private"),
        ("DBParameterGroupName", "tuned"),
        ("DBInstanceClass", "db.t4g.medium"),
        ("EnableIAMDatabaseAuthentication", "true"),
        ("PubliclyAccessible", "false"),
        ("Port", "5433"),
    ] {
        assert_eq!(parameter(name), value, "{name} in {call:#?}");
    }
    let made = rig.rds.servers().into_iter().find(|server| server.id == "shop-2").unwrap();
    assert_eq!(made.security_groups, ["sg-7", "sg-8"]);
    let tags: Vec<(&str, &str)> = made.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = [
        ("holdfast:environment", "test"),
        ("holdfast:request", "made"),
        ("holdfast:restored-from", "shop"),
        ("team", "data"),
    ];
    assert_eq!(tags, expected);
    let record = rig.guarded.record("made").await;
    assert_eq!((&record["state"], &record["outcome"]["endpoint"]), (&json!("succeeded"), &receipt["endpoint"]));
    assert_eq!(rig.guarded.ask_as("made", ask).await.payload["duplicate"], json!(true));
    assert_eq!((rig.made("RestoreDBInstanceFromDBSnapshot"), &rig.poll().await["status"]), (1, &json!("ignored")));

    // What the request wants otherwise; and a snapshot that has outlived its server.
    rig.rds.edit_server("shop", |server| server.id = "gone".into());
    let lost = json!({"mode": "rds_snapshot", "snapshot": "manual-1", "instance": "shop-3", "passkey": PASSKEY});
    assert_eq!(rig.guarded.refused(lost.clone()).await, "restore-rds-source-missing");
    rig.rds.set_creating(0);
    let placed = json!({"subnet_group": "other", "security_groups": ["sg-9"], "instance_class": "db.r6g.large"});
    rig.ask_within(90, "placed", with(lost, &placed)).await;
    let made = rig.rds.servers().into_iter().find(|server| server.id == "shop-3").unwrap();
    assert_eq!((made.subnet_group.as_deref(), made.class.as_str()), (Some("other"), "db.r6g.large"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_long_is_followed_by_polls_and_told_once() {
    let rig = Rig::start("cluster:aurora").await;
    let acus = Some(("0.5".to_owned(), "16".to_owned()));
    rig.rds.add_server(Server { parameter_group: Some("tuned".into()), acus, ..Server::cluster("aurora") });
    let member =
        Server { cluster: Some("aurora".into()), class: "db.serverless".into(), ..Server::instance("aurora-a") };
    rig.rds.add_server(member);
    let ask = |instance: &str, moment: &str| json!({"mode": "rds_point_in_time", "moment": moment, "instance": instance, "passkey": PASSKEY});
    for moment in ["2025-06-21T14:25:01Z", "2025-06-14T01:59:59Z"] {
        let outcome = rig.guarded.ask(ask("late", moment)).await;
        assert_eq!(code(&outcome), "restore-rds-moment-outside");
        let message = outcome.payload["errorMessage"].as_str().unwrap();
        assert!(message.contains("2025-06-14T02:00:00Z to 2025-06-21T14:25:00Z"), "{message}");
    }
    rig.rds.set_creating(1_000);
    let receipt = rig.ask_within(21, "long", ask("aurora-2", "2025-06-20T12:00:00Z")).await;
    assert_eq!((&receipt["status"], &receipt["rds_status"]), (&json!("waiting"), &json!("creating")), "{receipt:#}");
    assert_eq!(rig.guarded.record("long").await["state"], json!("waiting"));
    let call = rig.rds.calls_of("RestoreDBClusterToPointInTime").remove(0);
    assert_eq!(call.parameters["RestoreToTime"], "2025-06-20T12:00:00Z");
    assert_eq!(call.parameters["DBClusterParameterGroupName"], "tuned");
    let acus =
        ["Min", "Max"].map(|limit| &call.parameters[&format!("ServerlessV2ScalingConfiguration.{limit}Capacity")]);
    assert_eq!(
        acus.map(|text| text.parse::<f64>().unwrap()),
        [0.5, 16.0],
        "without it RDS makes no serverless instance"
    );
    assert_eq!(rig.poll().await["waiting"][0]["request_id"], json!("long"));

    // The cluster is there, and then the instance that is put into it.
    rig.rds.edit_server("aurora-2", |server| server.creating = 0);
    assert_eq!(rig.poll().await["waiting"][0]["request_id"], json!("long"));
    let call = rig.rds.calls_of("CreateDBInstance").remove(0);
    let instance =
        ["DBInstanceIdentifier", "DBClusterIdentifier", "DBInstanceClass"].map(|name| call.parameters[name].as_str());
    assert_eq!(instance, ["aurora-2-1", "aurora-2", "db.serverless"]);
    assert_eq!(rig.poll().await["waiting"][0]["request_id"], json!("long"));
    rig.rds.edit_server("aurora-2-1", |server| server.creating = 0);
    rig.guarded.bed.store().faults().push(entry_stays("long"));
    let polls = join_all((0..8).map(|_| rig.poll())).await;
    rig.guarded.bed.store().faults().clear();
    let failed = polls.iter().filter(|poll| poll.get("errorType").is_some());
    assert_eq!(failed.count(), 0, "an entry that stays makes no failure of a server that is there: {polls:#?}");
    let log = rig.guarded.bed.lambda.logs(RESTORE).join("\n");
    assert_eq!(log.matches("\"RestoreSucceeded\":1.0").count(), 1);
    let told: Vec<&Value> = polls.iter().filter(|poll| poll["resumed"][0]["request_id"] == json!("long")).collect();
    assert_eq!(told.len(), 1, "{polls:#?}");
    let answer = &told[0]["resumed"][0]["answer"];
    assert_eq!((&answer["endpoint"]["port"], &answer["instance"]), (&json!(5432), &json!("aurora-2-1")), "{answer:#}");
    assert_eq!(rig.guarded.record("long").await["outcome"], *answer);
    assert_eq!((rig.made("RestoreDBClusterToPointInTime"), rig.made("CreateDBInstance")), (1, 1));
    assert_eq!(rig.poll().await["status"], json!("ignored"));

    // One that fails, one that is deleted, and one that was never begun.
    let first = rig.ask_within(21, "fails", ask("aurora-3", "latest")).await;
    assert_eq!((&first["status"], &first["made_of"]["moment"]), (&json!("waiting"), &json!("2025-06-21T14:25:00Z")));
    rig.rds
        .edit_server("aurora-3", |server| (server.creating, server.status) = (0, Some("incompatible-restore".into())));
    let failed = rig.poll().await;
    assert_eq!(failed["errorType"], json!("restore-rds-failed"), "{failed:#}");
    assert_eq!(codes(&rig.guarded.record("fails").await["problems"]), ["restore-rds-failed"]);
    rig.ask_within(21, "deleted", ask("aurora-4", "latest")).await;
    rig.rds.edit_server("aurora-4", |server| server.id = "renamed".into());
    assert_eq!(rig.poll().await["errorType"], json!("restore-rds-failed"));

    rig.rds.fail("RestoreDBClusterToPointInTime", 403, "AccessDenied", "not authorized", 1);
    let outcome = rig.guarded.ask_as("never", ask("aurora-5", "latest")).await;
    assert_eq!(code(&outcome), "rds-access-denied", "{:#}", outcome.payload);
    let keys = rig.guarded.keys("never.json");
    let (record, entry) = (keys.iter().find(|k| k.contains("/20")).unwrap(), "restores/waiting/test/never.json");
    let died = edited(rig.guarded.json(record).await, |record| {
        (record["state"], record["running_until"]) = (json!("running"), json!("2025-06-21T00:00:00Z"));
    });
    rig.guarded.put(record, died.to_string()).await;
    let waits = json!({"request_id": "never", "date": record[9..19], "attempt": 1});
    rig.guarded.put(entry, waits.to_string()).await;
    rig.rds.set_creating(0);
    rig.rds.fail("RestoreDBClusterToPointInTime", 403, "AccessDenied", "not authorized", 1);
    assert_eq!(rig.poll().await["errorType"], json!("rds-access-denied"));
    assert_eq!(rig.guarded.record("never").await["state"], json!("waiting"), "it is begun at the next poll");
    let resumed = rig.poll().await;
    assert_eq!(resumed["resumed"][0]["answer"]["id"], json!("aurora-5"), "{resumed:#}");
    assert_eq!(rig.guarded.record("never").await["state"], json!("succeeded"));
}
