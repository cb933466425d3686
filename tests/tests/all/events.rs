//! Every kind of event through the real function, and events that come more than once.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use holdfast_local::lambda::{InvokeOptions, InvokeOutcome};
use holdfast_local::s3::{Fault, FaultAction};
use serde_json::{Value, json};

use crate::bed::{BUCKET, Bed, EXPORT};
use crate::scene::{MAJOR, listed, night, proved, scheduled, small_database};

const DEADLINE: Duration = Duration::from_secs(60);

async fn small_bed() -> Bed {
    let bed = Bed::start(MAJOR).await;
    small_database(&bed, "shop").await;
    bed.register_export("shop", &[]);
    bed
}

fn alarm_action(name: &str, state: &str, at: &str) -> Value {
    json!({"source": "aws.cloudwatch", "alarmArn": format!("arn:aws:cloudwatch:us-east-1:123456789012:alarm:{name}"),
           "accountId": "123456789012", "time": at, "region": "us-east-1",
           "alarmData": {"alarmName": name, "state": {"value": state, "reason": "r", "reasonData": "{}", "timestamp": at},
                         "previousState": {"value": "OK", "reason": "r", "timestamp": at},
                         "configuration": {"metrics": [{"id": "e1", "expression": "m1 / 2", "returnData": true}]}}})
}

fn alarm_notification(state: &str, at: &str) -> Value {
    json!({"AlarmName": "shop-BackupMissing", "AlarmArn": "arn:aws:cloudwatch:us-east-1:123456789012:alarm:shop-BackupMissing",
           "NewStateValue": state, "OldStateValue": "OK", "StateChangeTime": at, "Trigger": {"Period": 86400}})
}

fn sns(message: &Value) -> Value {
    json!({"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": {"Message": message.to_string()}}]})
}

