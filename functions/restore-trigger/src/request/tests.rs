use super::*;

#[expect(clippy::needless_pass_by_value, reason = "a json! literal reads better without a reference")]
fn request(event: Value) -> RestoreRequest {
    understand(&event).unwrap().0
}

#[expect(clippy::needless_pass_by_value, reason = "a json! literal reads better without a reference")]
fn refused(event: Value) -> Fault {
    understand(&event).unwrap_err()
}

fn choice(event: Value) -> BackupChoice {
    match request(event).source {
        SourceChoice::Backup(choice) => choice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_backup_is_named_in_all_documented_ways() {
    let id = "20250621-143000".parse().unwrap();
    let before: Timestamp = "2025-06-21T14:00:00Z".parse().unwrap();
    let staging = || Some("staging".parse().unwrap());
    for (event, which, environment) in [
        (json!({"backup": "20250621-143000"}), Which::Id(id), None),
        (json!({"backup": "20250621-143000@staging"}), Which::Id(id), staging()),
        (json!({"backup": "latest"}), Which::Latest { before: None }, None),
        (json!({"backup": "latest@staging"}), Which::Latest { before: None }, staging()),
        (json!({"before": "2025-06-21T14:00:00Z"}), Which::Latest { before: Some(before) }, None),
        (
            json!({"backup": "latest@staging", "before": "2025-06-21T14:00:00Z"}),
            Which::Latest { before: Some(before) },
            staging(),
        ),
    ] {
        let found = choice(event.clone());
        assert_eq!((found.which, found.environment), (which, environment), "{event}");
    }
}

#[test]
fn each_mode_takes_its_own_fields() {
    assert_eq!(request(json!({"backup": "latest"})).mode, Mode::NewDatabase);
    let tables = request(json!({"mode": "tables", "backup": "latest", "tables": ["public.*"], "into": "original"}));
    assert_eq!((tables.into, tables.tables.len()), (Place::Original, 1));
    assert_eq!(request(json!({"mode": "undo"})).source, SourceChoice::Previous);
    let rds = request(json!({"mode": "rds_point_in_time", "moment": "latest", "instance": "shop-2"}));
    assert_eq!(rds.source, SourceChoice::RdsMoment(None));
    let plan = request(json!({"mode": "plan", "plan_for": "swap", "backup": "latest", "keep_previous_days": 7}));
    assert_eq!((plan.mode, plan.plan_only), (Mode::Swap, true));
    assert_eq!(request(json!({"mode": "verify"})).requested_by, "invoke");
}

#[test]
fn only_a_drill_is_scheduled() {
    let schedule = |mode: &str| {
        json!({"source": "holdfast.schedule", "schedule_arn": "arn:s", "scheduled_time": "2025-06-21T02:00:00Z",
               "mode": mode})
    };
    let (drill, passkey) = understand(&schedule("verify")).unwrap();
    assert_eq!((drill.mode, drill.requested_by.as_str(), passkey), (Mode::Verify, "schedule", None));
    assert_eq!(drill.event_key.as_deref(), Some("schedule:arn:s:2025-06-21T02:00:00Z"));
    let direct = json!({"backup": "latest", "passkey": "p"});
    let alarm = json!({"alarmArn": "a", "time": "t", "alarmData": {"alarmName": "x", "state": {"value": "ALARM"}}});
    for event in [
        schedule("swap"),
        schedule("plan"),
        json!({"source": "aws.events", "detail-type": "Scheduled Event", "time": "2025-06-21T02:00:00Z", "resources": ["r"]}),
        json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": direct.to_string()}}]}),
        json!({"Records": [{"eventSource": "aws:sqs", "body": direct.to_string()}]}),
        json!({"Type": "Notification", "Message": direct.to_string()}),
        json!({"Records": []}),
        alarm,
        json!({"source": "aws.s3", "detail-type": "Object Created", "detail": {}}),
    ] {
        assert_eq!(refused(event.clone()).code, "restore-not-from-events", "{event}");
    }
    assert_eq!(refused(json!(7)).code, "event-not-an-object");
}

#[test]
fn each_thing_that_is_wrong_has_its_own_error() {
    for (event, code, word) in [
        (json!({"backup": "latest", "bucket": "evil", "role": "x"}), "request-unknown-fields", "bucket, role"),
        (json!({"mode": "undo", "backup": "latest"}), "request-unknown-fields", "backup"),
        (
            json!({"mode": "swap", "backup": "latest", "continue_on_error": true}),
            "request-unknown-fields",
            "continue_on_error",
        ),
        (json!({"mode": "drop", "backup": "latest"}), "request-malformed", "mode"),
        (json!({"mode": "plan", "plan_for": "plan"}), "request-malformed", "mode"),
        (json!({}), "request-malformed", "no backup"),
        (json!({"backup": "yesterday"}), "request-malformed", "yesterday"),
        (json!({"backup": "latest@Prod"}), "request-malformed", "Prod"),
        (json!({"backup": "20250621-143000", "before": "2025-06-21T14:00:00Z"}), "request-malformed", "before"),
        (json!({"before": "yesterday"}), "request-malformed", ""),
        (json!({"import": "../x"}), "request-malformed", "import"),
        (json!({"import": "x", "backup": "latest"}), "request-malformed", "import"),
        (json!({"backup": "latest", "passkey": 1}), "request-malformed", "passkey"),
        (json!({"mode": "tables", "backup": "latest"}), "request-malformed", "tables"),
        (
            json!({"mode": "tables", "backup": "latest", "tables": ["a.b"], "take_safety_backup": true}),
            "request-malformed",
            "take_safety_backup",
        ),
        (
            json!({"mode": "swap", "backup": "latest", "keep_previous_days": 0}),
            "request-malformed",
            "keep_previous_days",
        ),
        (json!({"backup": "latest", "requested_by": "a\nb"}), "request-malformed", "requested_by"),
        (json!({"mode": "rds_snapshot"}), "request-malformed", "instance"),
        (json!({"mode": "rds_point_in_time", "instance": "x"}), "request-malformed", "moment"),
    ] {
        let fault = refused(event.clone());
        assert_eq!(fault.code, code, "{event}");
        assert!(fault.message.contains(word), "{word} in {fault}");
    }
}

#[test]
fn the_passkey_is_in_nothing_that_is_printed_or_kept() {
    for event in [
        json!({"backup": "latest", "passkey": "hunter2-hunter2"}),
        json!({"backup": 7, "passkey": "hunter2-hunter2"}),
        json!({"bucket": "x", "passkey": "hunter2-hunter2"}),
    ] {
        let understood = understand(&event);
        assert!(!format!("{understood:?}").contains("hunter2"), "{understood:?}");
    }
    let (request, passkey) = understand(&json!({"backup": "latest", "passkey": "hunter2-hunter2"})).unwrap();
    assert_eq!(request.asked, json!({"backup": "latest", "mode": "new_database"}));
    assert_eq!(passkey.unwrap().expose(), "hunter2-hunter2");
}