fn sqs(body: &Value) -> Value {
    json!({"Records": [{"eventSource": "aws:sqs", "messageId": "m", "body": body.to_string()}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_an_export_or_nothing_or_an_error_of_its_own() {
    let bed = small_bed().await;
    let state_change = json!({"version": "0", "source": "aws.cloudwatch", "detail-type": "CloudWatch Alarm State Change",
        "time": "2025-03-04T00:00:00Z", "resources": ["arn:aws:cloudwatch:us-east-1:123456789012:alarm:shop-BackupMissing"],
        "detail": {"alarmName": "shop-BackupMissing", "state": {"value": "ALARM", "timestamp": "2025-03-04T00:00:00.000+0000"}}});
    let scheduler = json!({"version": "0", "source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": "{}",
        "time": "2025-03-02T02:00:00Z", "resources": ["arn:aws:scheduler:us-east-1:123456789012:schedule/default/nightly"]});
    let scheduler_input = json!({"source": "holdfast.schedule", "purpose": "weekly_backup", "scheduled_time": "2025-03-03T02:00:00Z",
        "schedule_arn": "arn:aws:scheduler:us-east-1:123456789012:schedule/default/weekly"});
    let exports = [
        (scheduled("2025-03-01T02:00:00Z"), "daily_backup", Some("20250301-020000")),
        (scheduler, "daily_backup", Some("20250302-020000")),
        (scheduler_input, "weekly_backup", Some("20250303-020000")),
        (state_change, "alarm_followup", None),
        (alarm_action("shop-BackupMissing", "ALARM", "2025-03-05T11:53:08.431+0000"), "alarm_followup", None),
        (sns(&alarm_notification("ALARM", "2025-03-06T11:53:08.431+0000")), "alarm_followup", None),
        (sqs(&sns(&scheduled("2025-03-07T02:00:00Z"))), "daily_backup", Some("20250307-020000")),
        (json!({}), "on_demand", None),
    ];
    let expected = exports.len();
    for (event, purpose, id) in exports {
        let receipt = bed.export(event.clone()).await;
        assert_eq!((&receipt["purpose"], &receipt["duplicate"]), (&json!(purpose), &json!(false)), "{event}");
        if let Some(id) = id {
            assert_eq!(receipt["id"], id, "{event}");
        }
        assert_eq!(bed.manifest(&receipt).await.purpose, purpose);
    }
    assert_eq!(bed.manifests().len(), expected);

    for event in [
        alarm_action("shop-BackupMissing", "OK", "2025-03-05T12:53:08.431+0000"),
        sns(&alarm_notification("INSUFFICIENT_DATA", "2025-03-06T12:53:08.431+0000")),
    ] {
        let answer = bed.export(event).await;
        assert_eq!(answer["status"], "ignored");
        assert!(answer["reason"].as_str().unwrap().contains("shop-BackupMissing"), "{answer}");
    }

    let s3_event = json!({"source": "aws.s3", "detail-type": "Object Created", "detail": {"bucket": {"name": "b"}, "object": {"key": "k"}}});
    let rds_event = json!({"source": "aws.rds", "detail-type": "RDS DB Snapshot Event", "detail": {"EventCategories": ["creation"]}});
    let two = json!({"Records": [sqs(&json!({}))["Records"][0], sqs(&json!({}))["Records"][0]]});
    let kinesis = json!({"Records": [{"eventSource": "aws:kinesis", "kinesis": {}}]});
    let no_time = json!({"source": "aws.events", "detail-type": "Scheduled Event", "resources": ["arn"]});
    for (event, code, named) in [
        (json!({"purpose": "x", "bucket": "evil", "role": "r"}), "request-unknown-fields", "bucket, role"),
        (json!({"purpose": "x y"}), "request-malformed", "x y"),
        (json!({"tables": ["public.nosuch"]}), "tables-not-found", "public.nosuch"),
        (s3_event, "event-not-for-this-function", "Object Created"),
        (sns(&rds_event), "event-not-for-this-function", "RDS DB Snapshot Event"),
        (alarm_action("CpuHigh", "ALARM", "2025-03-05T11:53:08.431+0000"), "event-alarm-not-followed-up", "CpuHigh"),
        (two, "event-batch", "2 messages"),
        (kinesis, "event-unknown-records", "aws:kinesis"),
        (no_time, "event-incomplete", "time"),
        (scheduled("yesterday"), "event-unreadable", "yesterday"),
        (json!([1]), "event-not-an-object", ""),
    ] {
        let (found, message) = bed.export_fails(event.clone()).await;
        assert_eq!(found, code, "{event}: {message}");
        assert!(message.contains(named), "{event}: {message}");
    }
    assert_eq!(bed.manifests().len(), expected, "an event that is no export made one");
}

fn of(outcomes: &[InvokeOutcome], field: &str) -> BTreeSet<String> {
    outcomes.iter().map(|outcome| outcome.payload[field].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_delivered_twenty_times_at_once_and_again_is_one_backup() {
    let bed = small_bed().await;
    let event = scheduled("2025-06-21T02:00:00Z");
    let mut outcomes = join_all((0..12).map(|_| bed.invoke(event.clone()))).await;
    for _ in 0..8 {
        outcomes.push(bed.invoke(event.clone()).await);
    }
    for outcome in &outcomes {
        assert!(!outcome.is_error(), "{:#}\n{}", outcome.payload, outcome.log.join("\n"));
    }
    assert_eq!(of(&outcomes, "id"), BTreeSet::from(["\"20250621-020000\"".to_owned()]));
    assert_eq!(of(&outcomes, "artifacts").len(), 1, "every receipt is of the same object");
    let duplicates = outcomes.iter().filter(|outcome| outcome.payload["duplicate"] == true).count();
    assert_eq!(duplicates, 19);
    let dumps: Vec<_> = bed.store().objects(BUCKET).into_iter().filter(|o| o.key.contains("/dumps/")).collect();
    assert_eq!((dumps.len(), bed.manifests().len()), (1, 1));
    assert_eq!(bed.store().pending_uploads(BUCKET), []);
    let manifest = bed.manifest(&outcomes[0].payload).await;
    proved(&bed, &manifest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_retried_under_its_id_is_one_backup() {
    let bed = small_bed().await;
    // Its first delivery fails once it has claimed its backup id, and the emulator delivers it again.
    let denied = FaultAction::Status { status: 403, code: "AccessDenied".into() };
    bed.store().faults().push(Fault::next("CreateMultipartUpload", denied));
    let options = InvokeOptions { request_id: Some("req-7".to_owned()), asynchronous: true, timeout: Some(DEADLINE) };
    bed.lambda.invoke_with(EXPORT, json!({"purpose": "on_purpose"}), options).await.unwrap();
    bed.lambda.events_settled().await;
    assert_eq!(bed.store().faults().pending(), 0);
    assert_eq!(bed.lambda.async_failures(), []);
    assert_eq!(bed.manifests().len(), 1);

    // Nine more, at once; and two of another request.
    let again = join_all((0..9).map(|_| bed.invoke_as("req-7", json!({"purpose": "on_purpose"})))).await;
    let manifest = listed(&bed).await.remove(0);
    for outcome in &again {
        assert_eq!(outcome.payload["duplicate"], true, "{:#}", outcome.payload);
        assert_eq!(outcome.payload["id"], manifest.timestamp.to_string());
    }
    let other = json!({"idempotency_key": "before-migration-12"});
    let (one, two) = tokio::join!(bed.invoke(other.clone()), bed.invoke(other));
    assert!(!one.is_error() && !two.is_error(), "{one:#?}\n{two:#?}");
    assert_eq!(one.payload["id"], two.payload["id"]);
    assert_ne!(one.payload["id"], manifest.timestamp.to_string());
    assert_eq!(bed.manifests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_that_starts_the_exports_of_two_databases_makes_both_backups() {
    let bed = small_bed().await;
    small_database(&bed, "accounts").await;
    let mut other = bed.export_spec("accounts", &[]);
    other.name = "export-accounts".to_owned();
    bed.lambda.register(other);
    for event in [night(0), json!({"idempotency_key": "release-5"})] {
        let (shop, accounts) = tokio::join!(bed.invoke(event.clone()), bed.lambda.invoke("export-accounts", event));
        let (shop, accounts) = (shop.payload, accounts.unwrap().payload);
        assert_eq!((&shop["database"], &accounts["database"]), (&json!("shop"), &json!("accounts")));
        assert_eq!((&shop["duplicate"], &accounts["duplicate"]), (&json!(false), &json!(false)));
        assert_ne!(shop["id"], accounts["id"]);
    }
    assert_eq!(bed.manifests().len(), 4);
}
